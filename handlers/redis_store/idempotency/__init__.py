"""De-duplication by request id, and of Pub/Sub deliveries."""
