"""The status pages: paths, forms, templates, and charts as SVG without script.

A `Source` reads the data. Changes need a token. Requests for unknown host names are refused, against DNS rebinding.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final, Protocol
from urllib.parse import urlencode

import msgspec
from flask import Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.contract.request import MAX_ID_LENGTH
from handlers.number_text import counted
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.status.overview import Overview, folded, lived_minutes
from handlers.status.report import Failure
from handlers.telemetry.logs import RareWarning, get_logger

WIDTH: Final = 600
HEIGHT: Final = 120
_BASE: Final = HEIGHT - 16


def bar_chart(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A chart of stacked bars, the oldest on the left.

    `series` are pairs of a name, which is also the CSS class, and values.
    """
    count = max((len(values) for _, values in series), default=0)
    sums = [sum(values[at] for _, values in series) for at in range(count)]
    top = max(sums, default=0.0) or 1.0
    width = WIDTH / max(1, count)
    parts = []
    for at in range(count):
        bottom = float(_BASE)
        for name, values in series:
            height = values[at] / top * (_BASE - 12)
            bottom -= height
            if height > 0:
                parts.append(
                    f'<rect class="{escape(name)}" x="{at * width:.1f}" y="{bottom:.1f}" '
                    f'width="{max(0.5, width - 1):.1f}" height="{height:.1f}"/>'
                )
    peak = f"at most {max(sums, default=0):,.0f} in a minute"
    return _frame(title, peak, "".join(parts), f"{top:,.0f}", count)


def line_chart(title: str, series: Sequence[tuple[str, Sequence[float | None]]], unit: str) -> str:
    """A chart of lines, with gaps for missing values (None)."""
    known = [value for _, values in series for value in values if value is not None]
    top = max(known, default=0.0) or 1.0
    parts = []
    for name, values in series:
        step = WIDTH / max(1, len(values) - 1)
        for run in _runs(values):
            points = " ".join(f"{at * step:.1f},{_BASE - value / top * (_BASE - 12):.1f}" for at, value in run)
            shape = f'<polyline class="{escape(name)}" points="{points}"/>'
            if len(run) == 1:
                at, value = run[0]
                y = _BASE - value / top * (_BASE - 12)
                shape = f'<circle class="{escape(name)}" cx="{at * step:.1f}" cy="{y:.1f}" r="2"/>'
            parts.append(shape)
    label = f"at most {top:.3g} {unit}" if known else "nothing yet"
    count = max((len(values) for _, values in series), default=0)
    return _frame(title, label, "".join(parts), f"{top:.3g} {unit}", count)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value))
    return [run for run in runs if run]


def _frame(title: str, label: str, inside: str, top: str, minutes: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {label}")}" '
        f'preserveAspectRatio="none"><title>{escape(title)}</title>'
        f'<line class="axis" x1="0" y1="{_BASE}" x2="{WIDTH}" y2="{_BASE}"/>{inside}</svg>'
        f'<p class="scale"><span>{minutes} min ago</span><span>peak {escape(top)}</span><span>now</span></p>'
    )


_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MISDIRECTED: Final = (
    "Host: expected localhost, the address this page listens on, or a name of STATUS_HOSTS or --allow-host\n"
)
_REFRESH_SECONDS: Final = 10


class DeadLetterRow(msgspec.Struct, frozen=True):
    """A dead letter without its request body."""

    dead_id: str
    queue: str
    request_id: str
    reason: str
    message: str
    at: float
    delivery_count: int
    hopeless_because: str = ""


class Source(Protocol):
    """Reads and changes the data of the pages.

    Every method may raise `Unreachable` or `Busy`.
    """

    def overview(self) -> Overview: ...

    def find(self, request_id: str) -> tuple[Whereabouts, Sequence[Failure]]:
        """The state of this request, and its latest failures."""
        ...

    def dead(self, queue: str) -> Sequence[DeadLetterRow]:
        """At most a few hundred dead letters of one queue, newest first."""
        ...

    def requeue(self, queue: str, dead_id: str) -> bool:
        """Requeue a dead letter; False if it no longer exists. Raises `Hopeless`."""
        ...

    def drop(self, queue: str, dead_id: str) -> bool:
        """Delete a dead letter; False if it no longer exists."""
        ...


