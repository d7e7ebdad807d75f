"""Write your own gate: interface, parameter types, and registration.

`docs/adding-a-gate.md` shows a complete package. Needs `async-processor[server]`.
"""

from handlers.contract.request import Request
from handlers.gates.chain import claim_name
from handlers.gates.combinators import BuildInner, InnerGate, InnerGates, OneInnerGate, WrapperGate
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    NO_LABELS,
    Drop,
    Feedback,
    Gate,
    Go,
    Hold,
    NoReservation,
    Refuse,
    Reservation,
    Share,
    Verdict,
    check_reservations,
)
from handlers.gates.metric.reading_gate import ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import Duration, HttpUrl, InconsistentParameters, Labels, Text
from handlers.gates.registry import GateKind, combinator_kind, gate_kind
from handlers.gates.sources import GateSources, MetricSample, SourceMissing
from handlers.telemetry.dependencies import GateState

__all__ = [
    "CLOSED_RETRY_SECONDS",
    "NO_LABELS",
    "BuildInner",
    "Drop",
    "Duration",
    "Feedback",
    "Gate",
    "GateKind",
    "GateSources",
    "GateState",
    "Go",
    "Hold",
    "HttpUrl",
    "InconsistentParameters",
    "InnerGate",
    "InnerGates",
    "Labels",
    "MetricSample",
    "NoReservation",
    "OneInnerGate",
    "ReadingGate",
    "ReadingParameters",
    "Refuse",
    "Request",
    "Reservation",
    "Rule",
    "Share",
    "SourceMissing",
    "Text",
    "Verdict",
    "WrapperGate",
    "check_reservations",
    "claim_name",
    "combinator_kind",
    "gate_kind",
]
