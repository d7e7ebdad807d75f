"""The optional fields of `NewRequest` as keyword arguments of `submit` and `ask`; a test keeps them equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict


class RequestFields(TypedDict, total=False):
    """See `NewRequest`, which has the same fields."""

    id: str
    endpoint: str
    model: str
    headers: Mapping[str, str]
    metadata: Mapping[str, str]
    labels: Mapping[str, str]
    tier: str
    tenant: str
    has_own_results: bool
    idempotency_key: str
