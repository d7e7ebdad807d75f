"""The command `async-processor`. Commands import what they run inside their functions, so that `--help` is fast.

The kernel drops a SIGTERM for PID 1 until the process installs a handler, and KEDA and Knative stop fresh pods at any
moment. So the commands that run as services get a handler before anything else is imported: nothing has been claimed
yet, and the process ends at once with 0. Each command replaces it when it has work that it must finish.
"""

from __future__ import annotations

import os
import signal
import sys

SERVICES = ("poll", "serve", "status", "webhook")

if sys.argv[1:2] and sys.argv[1] in SERVICES:
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))

from handlers.cli.main import main  # noqa: E402  # importing click takes time in which a SIGTERM would be lost

__all__ = ["main"]
