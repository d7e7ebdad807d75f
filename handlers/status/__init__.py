"""The status page: queues, gates, dead letters, failures, search by id."""
