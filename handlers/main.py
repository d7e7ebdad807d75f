"""The entry points that functions-framework finds by name: `dispatch` and `pubsub_push`.

A process serves one of them (`FUNCTION_TARGET`, `--target`). `handlers.wiring` builds the handler once per process:
on the first call, or with `async-processor serve` before it listens.

    functions-framework --asgi --source handlers/main.py --target dispatch     works, but stops 30 s after SIGTERM
    async-processor serve --target dispatch                                    finishes its requests at shutdown
"""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from handlers.wiring.handler import handler_of


@functions_framework.aio.http
async def dispatch(request: Request) -> Response:
    """Answer a CloudEvent of a poller or Knative source with the result."""
    return await handler_of("dispatch").respond(request)


@functions_framework.aio.http
async def pubsub_push(request: Request) -> Response:
    """Publish the result of a Pub/Sub push, then answer 204."""
    return await handler_of("pubsub_push").respond(request)
