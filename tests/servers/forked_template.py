"""What the template of forked processes imports: every module of the product, and what these import later."""

from __future__ import annotations

import gc
import importlib
import pkgutil

import google.pubsub_v1.services.publisher.transports
import google.pubsub_v1.services.subscriber.transports
import opentelemetry.exporter.otlp.proto.http.trace_exporter
import opentelemetry.sdk.trace.export
import uvicorn.protocols.http.httptools_impl
import uvloop
from grpc import aio

import handlers

__all__ = ["aio", "google", "handlers", "opentelemetry", "uvicorn", "uvloop"]

for _module in pkgutil.walk_packages(handlers.__path__, "handlers."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
importlib.import_module("tests.servers.forked")
gc.freeze()  # shared memory stays unwritten, and so shared
