"""The wire: what clients queue, what they get back, and how it travels between poller and handlers.

Imports nothing of ours; everything else may import it.
"""
