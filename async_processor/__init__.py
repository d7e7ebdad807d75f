"""Queue requests for an LLM inference pool and read their results.

    from datetime import timedelta
    from async_processor import Client

    with Client.for_redis("redis://localhost:6379") as client:
        result = client.ask({"model": "m", "prompt": "Hi"}, deadline=timedelta(minutes=10))
        print(result.status_code, result.payload)

`Client` is for synchronous code, `AsyncClient` for asyncio; both are typed. `docs/client.md` shows the rest.
"""

from handlers.client import (
    AsyncClient,
    BrokerUnreachable,
    Client,
    ClientError,
    ClientOptions,
    ErrorCode,
    IdempotencyConflict,
    InvalidRequest,
    InvalidSetting,
    LeaseLost,
    NewRequest,
    NoResultYet,
    NotOffered,
    RedisAccess,
    RequestState,
    Result,
    Submission,
    UnknownRequest,
)

__all__ = [
    "AsyncClient",
    "BrokerUnreachable",
    "Client",
    "ClientError",
    "ClientOptions",
    "ErrorCode",
    "IdempotencyConflict",
    "InvalidRequest",
    "InvalidSetting",
    "LeaseLost",
    "NewRequest",
    "NoResultYet",
    "NotOffered",
    "RedisAccess",
    "RequestState",
    "Result",
    "Submission",
    "UnknownRequest",
]
