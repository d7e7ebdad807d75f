"""Queue requests for an LLM inference pool and read their results.

    from datetime import timedelta
    from async_processor import Client

    with Client.for_redis("redis://localhost:6379") as client:
        result = client.ask({"model": "m", "prompt": "Hi"}, deadline=timedelta(minutes=10))
        print(result.status_code, result.payload)

Client, AsyncClient     for_redis, for_pubsub; ask, submit, submit_many, wait, results, peek, look_up, where, cancel
NewRequest              one request for submit_many: payload, deadline, and optional fields
Submission              id, token and deadline of a queued request; argument of wait, look_up, where, cancel
Result                  id, status_code and payload, or error_code (an ErrorCode) and error_message
RequestState            where a submission is: pending, claimed, retrying, finished, cancelled, ...
ClientOptions           names of queue and result list, windows, sizes
RedisAccess             user, password, certificates

Errors: InvalidRequest, InvalidSetting; ClientError with NoResultYet, NoOwnResults, UnknownRequest,
IdempotencyConflict, LeaseLost, BrokerUnreachable and NotOffered.

Both clients are typed; help(async_processor.Client) describes each method, docs/client.md has examples.
"""

# Names are re-exported one by one, without `__all__`: pydoc would print every class with all inherited members.
from handlers.client import AsyncClient as AsyncClient
from handlers.client import BrokerUnreachable as BrokerUnreachable
from handlers.client import Client as Client
from handlers.client import ClientError as ClientError
from handlers.client import ClientOptions as ClientOptions
from handlers.client import ErrorCode as ErrorCode
from handlers.client import IdempotencyConflict as IdempotencyConflict
from handlers.client import InvalidRequest as InvalidRequest
from handlers.client import InvalidSetting as InvalidSetting
from handlers.client import LeaseLost as LeaseLost
from handlers.client import NewRequest as NewRequest
from handlers.client import NoOwnResults as NoOwnResults
from handlers.client import NoResultYet as NoResultYet
from handlers.client import NotOffered as NotOffered
from handlers.client import RedisAccess as RedisAccess
from handlers.client import RequestState as RequestState
from handlers.client import Result as Result
from handlers.client import Submission as Submission
from handlers.client import UnknownRequest as UnknownRequest
