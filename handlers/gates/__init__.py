"""Gates: limit the capacity of queued requests, decide which are sent.

Each gate is one file and one line of `registry.py`. `chain.py` describes when gates are called. A gate reads only from
the sources that `sources.py` declares and `handlers.wiring.gates` provides.
"""
