"""HTTP server of the gateway: completions in OpenAI's format, metrics, other pages, control of the simulation."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import httptools
import msgspec
from msgspec.structs import asdict

from handlers.contract.lenient_json import MALFORMED, shape_of
from handlers.demo.gateway.engine import Engine, Rejected
from handlers.demo.gateway.injected_faults import CompletionBody, Faults, Simulate, UnknownFault, break_response

MODEL: Final = "demo-model"
_WORDS: Final = ("hello", "there", "idle", "capacity", "is", "filled", "again", "and", "again")
_CREATED: Final = 1_700_000_000


def _embeddings(payload: CompletionBody, number: int, _tokens: int) -> bytes:
    """One embedding of 8 numbers per input, determined by `number`."""
    inputs = payload.input if isinstance(payload.input, list) else [payload.input]
    rows = [
        {"object": "embedding", "index": index, "embedding": [((number + index + place) % 8) / 8 for place in range(8)]}
        for index in range(len(inputs))
    ]
    asked = max(1, len(str(payload.input)) // 4)
    usage = {"prompt_tokens": asked, "total_tokens": asked}
    return msgspec.json.encode({"object": "list", "data": rows, "model": payload.model or MODEL, "usage": usage})


def _completion(payload: CompletionBody, number: int, tokens: int, *, is_chat: bool = False) -> bytes:
    """A completion of `tokens` words; the same for the same number."""
    words = " ".join(_WORDS[(number + place) % len(_WORDS)] for place in range(min(tokens, 256)))
    content = {"message": {"role": "assistant", "content": words}} if is_chat else {"text": words}
    asked = max(1, len(str(payload.prompt)) // 4)
    return msgspec.json.encode(
        {
            "id": f"cmpl-{number}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": _CREATED,
            "model": payload.model or MODEL,
            "choices": [{"index": 0, **content, "finish_reason": "length"}],
            "usage": {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens},
        }
    )


def _error_body(status: int, message: str) -> bytes:
    """An error in OpenAI's format."""
    return msgspec.json.encode({"error": {"message": message, "type": "simulated", "code": status}})


def _metrics(engine: Engine, pool: str) -> bytes:
    """The metrics of one model server and of the router in front.

    Those of the router have their old and new names.
    """
    model, by_pool, by_name = (
        f'model_name="{MODEL}",inference_pool="{pool}"',
        f'inference_pool="{pool}"',
        f'name="{pool}"',
    )
    rows = (
        ("vllm:num_requests_running", model, engine.running),
        ("vllm:num_requests_waiting", model, engine.waiting),
        ("vllm:kv_cache_usage_perc", model, min(1.0, engine.running / max(1, engine.options.capacity))),
        ("vllm:generation_tokens_total", model, engine.tokens),
        ("inference_extension_flow_control_pool_saturation", by_pool, engine.saturation),
        ("llm_d_epp_flow_control_pool_saturation", by_pool, engine.saturation),
        ("inference_extension_flow_control_queue_size", by_pool, engine.waiting),
        ("llm_d_epp_flow_control_queue_size", by_pool, engine.waiting),
        ("inference_pool_ready_pods", by_name, 1),
        ("llm_d_epp_ready_endpoints", by_name, 1),
        ("inference_pool_per_pod_queue_size", by_name, engine.waiting),
        ("llm_d_epp_per_endpoint_queue_size", by_name, engine.waiting),
    )
    return "".join(
        f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n{name}{{{labels}}} {value}\n"
        for name, labels, value in rows
    ).encode()


DEFAULT_TOKENS: Final = 16
_COMPLETIONS: Final[dict[str, Callable[[CompletionBody, int, int], bytes]]] = {
    "/v1/completions": _completion,
    "/v1/chat/completions": partial(_completion, is_chat=True),
    "/v1/embeddings": _embeddings,
}
_payload_decoder = msgspec.json.Decoder(CompletionBody)


