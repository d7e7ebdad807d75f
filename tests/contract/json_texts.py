"""Hypothesis strategies of the contract: any JSON, valid bodies, broken ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# msgspec refuses lone surrogates, as RFC 8259 lets it; producers cannot make them in UTF-8.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)
STRINGS = st.dictionaries(TEXT, TEXT, max_size=3)
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
DEADLINES = st.integers(1, 4_000_000_000)

BODIES = st.fixed_dictionaries(
    {
        "id": IDS,
        "deadline": DEADLINES | DEADLINES.map(str) | st.floats(1, 4e9, allow_nan=False),
        "payload": OBJECTS | st.none(),
    },
    optional={
        "created": DEADLINES | st.none(),
        "metadata": STRINGS | st.none(),
        "headers": STRINGS | st.none(),
        "endpoint": TEXT,
        "model": TEXT | st.none(),
        "result_queue_name": TEXT | st.none(),
        "x_unknown": JSON,
    },
)
INTERNALS = st.fixed_dictionaries(
    {},
    optional={
        "retry_count": st.integers(0, 50),
        "request_token": TEXT,
        "result_queue_name": TEXT | st.none(),
        "labels": STRINGS | st.none(),
        "enqueue_seq": st.integers(0, 2**22),
        "result_ttl_seconds": st.integers(0, 10_000) | st.none(),
        "transport_correlation_id": TEXT,
        "x_unknown": JSON,
    },
)
# Fields with values of any type, as an untrusted producer may send them.
FIELDS = [
    *(
        "id",
        "deadline",
        "payload",
        "created",
        "metadata",
        "headers",
        "endpoint",
        "model",
        "result_queue_name",
    ),
    *("internal", "data", "request_kind", "labels", "retry_count", "result_ttl_seconds", "enqueue_seq"),
]
STRANGE = st.dictionaries(st.sampled_from(FIELDS), JSON | OBJECTS | BODIES | INTERNALS, max_size=6)


def text(value: Any) -> bytes:
    """JSON as a producer that cares for bytes writes it."""
    return json.dumps(value, ensure_ascii=False).encode()


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A text that was cut, overwritten or glued somewhere; or no JSON at all."""
    whole = text(draw(STRANGE | BODIES))
    at, to = draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))
    return whole[:at] + draw(st.binary(max_size=6)) + whole[to:]
