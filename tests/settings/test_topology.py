"""The reference's `mode`, `addrs` and `master_name` become one URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings, load_settings


def loaded(path: Path, text: str, **variables: str) -> Settings:
    path.write_text(text)
    return load_settings({"CONFIG_FILE": str(path), **variables})


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ('{"url": "redis://h:1/2"}', "redis://h:1/2"),
        ('{"url": "redis://h:1/2", "mode": "standalone"}', "redis://h:1/2"),
        ('{"url": "rediss://u:p%40w@h:1", "mode": "cluster"}', "rediss+cluster://u:p%40w@h:1"),
        (
            '{"url": "redis://h/0", "mode": "cluster", "addrs": ["i:2", "[::1]:3"]}',
            "redis+cluster://h:6379,i:2,[::1]:3",
        ),
        (
            '{"url": "redis://:p@s1:26379/3", "mode": "sentinel", "addrs": ["s2:26379"], "master_name": "m"}',
            "redis+sentinel://:p@s1:26379,s2:26379/m/3",
        ),
        (
            '{"url": "redis://[::1]?db=4", "mode": "sentinel", "master_name": "m"}',
            "redis+sentinel://[::1]:6379/m/4",
        ),
        ('{"url": "redis://h:1/2?dial_timeout=5s&pool_size=20"}', "redis://h:1/2"),
        ('{"url": "redis://h:1/2?read_timeout=3s&client_name=a"}', "redis://h:1/2?client_name=a"),
    ],
)
def test_the_topology_of_a_transport_file_becomes_one_url(tmp_path: Path, fields: str, url: str) -> None:
    assert loaded(tmp_path / "transport.json", fields).redis_url == url


def test_the_topology_applies_to_the_environments_url(tmp_path: Path) -> None:
    settings = loaded(tmp_path / "transport.json", '{"mode": "cluster"}', REDIS_URL="redis://h:1")
    assert settings.redis_url == "redis+cluster://h:1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('{"mode": "replica"}', "mode: expected one of standalone, cluster, sentinel, got 'replica'"),
        ('{"addrs": ["h:1"]}', "addrs: expected no addresses unless mode is cluster or sentinel"),
        (
            '{"mode": "cluster", "master_name": "m"}',
            "master_name: expected no name unless mode is sentinel, got 'm'",
        ),
        ('{"mode": "sentinel"}', "master_name: expected the master's name"),
        (
            '{"mode": "cluster", "url": "redis://u:secret@h:1/2"}',
            "url: expected database 0",
        ),
        (
            '{"mode": "cluster", "url": "redis+sentinel://h:1/m"}',
            r"mode: expected .*, got cluster beside redis\+sentinel://",
        ),
        ('{"mode": "cluster", "addrs": ["no host"]}', r"addrs\[0\]: expected host:port, got 'no host'"),
        ('{"mode": "cluster", "addrs": "h:1"}', "addrs"),
    ],
)
def test_an_inconsistent_topology_is_reported(tmp_path: Path, fields: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message) as caught:
        loaded(tmp_path / "transport.json", fields)
    assert "secret" not in str(caught.value)
