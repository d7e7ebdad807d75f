"""Begin a batch, or resume the one that an output file belongs to."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from handlers.batch.check import InvalidFile, check_file
from handlers.batch.files import BatchConflict, BatchFiles, BatchState, source_print
from handlers.client.new_request import Deadline, unix_deadline
from handlers.redis_store.keys import batch_results_key


def begin_or_resume(
    files: BatchFiles,
    source: Path,
    *,
    queue: str,
    results: str,
    deadline: Deadline,
    tier: str,
    tenant: str,
    is_checked: bool = True,
) -> BatchState:
    """Read or create the batch's state and write it to its file.

    Settings of an earlier run are kept. Unless `is_checked` is False, every line is checked first. Raises
    `BatchConflict` if the files belong to another batch or the input has changed, `InvalidFile` for an invalid input.
    """
    state = files.read_state()
    if state is not None:
        if state.source_print != source_print(source):
            raise BatchConflict(f"{source}: is not, or no longer, the file that {files.state} is about")
        state.source = str(source.resolve())
        return state
    for path in (files.out, files.errors):
        if path.exists() and path.stat().st_size:
            raise BatchConflict(f"{path}: exists, and {files.state} does not; move it away")
    total = _checked_total(source, is_checked=is_checked)
    name = secrets.token_hex(8)
    state = BatchState(
        batch=name,
        token=secrets.token_hex(16),
        source=str(source.resolve()),
        source_print=source_print(source),
        errors=str(files.errors.resolve()),
        queue=queue,
        results=batch_results_key(results, name),
        deadline=unix_deadline(deadline, now=time.time()),
        tier=tier,
        tenant=tenant,
        total=total,
    )
    files.write_state(state)
    return state


def _checked_total(source: Path, *, is_checked: bool) -> int:
    """The number of requests. Raises `InvalidFile` with the first faults and their number."""
    check = check_file(source, is_whole=is_checked)
    if check.faulty:
        more = f"\n  and {check.faulty - len(check.faults)} more" if check.faulty > len(check.faults) else ""
        raise InvalidFile(
            f"{source}: {check.faulty} of {check.total} lines cannot be used; nothing was queued\n  "
            + "\n  ".join(check.faults)
            + more
            + "\nCorrect the file, or run with --no-check: each such line then gets an error line"
        )
    return check.total
