"""The command `async-processor`. Commands import what they run inside their functions: `--help` is fast."""

from __future__ import annotations

from handlers.cli.main import main

__all__ = ["main"]
