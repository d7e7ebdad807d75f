"""The table of a rig's queue, for the periodic tasks of a poller."""

from __future__ import annotations

from handlers.poller.maintenance import QueueParts, QueueTable
from tests.poller.rig import Rig


def table_of(*rigs: Rig) -> QueueTable:
    """A table with the queues of these rigs."""
    table = QueueTable()
    for rig in rigs:
        table.add(QueueParts(rig.queue, rig.worker))
    return table
