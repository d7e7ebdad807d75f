"""Brings Redis requests to the handlers: claim under a lease, hand over, settle. One role a file."""
