"""Valkey of the demo, under the module name that scripts outside this repository import."""

from __future__ import annotations

from handlers.demo.servers import Valkey, find_valkey

__all__ = ["Valkey", "find_valkey"]
