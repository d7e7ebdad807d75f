"""The one part that is simulated: an OpenAI-compatible gateway with a capacity, latencies and faults on demand.

engine    who runs, who waits, who is turned away      faults   which trouble a request meets
protocol  HTTP, byte by byte where a fault wants it    replies  bodies and pages      witness  what it saw
"""
