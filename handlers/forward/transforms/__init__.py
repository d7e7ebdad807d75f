"""Transforms of a payload on its way to the gateway: one file and one registry line each."""
