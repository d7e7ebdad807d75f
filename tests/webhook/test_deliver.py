"""Results go to a webhook signed, until they are accepted, and never to internal addresses."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from handlers.client import AsyncClient
from handlers.client.options import ClientOptions
from handlers.contract.errors import InvalidSetting
from handlers.contract.result import ErrorCode, Result, answered_result, encode_result, error_result
from handlers.demo.valkey import Valkey
from handlers.transport.transport import AddressInfo
from handlers.webhook.call import Caller, read_secrets, signature_headers, webhook_id
from handlers.webhook.deliver import Webhook, WebhookGone, WebhookOptions
from handlers.webhook.destinations import (
    DestinationRefused,
    WebhookTarget,
    check_public,
    is_public,
    read_destination,
    webhook_target_of,
)
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.raw_http import End, RawHttp, Received, answer, running_raw_http
from tests.servers.valkey import LONG_LIMIT

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the specification's own example
KEYS = read_secrets(SECRET, "secret")
OTHER = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def test_the_specifications_example_has_its_signature() -> None:
    headers = signature_headers(KEYS, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_###", "whsec_AAAA", "whsec_" + "A" * 200])
def test_an_invalid_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidSetting, match="--secret-file") as caught:
        read_secrets(text, "--secret-file")
    assert text in ("", "whsec_") or text not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "ftp://example.com/x",
        "https:///x",
        "https://user:secret@example.com/x",
        "https://127.0.0.1/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/latest",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://100.64.0.1/x",
        "https://224.0.0.1/x",
        "https://0.0.0.0/x",
        "https://2130706433/x",
        "https://127.1/x",
        "https://0177.0.0.1/x",
        "https://127.0.0.1./x",
        "https://[64:ff9b::7f00:1]/x",
        "https://[2002:a00:1::1]/x",
        "https://[2001:0:a00:1::1]/x",
        "https://[::7f00:1]/x",
        "https://[fec0::1]/x",
        "https://[64:ff9b:1::a00:1]/x",
        "https://127。0。0。1/x",
        "https://①②⑦.0.0.1/x",
        "https://168.63.129.16/x",
        "https://192.88.99.1/x",
        "https://[ff0e::1]/x",
        "https://[fd00:ec2::254]/x",
    ],
)
def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(InvalidSetting, match="url"):
        WebhookOptions(url, KEYS)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "10.1.2.3"], ["fe80::1%eth0"], ["64:ff9b::a00:1"], []]
)
def test_a_name_with_a_private_address_is_refused(addresses: list[str]) -> None:
    with pytest.raises(OSError, match="not a public host"):
        check_public("evil.example", addresses)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:10.0.0.1", "fe80::1%lo"])
def test_a_private_address_is_refused_in_every_notation(host: str) -> None:
    with pytest.raises(OSError, match="not a public host"):
        check_public(host, [host])


async def test_a_private_address_is_not_connected_to(receiver: RawHttp) -> None:
    """As if the check of the setting and the resolver had both been passed: the socket itself refuses."""
    caller = Caller(allow_private=False, call_seconds=5.0)
    try:
        target = WebhookTarget(f"{receiver.url}/hook", KEYS)
        message = await caller.post(target, answered_result("r", "t", 200, b"{}"), 0.0)
    finally:
        await caller.close()
    assert (message.status, receiver.connections) == (0, 0)


async def test_addresses_are_checked_again_at_each_connection(
    receiver: RawHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The addresses are checked that are connected to, at each connection: a name may lead elsewhere by then."""
    asked: list[str] = []

    async def resolve(host: str, port: int, **_options: object) -> list[AddressInfo]:
        asked.append(host)
        addresses = ("8.8.8.8", "127.0.0.1") if len(asked) == 1 else ("127.0.0.1",)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, receiver.port)) for one in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    caller = Caller(allow_private=False, call_seconds=5.0)
    try:
        target = WebhookTarget(f"http://evil.example:{receiver.port}/hook", KEYS)
        message = [await caller.post(target, answered_result("r", "t", 200, b"{}"), 0.0) for _ in range(2)]
    finally:
        await caller.close()
    assert [one.status for one in message] == [0, 0]
    assert (asked, receiver.connections) == (["evil.example"] * 2, 0)


def test_a_public_name_is_taken() -> None:
    addresses = ["8.8.8.8", "2001:4860:4860::8888"]
    assert all(map(is_public, addresses))
    check_public("good.example", addresses)


@pytest.fixture
async def receiver() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        running.reply(answer(204))
        yield running


