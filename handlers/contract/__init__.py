"""The wire format: requests, results, and the events between poller and handlers.

It imports no other package of the product; all others may import it.
"""
