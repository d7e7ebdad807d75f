"""The keys that a producer and a reader of results use; who deletes each, or when it expires.

request-active:<id>              string  token of the live submission; deleted with the final result,
                                         expires at the deadline
request-cancel:<id>              string  token of a cancelled one; deleted with the final result,
                                         expires an hour after the deadline
request-cancellations            zset    ours: deadline NUL id NUL token of what was cancelled, score = when;
                                         pollers look what is new; each is forgotten after an hour
request-submitted:<id>           string  ours: token, for idempotent submission (in Redis Cluster all of it until
                                         it is queued); expires its window after the deadline
request-stands:<n>:<queue>:<id>  string  ours: which submission of the queue stands for the id, where queues are
                                         idempotent; n = length of the queue's name; expires its
                                         window after that is finished, or after the deadline
request-payload:<id>:<token>     string  a payload stored apart; deleted with the final result,
                                         expires ten minutes after the deadline
result-payload:<id>:<digest>     string  ours: a result's payload, stored apart; deleted when its reader
                                         acknowledges the result, expires after its own time
request-sent:<digest>            string  ours: what a call to submit answered, in case its answer is lost;
                                         expires in two minutes
request-seq:<queue>:<deadline>   string  counter; expires an hour after the deadline
<results>:result-of:<id>         list    the results of one request alone; expires after its own time
<results>:result-claimed         hash    claim key -> result
<results>:result-claim-owners    hash    claim key -> owner token
<results>:result-claims-idx      zset    claim key, score = lease end, Unix milliseconds
<results>:result-ack-tombstones  zset    claim key, score = when it is forgotten, Unix milliseconds
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from handlers.redis_store.keys import beside

RESULT_PAYLOAD_PREFIX: Final = "result-payload:"
"""What a result's payload key must begin with: a result can make its reader touch no other key."""

RESULT_OF: Final = ":result-of:"
"""Between a result list and an id: the list of that request alone."""

CANCELLATIONS: Final = "request-cancellations"
"""ZSET: what was cancelled lately, for who has it waiting."""


def active_key(request_id: str) -> str:
    """STRING: the token of the live submission."""
    return f"request-active:{request_id}"


def cancel_key(request_id: str) -> str:
    """STRING: the token of a cancelled submission."""
    return f"request-cancel:{request_id}"


def cancel_key_of(request_id: bytes) -> bytes:
    """STRING: as `cancel_key`, of an id as it stands in a claim key, which may be no text."""
    return cancel_key("").encode() + request_id


def submitted_key(request_id: str) -> str:
    """STRING: the token of a submission that is not to be repeated."""
    return f"request-submitted:{request_id}"


def delivery_name(request_id: str, token: str) -> str:
    """What a queue in Redis Cluster knows a submission by; `token` without its place, and a batch's lines share one."""
    return f"{request_id}\0{token}"


def sent_key(submissions: Sequence[tuple[str, str]]) -> str:
    """STRING: what the call that queues these (id, token) answered."""
    names = "\0".join(f"{request_id}\0{token}" for request_id, token in submissions)
    return f"request-sent:{hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest()}"


def stands_key(request_id: str, queue: str = "") -> str:
    """STRING: which submission of `queue` stands for the id; the length keeps "a:b" of "q" apart from "b" of "q:a"."""
    return f"request-stands:{len(queue)}:{queue}:{request_id}"


def payload_key(request_id: str, token: str) -> str:
    """STRING: a payload stored apart; `token` is the submission's, without its place in the queue.

    Who deletes it (`has_payload_key` of `queue`) must know that form.
    """
    return f"request-payload:{request_id}:{token}"


def result_payload_key(request_id: str, owner_token: bytes) -> str:
    """STRING: a result's payload stored apart; no other owner of the request writes the same key."""
    digest = hashlib.sha1(owner_token, usedforsecurity=False).hexdigest()
    return f"{RESULT_PAYLOAD_PREFIX}{request_id}:{digest[:16]}"


def seq_key(queue: str, deadline: int) -> str:
    """STRING: counts the submissions that share a queue and a deadline (whole Unix seconds)."""
    return f"request-seq:{queue}:{deadline}"


def claimed_key(queue: str) -> str:
    """HASH: claim key to member, of the requests that pollers hold."""
    return f"{queue}:claimed"


def result_of_key(results: str, request_id: str) -> str:
    """LIST: the results of one request alone."""
    return f"{results}{RESULT_OF}{request_id}"


def own_list_base(name: str, request_id: str) -> str | None:
    """The result list that `name` is the request's own list of; None where `name` is not that request's alone."""
    suffix = f"{RESULT_OF}{request_id}"
    base = name.removesuffix(suffix)
    return base if request_id and base and base != name and RESULT_OF not in base else None


def batch_results_key(results: str, batch: str) -> str:
    """LIST: the results of one batch."""
    return f"{results}:batch:{batch}"


def result_claim_keys(results: str, *, cluster: bool = False) -> tuple[str, str, str, str]:
    """HASH claimed, HASH owners, ZSET index and ZSET tombstones of a result list; in a cluster in its slot."""
    kinds = ("result-claimed", "result-claim-owners", "result-claims-idx", "result-ack-tombstones")
    claimed, owners, index, tombstones = (
        beside(results, kind) if cluster else f"{results}:{kind}" for kind in kinds
    )
    return claimed, owners, index, tombstones
