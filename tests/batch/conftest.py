"""The client's fixtures: a real Valkey, with queue names of each test's own."""

from tests.client.conftest import client, options, redis, valkey_url

__all__ = ["client", "options", "redis", "valkey_url"]