class Exchange(msgspec.Struct):
    """A received request.

    Header names are in lower case, times in Unix seconds. `admitted_at` is when it got its slot.
    """

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    started_at: float
    admitted_at: float | None = None

    def header(self, name: bytes) -> str:
        """The first header of that name, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


class Service:
    """The gateway; requests with objectives in `sheddable` are evicted first."""

    def __init__(
        self,
        engine: Engine,
        faults: Faults,
        witness: Witness,
        *,
        pool: str = "demo-pool",
        sheddable: frozenset[str] = frozenset(),
        completion_paths: frozenset[str] = frozenset(),
    ) -> None:
        self.engine = engine
        self.faults = faults
        self.witness = witness
        self._pool = pool
        self._sheddable = sheddable
        self._paths = {**_COMPLETIONS, **dict.fromkeys(completion_paths, _completion)}
        self._number = 0
        self._pages = {
            "/health": lambda: b"{}",
            "/v1/models": lambda: msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]}),
            "/metrics": lambda: _metrics(engine, pool),
            "/simulate/state": self._state,
        }

    def answer_at_once(self, exchange: Exchange, to: GatewayProtocol) -> bool:
        """Answer a page, or a completion without latency, queue and fault.

        Returns False for all others; then call `answer`.
        """
        if exchange.path not in self._paths:
            self._page(exchange, to)
            return True
        payload = self._payload(exchange, to)
        if payload is None:
            return True
        tokens = self._tokens(payload)
        has_fault = payload.simulate is not None or bool(self.faults.rates)
        if has_fault or self.engine.options.latency_seconds(tokens) > 0 or not self.engine.take_at_once():
            return False
        exchange.admitted_at = exchange.started_at
        self._complete(exchange, payload, tokens, to)
        self.engine.give_back()
        return True

    async def answer(self, exchange: Exchange, to: GatewayProtocol) -> None:
        """Answer a completion that takes time or fails."""
        payload = _payload_decoder.decode(exchange.body)
        fault = self.faults.choose(payload)
        try:
            if fault is not None:
                await self._break(exchange, payload, fault, to)
            else:
                await self._run(exchange, payload, to)
        except asyncio.CancelledError as left:
            if "evicted" in left.args:
                self._refuse(exchange, payload, to, "evicted-for-higher-priority")
            else:
                self._note(exchange, payload, 499)

    async def _run(self, exchange: Exchange, payload: CompletionBody, to: GatewayProtocol) -> None:
        is_sheddable = self._is_sheddable(exchange)
        try:
            await self.engine.take(is_sheddable=is_sheddable)
        except Rejected as rejected:
            self._refuse(exchange, payload, to, str(rejected))
            return
        exchange.admitted_at = time.time()
        task = asyncio.current_task()
        if is_sheddable and task is not None:
            self.engine.run_sheddable(task)
        tokens = self._tokens(payload)
        try:
            await asyncio.sleep(self.engine.options.latency_seconds(tokens))
            self._complete(exchange, payload, tokens, to)
        finally:
            self.engine.give_back()

    async def _break(self, exchange: Exchange, payload: CompletionBody, fault: Simulate, to: GatewayProtocol) -> None:
        if fault.status:
            headers = [("retry-after", fault.retry_after)] if fault.retry_after else []
            to.reply(fault.status, _error_body(fault.status, "simulated"), headers)
            self._note(exchange, payload, fault.status)
            return
        await break_response(fault, _completion(payload, 0, DEFAULT_TOKENS), to)
        self._note(exchange, payload, 0)

    def _complete(self, exchange: Exchange, payload: CompletionBody, tokens: int, to: GatewayProtocol) -> None:
        self._number += 1
        self.engine.tokens += tokens
        to.reply(200, self._paths[exchange.path](payload, self._number, tokens))
        self._note(exchange, payload, 200)

    def _refuse(self, exchange: Exchange, payload: CompletionBody, to: GatewayProtocol, reason: str) -> None:
        headers = [("retry-after", "1"), ("x-llm-d-request-dropped-reason", reason)]
        to.reply(429, _error_body(429, reason), headers)
        self._note(exchange, payload, 429)

    def _note(self, exchange: Exchange, payload: CompletionBody, status: int) -> None:
        key = payload.simulate.key if payload.simulate else ""
        self.witness.note(
            key=key or payload.user or exchange.header(b"x-request-id"),
            path=exchange.path,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers},
            started_at=exchange.started_at,
            admitted_at=exchange.admitted_at,
            ended_at=time.time(),
            status=status,
        )

    def _payload(self, exchange: Exchange, to: GatewayProtocol) -> CompletionBody | None:
        """The payload, or None after an error was sent."""
        if exchange.method != "POST":
            to.reply(405, _error_body(405, "expected POST"))
            return None
        try:
            return _payload_decoder.decode(exchange.body)
        except MALFORMED as error:
            found = shape_of(exchange.body, error)
            to.reply(400, _error_body(400, f"body: expected a JSON object, got {found}"))
            self._note(exchange, CompletionBody(), 400)
            return None

    def _is_sheddable(self, exchange: Exchange) -> bool:
        priority = exchange.header(b"x-gateway-priority")
        objective = exchange.header(b"x-llm-d-inference-objective")
        return priority.startswith("-") or objective in self._sheddable

    def _tokens(self, payload: CompletionBody) -> int:
        return DEFAULT_TOKENS if payload.max_tokens is None else max(0, payload.max_tokens)

    def _page(self, exchange: Exchange, to: GatewayProtocol) -> None:
        if exchange.method == "POST" and exchange.path.startswith("/simulate/"):
            self._control(exchange, to)
            return
        page = self._pages.get(exchange.path)
        if page is None:
            to.reply(404, _error_body(404, "nothing here"))
            self._note(exchange, CompletionBody(), 404)
            return
        to.reply(200, page())

    def _state(self) -> bytes:
        engine = self.engine
        return msgspec.json.encode(
            {
                "running": engine.running,
                "waiting": engine.waiting,
                "peak": engine.peak,
                "rejected": engine.rejected,
                "evicted": engine.evicted,
                "tokens": engine.tokens,
                "statuses": {str(status): count for status, count in self.witness.statuses.items()},
                "engine": asdict(engine.options),
                "faults": self.faults.rates,
            }
        )

    def _control(self, exchange: Exchange, to: GatewayProtocol) -> None:
        """Change the simulation by POST /simulate/faults {fault: share} or /simulate/engine {option: value}."""
        try:
            wanted = msgspec.json.decode(exchange.body, type=dict[str, float])
            if exchange.path == "/simulate/faults":
                self.faults.set_rates(wanted)
            elif exchange.path == "/simulate/engine":
                self._set_engine(wanted)
            else:
                to.reply(404, _error_body(404, "nothing here"))
                return
        except (msgspec.DecodeError, UnknownFault, KeyError) as error:
            to.reply(400, _error_body(400, str(error)))
            return
        to.reply(200, self._state())

    def _set_engine(self, wanted: dict[str, float]) -> None:
        options = self.engine.options
        for name, value in wanted.items():
            if name not in asdict(options):
                raise KeyError(f"{name} is not an option of the engine")
            setattr(options, name, type(getattr(options, name))(value))
        self.engine.fit()


_REASONS: Final = {200: b"OK", 302: b"Found", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests"}


class GatewayProtocol(asyncio.Protocol):
    """One connection: requests are answered in order, one at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._current: asyncio.Task[None] | None = None
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream server creates transports of this type

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._queue.clear()
        if self._current is not None:
            self._current.cancel("client left")

    def data_received(self, data: bytes) -> None:
        """Parse bytes; anything but HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", [], []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer a complete request, or let it wait for the previous one."""
        method = self._parser.get_method().decode()
        path = self._url.split(b"?")[0].decode("latin-1")
        self._queue.append(Exchange(method, path, self._headers, b"".join(self._body), time.time()))
        if self._current is None:
            self._next()

    def _next(self) -> None:
        while self._queue and self._current is None:
            exchange = self._queue.popleft()
            if self._service.answer_at_once(exchange, self):
                continue
            self._current = asyncio.create_task(self._service.answer(exchange, self))
            self._current.add_done_callback(self._done)

    def _done(self, _task: asyncio.Task[None]) -> None:
        self._current = None
        if not self.transport.is_closing():
            self._next()

    def head(self, status: int, headers: list[tuple[str, str]], length: int | None) -> bytes:
        """Encode the head of a response. Without a `length`, `headers` set the framing."""
        lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"Status"))]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in headers]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def reply(self, status: int, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        given = [("content-type", "application/json"), *(headers or [])]
        self.transport.write(self.head(status, given, len(body)) + body)

    def abort(self) -> None:
        self.transport.abort()


_FLUSH_SECONDS = 0.05


class Witness:
    """Log of requests. Without a `path`, it only counts statuses."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("ab") if path else None
        self._lines: list[bytes] = []
        self.statuses: dict[int, int] = {}

    def note(
        self,
        *,
        key: str,
        path: str,
        headers: Mapping[str, str],
        started_at: float,
        admitted_at: float | None = None,
        ended_at: float,
        status: int,
    ) -> None:
        """Record one request.

        `status` is 0 if none was sent, 499 if the client disconnected. `admitted_at` is None if it got no slot.
        """
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if self._file is None:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        line = {
            "key": key,
            "path": path,
            "headers": headers,
            "started_at": started_at,
            "admitted_at": admitted_at,
            "ended_at": ended_at,
            "status": status,
        }
        self._lines.append(msgspec.json.encode(line) + b"\n")

    def flush(self) -> None:
        if self._file is not None and self._lines:
            self._file.write(b"".join(self._lines))
            self._file.flush()
            self._lines.clear()
