"""De-duplication of request ids and of Pub/Sub deliveries."""
