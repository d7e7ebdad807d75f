"""Simulated OpenAI-compatible gateway with capacity, latency and faults.

engine    slots, queue, rejection and eviction
faults    chooses and sends the fault of a request
service   HTTP server, bodies of responses and witness log (a line for each request)
"""
