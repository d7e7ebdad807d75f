"""What gates read from, handed to each of them when it is built."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from handlers.gates.metric.feed import Feeds, GateLog
from handlers.gates.metric.http_text import HttpText
from handlers.gates.quota.stores import GateStore


@dataclass(frozen=True, slots=True)
class GateSources:
    """`stores` gives the store at an address, the same one for the same address.

    `prometheus_url` is empty where none is configured; `prometheus_http` carries the credentials for it, and
    `http`, which reads pages, has none. `owner_pool` is the worker pool whose gate is built, or whose queue's.
    `clock` gives Unix seconds, `draw` a number in [0, 1).
    """

    feeds: Feeds
    http: HttpText
    prometheus_http: HttpText
    stores: Callable[[str], GateStore]
    log: GateLog
    prometheus_url: str = ""
    owner_pool: str = ""
    clock: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random
