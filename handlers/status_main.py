"""The status page's entry point, on functions-framework's synchronous side.

functions-framework --source handlers/status_main.py --target status     or
async-processor status
"""

from __future__ import annotations

import os
from functools import lru_cache

import flask
import functions_framework

from handlers.app.status_page import respond
from handlers.settings.settings import Settings, load_settings


@lru_cache(maxsize=1)
def _settings() -> Settings:
    # The framework puts this function's name where the handlers have the name of a door.
    return load_settings({**os.environ, "FUNCTION_TARGET": ""})  # noqa: TID251  # the process's own start


@functions_framework.http
def status(request: flask.Request) -> flask.Response:
    """Every page, by its path."""
    return respond(request, _settings())
