"""Pub/Sub: publish results and requests, pull results, set up topics and subscriptions."""
