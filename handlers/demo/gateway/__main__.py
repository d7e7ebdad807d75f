"""`python -m handlers.demo.gateway`: the simulated gateway as a process."""

# ruff: noqa: E402  # the imports take time in which PID 1 of a container would lose a SIGTERM

from __future__ import annotations

import os
import signal


def _end(_number: int, _frame: object) -> None:
    os._exit(0)


if __name__ == "__main__":
    for _signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signal, _end)

import asyncio
from pathlib import Path
from typing import Any

import click
import uvloop

from handlers.demo.gateway.engine import Engine, EngineOptions
from handlers.demo.gateway.injected_faults import Faults, UnknownFault
from handlers.demo.gateway.service import GatewayProtocol, Service, Witness
from handlers.number_text import decimal


def _rates(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    rates = {}
    for value in values:
        name, _, share = value.partition("=")
        found = decimal(share)
        if found is None:
            raise click.BadParameter(f"expected FAULT=SHARE, like 503=0.05, got {value!r}")
        rates[name] = found
    return rates


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port; 0 picks a free one.")
@click.option(
    "--capacity", type=click.IntRange(0), default=32, show_default=True, help="Maximum number of running requests."
)
@click.option(
    "--queue-size", type=click.IntRange(0), default=256, show_default=True, help="Maximum number of waiting requests."
)
@click.option("--time-to-first-token", type=click.FloatRange(0), default=0.0, help="Latency in seconds.")
@click.option("--time-per-token", type=click.FloatRange(0), default=0.0, help="Latency in seconds.")
@click.option("--evicts", is_flag=True, help="Evict sheddable requests if others need their slots.")
@click.option("--sheddable", multiple=True, help="Objective of sheddable requests; may be repeated.")
@click.option("--completion-path", multiple=True, help="Further path of completions; may be repeated.")
@click.option("--fault", "rates", multiple=True, callback=_rates, help="Random fault, FAULT=SHARE; may be repeated.")
@click.option("--pool", default="demo-pool", show_default=True, help="Name of the pool in metrics.")
@click.option("--seed", type=int, default=0, help="Seed of random faults.")
@click.option("--witness", type=click.Path(path_type=Path), help="File to log requests to, as JSON lines.")
def main(**flags: Any) -> None:
    """Run a simulated OpenAI-compatible gateway with capacity, latency and faults."""
    engine = Engine(
        EngineOptions(
            flags["capacity"],
            flags["queue_size"],
            flags["time_to_first_token"],
            flags["time_per_token"],
            flags["evicts"],
        )
    )
    try:
        faults = Faults(flags["rates"], flags["seed"])
    except UnknownFault as error:
        raise click.BadParameter(str(error), param_hint="--fault") from None
    service = Service(
        engine,
        faults,
        Witness(flags["witness"]),
        pool=flags["pool"],
        sheddable=frozenset(flags["sheddable"]),
        completion_paths=frozenset(flags["completion_path"]),
    )
    uvloop.run(_serve(service, flags["host"], flags["port"]))


async def _serve(service: Service, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopped.set)
    server = await loop.create_server(lambda: GatewayProtocol(service), host, port, backlog=4_096)
    address = server.sockets[0].getsockname()
    click.echo(f"listening on http://{address[0]}:{address[1]}")
    await stopped.wait()
    server.close()
    service.witness.flush()


if __name__ == "__main__":
    main()
