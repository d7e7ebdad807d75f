"""A Prometheus behind TLS and a bearer token, as managed ones are; gates built from settings as a process does."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings
from handlers.wiring.gates import GateEntry, ProcessGates
from tests.servers.certificates import self_signed, serving
from tests.servers.raw_http import RawHttp, answer, running_raw_http
from tests.waiting import wait_until_async

ONE = b'{"status":"success","data":{"resultType":"scalar","result":[1,"0.5"]}}'


PLACE = ("pool", "p")


def gates_of(url: str, **files: str) -> ProcessGates:
    timing = {"GATE_REFRESH_SECONDS": "0.05", "GATE_SOURCE_TIMEOUT_SECONDS": "60"}
    settings = load_settings({"PROMETHEUS_URL": url, **timing, **files})
    return ProcessGates(settings, {PLACE: GateEntry("prometheus-query", {"query": "scalar(x)"}, "pools[0]", "p")})


async def budget_of(gates: ProcessGates) -> float:
    (gate,) = gates.at(PLACE)
    try:
        await gates.start()
        return gate.budget()
    finally:
        await gates.aclose()


def answers_half(server: RawHttp) -> None:
    server.reply(*[answer(body=ONE)] * 200)


async def test_the_token_and_the_ca_reach_the_server_and_a_new_token_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.wiring.credentials.TOKEN_CACHE_SECONDS", 0.0)
    certificate, token = self_signed(tmp_path), tmp_path / "token"
    token.write_text("first\n")
    async with running_raw_http(serving(certificate)) as server:
        answers_half(server)
        files = {"PROMETHEUS_TOKEN_FILE": str(token), "PROMETHEUS_CA_FILE": str(certificate)}
        gates = gates_of(server.url, **files)
        (gate,) = gates.at(PLACE)
        await gates.start()
        assert gate.budget() == 0.5
        assert server.received[0].header("authorization") == "Bearer first"
        token.write_text("second")
        await wait_until_async(lambda: server.received[-1].header("authorization") == "Bearer second", "the new token")
        await gates.aclose()


async def test_a_server_whose_ca_is_not_named_is_not_trusted(tmp_path: Path) -> None:
    async with running_raw_http(serving(self_signed(tmp_path))) as server:
        answers_half(server)
        assert await budget_of(gates_of(server.url)) == 0.0
        assert not server.received


async def test_without_a_token_none_is_sent() -> None:
    async with running_raw_http() as server:
        answers_half(server)
        assert await budget_of(gates_of(server.url)) == 0.5
        assert server.received[0].header("authorization") is None


@pytest.mark.parametrize("setting", ["PROMETHEUS_TOKEN_FILE", "PROMETHEUS_CA_FILE"])
def test_a_missing_file_stops_the_start(setting: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=setting):
        gates_of("http://127.0.0.1:1", **{setting: str(tmp_path / "none")})
