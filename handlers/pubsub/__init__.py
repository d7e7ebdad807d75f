"""Pub/Sub: publish, pull, and set up topics and subscriptions."""
