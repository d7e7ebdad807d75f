"""Look at what exists, and do what a plan says. Every step may be repeated."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import msgspec

from handlers.pubsub.api import PubSubApi
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.grants import Grant, GrantState, Policy, grant_state
from handlers.pubsub.layout import Layout
from handlers.pubsub.plan import Create, Delete, Keep, SetUpChange, TearDownChange, Update
from handlers.pubsub.resources import Spec, SubscriptionSpec, subscription_from_wire, topic_from_wire

_TIMEOUT_SECONDS: Final = 30.0
_POLICY_UNREADABLE: Final = frozenset({403, 404, 501})
"""No right to read it, no such resource yet, no policies at all (the emulator)."""

_Value = TypeVar("_Value")


async def look(api: PubSubApi, layout: Layout) -> dict[str, Spec]:
    """Those resources of `layout` that exist, as they are, by path. Raises `PubSubFailed`."""
    found: dict[str, Spec] = {}
    for spec in layout.resources:
        body = await _or_none(_call(api, "GET", spec.path))
        if body is not None:
            is_subscription = isinstance(spec, SubscriptionSpec)
            found[spec.path] = subscription_from_wire(body) if is_subscription else topic_from_wire(body)
    return found


async def readers(api: PubSubApi, layout: Layout) -> dict[str, list[str]]:
    """The subscriptions of each topic of `layout`, by path; topics that do not exist are left out."""
    found: dict[str, list[str]] = {}
    for topic in layout.topics:
        names = await _or_none(_subscriptions(api, topic.path))
        if names is not None:
            found[topic.path] = names
    return found


async def set_up(api: PubSubApi, change: SetUpChange) -> None:
    """Create or update one resource. Raises `PubSubFailed`; one that another created meanwhile is fine."""
    path, wire = change.spec.path, change.spec.to_wire()
    match change:
        case Create():
            try:
                await _call(api, "PUT", path, body=msgspec.json.encode(wire))
            except PubSubFailed as error:
                if error.status != 409:
                    raise
        case Update():
            kind = "subscription" if isinstance(change.spec, SubscriptionSpec) else "topic"
            body = {kind: {"name": path, **wire}, "updateMask": change.update_mask}
            await _call(api, "PATCH", path, body=msgspec.json.encode(body))


async def tear_down(api: PubSubApi, change: TearDownChange) -> None:
    """Delete one resource, with all that it holds; one that is gone is fine. Raises `PubSubFailed`."""
    match change:
        case Delete(spec):
            await _or_none(_call(api, "DELETE", spec.path))
        case Keep():
            pass


async def grant_states(api: PubSubApi, grants: list[Grant]) -> list[tuple[Grant, GrantState]]:
    """Each grant and what the policy of its resource says of it. Raises `PubSubFailed`."""
    policies: dict[str, Policy | None] = {}
    for resource in dict.fromkeys(grant.resource for grant in grants):
        policies[resource] = await _policy(api, resource)
    return [(grant, grant_state(grant, policies[grant.resource])) for grant in grants]


async def _policy(api: PubSubApi, resource: str) -> Policy | None:
    try:
        body = await _call(api, "GET", resource, "getIamPolicy")
    except PubSubFailed as error:
        if error.status in _POLICY_UNREADABLE:
            return None
        raise
    return msgspec.json.decode(body, type=Policy)


class _SubscriptionNames(msgspec.Struct, rename="camel"):
    subscriptions: list[str] = msgspec.field(default_factory=list)
    next_page_token: str = ""


async def _subscriptions(api: PubSubApi, topic: str) -> list[str]:
    names: list[str] = []
    parameters: dict[str, str] = {}
    while True:
        answer = await api.call(
            "GET", f"{topic}/subscriptions", timeout_seconds=_TIMEOUT_SECONDS, parameters=parameters
        )
        page = msgspec.json.decode(answer, type=_SubscriptionNames)
        names += page.subscriptions
        if not page.next_page_token:
            return names
        parameters = {"pageToken": page.next_page_token}


async def _call(
    api: PubSubApi, method: str, resource: str, verb: str = "", *, body: bytes | None = None
) -> bytes:
    return await api.call(method, resource, verb, body=body, timeout_seconds=_TIMEOUT_SECONDS)


async def _or_none(call: Awaitable[_Value]) -> _Value | None:
    """What `call` returns, or None where there is no such resource."""
    try:
        return await call
    except PubSubFailed as error:
        if error.status == 404:
            return None
        raise
