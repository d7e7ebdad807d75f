"""Topics and subscriptions of the demo, as `async-processor pubsub setup` makes them."""

from __future__ import annotations

import asyncio
from typing import Final

from handlers.pubsub.api import PubSubApi, PubSubOptions
from handlers.pubsub.deploy import look, set_up
from handlers.pubsub.layout import LayoutOptions, layout
from handlers.pubsub.plan import plan_set_up

DEMO_PROJECT: Final = "demo-project"
REQUEST_TOPIC: Final = "async-proc-requests"
RESULT_TOPIC: Final = "async-proc-results"
RESULT_SUBSCRIPTION: Final = "async-proc-results-sub"


def create_layout(emulator_host: str, push_url: str) -> None:
    """Create everything on the emulator; what exists is left as it is."""
    asyncio.run(_create_layout(emulator_host, push_url))


async def _create_layout(emulator_host: str, push_url: str) -> None:
    wanted = layout(
        LayoutOptions(
            project_id=DEMO_PROJECT,
            push_endpoint=push_url,
            request_topic=REQUEST_TOPIC,
            result_topic=RESULT_TOPIC,
            result_subscription=RESULT_SUBSCRIPTION,
            minimum_backoff_seconds=1,  # a demo shall not wait
            maximum_backoff_seconds=5,
            result_ack_deadline_seconds=10,
        )
    )
    api = PubSubApi(PubSubOptions(project_id=DEMO_PROJECT, emulator_host=emulator_host))
    try:
        for change in plan_set_up(wanted, await look(api, wanted)):
            await set_up(api, change)
    finally:
        await api.close()
