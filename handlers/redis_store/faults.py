"""Explain Redis failures to an operator, and pause while they last.

Each explanation is one line without secrets.
"""

from __future__ import annotations

import math
import os
import re
import socket
import ssl
import time
import weakref
from collections.abc import Iterator
from typing import Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.backoff import Backoff
from handlers.contract.masked_text import without_secrets
from handlers.number_text import whole
from handlers.telemetry.logs import Logger

_LONGEST: Final = 200

_NOT_SIGNED_IN: Final = "the server requires a password: set REDIS_PASSWORD_FILE, or put it into the URL"
_REFUSED: Final = "the server refuses this user or password: check REDIS_USERNAME and REDIS_PASSWORD_FILE, or the URL"
_IS_CLUSTER: Final = (
    "the server is a node of a Redis Cluster: the URL must begin with redis+cluster:// or rediss+cluster://"
)
_NO_CLUSTER: Final = "the server is not part of a Redis Cluster: the URL must begin with redis:// or rediss://"
_NO_NODE: Final = "no node of the cluster was reached"
_NO_HOST: Final = "a host name in the URL does not resolve on this machine"
_NO_ANSWER: Final = "no answer in time"
_CLOSED: Final = "the server closed the connection"
_NO_RIGHT: Final = "the ACL user lacks a right that docs/redis.md lists"

_NO_RIGHT_IN_SCRIPT: Final = ("ACL failure", "The user executing the script")
"""Texts of refusals inside a script; `_run.lua` has the same ones."""

_OF_WRONG_TYPE: Final = re.compile(r"(?:^|of pipeline caused error: \W*)WRONGTYPE ")
"""A refusal of a single command, a script or a command in a pipeline."""

_WRONG_TYPE: Final = "a key's type differs from that in docs/redis.md: rename or delete it"

NO_FIRST_REPLY: Final = (
    "the server closed the connection before its first reply; if it requires TLS, the URL must begin with rediss"
)
NO_TLS: Final = "the server does not speak TLS: the URL must begin with redis, not rediss, or its port is wrong"
_MEANINGS: Final = (
    (NO_FIRST_REPLY, NO_FIRST_REPLY),
    (NO_TLS, NO_TLS),
    ("WRONG_VERSION_NUMBER", NO_TLS),
    ("HELLO must be called", _NOT_SIGNED_IN),
    ("Authentication required", _NOT_SIGNED_IN),
    ("invalid username-password", _REFUSED),
    ("WRONGPASS", _REFUSED),
    ("without any password configured", "the server has no password: remove the configured one"),
    ("Cluster mode is not enabled", _NO_CLUSTER),
    ("cluster support disabled", _NO_CLUSTER),
    ("TTL exhausted", "the cluster is still moving the slot of a queue to another node"),
    ("hash to the same slot", _IS_CLUSTER),
    (
        "unknown command 'SENTINEL'",
        "a host in the URL is not a Sentinel: Sentinels usually listen on port 26379",
    ),
    (
        "unknown command",
        "the server lacks a command; if it is a Sentinel, the URL must be redis+sentinel://…/MASTER",
    ),
    ("certfile should be a valid", "REDIS_KEY_FILE is set without REDIS_CERT_FILE"),
    ("Protocol error, got", "the server does not speak Redis: check the port of the URL"),
    ("Connection reset", _CLOSED),
    ("Connection closed by server", _CLOSED),
    ("while writing to socket", _CLOSED),
)
"""Texts in errors of the server or the library, and what they mean; the first match counts."""


def explained(error: BaseException) -> str:
    """The cause in one line, and the fix if it is known."""
    reported = _known(error)
    if reported:
        return reported
    text = " ".join(str(error).split())
    return (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…") or type(error).__name__


def has_fix(error: BaseException) -> bool:
    """Whether `explained` names a fix other than the address."""
    known = _known(error)
    if known.startswith(_NO_NODE):
        return error.__cause__ is not None and has_fix(error.__cause__)
    return known not in ("", _NO_HOST, _NO_ANSWER, _CLOSED) and not known.startswith(_NOT_CONNECTED)


def refusal(error: BaseException) -> str:
    """Explain a missing right or a wrong key type. Empty for transient failures."""
    is_lasting = _is_missing_right(error) or _OF_WRONG_TYPE.search(str(error))
    return explained(error) if is_lasting else ""


def _is_missing_right(error: BaseException) -> bool:
    """Whether the ACL refuses a right. A refusal inside a script has only a text."""
    return isinstance(error, NoPermissionError) or any(text in str(error) for text in _NO_RIGHT_IN_SCRIPT)


def _known(error: BaseException) -> str:
    if isinstance(error, MovedError):
        return _IS_CLUSTER
    if isinstance(error, MasterNotFoundError):
        return ""  # the message of `Sentinels` is complete
    if _is_missing_right(error):
        return f"{_NO_RIGHT}: {' '.join(str(error).split())[:_LONGEST]}"
    message = str(error)
    if _OF_WRONG_TYPE.search(message):
        return f"{_WRONG_TYPE}: {' '.join(message.split())[:_LONGEST]}"
    meaning = next((meaning for part, meaning in _MEANINGS if part in message), "")
    if meaning:
        return meaning
    if isinstance(error, RedisClusterException) and error.__cause__:
        return f"{_NO_NODE}: {explained(error.__cause__)}"
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError) and not isinstance(
        error, AuthenticationError
    ):
        return _of_the_network(error)
    return ""


