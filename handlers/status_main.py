"""The status page's entry point for functions-framework.

functions-framework --source handlers/status_main.py --target status
async-processor status
"""

from __future__ import annotations

import os
from functools import lru_cache

import flask
import functions_framework

from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.reload import ConfigWatch
from handlers.wiring.status_page import respond


class _CurrentSettings:
    """The current settings, which follow changes of the configuration file."""

    def __init__(self) -> None:
        # The framework sets FUNCTION_TARGET to `status`, which is not a door.
        variables = {**os.environ, "FUNCTION_TARGET": ""}  # noqa: TID251  # the process's own start
        self._settings = load_settings(variables)
        self._watch = ConfigWatch(variables, self._settings, get_logger("status"))

    def get(self) -> Settings:
        self._settings = self._watch.poll() or self._settings
        return self._settings


_current = lru_cache(maxsize=1)(_CurrentSettings)


@functions_framework.http
def status(request: flask.Request) -> flask.Response:
    """Respond with the page for the request's path."""
    return respond(request, _current().get())
