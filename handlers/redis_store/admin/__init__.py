"""Operators' view of Redis: ACL rules, checks, dead letters, the status board."""
