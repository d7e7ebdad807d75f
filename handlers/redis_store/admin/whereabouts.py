"""Find one request and its result.

It searches the queue, claims, retries, dead letters and records. A request that is not found is `unknown`: it was never
queued here, or it finished and its record has been dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import MALFORMED, Malformed
from handlers.contract.request import decode_member
from handlers.contract.result import ErrorCode, decode_result
from handlers.redis_store.admin.dead_letters import read_dead_letter
from handlers.redis_store.admin.status_board import (
    SEARCH_ENTRIES,
    FinishedRecord,
    Found,
    SearchBudget,
    json_spellings,
    read_finished,
    read_part,
    search,
)
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.keys import RESULT_OF, result_claim_keys, result_of_key
from handlers.redis_store.submit.submissions import RequestState, Submissions

MOST_RESULTS: Final = 2_000
"""Maximum number of results that are read from each end of a list."""
_MOST_BYTES: Final = 64_000_000
"""Maximum bytes that are read from each end of a list, or from a hash."""
_LIVE: Final = {
    "claimed": RequestState.CLAIMED,
    "pending": RequestState.PENDING,
    "retry": RequestState.RETRYING,
    "dead": RequestState.DEAD_LETTERED,
}


class Place(msgspec.Struct, frozen=True):
    """One place where a request was found.

    `where` is pending, claimed, retry or dead. `attempts` counts finished attempts. `due_at` is a deadline or the due
    time of a retry in Unix seconds, or 0. `is_mention`: a dead letter without a readable id contains the searched id.
    """

    where: str
    queue: str
    token: str
    attempts: int
    due_at: float = 0.0
    dead_id: str = ""
    is_mention: bool = False


class ResultPlace(msgspec.Struct, frozen=True):
    """A result that is still in the list `results`. `is_held`: a reader holds a lease on it."""

    results: str
    outcome: str
    is_held: bool = False

    @property
    def state(self) -> str:
        """Whether the result can be read, in words. Reading a per-request list leaves the result there."""
        if self.is_held:
            return "leased to a consumer"
        return "kept for its reader until it expires" if RESULT_OF in self.results else "waiting to be read"


class Whereabouts(msgspec.Struct, frozen=True):
    """The state of one request. `is_partial`: a key was too long to read completely.

    If `is_run_again`, `finished` and `result` are those of an earlier run.
    """

    request_id: str
    state: RequestState
    places: Sequence[Place] = ()
    finished: FinishedRecord | None = None
    result: ResultPlace | None = None
    is_partial: bool = False

    @property
    def is_run_again(self) -> bool:
        """Whether the request is live again after it finished (a requeued dead letter)."""
        ended = (RequestState.FINISHED, RequestState.CANCELLED, RequestState.DEAD_LETTERED, RequestState.UNKNOWN)
        return self.state not in ended and bool(self.finished or self.result)


class Searched(msgspec.Struct, frozen=True):
    """The keys to search: queues, their retry set and their result list."""

    queues: Sequence[str]
    retry_queue_name: str
    result_queue_name: str
    is_cluster: bool = False


async def locate(redis: Store, request_id: str, keys: Searched) -> Whereabouts:
    """Search one request by id. Reads at most what `SearchBudget` allows and changes nothing."""
    places, is_partial = await _places_of(redis, request_id, keys, SearchBudget())
    live = RequestState.UNKNOWN
    for name in dict.fromkeys([place.queue for place in places if place.queue in keys.queues]) or keys.queues[:1]:
        # A user that may only read the queues has no right to the producers' keys; then the search above is enough.
        with contextlib.suppress(*STORE_FAILURES):
            state = (await Submissions(redis).look_up(name, request_id))[0]
            live = live if state is RequestState.UNKNOWN else state
    record: FinishedRecord | None = None
    with contextlib.suppress(*STORE_FAILURES):
        record = await read_finished(redis, request_id)
    lists = [result_of_key(keys.result_queue_name, request_id), keys.result_queue_name]
    if record and record.results:
        lists.insert(0, record.results)
    result, is_cut = await _result_in(redis, request_id, list(dict.fromkeys(lists)), keys.is_cluster)
    if not is_partial and live in (RequestState.RETRYING, RequestState.QUEUED):
        live = RequestState.ELSEWHERE  # `_state` prefers a place that was found
    return Whereabouts(request_id, _state(places, live, record, result), places, record, result, is_partial or is_cut)


async def live_state(redis: Store, request_id: str, keys: Searched, *, steps: int) -> RequestState | None:
    """Whether a request is queued, claimed or waiting for a retry.

    None if a search with `steps` calls does not find it.
    """
    places, _ = await _places_of(redis, request_id, keys, SearchBudget(steps=steps))
    found = {place.where for place in places}
    return next((state for where, state in _LIVE.items() if where in found and where != "dead"), None)


async def may_be_queued(redis: Store, request_id: str, keys: Searched, *, steps: int) -> bool:
    """Whether a request may be in a queue or the retry set.

    Searches with at most `steps` calls. Also True if the keys hold more than it can search. Keys that the ACL refuses
    count as empty.
    """
    budget = SearchBudget(steps=steps)
    places, _ = await _places_of(redis, request_id, keys, budget)
    is_cut = budget.steps <= 0 or budget.left_bytes <= 0
    return is_cut or any(place.where != "dead" for place in places)


async def _places_of(redis: Store, request_id: str, keys: Searched, budget: SearchBudget) -> tuple[list[Place], bool]:
    """Places where a request was found, and whether the search was partial."""
    seen = await search(redis, keys.queues, keys.retry_queue_name, request_id, cluster=keys.is_cluster, budget=budget)
    places = [_place(found, found.queue or keys.queues[0], request_id) for found in seen.found]
    return list(dict.fromkeys(place for place in places if place is not None)), seen.is_partial


def _state(
    places: Sequence[Place], live: RequestState, record: FinishedRecord | None, result: ResultPlace | None
) -> RequestState:
    """Derive the state: from live places, else dead letters, record, or result."""
    if live is RequestState.CANCELLING:
        return live
    for where, state in _LIVE.items():
        if any(place.where == where and not place.is_mention for place in places):
            return state
    if live not in (RequestState.UNKNOWN, RequestState.FINISHED):
        return live
    if record is not None:
        return finished_state(record)
    if result is not None:
        is_cancelled = result.outcome == ErrorCode.CANCELLED
        return RequestState.CANCELLED if is_cancelled else RequestState.FINISHED
    return RequestState.DEAD_LETTERED if places else live


def finished_state(record: FinishedRecord) -> RequestState:
    """Cancelled, dead-lettered or finished."""
    if record.is_dead:
        return RequestState.DEAD_LETTERED
    return RequestState.CANCELLED if record.outcome == ErrorCode.CANCELLED else RequestState.FINISHED


def _place(found: Found, queue: str, request_id: str) -> Place | None:
    """Where a found member is; None if it is another request's."""
    if found.where == "dead":
        return _dead_place(found, queue, request_id)
    try:
        envelope = decode_member(found.member, queue)
    except InvalidRequest as error:
        return Place(found.where, queue, "", 0, found.score) if error.request_id == request_id else None
    request = envelope.request
    if request.id != request_id:
        return None
    own = envelope.internal.request_queue_name or queue
    due = found.score if found.where == "retry" else request.deadline
    return Place(found.where, own, request.request_token, request.attempt, due)


