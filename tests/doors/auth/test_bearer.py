"""The dispatch door takes the shared tokens and nothing else, also while they are being changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.doors.auth.bearer import DispatchToken, DispatchTokenOptions
from handlers.doors.door import Refusal

OLD, NEW = "0123456789abcdef-old", "0123456789abcdef-new"
WRONG = Refusal(401, "wrong token")


class Clock:
    """Seconds, moved by the test."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(OLD + "\n")
    return path


@pytest.fixture
def door(path: Path, clock: Clock) -> DispatchToken:
    return DispatchToken(DispatchTokenOptions(path), clock)


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


async def test_the_configured_token_is_accepted(door: DispatchToken) -> None:
    assert await door.check(bearer(OLD)) is None


@pytest.mark.parametrize("token", [NEW, OLD[:-1], OLD + "x", OLD.upper(), OLD + "\n" + OLD, "é" * 20, "x" * 9_000])
async def test_any_other_token_is_refused(door: DispatchToken, token: str) -> None:
    refusal = await door.check(bearer(token))
    assert refusal is not None
    assert refusal.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        bearer(""),
        bearer(OLD) * 2,
        [(b"authorization", f"Basic {OLD}".encode())],
    ],
)
async def test_anything_but_one_bearer_token_is_refused(
    door: DispatchToken, headers: list[tuple[bytes, bytes]]
) -> None:
    refusal = await door.check(headers)
    assert refusal is not None
    assert refusal.status == 401


async def test_a_token_is_changed_without_a_refused_request(door: DispatchToken, path: Path, clock: Clock) -> None:
    path.write_text(f"{NEW}\n{OLD}\n")
    clock.now += 5
    assert [await door.check(bearer(token)) for token in (OLD, NEW)] == [None, None]
    assert door.tokens() == (NEW, OLD), "the first is what a poller sends"
    path.write_text(f"{NEW}\n")
    clock.now += 5
    assert [await door.check(bearer(token)) for token in (OLD, NEW)] == [WRONG, None]


async def test_the_file_is_not_read_for_every_delivery(door: DispatchToken, path: Path, clock: Clock) -> None:
    path.write_text(NEW)
    clock.now += 4.9
    assert await door.check(bearer(OLD)) is None


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 20])
async def test_a_file_that_breaks_later_changes_nothing_and_is_warned_of(
    door: DispatchToken, path: Path, clock: Clock, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    clock.now += 5
    assert await door.check(bearer(OLD)) is None
    assert [record.message for record in caplog.records] == ["token reload failed"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 tokens"),
        (b"\n \n", "0 tokens"),
        (b"secret", "a token of 6 bytes"),
        (b"x" * 9_000, "a token of 9,000 bytes"),
        (b"\xff" * 32, "with spaces, control or non-ASCII characters"),
        (b"x" * 32 + b"\n" + b"\x01" * 32, "with spaces, control or non-ASCII characters"),
        (b" ".join([b"x" * 32] * 9), "9 tokens"),
    ],
)
def test_a_bad_file_stops_the_start_and_is_not_shown(path: Path, content: bytes, found: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidSetting, match="DISPATCH_TOKEN_FILE") as error:
        DispatchToken(DispatchTokenOptions(path))
    assert found in error.value.found
    assert not content.strip() or content.decode("latin-1") not in str(error.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="No such file"):
        DispatchToken(DispatchTokenOptions(tmp_path / "absent"))


async def test_tokens_may_be_given_as_text(clock: Clock) -> None:
    door = DispatchToken(DispatchTokenOptions(tokens=(NEW, OLD)), clock)
    clock.now += 60
    assert [await door.check(bearer(token)) for token in (OLD, NEW, OLD + NEW)] == [None, None, WRONG]


def test_no_token_at_all_stops_the_start() -> None:
    with pytest.raises(InvalidSetting, match="DISPATCH_TOKEN:"):
        DispatchToken(DispatchTokenOptions())


def test_options_do_not_show_tokens() -> None:
    assert OLD not in repr(DispatchTokenOptions(tokens=(OLD,)))
