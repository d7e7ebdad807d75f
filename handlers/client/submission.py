"""The handle of one submission: what names it, later and elsewhere."""

from __future__ import annotations

import msgspec


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One request that was queued.

    `token` tells this submission from another one of the same id (empty on Pub/Sub). `deadline` is in
    Unix seconds. `results` is where its result goes: a list, or a topic's subscription.
    `is_new` is false where an earlier submission of the id stands for this one: `token` is that one's, all else is
    what was asked for now.
    """

    id: str
    token: str
    deadline: int
    queue: str
    results: str
    has_own_results: bool = False
    is_new: bool = True