def _dead_place(found: Found, queue: str, request_id: str) -> Place | None:
    own_id = ""
    with contextlib.suppress(*MALFORMED):
        own_id = read_dead_letter(b"", found.member).request_id
    is_mention = not own_id and request_id in found.member.decode("utf-8", "replace")
    if own_id != request_id and not is_mention:
        return None
    return Place("dead", queue, "", 0, dead_id=found.dead_id, is_mention=is_mention)


async def _result_in(
    redis: Store, request_id: str, lists: Sequence[str], is_cluster: bool
) -> tuple[ResultPlace | None, bool]:
    """The id's first result in `lists`, and whether the search was partial."""
    is_cut = False
    for name in lists:
        with contextlib.suppress(*STORE_FAILURES):  # no list, or no right to read it
            length = int(await redis.llen(name))
            newest, oldest = min(length, MOST_RESULTS), max(MOST_RESULTS, length - MOST_RESULTS)
            is_cut = is_cut or length > 2 * MOST_RESULTS
            for ranks in ((0, newest), (oldest, length)):
                outcome, is_whole = await _outcome_in(redis, request_id, "LRANGE", name, ranks=ranks)
                is_cut = is_cut or not is_whole
                if outcome:
                    return ResultPlace(name, outcome), is_cut
        with contextlib.suppress(*STORE_FAILURES):
            claimed = result_claim_keys(name, cluster=is_cluster)[0]
            outcome, is_whole = await _outcome_in(redis, request_id, "HSCAN", claimed, ranks=(0, MOST_RESULTS))
            is_cut = is_cut or not is_whole
            if outcome:
                return ResultPlace(name, outcome, is_held=True), is_cut
    return None, is_cut


async def _outcome_in(
    redis: Store, request_id: str, command: str, key: str, *, ranks: tuple[int, int]
) -> tuple[str, bool]:
    """The request's outcome in `key`, and whether all of `ranks` was read.

    The outcome is empty if it is not found. `ranks` are the first rank and the one after the last.
    """
    cursor, entries, left = str(ranks[0]), ranks[1] - ranks[0], _MOST_BYTES
    while entries > 0 and left > 0:
        part = await read_part(
            redis,
            command,
            key,
            cursor,
            entries=min(entries, SEARCH_ENTRIES),
            longest=_MOST_BYTES,
            needles=json_spellings(request_id),
        )
        for name, value, _ in part.rows:
            if outcome := _outcome_of(value if command == "HSCAN" else name, request_id):
                return outcome, True
        cursor, entries, left = part.cursor, entries - part.entries, left - part.read_bytes
        if cursor == "0":
            return "", True
    return "", entries <= 0 and command == "LRANGE"


def _outcome_of(text: bytes, request_id: str) -> str:
    """The outcome in a result of this request; else empty."""
    try:
        result = decode_result(text)
    except Malformed:
        return ""
    return (result.error_code or f"HTTP {result.status_code}") if result.id == request_id else ""
