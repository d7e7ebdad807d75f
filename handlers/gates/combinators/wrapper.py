"""A gate around one other: everything is the inner gate's, but for what a subclass changes."""

from __future__ import annotations

from collections.abc import Mapping

from handlers.contract.request import Request
from handlers.gates.gate import NO_LABELS, Answer, Gate, GateState, Share, Verdict


class WrapperGate(Gate):
    """Passes every question on to `inner`."""

    def __init__(self, inner: Gate) -> None:
        self._inner = inner

    async def start(self) -> None:
        """Start the inner gate."""
        await self._inner.start()

    async def aclose(self) -> None:
        """Close the inner gate."""
        await self._inner.aclose()

    def take_over(self, before: Gate) -> None:
        """The inner gate goes on from the other's inner gate."""
        if isinstance(before, WrapperGate) and before.gate_type == self.gate_type:
            self._inner.take_over(before._inner)

    def budget(self) -> float:
        """The inner gate's."""
        return self._inner.budget()

    def shares(self) -> tuple[Share, ...]:
        """The inner gate's."""
        return self._inner.shares()

    def shares_pool(self) -> bool:
        """If the inner gate does."""
        return self._inner.shares_pool()

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:
        """The inner gate's."""
        return self._inner.room(labels)

    async def admit(self, request: Request) -> Verdict:
        """The inner gate's verdict."""
        return await self._inner.admit(request)

    async def wait_open(self, until_at: float) -> bool:
        """Wait for the inner gate."""
        return await self._inner.wait_open(until_at)

    def observe(self, request: Request, answer: Answer) -> None:
        """Tell the inner gate."""
        self._inner.observe(request, answer)

    def state(self) -> GateState:
        """Under this gate's type, with the inner gate's below."""
        inner = self._inner.state()
        return GateState(
            self.gate_type,
            budget=self.budget(),
            is_source_available=inner.is_source_available,
            why_closed=inner.why_closed,
            inner=(inner,),
        )
