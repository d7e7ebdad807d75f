"""The queue as plain data, compared with the real one after each step.

A `Walk` calls one operation at a time on a real server and predicts its effect. Time passes by changing the ends of
leases and the due times, each to a different number, so that the order is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import msgspec

from handlers.contract.request import encode_retry
from handlers.redis_store.connection import server_time
from handlers.redis_store.keys import CANCELLATIONS, active_key, cancel_key, settled_key
from handlers.redis_store.queue.queue import Claim, Nack, RedisQueue, Retries
from handlers.redis_store.submit.submissions import Submissions
from tests.redis_store.queue.queueing import (
    DEADLINE,
    LEASE_SECONDS,
    Bench,
    body,
    envelope,
    recalled,
    recalled_retries,
)
from tests.waiting import CLOCK_SET_SECONDS

MAX_DEATHS = 3
DELAY_SECONDS = 2_400.0
_REMEMBER = """
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  if redis.call('PTTL', key) > 1000 then redis.call('EXPIRE', key, 60) end
end
"""
"""Renews the outcomes of batches: the model keeps them forever. Those of a mutant, kept for 1 ms, still expire."""


@dataclass
class Held:
    """A live claim; `end` is None while the lease runs, else its place among those that ended."""

    claim: Claim
    end: int | None = None


@dataclass
class Model:
    """The expected content. Members are known by the serial number of their submission."""

    serial: dict[bytes, int] = field(default_factory=dict)
    pending: dict[bytes, float] = field(default_factory=dict)
    held: dict[bytes, Held] = field(default_factory=dict)
    retries: dict[bytes, tuple[float, int | None]] = field(default_factory=dict)
    results: list[bytes] = field(default_factory=list)
    dead: int = 0
    deaths: dict[bytes, int] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    settled: dict[tuple[str, tuple[bytes, ...]], list[bool]] = field(default_factory=dict)

    def settle(self, operation: str, claims: list[Claim]) -> list[tuple[bool, bool]]:
        """For each claim, the expected answer of the store and whether it changes anything.

        A repeated batch gets the answer of the first, whose reply may have been lost.
        """
        batch = operation, tuple(claim.owner_token for claim in claims)
        before = self.settled.get(batch, [False] * len(claims))
        changes = [self.is_owner(claim) for claim in claims]
        answers = [change or was for change, was in zip(changes, before, strict=True)]
        self.settled[batch] = answers
        return list(zip(answers, changes, strict=True))

    def serial_numbers(self) -> set[int]:
        """Of every submission so far."""
        return set(self.serial.values())

    def is_owner(self, claim: Claim) -> bool:
        held = self.held.get(claim.claim_key)
        return held is not None and held.claim.owner_token == claim.owner_token


def _submission(claim: Claim) -> dict[str, str]:
    """Id and token of a claim, as the poller reads them from its member."""
    name, _, token = claim.claim_key.partition(b"\0")
    if not token.startswith(b"t-"):
        return {}
    return {"request_id": name.decode(), "request_token": token.split(b"\0")[0].decode()}


class Walk:
    """Operations on a real queue and on the model; each checks its own answer. `pick` chooses by number."""

    def __init__(self, bench: Bench, owners: list[RedisQueue] | None = None) -> None:
        self.bench = bench
        self.owners = owners or [bench.owner() for _ in range(3)]
        self.model = Model()
        self.issued: list[Claim] = []
        self._moment = 0

    def _owner(self, pick: int) -> RedisQueue:
        return self.owners[pick % len(self.owners)]

    def _issued(self, pick: int) -> list[Claim]:
        """One to three claims, valid or lost, mostly recent ones."""
        if not self.issued:
            return []
        last = len(self.issued) - 1
        chosen = {max(0, last - pick % 8 - 2 * n): None for n in range(1 + pick % 3)}
        return [self.issued[at] for at in chosen]

    def _count(self, key: bytes) -> bytes:
        """Claims of one id queued twice count their deaths together."""
        return b"twin" if key.startswith(b"twin") else key

    # Steps of a producer

    async def submit(self, pick: int) -> None:
        """A request of one of five kinds."""
        number = len(self.model.serial)
        token = f"t-{number}"
        member, score = (
            (envelope(f"r-{number}", token, enqueue_seq=number), DEADLINE + number / 2**21),
            (envelope(f"r-{number}", token), 1_700_000_000.5 - number),
            (body(f"r-{number}", str(DEADLINE + number)), float(DEADLINE + number)),
            (body("twin", n=number), float(DEADLINE)),
            (f"no json {number}".encode() + b"\xff", 1_800_000_000.25 + number),
        )[pick % 5]
        await self.bench.put(member, score)
        if token.encode() in member:
            await self.bench.redis.set(active_key(f"r-{number}"), token, pxat=DEADLINE * 1_000)
        self.model.serial[member] = number
        self.model.pending[member] = score

    async def cancel(self, pick: int) -> None:
        """Cancel one of the last eight submissions, if it is live, or if another one of its id was."""
        number = len(self.model.serial_numbers()) - 1 - pick % 8
        name, token = f"r-{number}", f"t-{number}"
        if await self.bench.redis.get(active_key(name)) != token.encode():
            return
        if pick % 4 == 3 and number not in self.model.cancelled:
            await self.bench.redis.set(cancel_key(name), "another")
            return
        assert await Submissions(self.bench.redis).cancel([(name, token)]) == [True]
        self.model.cancelled.add(number)

    # Steps of pollers

    async def claim(self, pick: int) -> None:
        """Up to three, the lowest first."""
        model = self.model
        before = await self._now()
        claims = await self._owner(pick).claim(1 + pick % 3)
        lowest = sorted(model.pending, key=lambda member: (model.pending[member], member))[: 1 + pick % 3]
        assert [claim.member for claim in claims] == lowest
        for claim in claims:
            assert claim.score == model.pending.pop(claim.member)
            assert claim.claim_key not in model.held, "a live claim has one owner"
            assert claim.is_cancelled == (model.serial[claim.member] in model.cancelled)
            assert claim.delivery_count == model.deaths.get(self._count(claim.claim_key), 0)
            model.held[claim.claim_key] = Held(claim)
        self._note(claims)
        await self._check_lease_ends(claims, before)

    def _note(self, claims: list[Claim]) -> None:
        tokens = {claim.owner_token for claim in self.issued}
        assert not tokens & {claim.owner_token for claim in claims}, "a fresh token for each claim"
        self.issued += claims

    async def renew(self, pick: int) -> None:
        """Late, in time, or by a stale owner."""
        claims = self._issued(pick)
        before = await self._now()
        lost = await self._owner(pick).renew(claims)
        assert lost == [claim for claim in claims if not self.model.is_owner(claim)]
        ours = [claim for claim in claims if self.model.is_owner(claim)]
        for claim in ours:
            self.model.held[claim.claim_key].end = None
        await self._check_lease_ends(ours, before)

    async def ack(self, pick: int) -> None:
        """With a result; every fourth also among the dead."""
        is_dead = pick % 4 == 3
        acks = [
            self.bench.ack_of(
                claim,
                self._result_of(claim),
                **_submission(claim),
                dead=b"{}" if is_dead else None,
            )
            for claim in self._issued(pick)
        ]
        expected = self.model.settle("ack", [ack.claim for ack in acks])
        effects = await self._owner(pick).ack(acks)
        assert effects == [answer for answer, _ in expected]
        for ack, (_, is_changed) in zip(acks, expected, strict=True):
            if is_changed:
                del self.model.held[ack.claim.claim_key]
                self.model.results.insert(0, ack.result)
                self.model.dead += is_dead
                self.model.deaths.pop(self._count(ack.claim.claim_key), None)

    def _result_of(self, claim: Claim) -> bytes:
        return str(self.model.serial[claim.member]).encode()

    async def nack(self, pick: int) -> None:
        """To the retry set, like a poller; members that are not JSON are never retried."""
        claims = [claim for claim in self._issued(pick) if not claim.member.startswith(b"no")]
        before = await self._now()
        nacks = [Nack(claim, self._retry_of(claim), DELAY_SECONDS) for claim in claims]
        expected = self.model.settle("nack", claims)
        effects = await self._owner(pick).nack(nacks)
        after = await self._now()
        assert effects == [answer for answer, _ in expected]
        for nack, (_, is_changed) in zip(nacks, expected, strict=True):
            if not is_changed:
                continue
            del self.model.held[nack.claim.claim_key]
            self.model.retries[nack.retry_member] = (nack.claim.score, None)
            self.model.serial[nack.retry_member] = self.model.serial[nack.claim.member]
            due = cast(float, await self.bench.redis.zscore(self.bench.retries, nack.retry_member))
            assert before - CLOCK_SET_SECONDS <= due - DELAY_SECONDS <= after + CLOCK_SET_SECONDS

    def _retry_of(self, claim: Claim) -> bytes:
        attempt = len(self.issued)
        return encode_retry(claim.member, queue=claim.queue, attempt=attempt, score=claim.score)

    async def release(self, pick: int) -> None:
        """Back to pending, unchanged."""
        claims = self._issued(pick)
        effects = await self._owner(pick).release(claims)
        for claim, effect in zip(claims, effects, strict=True):
            assert effect == self.model.is_owner(claim)
            if effect:
                del self.model.held[claim.claim_key]
                self.model.pending[claim.member] = claim.score

    # Steps of the scans

    async def reclaim(self, pick: int) -> None:
        """The leases that ended first, at most three."""
        before = await self._now()
        found = await self._owner(pick).reclaim(1 + pick % 3, MAX_DEATHS)
        ended = [held for held in self.model.held.values() if held.end is not None]
        ended.sort(key=lambda held: held.end or 0)
        returned = 0
        dead = iter(found.dead)
        for held in ended[: 1 + pick % 3]:
            key = self._count(held.claim.claim_key)
            deaths = self.model.deaths[key] = self.model.deaths.get(key, 0) + 1
            if deaths < MAX_DEATHS:
                del self.model.held[held.claim.claim_key]
                self.model.pending[held.claim.member] = held.claim.score
                returned += 1
                continue
            claim = next(dead)
            expected = msgspec.structs.replace(
                held.claim, owner_token=claim.owner_token, delivery_count=deaths, is_cancelled=False
            )
            assert claim == expected
            self.model.held[claim.claim_key] = Held(claim)
        assert (found.returned, list(dead)) == (returned, [])
        self._note(found.dead)
        await self._check_lease_ends(found.dead, before)

    async def recall(self, _pick: int) -> None:
        """A cancelled pending request is claimed if its score follows from its producer's token."""
        model = self.model
        before = await self._now()
        claims = await recalled(self.bench.redis, self.bench.owner())  # a new owner scans all recent cancellations
        expected = {
            member
            for member, score in model.pending.items()
            if model.serial[member] in model.cancelled and score == DEADLINE + model.serial[member] / 2**21
        }
        assert {claim.member for claim in claims if claim.is_cancelled} == expected
        for claim in claims:
            assert claim.score == model.pending.pop(claim.member)
            assert claim.claim_key not in model.held, "a live claim has one owner"
            assert claim.delivery_count == model.deaths.get(self._count(claim.claim_key), 0)
            model.held[claim.claim_key] = Held(claim)
        self._note(claims)
        await self._check_lease_ends(claims, before)

    async def recall_retries(self, _pick: int) -> None:
        """Every retry that was cancelled returns to its queue."""
        found = [member for member in self.model.retries if self.model.serial[member] in self.model.cancelled]
        for member in found:
            self.model.pending[member] = self.model.retries.pop(member)[0]
        recall = Retries(self.bench.redis, self.bench.retries, self.bench.queue_name)
        assert await recalled_retries(self.bench.redis, recall) == len(found)

    async def scan_held(self, pick: int) -> None:
        """Exactly the claimed requests that were cancelled."""
        held = [one.claim for one in self.model.held.values()]
        expected = [claim for claim in held if self.model.serial[claim.member] in self.model.cancelled]
        assert await self._owner(pick).cancelled(held) == expected

    async def promote(self, pick: int) -> None:
        """The retries that were due first, at most four."""
        moved = await self.bench.promote(1 + pick % 4)
        due = [(at, member) for member, (_, at) in self.model.retries.items() if at is not None]
        chosen = sorted(due)[: 1 + pick % 4]
        assert moved == len(chosen)
        for _, member in chosen:
            self.model.pending[member] = self.model.retries.pop(member)[0]

    # Time passes

    async def expire(self, pick: int) -> None:
        """One live lease ends: its owner died, or stands still."""
        running = [held for held in self.model.held.values() if held.end is None]
        if running:
            held = running[pick % len(running)]
            self._moment += 1
            held.end = self._moment
            await self.bench.redis.zadd(self.bench.keys.index, {held.claim.claim_key: held.end})

    async def fall_due(self, pick: int) -> None:
        """One retry is due."""
        waiting = [member for member, (_, at) in self.model.retries.items() if at is None]
        if waiting:
            member = waiting[pick % len(waiting)]
            self._moment += 1
            self.model.retries[member] = (self.model.retries[member][0], self._moment)
            await self.bench.redis.zadd(self.bench.retries, {member: self._moment})

    async def restart(self, _pick: int) -> None:
        """The server restarts with its data, but without scripts and connections."""
        await self.bench.redis.script_flush()
        await self.bench.redis.connection_pool.disconnect()

    async def lose_index_entry(self, pick: int) -> None:
        """A running claim loses its index entry, as after a restore; the next scan repairs it."""
        running = [held for held in self.model.held.values() if held.end is None]
        if running:
            key = running[pick % len(running)].claim.claim_key
            await self.bench.redis.zrem(self.bench.keys.index, key)
            await self.reclaim(pick)

    # Invariants

    async def check(self) -> None:
        """Server and model hold the same, and every submission is somewhere, once."""
        bench, model = self.bench, self.model
        await self._remember()
        pipeline = bench.redis.pipeline(transaction=False)
        pipeline.zrange(bench.queue_name, 0, -1, withscores=True)
        pipeline.hgetall(bench.keys.claimed)
        pipeline.hgetall(bench.keys.owners)
        pipeline.zrange(bench.keys.index, 0, -1)
        pipeline.zrange(bench.retries, 0, -1)
        pipeline.lrange(bench.results, 0, -1)
        pipeline.hlen(bench.keys.dead)
        pipeline.hgetall(bench.keys.deaths)
        pending, claimed, owners, index, retries, results, dead, deaths = await pipeline.execute()
        assert dict(pending) == model.pending
        assert claimed == {key: held.claim.member for key, held in model.held.items()}
        assert owners == {key: held.claim.owner_token for key, held in model.held.items()}
        assert set(index) == set(model.held)
        assert set(retries) == set(model.retries)
        assert (results, dead) == (model.results, model.dead)
        assert {key: int(count) for key, count in deaths.items()} == model.deaths
        self._check_conservation()

    async def _remember(self) -> None:
        """Time passes only by steps, also for outcomes of batches."""
        await self.bench.redis.eval(_REMEMBER, 0, settled_key(self.bench.keys, "*"))

    def _check_conservation(self) -> None:
        model = self.model
        members = [*model.pending, *(held.claim.member for held in model.held.values()), *model.retries]
        found = sorted([model.serial[member] for member in members] + [int(text) for text in model.results])
        assert found == sorted(set(model.serial.values())), "pending + claimed + retry + results = accepted"

    async def _check_lease_ends(self, claims: list[Claim], before: float) -> None:
        after = await self._now()
        for claim in claims:
            ends = await self.bench.redis.zscore(self.bench.keys.index, claim.claim_key)
            assert ends is not None, "a claim without a lease would never end"
            assert before - CLOCK_SET_SECONDS <= ends - LEASE_SECONDS <= after + CLOCK_SET_SECONDS

    async def drain(self) -> None:
        """All owners crash; one poller answers everything, and no keys remain."""
        model = self.model
        for _ in range(4 * len(model.serial) + 20):
            if not (model.pending or model.held or model.retries):
                break
            await self._remember()
            for step in (self.expire, self.fall_due, self.reclaim, self.promote, self.claim):
                await step(2)
            self.issued += [held.claim for held in model.held.values()]
            for pick in (0, 4, 6):
                await self.ack(pick)
        await self.check()
        assert not (model.pending or model.held or model.retries), "not drained"
        assert not self.model.deaths
        left = {key for key in await self.bench.all_keys() if not key.startswith(cancel_key(""))}
        assert left <= {self.bench.results, self.bench.keys.dead, CANCELLATIONS}

    async def _now(self) -> float:
        return await server_time(self.bench.redis)


STEPS = {
    "submit": Walk.submit,
    "claim": Walk.claim,
    "renew": Walk.renew,
    "ack": Walk.ack,
    "nack": Walk.nack,
    "release": Walk.release,
    "reclaim": Walk.reclaim,
    "promote": Walk.promote,
    "expire": Walk.expire,
    "fall_due": Walk.fall_due,
    "lose_index_entry": Walk.lose_index_entry,
    "cancel": Walk.cancel,
    "recall": Walk.recall,
    "recall_retries": Walk.recall_retries,
    "scan_held": Walk.scan_held,
    "restart": Walk.restart,
}
"""Every step, by its name."""
