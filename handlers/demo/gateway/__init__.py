"""Simulated OpenAI-compatible gateway with a capacity, latencies and faults on demand; all other parts are real.

engine    slots, queue, rejection and eviction         faults   which fault a request meets
protocol  HTTP, byte by byte where a fault needs it    replies  bodies and pages      witness  log of requests
"""
