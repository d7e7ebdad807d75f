"""Redis Cluster: queues and submissions, with a request's keys in several slots.

Result lists, retry sets and the `request-*` keys have the reference's names, so they cannot share a hash tag with
their queue, and a script can change one slot only. Therefore every operation that changes several slots writes a
record into an outbox in the first slot, in the same step as the change. The record is then delivered to the other
slots at least once, and each of them de-duplicates deliveries by id (`queue.py`). If a poller crashes before delivery,
another one delivers its records. Idempotent submissions use a marker key in the same way (`submissions.py`).

Each class here is a subclass of the one for a single server and replaces only the steps that cross slots: the write of
an ack or nack, the scan for expired leases, the promotion of retries, and the producer's calls.

Two simpler designs were rejected. If hash tags put all keys of a request into one slot, the reference could not drain
the same queue. If a single server used an outbox too, every ack would cost a second round trip, and a result and its
claim would no longer change in one step.
"""
