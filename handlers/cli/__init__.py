"""The command `async-processor`.

Commands import the modules that they run inside their functions, so that `--help` is fast.

KEDA and Knative may stop a new pod at any moment, and the kernel drops a SIGTERM for PID 1 until the process has a
handler for it. So commands that run as services install a handler before they import anything else. It ends the
process at once with 0, since nothing has been claimed. A command replaces the handler when it has work to finish.

Two libraries import optional parts that no command uses: httpx its command line (with rich and pygments), redis the
metrics SDK of OpenTelemetry. They take a third of the start, so these imports are made to fail, which both libraries
allow.

Objects that are created during the start are never freed. So poller and doors start with garbage collection off, and
then turn it on for newer objects only (`end_of_start`). That saves a tenth of the start.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any, cast

SERVICES = ("poll", "serve", "status", "webhook")

if sys.argv[1:2] and sys.argv[1] in SERVICES:
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    if sys.argv[1] in ("poll", "serve"):
        gc.disable()

for _unused in ("httpx._main", "opentelemetry.sdk.metrics"):
    cast("dict[str, Any]", sys.modules).setdefault(_unused, None)  # importing it raises ImportError

from handlers.cli.main import main  # noqa: E402  # importing click takes time in which a SIGTERM would be lost

__all__ = ["main"]
