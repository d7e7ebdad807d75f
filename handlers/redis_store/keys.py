"""Every key in Redis: its type, content, and when it is deleted.

<queue>                   zset    pending; member = bare body or envelope, score = deadline (+ sequence)
<retry set>               zset    envelopes waiting for a retry; score = due time, Unix seconds
<result list>             list    results, newest first; consumers take from the right
<queue>:claimed           hash    claim key -> original member; deleted with the claim
<queue>:claim-owners      hash    claim key -> owner token; deleted with the claim
<queue>:claims-idx        zset    claim key, score = lease end, Unix seconds; deleted with the claim
<queue>:deaths            hash    ours: claim key -> number of owners that crashed holding it; deleted with the final
                                  result, the whole hash expires a week after the last crash
<queue>:settled:<batch>   string  ours: 1 or 0 for each claim of an acked or nacked batch, so that a
                                  repeated call gets the same answer; expires in a minute
<queue>:dead              hash    ours: dead letter id -> record (JSON); deleted by `dead requeue | drop`
{<home>}:outbox           hash    ours, in Redis Cluster, in the slot of <home>, a queue or retry set; empty when all
{<home>}:outbox-idx       zset    is delivered; `cluster/queue.py` explains both, and {<target>}:delivered
{async-processor}:status:*        ours, for `top`, the status page and `where` (`status_board`, `finished`); all expire
request-active:<id>       string  token of the live submission; deleted with the final result
request-cancel:<id>       string  token of a cancelled submission; deleted with the final result
{async-processor}:cancellations-swept  string  ours: set while no poller needs to scan foreign cancellations; expires
{async-processor:pool:<pool>}:pollers, :in-use   ours: pollers that share a pool (`limits`); both expire
request-payload:<id>:<t>  string  an offloaded payload; deleted with the final result

The reference (llm-d-async) has the same keys, except those marked "ours".

A claim key is the request's id, or id NUL token. If that claim already exists and belongs to the same submission, the
new owner takes it over, because the reference keeps its claim while a request waits for a retry. If it belongs to
another submission (one id queued twice without a token), NUL and the owner token are appended, so that a crash cannot
lose one of the two. The claim key of a member without a readable id is the SHA-1 of its bytes. An owner token ends with
the score that the member gets when it is released (`…:s=<score>`); the reference only compares tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

PAYLOAD_PREFIX = "request-payload:"
"""Prefix of payload keys; a `payload_ref` without it is refused."""


class QueueKeys(msgspec.Struct, frozen=True):
    """The keys of one queue."""

    pending: str
    claimed: str
    owners: str
    index: str
    deaths: str
    dead: str


def settled_key(keys: QueueKeys, batch: str) -> str:
    """STRING: outcomes of one ack or nack. `batch` is the digest of its claims."""
    return f"{keys.claimed.removesuffix(':claimed')}:settled:{batch}"


def queue_keys(queue: str, *, cluster: bool = False) -> QueueKeys:
    """The keys of `queue`. With `cluster`, a hash tag puts them into the queue's slot."""

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
    """Keys of which at least one exists if `reclaim` may have work."""
    keys = queue_keys(queue, cluster=cluster)
    return [keys.claimed, keys.index, *([beside(queue, "outbox-idx")] if cluster else [])]


def beside(key: str, suffix: str) -> str:
    """`key` with a suffix, in the same slot of a Redis Cluster."""
    opens = key.find("{")
    has_tag = opens >= 0 and key.find("}", opens) > opens + 1
    return f"{key}:{suffix}" if has_tag else f"{{{key}}}:{suffix}"


RESULT_PAYLOAD_PREFIX: Final = "result-payload:"
"""Prefix of result payload keys; a reader ignores references without it."""

RESULT_OF: Final = ":result-of:"
"""Stands between a result list and an id in the name of a per-request reply list."""

CANCELLATIONS: Final = "request-cancellations"
"""ZSET: recent cancellations, for pollers to scan."""


def active_key(request_id: str) -> str:
    """STRING: the token of the live submission."""
    return f"request-active:{request_id}"


def cancel_key(request_id: str) -> str:
    """STRING: the token of a cancelled submission."""
    return f"request-cancel:{request_id}"


def cancel_key_of(request_id: bytes) -> bytes:
    """STRING: as `cancel_key`, for an id in bytes."""
    return cancel_key("").encode() + request_id


def submitted_key(request_id: str) -> str:
    """STRING: the token of a submission with an idempotency window."""
    return f"request-submitted:{request_id}"


