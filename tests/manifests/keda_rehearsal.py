"""A small KEDA and HPA: read a rendered ScaledObject, count keys, decide replicas, run real pollers.

Rules as in KEDA 2.20 and the HPA (autoscaling/v2):
- redis scaler: TYPE, then ZCARD, HLEN, SCARD or LLEN; a missing key counts 0
- from zero: any trigger above its activation starts one replica; none above it for `cooldownPeriod` scales to zero
- above zero: each trigger wants ceil(value / target) replicas, unless that is within 10 % of the current number; the
  largest number wins, no faster up and down than `behavior` allows, down only to the largest number within the
  stabilisation window
- with `scalingModifiers`, the formula over the triggers' values is the only trigger
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

HPA_TOLERANCE = 0.1

COUNT = """
local listName = KEYS[1]
local listType = redis.call('type', listName).ok
local cmd = {zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen'}
if not cmd[listType] then
  return redis.error_reply('ERR unsupported key type')
end
return redis.call(cmd[listType], listName)
"""
"""The commands of KEDA's redis scaler, in its order: also LLEN for a key that does not exist; its error for others."""


class Redis(Protocol):
    """The one call that the scaler makes."""

    def eval(self, script: str, numkeys: int, *keys_and_args: str) -> Any:
        """Run a Lua script."""


@dataclass(frozen=True)
class Trigger:
    """One entry of `triggers`, with the scaler's defaults."""

    name: str
    key: str
    target: float
    activation: float

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Trigger:
        """From the manifest."""
        metadata = entry["metadata"]
        return cls(
            entry["name"],
            metadata["listName"],
            float(metadata.get("listLength", 5)),
            float(metadata.get("activationListLength", 0)),
        )

    def measure(self, redis: Redis) -> float:
        """How many members the key has now."""
        return float(redis.eval(COUNT, 1, self.key))


@dataclass(frozen=True)
class Scaling:
    """The rules of a ScaledObject."""

    triggers: list[Trigger]
    minimum: int
    maximum: int
    polling_seconds: float
    cooldown_seconds: float
    behavior: Mapping[str, Any]
    modifiers: Mapping[str, str] | None

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> Scaling:
        """Read a rendered manifest; KEDA's defaults apply to missing fields."""
        spec = manifest["spec"]
        advanced = spec.get("advanced", {})
        return cls(
            triggers=[Trigger.read(t) for t in spec["triggers"] if t["type"].startswith("redis")],
            minimum=spec.get("minReplicaCount", 0),
            maximum=spec.get("maxReplicaCount", 100),
            polling_seconds=spec.get("pollingInterval", 30),
            cooldown_seconds=spec.get("cooldownPeriod", 300),
            behavior=advanced.get("horizontalPodAutoscalerConfig", {}).get("behavior", {}),
            modifiers=advanced.get("scalingModifiers"),
        )

    def is_active(self, values: Mapping[str, float]) -> bool:
        """Whether KEDA starts from zero, or stays above zero."""
        if self.modifiers:
            formula = evaluate(self.modifiers["formula"], values)
            return formula > float(self.modifiers.get("activationTarget", 0))
        return any(values[t.name] > t.activation for t in self.triggers)

    def asked(self, values: Mapping[str, float], replicas: int) -> int:
        """The replicas of the HPA's formula (metric type AverageValue), before `behavior`."""
        if self.modifiers:
            wanted = [(evaluate(self.modifiers["formula"], values), float(self.modifiers["target"]))]
        else:
            wanted = [(values[t.name], t.target) for t in self.triggers]
        largest = max(_asked(value, target, replicas) for value, target in wanted)
        return max(1, self.minimum, min(self.maximum, largest))


def _asked(value: float, target: float, replicas: int) -> int:
    is_near = replicas > 0 and abs(value / (target * replicas) - 1) <= HPA_TOLERANCE
    return replicas if is_near else math.ceil(value / target)


@dataclass
class Autoscaler:
    """The decisions over time; `now` is in seconds of KEDA's clock, which a rehearsal may speed up."""

    scaling: Scaling
    replicas: int = 0
    _active_at: float = -math.inf
    _wanted: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, values: Mapping[str, float], now: float) -> int:
        """Decide the number of replicas."""
        is_active = self.scaling.is_active(values)
        if is_active:
            self._active_at = now
        if self.replicas == 0:
            self._change(max(1, self.scaling.minimum) if is_active else 0, now)
        elif not is_active and now - self._active_at >= self.scaling.cooldown_seconds:
            self._change(self.scaling.minimum, now)
        else:
            self._change(self._limited(self.scaling.asked(values, self.replicas), now), now)
        return self.replicas

    def _limited(self, asked: int, now: float) -> int:
        """The wanted number within the limits of `behavior`."""
        rules = self.scaling.behavior
        down = rules.get("scaleDown", {})
        window = down.get("stabilizationWindowSeconds", 300)
        self._wanted = [(at, w) for at, w in self._wanted if now - at < window] + [(now, asked)]
        if asked > self.replicas:
            return min(asked, self.replicas + self._allowed(rules.get("scaleUp", {}), now, 1))
        settled = min(self.replicas, max(w for _, w in self._wanted))
        return max(settled, self.replicas - self._allowed(down, now, -1))

    def _allowed(self, rule: Mapping[str, Any], now: float, direction: int) -> int:
        """How many replicas the policies of one direction allow to add or remove now."""
        room: list[int] = []
        for policy in rule.get("policies", [{"type": "Percent", "value": 100, "periodSeconds": 15}]):
            period = [c for at, c in self._changes if now - at < policy["periodSeconds"] and c * direction > 0]
            done = abs(sum(period))
            started_with = self.replicas - direction * done
            limit = policy["value"]
            if policy["type"] == "Percent":
                limit = math.ceil(started_with * limit / 100)
            room.append(max(0, limit - done))
        return int(min(room) if rule.get("selectPolicy") == "Min" else max(room))

    def _change(self, replicas: int, now: float) -> None:
        if replicas != self.replicas:
            self._changes.append((now, replicas - self.replicas))
            self.replicas = replicas


_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """A scaling formula: arithmetic, comparisons and one `a ? b : c` over the triggers' values."""
    choice = re.fullmatch(r"\s*(.+?)\s*\?\s*(.+?)\s*:\s*(.+?)\s*", formula)
    text = f"({choice[2]}) if ({choice[1]}) else ({choice[3]})" if choice else formula
    return float(_value(ast.parse(text, mode="eval").body, values))


def _value(node: ast.expr, values: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return values[name]
        case ast.IfExp(test, body, orelse):
            return _value(body if _value(test, values) else orelse, values)
        case ast.BinOp(left, operation, right) | ast.Compare(left, [operation], [right]):
            return _OPERATORS[type(operation)](_value(left, values), _value(right, values))
        case _:
            raise ValueError(f"the rehearsal does not know {ast.unparse(node)}")
