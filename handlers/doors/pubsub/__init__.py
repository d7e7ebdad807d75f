"""The Pub/Sub push door: wrapped, unwrapped and dead-lettered messages."""
