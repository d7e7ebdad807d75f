"""KEDA in a chaos run: the rules of our manifest, applied to the real keys."""

from __future__ import annotations

import time
from pathlib import Path

import yaml
from redis import Redis

from tests.manifests.keda_rehearsal import Autoscaler, Scaling
from tests.waiting import wait_until

_MANIFEST = Path(__file__).resolve().parents[2] / "keda" / "base" / "scaledobject.yaml"
_SPEED = 40.0
"""Seconds of KEDA per second of the run."""


class Keda:
    """Evaluates the triggers at every polling interval of KEDA, on a faster clock."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scaling = Scaling.read(yaml.safe_load(_MANIFEST.read_text()))

    def is_active(self) -> bool:
        """Whether any trigger is active, so that a poller must start or stay."""
        return self._scaling.is_active(self._values())

    def wake_from_zero(self) -> int:
        """Wait until the rules start pollers from zero; returns their number, 0 without work.

        A trigger that is active now must start one at the next interval (I19).
        """
        if not self.is_active():
            return 0
        scaler, began = Autoscaler(self._scaling), time.monotonic()
        pause = self._scaling.polling_seconds / _SPEED

        def decided() -> int:
            return scaler.decide(self._values(), (time.monotonic() - began) * _SPEED)

        return wait_until(decided, "the autoscaler to start a poller", timeout_seconds=10 + pause)

    def _values(self) -> dict[str, float]:
        return {trigger.name: trigger.measure(self._redis) for trigger in self._scaling.triggers}
