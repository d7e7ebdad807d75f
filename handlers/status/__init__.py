"""The status page: what is queued, in flight, waiting and dead, why gates are closed, and where a request is now."""
