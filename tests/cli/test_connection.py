"""The flags that select the queue."""

from __future__ import annotations

from handlers.cli.flags import QueueFlags


def test_f77_flags_show_no_password() -> None:
    assert "canary" not in repr(QueueFlags(redis_url="redis://:canary@host:6379"))