def delivery_name(request_id: str, token: str) -> str:
    """Name of a submission in Redis Cluster. `token` lacks its sequence, so a batch's lines share it."""
    return f"{request_id}\0{token}"


def sent_key(submissions: Sequence[tuple[str, str]]) -> str:
    """STRING: the answer of the call that queued these (id, token)."""
    names = "\0".join(f"{request_id}\0{token}" for request_id, token in submissions)
    return f"request-sent:{hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest()}"


def id_record_key(request_id: str, queue: str = "") -> str:
    """STRING: the idempotency record of an id. The length separates id "a:b" in queue "q" from "b" in "q:a"."""
    return f"request-stands:{len(queue)}:{queue}:{request_id}"


def payload_key(request_id: str, token: str) -> str:
    """STRING: an offloaded payload; `token` is the submission's, without its sequence.

    `is_own_payload` checks this form before a payload is deleted.
    """
    return f"{PAYLOAD_PREFIX}{request_id}:{token}"


def is_own_payload(payload_ref: str, request_id: str, request_token: str) -> bool:
    """Whether the key is this request's own: `request-payload:<id>:<token>`.

    A token of our client ends with its sequence, which `payload_key` lacks. A token with a colon is
    refused: otherwise id "a" with token "b:c" could not be distinguished from id "a:b" with token "c".
    """
    if not payload_ref:
        return False
    token = payload_ref.removeprefix(f"{PAYLOAD_PREFIX}{request_id}:")
    if not request_id or token in ("", payload_ref) or ":" in token:
        return False
    if not request_token or token == request_token:
        return True
    without_place, _, place = request_token.rpartition("-")
    return place.isdigit() and token == without_place


def result_payload_key(request_id: str, owner_token: bytes) -> str:
    """STRING: a result's offloaded payload. Each owner of the request has its own key."""
    digest = hashlib.sha1(owner_token, usedforsecurity=False).hexdigest()
    return f"{RESULT_PAYLOAD_PREFIX}{request_id}:{digest[:16]}"


def seq_key(queue: str, deadline: int) -> str:
    """STRING: number of submissions to a queue with this deadline (Unix seconds)."""
    return f"request-seq:{queue}:{deadline}"


def claimed_key(queue: str) -> str:
    """HASH: claim key -> member, of claimed requests (on a single server)."""
    return f"{queue}:claimed"


def result_of_key(results: str, request_id: str) -> str:
    """LIST: the per-request reply list."""
    return f"{results}{RESULT_OF}{request_id}"


def own_list_base(name: str, request_id: str) -> str | None:
    """The result list whose per-request reply list is `name`. None for other lists."""
    suffix = f"{RESULT_OF}{request_id}"
    base = name.removesuffix(suffix)
    return base if request_id and base and base != name and RESULT_OF not in base else None


def batch_results_key(results: str, batch: str) -> str:
    """LIST: the results of one batch."""
    return f"{results}:batch:{batch}"


def result_claim_keys(results: str, *, cluster: bool = False) -> tuple[str, str, str, str]:
    """HASH claimed, HASH owners, ZSET index, ZSET tombstones of a result list."""
    kinds = ("result-claimed", "result-claim-owners", "result-claims-idx", "result-ack-tombstones")
    claimed, owners, index, tombstones = (beside(results, kind) if cluster else f"{results}:{kind}" for kind in kinds)
    return claimed, owners, index, tombstones


LONGEST_TEXT_BYTES: Final = 65_536
"""Maximum bytes that are read of a string that clients may write: a token, or a record. As in `_bounded.lua`."""

LONGEST_MARKER_BYTES: Final = 32_000_000
"""As before, of a `request-submitted:…` that holds a whole request. As in `mark_submission.lua`."""

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
"""Suffixes, after the last colon, of keys beside a queue or a result list."""


class ReservedNames(msgspec.Struct, frozen=True):
    """Keys that a request may not name as its result list.

    `keys` are the queues, the retry set and the gates' keys. `prefixes` begin keys that end with a value from the
    request, such as a quota's. Our own keys are recognised by their form (`is_reserved`).
    """

    keys: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a request may not name `name` as its result list."""
        untagged = name.removeprefix("{")  # a cluster's hash tag around another key's name
        is_prefixed = name.startswith(self.prefixes) or untagged.startswith(self.prefixes)
        return is_reserved(name) or name in self.keys or is_prefixed


def is_reserved(key: str) -> bool:
    """Whether `key` has the form of one of our keys."""
    _, colon, kind = key.rpartition(":")
    if key in _NAMES or key.startswith(_PREFIXES) or _DELIVERY.match(key) or _SETTLED.search(key):
        return True
    return bool(colon) and kind in _KINDS
