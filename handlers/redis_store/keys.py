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

from dataclasses import dataclass

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


def beside(key: str, suffix: str) -> str:
    """The name of a key of ours beside `key`, in the same slot of a Redis Cluster."""
    opens = key.find("{")
    has_tag = opens >= 0 and key.find("}", opens) > opens + 1
    return f"{key}:{suffix}" if has_tag else f"{{{key}}}:{suffix}"
