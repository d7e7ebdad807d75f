"""May this request go now? Each gate is one file: how much capacity may be used, and who may use it.

Knows the contract and the protocols it declares (`metric_source.py`, `stores.py`); whoever builds a gate
hands in what fulfils them.
"""
