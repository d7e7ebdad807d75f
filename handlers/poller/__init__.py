"""The poller: claim requests from Redis, send them and settle them."""
