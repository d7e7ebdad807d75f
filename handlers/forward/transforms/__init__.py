"""Transforms, which replace a payload before it is sent to the gateway."""
