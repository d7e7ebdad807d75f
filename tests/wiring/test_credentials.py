"""Tokens from files: refused at the start, and kept in use while a rotated file is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.wiring import credentials
from handlers.wiring.credentials import file_token

BROKEN = [b"", b"one\ntwo", "tökén".encode(), b"\xff"]


@pytest.mark.parametrize("content", BROKEN)
def test_a_file_without_a_token_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "token").write_bytes(content)
    with pytest.raises(InvalidSetting, match="GATEWAY_TOKEN_FILE"):
        file_token("GATEWAY_TOKEN_FILE", str(path))


@pytest.mark.parametrize("content", [*BROKEN, None])
def test_if_a_file_breaks_later_the_last_token_stays_in_use(
    tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "TOKEN_CACHE_SECONDS", 0.0)
    (path := tmp_path / "token").write_text("first\n")
    token = file_token("GATEWAY_TOKEN_FILE", str(path))
    assert token is not None
    assert token() == "first"
    path.unlink() if content is None else path.write_bytes(content)
    assert token() == "first"
    path.write_text("second\n")
    assert token() == "second"