class Unreachable(Exception):
    """Redis does not answer; the page shows the message."""


class Hopeless(Exception):
    """A dead letter that can only fail again; the message gives the reason."""


class Busy(Exception):
    """Too many views are being read at the same time."""


HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz"})


def probe_answer() -> Response:
    """The answer to a probe. The page is ready even while Redis is unavailable, because it reports that."""
    return Response("ok\n", 200, mimetype="text/plain")


class StatusPages:
    """Answers requests for the status page under the names `hosts`.

    `tokens` returns the tokens that allow changes. Without a token, the page is read-only.
    """

    def __init__(
        self,
        source: Source,
        tokens: Callable[[], Sequence[str]],
        hosts: OwnHosts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._tokens = tokens
        self._hosts = hosts
        self._clock = clock
        self._log = get_logger("status")
        self._refusals = RareWarning(self._log, "token refused")
        self._templates = Environment(
            loader=PackageLoader("handlers.status"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "ago": self._ago,
            "seconds": _seconds,
            "number": lambda n: f"{n:,}",
            "counted": counted,
        }

    def respond(self, request: Request) -> Response:
        if request.path in HEALTH_PATHS:
            return probe_answer()
        if not self._hosts.has(request.headers.get("Host", "")):
            return Response(_MISDIRECTED, 421, _HEADERS, mimetype="text/plain")
        try:
            return self._route(request)
        except Unreachable as error:
            return self._page("unreachable.html", 503, message=str(error))
        except Busy:
            return self._busy()

    def _busy(self) -> Response:
        response = self._page(
            "error.html",
            503,
            title="The page is busy",
            message="Too many views are being read at the moment. Reload the page in a few seconds.",
        )
        response.headers["Retry-After"] = "2"
        return response

    def _route(self, request: Request) -> Response:
        path = request.path.rstrip("/") or "/"
        if path == "/style.css":
            text = self._templates.get_template("style.css").render()
            return Response(text, 200, {**_HEADERS, "Cache-Control": "max-age=300"}, mimetype="text/css")
        if path == "/dead/change":
            return self._change(request)
        if request.method not in ("GET", "HEAD"):
            return self._page("error.html", 405, message="This address is read-only.")
        if path == "/":
            return self._first(request)
        if path == "/find":
            return self._find(request)
        if path == "/dead":
            return self._dead(request)
        return self._page("error.html", 404, message="There is no such page.")

    def _first(self, request: Request) -> Response:
        overview = self._source.overview()
        per_minute = lived_minutes(overview.minutes)
        throughput = bar_chart(
            "Requests a minute",
            [
                ("answered", [one.answered for one in per_minute]),
                ("failed", [one.failed for one in per_minute]),
                ("cancelled", [one.cancelled for one in per_minute]),
                ("retried", [one.retried for one in per_minute]),
            ],
        )
        latency = line_chart(
            "Seconds from creation to result",
            [(name, [getattr(one, name) for one in per_minute]) for name in ("p99", "p95", "p50")],
            "s",
        )
        return self._page(
            "first.html",
            overview=overview,
            failures=folded(overview.failures, lambda one: msgspec.structs.replace(one, at=0.0)),
            throughput=Markup(throughput),  # noqa: S704  # drawn from numbers and constant names
            latency=Markup(latency),  # noqa: S704  # drawn from numbers and constant names
            refresh_seconds=_REFRESH_SECONDS if request.args.get("refresh") else 0,
        )

    def _find(self, request: Request) -> Response:
        request_id = request.args.get("id", "").strip()[:MAX_ID_LENGTH]
        found, history = self._source.find(request_id) if request_id else (None, ())
        return self._page("find.html", request_id=request_id, found=found, history=history)

    def _dead(self, request: Request, notice: str = "", status: int = 200) -> Response:
        overview = self._source.overview()
        names = [line.name for line in overview.queues]
        queue = request.values.get("queue", "") or (names[0] if names else "")
        if queue not in names:
            return self._page("error.html", 404, message="There is no such queue.")
        return self._page(
            "dead.html",
            status,
            queues=names,
            queue=queue,
            letters=self._source.dead(queue),
            can_change=bool(self._tokens()),
            notice=notice,
        )

    def _change(self, request: Request) -> Response:
        """Requeue or drop a dead letter.

        The token is a field of the form, so another site's form cannot make a change.
        """
        if request.method != "POST":
            return self._page("error.html", 405, message="This address accepts POST only.")
        if not self._tokens():
            return self._page("error.html", 403, message="This page is read-only: no token is configured.")
        if not self._is_allowed(request.form.get("token", "")):
            self._refusals.report(client=request.remote_addr)
            return self._page("error.html", 403, message="The token is wrong.")
        queue, dead_id = request.form.get("queue", ""), request.form.get("dead_id", "")
        if queue not in [line.name for line in self._source.overview().queues]:
            return self._page("error.html", 404, message="There is no such queue.")
        try:
            match request.form.get("action"):
                case "requeue":
                    is_done, word, event = self._source.requeue(queue, dead_id), "Queued again.", "dead letter requeued"
                case "drop":
                    is_done, word, event = self._source.drop(queue, dead_id), "Dropped.", "dead letter dropped"
                case _:
                    return self._page("error.html", 400, message="action: expected requeue or drop.")
        except Hopeless as error:
            return self._dead(request, f"Not queued again: it can only fail again: {error}.", 409)
        if is_done:
            self._log.info(event, dead_id=dead_id, queue=queue, client=request.remote_addr)
        notice = word if is_done else "This dead letter no longer exists."
        return self._dead(request, notice, 200 if is_done else 404)

    def _is_allowed(self, token: str) -> bool:
        """Whether the token allows changes."""
        # All tokens are compared, so that the response time does not reveal which one matched.
        given = token.encode("utf-8", "replace")
        matches = [hmac.compare_digest(given, known.encode()) for known in self._tokens()]
        return any(matches)

    def _page(self, template: str, status: int = 200, **values: object) -> Response:
        text = self._templates.get_template(template).render(
            now=datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            link=_link,
            **{"refresh_seconds": 0, "title": "Error", **values},
        )
        return Response(text, status, _HEADERS, mimetype="text/html")

    def _ago(self, at: float) -> str:
        seconds = self._clock() - at
        return f"{_seconds(abs(seconds))} {'ago' if seconds >= 0 else 'from now'}"


def _link(path: str, **query: str) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.1f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"


_LOOPBACK: Final = "localhost"
_HEADER = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")


class OwnHosts(msgspec.Struct, frozen=True):
    """The host names under which a page may be requested.

    These are loopback, the address it listens on, and the operator's `names`.
    """

    listens_on: str
    names: frozenset[str] = frozenset()

    def has(self, header: str) -> bool:
        """Whether a `Host` header, with or without a port, is accepted."""
        match = _HEADER.fullmatch(header.strip())
        if match is None:
            return False
        name = _plain(match["name"])
        if name in self.names or name in (_LOOPBACK, _plain(self.listens_on)):
            return True
        address = _address(name)
        if address is None:
            return name.endswith(f".{_LOOPBACK}")  # always loopback (RFC 6761, 6.3)
        own = _address(_plain(self.listens_on))
        return address.is_loopback or (own is not None and (own.is_unspecified or own == address))


def read_hosts(texts: Iterable[str], setting: str) -> frozenset[str]:
    """Parse host names or addresses without a port. Raises `InvalidSetting`."""
    names = [_plain(text.strip()) for text in texts if text.strip()]
    for name in names:
        if _address(name) is None and not _NAME.fullmatch(name):
            accepted = "host names or addresses without a port, separated by commas"
            raise InvalidSetting(setting, found=shown_value(name), accepted=accepted)
    return frozenset(names)


def _plain(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