@pytest.fixture
async def client(valkey: Valkey, store: Redis) -> AsyncIterator[AsyncClient]:
    async with AsyncClient.for_redis(valkey.url, ClientOptions(lease_seconds=600.0), access=LONG_LIMIT) as opened:
        yield opened


async def queue(store: Redis, *names: str) -> None:
    for name in names:
        await store.lpush("result-list", encode_result(answered_result(name, "t", 200, b'{"said": "hi"}')))


def verified(received: Received, key: bytes) -> str:
    """The result's id, if the signature is right: computed here from the specification's words."""
    name, at = received.header("webhook-id"), received.header("webhook-timestamp")
    mac = hmac.new(key, f"{name}.{at}.".encode() + received.body, hashlib.sha256).digest()
    assert f"v1,{base64.b64encode(mac).decode()}" in (received.header("webhook-signature") or "").split(" ")
    whole = json.loads(received.body)
    assert whole["type"] == "async_processor.result"
    found: str = whole["data"]["id"]
    return found


async def deliver(
    client: AsyncClient, receiver: RawHttp, *, keys: list[bytes] = KEYS, give_up_seconds: float = 3_600.0
) -> list[Result]:
    """Deliver all results; returns those that were given up."""
    lost: list[Result] = []

    async def given_up(result: Result) -> None:
        lost.append(result)

    options = WebhookOptions(
        f"{receiver.url}/hook",
        keys,
        allow_private=True,
        call_seconds=60.0,
        give_up_seconds=give_up_seconds,
        first_pause_seconds=0.02,
    )
    async with client.results(idle=0) as stream, Webhook(options, given_up) as hook:
        await hook.run(stream)
    return lost


async def test_every_result_arrives_signed_and_is_removed(client: AsyncClient, receiver: RawHttp, store: Redis) -> None:
    await queue(store, *(f"r{n}" for n in range(40)))
    assert await deliver(client, receiver, keys=[*KEYS, *read_secrets(OTHER, "x")]) == []
    assert sorted(verified(one, KEYS[0]) for one in receiver.received) == sorted(f"r{n}" for n in range(40))
    assert {verified(one, bytes(range(32))) for one in receiver.received} == {f"r{n}" for n in range(40)}
    assert await store.llen("result-list") == 0
    assert await store.hlen("result-list:result-claimed") == 0


async def test_a_refused_result_is_sent_again_under_the_same_id(
    client: AsyncClient, receiver: RawHttp, store: Redis
) -> None:
    await queue(store, "r")
    receiver.reply(
        answer(503), answer(302, headers={"location": "/elsewhere"}), answer(200, end=End.RESET), answer(200)
    )
    assert await deliver(client, receiver) == []
    assert {one.header("webhook-id") for one in receiver.received} == {webhook_id(answered_result("r", "t", 200, b""))}
    assert {one.path for one in receiver.received} == {"/hook"}
    assert len(receiver.received) >= 3


def test_the_second_result_of_a_dead_letter_has_an_id_of_its_own() -> None:
    dead = error_result("r", "t", ErrorCode.UNDELIVERABLE, "3 pollers crashed")
    assert webhook_id(dead) != webhook_id(answered_result("r", "t", 200, b""))


async def test_a_result_that_is_never_accepted_is_given_up(
    client: AsyncClient, receiver: RawHttp, store: Redis
) -> None:
    await queue(store, "r")
    receiver.reply(answer(500))
    (lost,) = await deliver(client, receiver, give_up_seconds=0.3)
    assert lost.id == "r"
    assert await store.llen("result-list") == 0


async def test_a_receiver_that_answered_410_gets_no_more_results_and_none_is_lost(
    client: AsyncClient, receiver: RawHttp, store: Redis
) -> None:
    await queue(store, "r1", "r2")
    receiver.reply(answer(410))
    with pytest.raises(WebhookGone):
        await deliver(client, receiver)
    assert await store.llen("result-list") == 2


OTHERS = read_secrets(OTHER, "x")


async def named(store: Redis, request_id: str, url: str) -> None:
    result = msgspec.structs.replace(answered_result(request_id, "t", 200, b"{}"), metadata={"webhook_url": url})
    await store.lpush("result-list", encode_result(result))


async def deliver_named(client: AsyncClient, own: RawHttp, other: RawHttp, seconds: float = 3_600.0) -> None:
    async def given_up(result: Result) -> None:
        raise AssertionError(result.id)

    options = WebhookOptions(
        f"{own.url}/own",
        KEYS,
        allow_private=True,
        call_seconds=60.0,
        first_pause_seconds=0.02,
        destinations=[read_destination(f"127.0.0.1:{other.port}/hooks/", OTHERS, "x")],
        destination_seconds=seconds,
    )
    async with client.results(idle=0) as stream, Webhook(options, given_up) as hook:
        await hook.run(stream)


