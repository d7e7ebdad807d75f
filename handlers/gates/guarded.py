"""A gate of another package, guarded: an error in its code closes the gate and ends nothing else.

An exception or an invalid value counts as a missing source: the gate admits nothing until the method answers again.
A change is logged once, and `state()` reports it. A method that blocks the event loop cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from handlers.contract.masked_text import without_secrets
from handlers.contract.request import Request
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    NO_LABELS,
    POLL_SECONDS,
    Drop,
    Feedback,
    Gate,
    Go,
    Hold,
    Refuse,
    Reservation,
    Share,
    Verdict,
)
from handlers.telemetry.dependencies import GateState
from handlers.telemetry.logs import Logger

T = TypeVar("T")

_UNUSABLE: Final = "unusable"
_CLOSING: Final = frozenset({"budget", "shares", "room", "admit", "state"})
"""Methods whose failure closes the gate."""


def _always(_: object) -> bool:
    return True


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _are_shares(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, Share) and _is_fraction(one.part) for one in value)


def _is_room(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_state(value: object) -> bool:
    return isinstance(value, GateState)


def _is_verdict(value: object) -> bool:
    return isinstance(value, Go | Hold | Refuse | Drop)


class GuardedGate(Gate):
    """Forwards every call to a gate of another package; closed while a method of it fails."""

    def __init__(self, inner: Gate, log: Logger) -> None:
        self._inner = inner
        self._log = log
        self._failures: dict[str, tuple[str, str]] = {}  # by method: kind of failure, and its text

    async def start(self) -> None:
        await self._awaited("start", self._inner.start, None)

    async def aclose(self) -> None:
        await self._awaited("aclose", self._inner.aclose, None)

    async def renewed(self, new: Gate, discarded: list[Gate]) -> Gate:
        if not isinstance(new, GuardedGate):
            return await super().renewed(new, discarded)
        own: list[Gate] = []
        kept = await self._awaited("renewed", lambda: self._inner.renewed(new._inner, own), None)
        if not isinstance(kept, Gate):
            return await super().renewed(new, discarded)
        discarded.extend(GuardedGate(one, self._log) for one in own)
        new._inner = kept
        return new

    def budget(self) -> float:
        return self._called("budget", self._inner.budget, 0.0, _is_fraction, "a number from 0 to 1")

    def shares(self) -> tuple[Share, ...]:
        return self._called("shares", self._inner.shares, (Share(0.0),), _are_shares, "a tuple of Share")

    def shares_pool(self) -> bool:
        return bool(self._called("shares_pool", self._inner.shares_pool, False))

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:
        closed: int | None = 0
        return self._called("room", lambda: self._inner.room(labels), closed, _is_room, "None or a whole number from 0")

    async def admit(self, request: Request) -> Verdict:
        closed: Verdict = Refuse(CLOSED_RETRY_SECONDS, _UNUSABLE)
        verdict = await self._awaited(
            "admit", lambda: self._inner.admit(request), closed, _is_verdict, "Go, Hold, Refuse or Drop"
        )
        return Go(GuardedReservation(self, verdict.reservation), verdict.labels) if isinstance(verdict, Go) else verdict

    async def wait_open(self, until_at: float) -> bool:
        found = await self._awaited("wait_open", lambda: self._inner.wait_open(until_at), None)
        if found is None:
            await asyncio.sleep(POLL_SECONDS)
            return time.time() < until_at
        return bool(found)

    def observe(self, request: Request, feedback: Feedback) -> None:
        self._called("observe", lambda: self._inner.observe(request, feedback), None)

    def state(self) -> GateState:
        budget = self.budget()
        broken = GateState(self._inner.gate_type, budget=0.0, why_closed=_UNUSABLE)
        state = self._called("state", self._inner.state, broken, _is_state, "a GateState")
        if not self._failures:
            return state
        is_closed = not _CLOSING.isdisjoint(self._failures)
        why = "; ".join(text for _, text in self._failures.values())
        return GateState(
            self._inner.gate_type,
            budget=budget,
            is_source_available=False,
            on_missing="closed" if is_closed else "",
            why_missing=why,
            why_closed=_UNUSABLE if is_closed else state.why_closed,
        )

    def _called(
        self,
        method: str,
        call: Callable[[], T],
        fallback: T,
        is_valid: Callable[[object], bool] = _always,
        accepted: str = "",
    ) -> T:
        """What `call` returns; `fallback` if it raises or returns something other than `accepted`."""
        try:
            found = call()
        except Exception as error:  # noqa: BLE001  # code of another package
            self._raised(method, error)
            return fallback
        return self._checked(method, found, fallback, is_valid, accepted)

    async def _awaited(
        self,
        method: str,
        call: Callable[[], Awaitable[T]],
        fallback: T,
        is_valid: Callable[[object], bool] = _always,
        accepted: str = "",
    ) -> T:
        try:
            found = await call()
        except Exception as error:  # noqa: BLE001  # code of another package
            self._raised(method, error)
            return fallback
        return self._checked(method, found, fallback, is_valid, accepted)

    def _checked(self, method: str, found: T, fallback: T, is_valid: Callable[[object], bool], accepted: str) -> T:
        if not is_valid(found):
            self._fails(method, "value", f"returned {found!r}, expected {accepted}")
            return fallback
        if self._failures.pop(method, None) is not None:
            self._log.info("gate recovered", gate=self._inner.gate_type, method=method)
        return found

    def _raised(self, method: str, error: Exception) -> None:
        self._fails(method, type(error).__name__, f"raised {type(error).__name__}: {error}")

    def _fails(self, method: str, kind: str, what: str) -> None:
        """Note a failure; it is logged if the method's last call did not fail in this way."""
        text = without_secrets(f"{type(self._inner).__name__}.{method} {what}"[:500])
        before, self._failures[method] = self._failures.get(method), (kind, text)
        if before is None or before[0] != kind:
            self._log.warning("gate failed", gate=self._inner.gate_type, reason=text)


class GuardedReservation:
    """A reservation of another package; an error while it ends is logged, and the request continues."""

    def __init__(self, gate: GuardedGate, inner: Reservation) -> None:
        self._gate = gate
        self._inner = inner

    async def release(self) -> None:
        await self._gate._awaited("release", self._inner.release, None)

    async def give_back(self) -> None:
        await self._gate._awaited("give_back", self._inner.give_back, None)
