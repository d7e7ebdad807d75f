"""The command `async-processor`.

Commands import the modules that they run inside their functions, so that `--help` is fast.

KEDA, Knative and `docker stop` may stop a new container at any moment, and the kernel drops a SIGTERM for PID 1 until
the process has a handler for it. Python turns a Ctrl-C into an exception, which an import may print or swallow. So a
handler of both is installed before anything else is imported. It ends the process at once, since nothing has been
claimed. A command replaces the handler when it has work to finish (`shell.run_async`, `shell.stop_at_signals`).

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

SERVICES = ("poll", "serve", "status", "webhook")
"""Commands that run until they are stopped, and then end with 0; so does `dev`."""


def _end(number: int, _frame: object) -> None:
    os._exit(0 if sys.argv[1:2] and sys.argv[1] in (*SERVICES, "dev") else 128 + number)


if os.path.basename(sys.argv[0]) == "async-processor":  # noqa: PTH119  # pathlib takes 5 ms to import
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, _end)
    if sys.argv[1:2] and sys.argv[1] in ("poll", "serve"):
        gc.disable()

for _unused in ("httpx._main", "opentelemetry.sdk.metrics"):
    sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]  # importing it raises ImportError

from handlers.cli.main import main  # noqa: E402  # importing click takes time in which a SIGTERM would be lost

__all__ = ["main"]