def _of_the_network(error: BaseException) -> str:
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted ({cause.verify_message}): set REDIS_CA_FILE to its CA"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({cause.reason}): check rediss:// or redis://, REDIS_CERT_FILE and REDIS_KEY_FILE"
        if isinstance(cause, socket.gaierror):
            return _NO_HOST
        if isinstance(cause, FileNotFoundError) and "connecting to /" not in str(error):  # a socket's path
            return "a file named by REDIS_CA_FILE, REDIS_CERT_FILE or REDIS_KEY_FILE does not exist"
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return _NO_ANSWER
    return _not_connected(error)


_NOT_CONNECTED: Final = "no connection to "
_CONNECTING: Final = re.compile(r"connecting to ([^\s,]+?)\.(?:\s|$)")
_NUMBER: Final = re.compile(r"\[Errno (\d+)\]|^Error (\d+) connecting")


def _not_connected(error: BaseException) -> str:
    """The address and the cause in "Error 111 connecting to HOST:PORT. …"."""
    text = str(error)
    address, number = _CONNECTING.search(text), _NUMBER.search(text)
    if not (address and number):
        return ""
    return f"{_NOT_CONNECTED}{address[1]}: {os.strerror(whole(number[1] or number[2]) or 0).lower()}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kind(error: BaseException) -> str:
    """What all errors of one cause have in common; empty for a server that is down or out of reach."""
    known = _known(error)
    is_lost = isinstance(error, RedisConnectionError | RedisTimeoutError | RedisClusterException | OSError)
    is_reached = has_fix(error) or isinstance(error, BusyLoadingError | MasterNotFoundError)
    return "" if NO_FIRST_REPLY in known or (is_lost and not is_reached) else known or type(error).__name__


class Outage:
    """Logs an outage of Redis and its end once for all parts.

    Each new kind of failure during the outage is logged too. An outage lasts while the latest call of any part has
    failed. `reason` explains the latest failure of a part.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._failing: weakref.WeakSet[StoreBackoff] = weakref.WeakSet()  # a part of an earlier configuration may end
        self._began_at = 0.0
        self._ended_at = -math.inf
        self._logged_at: dict[str, float] = {}
        self._kind = ""
        self.reason = ""

    def failed(self, part: StoreBackoff, error: BaseException) -> None:
        """Record a failure of a part."""
        now = time.monotonic()
        self.reason = without_secrets(explained(error))
        is_late = not part.has_failed and now - self._ended_at < _LATE_SECONDS
        if is_late and not self._failing:
            return  # it used a connection from before the end of the outage
        kind, before = _kind(error), self._kind
        self._kind = kind
        if not self._failing:
            self._began_at = now
            self._logged_at = {kind: now}
            self._log.warning("work paused: Redis unavailable", error=self.reason)
        # Parts may fail in different ways in turn, so each kind is logged once a minute at most.
        elif kind != before and now - self._logged_at.get(kind, -math.inf) >= _SAME_KIND_SECONDS:
            self._logged_at[kind] = now
            self._log.warning("work still paused: Redis unavailable", error=self.reason)
        self._failing.add(part)

    def succeeded(self, part: StoreBackoff) -> None:
        """Record a success of a part."""
        if not self._failing or part not in self._failing:
            return
        self._failing.discard(part)
        if not self._failing:
            self._ended_at = time.monotonic()
            self._log.info("Redis available again", seconds=round(self._ended_at - self._began_at, 1))


_LATE_SECONDS: Final = 60.0
_SAME_KIND_SECONDS: Final = 60.0
_outages: weakref.WeakKeyDictionary[Logger, Outage] = weakref.WeakKeyDictionary()


def outage_reason(log: Logger) -> str:
    """Why the latest failed call of the parts with `log` failed; empty if none has failed."""
    outage = _outages.get(log)
    return outage.reason if outage else ""


class StoreBackoff(Backoff):
    """Growing pauses for the part `name` of a poller.

    Parts with the same `log` share an `Outage`. If Redis refuses the calls, this is logged with `fields`, and `refusal`
    gives the reason (a missing right, a key of another type) and a fix; otherwise it is empty.
    """

    __slots__ = ("__weakref__", "_fields", "_log", "_name", "_outage", "refusal")

    def __init__(self, name: str, log: Logger, *, first_seconds: float = 0.05, **fields: str) -> None:
        super().__init__(first_seconds)
        self._name = name
        self._log = log
        self._fields = fields
        self._outage = _outages.setdefault(log, Outage(log))
        self.refusal = ""

    def failed(self, error: BaseException) -> float:
        """Record a failure; return the seconds to pause."""
        refused = refusal(error)
        if not refused:
            self._outage.failed(self, error)
        elif not self.refusal:
            self._log.warning(f"{self._name} refused by Redis", **self._fields, error=refused)
        self.refusal = f"{self._name} is refused: {refused}" if refused else ""
        return self.next_seconds()

    def reset(self) -> None:
        """Record a success: the next pause is short again, `refusal` is empty."""
        super().reset()
        self._outage.succeeded(self)
        self.refusal = ""
