"""The status page's entry point for functions-framework.

functions-framework --source handlers/status_main.py --target status
async-processor status
"""

from __future__ import annotations

import os
from functools import lru_cache

import flask
import functions_framework

from handlers.wiring.status_page import CurrentSettings, respond


@lru_cache(maxsize=1)
def _current() -> CurrentSettings:
    return CurrentSettings(os.environ)  # noqa: TID251  # the process's own start


@functions_framework.http
def status(request: flask.Request) -> flask.Response:
    """Respond with the page for the request's path."""
    return respond(request, _current().get())
