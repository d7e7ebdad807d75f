"""The wire format: requests, results, and events between poller and handlers.

It imports no other room; all others may import it.
"""
