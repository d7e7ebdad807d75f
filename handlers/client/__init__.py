"""Queue requests and read results: `AsyncClient`, or `Client` for synchronous code."""

from handlers.client.async_client import AsyncClient
from handlers.client.broker import Submission
from handlers.client.errors import (
    BrokerUnreachable,
    ClientError,
    IdempotencyConflict,
    LeaseLost,
    NoOwnResults,
    NoResultYet,
    NotOffered,
    UnknownRequest,
)
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.client.sync_client import Client
from handlers.contract.errors import InvalidRequest, InvalidSetting
from handlers.contract.result import ErrorCode, Result
from handlers.redis_store.submit.submissions import RedisAccess, RequestState

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
    "NoOwnResults",
    "NoResultYet",
    "NotOffered",
    "RedisAccess",
    "RequestState",
    "Result",
    "Submission",
    "UnknownRequest",
]
