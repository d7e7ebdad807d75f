"""Queue and submissions for Redis Cluster, where the keys of one request are in several slots.

Result lists, retry sets and the `request-*` keys have the reference's names, so they cannot share a hash tag with
their queue, and a script reaches one slot only. Therefore every operation that changes several slots writes a
record into an outbox in the first slot, in the same step as the change. The record is then delivered to the other
slots at least once, and each of them de-duplicates deliveries by id (`outbox.py`). A poller that dies in between
leaves its records to the next poller. Idempotent submissions use a marker key in the same way (`windows.py`).
"""
