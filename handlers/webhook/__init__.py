"""Deliver results to HTTPS receivers (webhooks), with the client."""
