"""Every key of the request side: its type, what is in it, who deletes it. (`submission_keys`: the client's.)

<queue>                   zset    pending; member = bare body or envelope, score = deadline (+ sequence)
<retry set>               zset    envelopes waiting for a retry; score = due time, Unix seconds
<result list>             list    results, newest first; consumers take from the right
<queue>:claimed           hash    claim key -> original member; deleted with the claim
<queue>:claim-owners      hash    claim key -> owner token; deleted with the claim
<queue>:claims-idx        zset    claim key, score = lease end, Unix seconds; deleted with the claim
<queue>:deaths            hash    ours: claim key -> owners that died on it; deleted with the final result,
                                  the whole hash expires a week after the last death
<queue>:settled:<batch>   string  ours: 1 or 0 for each claim of a batch that was acked or nacked, so that
                                  the same batch sent again, its reply lost, is told so; expires in a minute
<queue>:dead              hash    ours: dead letter id -> record (JSON); deleted by `dead requeue | drop`
{<home>}:outbox           hash    ours, in Redis Cluster, beside a queue or retry set: see `outbox`, also for the
{<home>}:outbox-idx       zset    third, {<target>}:delivered; both empty when all is delivered
{async-processor}:status:*        ours, for `top`, page and `where` (`status_board`, `finished`); all expire
request-active:<id>       string  token of the live submission; deleted with the final result
request-cancel:<id>       string  token of a cancelled submission; deleted with the final result
{async-processor}:cancellations-swept  string  ours: whether it was looked for foreign cancellations; expires at once
{async-processor:pool:<pool>}:pollers, :in-use   ours: who shares a pool (`pool_sharing`); both expire
request-payload:<id>:<t>  string  a payload stored apart; deleted with the final result

Claim key = id, or id NUL token. Where such a claim is live already, it is taken over if it is of the same
submission: the reference keeps its claim on a request that waits for a retry. Else (one id queued twice without
a token) NUL and the owner token are appended, so that no crash can lose one of the two. A member whose id
cannot be read is known by the SHA-1 of its bytes. The owner token ends in the score that the member
returns to (`…:s=<score>`): the reference, which only compares tokens, does not mind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PAYLOAD_PREFIX = "request-payload:"
"""What a payload's key must begin with: a `payload_ref` can reach no other key."""


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue."""

    pending: str
    claimed: str
    owners: str
    index: str
    deaths: str
    dead: str


def settled_key(keys: QueueKeys, batch: str) -> str:
    """Where it is kept what one ack or nack did, for `batch`, the digest of its claims."""
    return f"{keys.claimed.removesuffix(':claimed')}:settled:{batch}"


def queue_keys(queue: str, *, cluster: bool = False) -> QueueKeys:
    """The keys of `queue`; in Redis Cluster they share its slot, its name (or the tag in it) as hash tag."""

    def name(suffix: str) -> str:
        return beside(queue, suffix) if cluster else f"{queue}:{suffix}"

    return QueueKeys(
        pending=queue,
        claimed=name("claimed"),
        owners=name("claim-owners"),
        index=name("claims-idx"),
        deaths=name("deaths"),
        dead=name("dead"),
    )


def reclaim_keys(queue: str, *, cluster: bool = False) -> list[str]:
    """Keys of which at least one exists while there is anything to reclaim from the queue."""
    keys = queue_keys(queue, cluster=cluster)
    return [keys.claimed, keys.index, *([beside(queue, "outbox-idx")] if cluster else [])]


def beside(key: str, suffix: str) -> str:
    """The name of a key of ours beside `key`, in the same slot of a Redis Cluster."""
    opens = key.find("{")
    has_tag = opens >= 0 and key.find("}", opens) > opens + 1
    return f"{key}:{suffix}" if has_tag else f"{{{key}}}:{suffix}"


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


_PREFIXES: Final = (
    "request-active:",
    "request-cancel:",
    "request-payload:",
    "request-seq:",
    "request-sent:",
    "request-stands:",
    "request-submitted:",
    "result-payload:",
    "delivery-cancel:",
    "quota:",
    "{quota:",
    "{async-processor",
    "dispatch-gate-budget:",
)
_DELIVERY = re.compile(r"delivery:[0-9]+:")
_SETTLED = re.compile(r":settled:(?:n?ack)-[0-9a-f]{40}\Z")
_NAMES: Final = frozenset({"request-cancellations", "dispatch-gate-budget"})
_KINDS: Final = frozenset(
    {
        "claimed",
        "claim-owners",
        "claims-idx",
        "deaths",
        "dead",
        "outbox",
        "outbox-idx",
        "delivered",
        "held",
        "result-claimed",
        "result-claim-owners",
        "result-claims-idx",
        "result-ack-tombstones",
    }
)
"""What follows the last colon of the keys beside a queue or a result list."""


@dataclass(frozen=True, slots=True)
class ReservedNames:
    """Keys that are no result list: ours by their form, and those that this process's settings name.

    `keys` are the queues, the retry set and what gates read or write; `prefixes` are the beginnings of keys whose end
    a request chooses, such as a quota's.
    """

    keys: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a request that names `name` as its result list would turn another key into a list."""
        untagged = name.removeprefix("{")  # a cluster's hash tag around another key's name
        return is_reserved(name) or name in self.keys or untagged.startswith(self.prefixes)


def is_reserved(key: str) -> bool:
    """Whether `key` is one of those that requests, claims, gates and readers are kept under."""
    _, colon, kind = key.rpartition(":")
    if key in _NAMES or key.startswith(_PREFIXES) or _DELIVERY.match(key) or _SETTLED.search(key):
        return True
    return bool(colon) and kind in _KINDS
