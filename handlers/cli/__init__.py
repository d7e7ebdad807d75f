"""The command `async-processor`.

Commands import the modules that they run inside their functions, so that `--help` is fast.

The kernel drops a SIGTERM for PID 1 until the process installs a handler, and KEDA and Knative stop new pods at any
moment. So the commands that run as services install a handler before they import anything else. It ends the process
at once with 0, since nothing has been claimed. Each command replaces the handler when it has work to finish.

Two libraries import optional parts that no command uses and that take a third of the start: httpx its own command
line (with rich and pygments), redis the metrics SDK of OpenTelemetry. Both work without them if the import fails.

The objects that a start creates are never freed. So the poller and the doors start with garbage collection off; once
started, they turn it on for newer objects only (`end_of_start`). That saves a tenth of the start.
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
