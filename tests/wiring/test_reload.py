"""Which changes of the configuration file count, and how invalid ones are handled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.reload import ConfigWatch
from tests.waiting import elapse_async, wait_until_async

ONE = "queues: [{queue_name: first}]"
TWO = "queues: [{queue_name: first}, {queue_name: second}]"
POOLS = "pools: [{id: default, workers: 3}]"


class Watched:
    """Watched files, and the changes found so far."""

    def __init__(self, folder: Path, *texts: str) -> None:
        self.paths = [folder / f"{number}.yaml" for number in range(len(texts))]
        for path, text in zip(self.paths, texts, strict=True):
            path.write_text(text)
        variables = {
            "CONFIG_FILE": ",".join(str(path) for path in self.paths),
            "CONFIG_RELOAD_SECONDS": "0.02",
            "IGW_BASE_URL": "http://127.0.0.1:1",
        }
        self.watch = ConfigWatch(variables, load_settings(variables), get_logger("test"))
        self.taken: list[Settings] = []

    async def follow(self) -> None:
        while True:
            self.taken.append(await self.watch.next())
            self.watch.take()

    async def changed(self, count: int) -> list[str]:
        await wait_until_async(lambda: len(self.taken) >= count, "the change to be taken")
        assert len(self.taken) == count
        return [queue.queue_name for queue in self.taken[-1].queues]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    yield Watched(tmp_path, ONE, POOLS)


async def test_a_file_that_is_empty_while_it_is_written_is_no_change(watched: Watched) -> None:
    """An empty file is a valid one: it would have the poller claim from the default queue."""
    following = asyncio.create_task(watched.follow())
    watched.paths[0].write_text("")
    await elapse_async(0.1, "a writer that takes its time")
    watched.paths[0].write_text(TWO)
    assert await watched.changed(1) == ["first", "second"]
    following.cancel()


async def test_a_missing_file_is_refused_and_its_return_is_not_a_change(watched: Watched) -> None:
    following = asyncio.create_task(watched.follow())
    away = watched.paths[0].rename(watched.paths[0].with_suffix(".away"))
    await wait_until_async(lambda: watched.watch.is_refused, "the file to be missed")
    away.rename(watched.paths[0])
    await wait_until_async(lambda: not watched.watch.is_refused, "the file to be back")
    assert watched.taken == []
    watched.paths[1].write_text("pools: [{id: default, workers: 4}]")
    await watched.changed(1)
    assert watched.taken[0].pools[0].workers == 4
    following.cancel()


async def test_every_one_of_several_files_is_watched(watched: Watched) -> None:
    following = asyncio.create_task(watched.follow())
    watched.paths[1].write_text("pools: [{id: other}]")
    await watched.changed(1)
    watched.paths[0].write_text("queues: [{queue_name: third, worker_pool_id: other}]")
    assert await watched.changed(2) == ["third"]
    following.cancel()


@pytest.mark.parametrize("text", ["{", "queues: [{queue_name: a, worker_pool_id: gone}]", "\x00", "\ud83d", "- 1"])
async def test_an_invalid_file_is_refused_until_a_valid_one_replaces_it(watched: Watched, text: str) -> None:
    following = asyncio.create_task(watched.follow())
    watched.paths[0].write_bytes(text.encode("utf-8", "surrogatepass"))
    await wait_until_async(lambda: watched.watch.is_refused, "the refusal")
    watched.paths[0].write_text(TWO)
    assert await watched.changed(1) == ["first", "second"]
    assert not watched.watch.is_refused
    following.cancel()


async def test_an_unexpected_error_while_reading_refuses_the_file(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_variables: object) -> Settings:
        raise RuntimeError("a defect")

    following = asyncio.create_task(watched.follow())
    with monkeypatch.context() as patch:
        patch.setattr("handlers.wiring.reload.load_settings", breaks)
        watched.paths[0].write_text("queues: []")
        await wait_until_async(lambda: watched.watch.is_refused, "the refusal")
    watched.paths[0].write_text(TWO)
    assert await watched.changed(1) == ["first", "second"]
    following.cancel()


async def test_the_swap_of_a_link_is_a_change_though_the_time_is_the_same(tmp_path: Path) -> None:
    for name, text in (("old", ONE), ("new", TWO)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "0.yaml").write_text(text)
        os.utime(folder / "0.yaml", (1_000_000_000, 1_000_000_000))
    link = tmp_path / "..data"
    link.symlink_to("old")
    variables = {
        "CONFIG_FILE": str(link / "0.yaml"),
        "CONFIG_RELOAD_SECONDS": "0.02",
        "IGW_BASE_URL": "http://127.0.0.1:1",
    }
    watch = ConfigWatch(variables, load_settings(variables), get_logger("test"))
    changed = asyncio.create_task(watch.next())
    (tmp_path / "..next").symlink_to("new")
    (tmp_path / "..next").rename(link)
    settings = await asyncio.wait_for(changed, 60)
    assert [queue.queue_name for queue in settings.queues] == ["first", "second"]


async def test_a_refusal_logs_each_fault(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.paths[0].write_text("queues: [{queue_name: first, igw_base_url: x}, {queue_name: second, id: 5}]")
    with pytest.raises(InvalidSetting) as refused:
        load_settings({"CONFIG_FILE": str(watched.paths[0])})
    watched.watch.refuse(refused.value)
    logged = [getattr(record, "fields", {}).get("setting") for record in caplog.records]
    assert logged == ["queues[1].id", "queues[0].igw_base_url"]
