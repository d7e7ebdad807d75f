"""Gates limit how much capacity queued requests use, and which request may be sent now.

Each gate is one file and one line of `registry.py`. `chain.py` says which gate is asked when. Gates import the
contract and this package only; `sources.py` declares what they read from, `handlers.wiring.gates` provides it.
"""
