"""The host names under which the page answers; a foreign name that resolves to this machine is not one of them."""

from __future__ import annotations

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.status.page import OwnHosts, read_hosts

LOOPBACK = [
    "localhost",
    "LOCALHOST:8090",
    "localhost.",
    "page.localhost",
    "127.0.0.1:8090",
    "127.8.8.8",
    "[::1]:8090",
]
STRANGERS = [
    "",
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:8090",
    "notlocalhost",
    "evil.example/localhost",
    "localhost@evil.example",
    "localhost evil.example",
    "localhost:x",
    "[::1].evil.example",
    "2130706433",
    "127.1",
]


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0", "::", "10.4.0.7", "page.internal"])
def test_loopback_is_always_accepted_and_a_foreign_name_never(listens_on: str) -> None:
    hosts = OwnHosts(listens_on)
    assert [one for one in LOOPBACK if not hosts.has(one)] == []
    assert [one for one in STRANGERS if hosts.has(one)] == []


@pytest.mark.parametrize(
    ("listens_on", "header", "is_ours"),
    [
        ("10.4.0.7", "10.4.0.7:8090", True),
        ("10.4.0.7", "10.4.0.8", False),
        ("127.0.0.1", "10.4.0.7", False),
        ("0.0.0.0", "10.4.0.7:80", True),
        ("::", "[2001:db8::7]:80", True),
        ("page.internal", "Page.Internal:8090", True),
        ("page.internal", "10.4.0.7", False),
    ],
)
def test_the_listening_address_is_accepted_as_host(listens_on: str, header: str, is_ours: bool) -> None:
    assert OwnHosts(listens_on).has(header) is is_ours


def test_the_operator_adds_names() -> None:
    hosts = OwnHosts("0.0.0.0", read_hosts([" status.team-a.example ", " Page. ", ""], "STATUS_HOSTS"))
    assert hosts.has("STATUS.team-a.example:443")
    assert hosts.has("page")
    assert not hosts.has("x.status.team-a.example")


@pytest.mark.parametrize("text", ["https://a.example", "a.example:80", "*", "*.example", "a b", "-a"])
def test_an_invalid_name_stops_the_start(text: str) -> None:
    with pytest.raises(InvalidSetting, match="STATUS_HOSTS"):
        read_hosts([text], "STATUS_HOSTS")
