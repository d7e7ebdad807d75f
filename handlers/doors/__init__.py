"""Doors: HTTP endpoints that turn deliveries into requests and outcomes into responses."""
