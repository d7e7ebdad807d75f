"""Tells what a handler depends on from the calls that it makes anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from handlers.contract.request import Request
from handlers.forward.forward import Forward, Limits
from handlers.forward.middleware.guarded import has_failed
from handlers.forward.outcome import Outcome
from handlers.telemetry.dependencies import Dependency

if TYPE_CHECKING:
    from handlers.pubsub.publisher import Publisher


def observed(forward: Forward, gateway: Dependency) -> Forward:
    """Forwarding that tells how each call went; a refusal for load tells nothing."""

    async def forwarding(request: Request, limits: Limits) -> Outcome:
        outcome = await forward(request, limits)
        failed = has_failed(outcome)
        if failed is not None:
            gateway.report(has_failed=failed)
        return outcome

    return forwarding


class ObservedPublisher:
    """A publisher that tells how each publish went; a result that is too large says nothing of the topic."""

    def __init__(self, publisher: Publisher, results: Dependency) -> None:
        self._publisher = publisher
        self._results = results

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
        """As the publisher."""
        from handlers.pubsub.errors import PublishFailed

        try:
            published_id = await self._publisher.publish(topic, data, attributes)
        except PublishFailed:
            self._results.report(has_failed=True)
            raise
        self._results.report(has_failed=False)
        return published_id
