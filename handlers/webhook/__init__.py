"""Deliver results to HTTPS receivers, built on the client."""
