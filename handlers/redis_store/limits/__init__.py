"""Quotas, leased rates and pool shares that several processes keep in Redis."""
