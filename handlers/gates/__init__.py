"""Gates limit the capacity that queued requests use, and decide which may be sent.

Each gate is one file and one line of `registry.py`. `chain.py` describes when each gate is asked. Gates import only
the contract and this package; `sources.py` declares what they read from, and `handlers.wiring.gates` provides it.
"""