async def test_a_request_names_an_allowed_receiver_which_has_secrets_of_its_own(
    client: AsyncClient, receiver: RawHttp, store: Redis
) -> None:
    async with running_raw_http() as other:
        other.reply(answer(503), answer(204))
        await named(store, "theirs", f"{other.url}/hooks/team/1")
        await queue(store, "ours")
        await deliver_named(client, receiver, other)
        assert {(one.path, verified(one, OTHERS[0])) for one in other.received} == {("/hooks/team/1", "theirs")}
        with pytest.raises(AssertionError):
            verified(other.received[0], KEYS[0])
    assert [verified(one, KEYS[0]) for one in receiver.received] == ["ours"]
    assert await store.hlen("result-list:result-claimed") == 0


@pytest.mark.parametrize("message", [500, 410, 302])
async def test_results_that_a_named_receiver_refuses_go_to_the_default_one_with_the_reason(
    client: AsyncClient, receiver: RawHttp, store: Redis, message: int
) -> None:
    async with running_raw_http() as other:
        other.reply(answer(message, headers={"location": "/hooks/2"}))
        await named(store, "r", f"{other.url}/hooks/1")
        await deliver_named(client, receiver, other, seconds=0.1)
        assert {one.path for one in other.received} == {"/hooks/1"}
    (one,) = receiver.received
    assert verified(one, KEYS[0]) == "r"
    assert "metadata.webhook_url" in json.loads(one.body)["undelivered"]


async def test_a_receiver_that_is_not_allowed_is_never_called_and_nothing_is_lost(
    client: AsyncClient, receiver: RawHttp, store: Redis
) -> None:
    async with running_raw_http() as other:
        host = f"127.0.0.1:{other.port}"
        urls = [
            f"http://{host}/other/1",
            f"http://{host}/hooks/../other",
            f"http://{host}/hooks/%2e%2e/other",
            f"http://{host}/hooks//x",
            f"http://{host}/hooks/x?to=y",
            f"http://user@{host}/hooks/1",
            f"http://{host}@evil.example/hooks/1",
            f"http://localhost:{other.port}/hooks/1",
            f"ftp://{host}/hooks/1",
            f"http://{host}\\@evil/hooks/1",
            f"http://{host}/hooks/1\n",
            "//evil",
        ]
        for number, url in enumerate(urls):
            await named(store, f"r{number}", url)
        await deliver_named(client, receiver, other)
        assert other.received == []
    assert {verified(one, KEYS[0]) for one in receiver.received} == {f"r{n}" for n in range(len(urls))}
    for one in receiver.received:
        assert "on the operator's list" in json.loads(one.body)["undelivered"]


def test_without_allow_private_a_named_receiver_must_be_https_and_public() -> None:
    good = read_destination("good.example/hooks/", OTHERS, "x")
    for url in ("http://good.example/hooks/1", "https://evil.example/hooks/1"):
        with pytest.raises(DestinationRefused):
            webhook_target_of({"webhook_url": url}, [good], allow_private=False)
    found = webhook_target_of({"webhook_url": "https://GOOD.example/hooks/1"}, [good], allow_private=False)
    assert found is not None
    assert found[1].url == "https://good.example/hooks/1"
    assert webhook_target_of({}, [good], allow_private=False) is None
    inside = read_destination("10.0.0.1/hooks/", OTHERS, "x")
    with pytest.raises(InvalidSetting, match="destinations"):
        WebhookOptions("https://good.example/x", KEYS, destinations=[inside])
    for text in ("", "host", "https://host/x", "ho st/x", "host/x?y"):
        with pytest.raises(InvalidSetting, match="--destination"):
            read_destination(text, OTHERS, "--destination")


async def test_the_command_delivers_waiting_results(
    receiver: RawHttp, valkey: Valkey, store: Redis, tmp_path: Path
) -> None:
    await queue(store, "r1", "r2")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    command = [str(Path(sys.executable).parent / "async-processor"), "webhook", f"{receiver.url}/hook"]
    command += [
        "--secret-file",
        str(tmp_path / "secret"),
        "--destination",
        f"other.example/hooks/={tmp_path / 'secret'}",
        "--allow-private",
        "--for",
        "1s",
        "--redis-url",
        valkey.url,
    ]
    environment = {**os.environ, **LONG_REDIS_TIMEOUT}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b""), err
    assert b"2 delivered" in err
    assert {verified(one, KEYS[0]) for one in receiver.received} == {"r1", "r2"}
