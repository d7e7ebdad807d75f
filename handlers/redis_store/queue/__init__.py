"""The queue: claims under a lease, acks, nacks, retries and dead letters."""
