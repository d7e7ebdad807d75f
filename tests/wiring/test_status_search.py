"""The status page with fewer rights, or without Redis."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from flask import Request
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from werkzeug.test import EnvironBuilder

from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from handlers.redis_store.admin.status_board import FinishedRecord
from handlers.redis_store.admin.whereabouts import Whereabouts
from handlers.redis_store.submit.submissions import RequestState
from handlers.settings.settings import Settings, load_settings
from handlers.status.overview import Overview
from handlers.status.page import OwnHosts, StatusPages
from handlers.status.report import Failure
from handlers.telemetry.logs import LogOptions, configure_logs
from handlers.wiring.status_page import RedisSource, open_pages, status_pages


async def test_a_user_without_the_producers_keys_finds_queued_requests(store: Redis, valkey: Valkey) -> None:
    body = b'{"id": "here", "deadline": %d, "payload": {}}' % (time.time() + 60)
    await store.zadd("request-sortedset", {body: time.time() + 60})
    rights = ["%R~request-sortedset*", "%R~retry-sortedset*", "%R~{async-processor}:status:*"]
    allowed = [
        "+ping",
        "+hello",
        "+client|setname",
        "+zcard",
        "+hlen",
        "+zrange",
        "+hget",
        "+hscan",
        "+hgetall",
        "+lrange",
        "+time",
        "+eval_ro",
        "+evalsha_ro",
    ]
    await cast(Any, store).execute_command("ACL", "SETUSER", "looker", "on", ">pw", *rights, *allowed)
    try:
        url = f"redis://looker:pw@{urlsplit(valkey.url).netloc}"
        with RedisSource(load_settings({"REDIS_URL": url, "REDIS_TIMEOUT_SECONDS": "60"})) as source:
            found, _ = await asyncio.to_thread(source.find, "here")
    finally:
        await cast(Any, store).execute_command("ACL", "DELUSER", "looker")
    assert [place.where for place in found.places] == ["pending"]


@pytest.mark.parametrize(
    ("state", "outcome", "shown"),
    [
        (RequestState.CANCELLED, "CANCELLED", "It was <strong>cancelled</strong>"),
        (RequestState.FINISHED, "HTTP 200", "It finished"),
    ],
)
def test_a_cancelled_request_is_shown_as_cancelled_and_not_as_finished(
    state: RequestState, outcome: str, shown: str
) -> None:
    class Finder:
        def find(self, request_id: str) -> tuple[Whereabouts, list[Failure]]:
            finished = FinishedRecord("token", outcome, time.time(), "queue")
            return Whereabouts(request_id, state, finished=finished), []

    pages = StatusPages(cast(Any, Finder()), tuple, OwnHosts("127.0.0.1"))
    page = pages.respond(Request(EnvironBuilder("/find", query_string={"id": "r"}).get_environ()))
    sentences = re.findall(r"It (?:was|finished)[^.]*", page.get_data(as_text=True))
    assert sentences[0].startswith(shown)


def test_the_page_is_ready_while_redis_is_down() -> None:
    source = RedisSource(
        load_settings({"REDIS_URL": f"redis://127.0.0.1:{free_port()}", "REDIS_TIMEOUT_SECONDS": "60"})
    )
    pages = StatusPages(source, tuple, OwnHosts("127.0.0.1"))
    first, ready = (pages.respond(Request(EnvironBuilder(path).get_environ())) for path in ("/", "/readyz"))
    assert (first.status_code, ready.status_code) == (503, 200)
    assert "no connection to 127.0.0.1" in first.get_data(as_text=True)
    source.close()


def test_all_views_share_one_client_which_survives_its_connections(valkey: Valkey) -> None:
    with (
        SyncRedis.from_url(valkey.url, socket_timeout=60) as store,
        RedisSource(load_settings({"REDIS_URL": valkey.url, "REDIS_TIMEOUT_SECONDS": "60"})) as source,
    ):
        source.overview()
        opened = cast("dict[str, int]", store.info("stats"))["total_connections_received"]
        for _ in range(3):
            source.overview()
            source.find("nobody")
        assert cast("dict[str, int]", store.info("stats"))["total_connections_received"] == opened, (
            "no view opens a connection"
        )
        store.client_kill_filter(_type="normal", skipme=True)
        assert source.overview().at > 0


def test_a_changed_configuration_leaves_the_page_its_names() -> None:
    def is_refused(host: str, settings: Settings) -> bool:
        request = Request(EnvironBuilder(base_url=f"http://{host}/").get_environ())
        return status_pages(settings).respond(request).status_code == 421

    before, changed = load_settings({}), load_settings({})
    open_pages(before, "127.0.0.1", ["known"])
    try:
        for settings in (before, changed):
            assert (is_refused("known", settings), is_refused("other", settings)) == (False, True)
    finally:
        open_pages(before, "::", [])


def test_changes_and_refused_tokens_are_logged_and_hopeless_letters_are_not_queued_again(valkey: Valkey) -> None:
    member, out = '{"id": "late", "deadline": 1, "payload": {}}', io.StringIO()
    with (
        SyncRedis.from_url(valkey.url, socket_timeout=60) as store,
        RedisSource(load_settings({"REDIS_URL": valkey.url, "REDIS_TIMEOUT_SECONDS": "60"})) as source,
    ):
        store.flushall()
        configure_logs(LogOptions(form="json"), out)
        store.hset("request-sortedset:dead", "d1", json.dumps({"reason": "UNDELIVERABLE", "at": 1, "member": member}))
        pages = StatusPages(source, lambda: ["right"], OwnHosts("127.0.0.1"))

        def post(action: str, token: str = "right") -> tuple[int, str]:
            form = {"queue": "request-sortedset", "dead_id": "d1", "action": action, "token": token}
            builder = EnvironBuilder(
                "/dead/change",
                method="POST",
                data=form,
                base_url="http://127.0.0.1/",
                environ_base={"REMOTE_ADDR": "192.0.2.7"},
            )
            answer = pages.respond(Request(builder.get_environ()))
            return answer.status_code, answer.get_data(as_text=True)

        assert post("drop", "wrong")[0] == post("drop", "wrong")[0] == 403
        status, text = post("requeue")
        assert (status, "can only fail again: its deadline has passed" in text) == (409, True)
        assert store.hlen("request-sortedset:dead") == 1
        assert post("drop")[0] == 200
    refused, dropped = map(json.loads, out.getvalue().splitlines())
    assert (refused["event"], refused["count"], refused["client"]) == ("token refused", 1, "192.0.2.7")
    assert dropped.items() >= {"queue": "request-sortedset", "dead_id": "d1", "client": "192.0.2.7"}.items()
    assert dropped["event"] == "dead letter dropped"


def test_equal_failures_share_a_row_and_those_without_id_link_to_the_dead_letters() -> None:
    failures = [Failure(float(at), "", "rq", 0, "INVALID_REQUEST", is_final=True) for at in range(85, 0, -1)]

    class Reader:
        def overview(self) -> Overview:
            return Overview(at=90.0, failures=[*failures, Failure(0.5, "r1", "rq", 0, "timeout")])

    pages = StatusPages(cast(Any, Reader()), tuple, OwnHosts("127.0.0.1"))
    text = pages.respond(Request(EnvironBuilder("/").get_environ())).get_data(as_text=True)
    assert '<a href="/dead?queue=rq">(no id)</a> x85' in text
    assert '<a href="/find?id=r1">r1</a>' in text
    assert text.count("INVALID_REQUEST") == 1
