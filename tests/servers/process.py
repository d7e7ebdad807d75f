"""Programs that a test starts and that always end with it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

_ENDS_WITHIN_SECONDS = 60.0


@contextlib.contextmanager
def running_process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process of `command`, ended with SIGTERM when the block ends, also if it fails.

    `options` are those of `subprocess.Popen`. A plain `with Popen(...)` waits indefinitely if its block fails before
    it has ended the process. A process that ignores SIGTERM for a minute is killed.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_ENDS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
