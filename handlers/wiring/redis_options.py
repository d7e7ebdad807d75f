"""How this process reaches its Redis, out of the settings."""

from __future__ import annotations

from handlers.redis_store.connection import RedisOptions
from handlers.settings.settings import Settings


def redis_options(settings: Settings) -> RedisOptions:
    """How to reach the queues."""
    env = settings.env
    return RedisOptions(
        url=settings.redis_url,
        username=env.redis_username,
        password=lambda: settings.redis_password,
        ca_file=env.redis_ca_file,
        cert_file=env.redis_cert_file,
        key_file=env.redis_key_file,
        timeout_seconds=env.redis_timeout_seconds,
    )
