"""Exactly one request to the gateway, and the judgement of what came back."""
