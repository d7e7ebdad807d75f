"""The status page: queues, gates, dead letters, failures, and a search by request id."""
