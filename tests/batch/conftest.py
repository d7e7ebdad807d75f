"""The client's fixtures: a real Valkey, with separate queue names for each test."""

from tests.client.conftest import client, options, redis, valkey_url

__all__ = ["client", "options", "redis", "valkey_url"]
