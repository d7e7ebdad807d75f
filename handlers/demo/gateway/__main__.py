"""`python -m handlers.demo.gateway`: the simulated gateway as a process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import click
import uvloop

from handlers.demo.gateway.engine import Engine, EngineOptions
from handlers.demo.gateway.faults import Faults, UnknownFault
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
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="0 picks a free one.")
@click.option("--capacity", type=click.IntRange(0), default=32, show_default=True, help="Requests at a time.")
@click.option("--queue-size", type=click.IntRange(0), default=256, show_default=True, help="Places to wait.")
@click.option("--time-to-first-token", type=click.FloatRange(0), default=0.0, help="Seconds.")
@click.option("--time-per-token", type=click.FloatRange(0), default=0.0, help="Seconds.")
@click.option("--evicts", is_flag=True, help="Sheddable requests leave when real-time ones need the slot.")
@click.option("--sheddable", multiple=True, help="An objective that gives way first; may be repeated.")
@click.option("--completion-path", multiple=True, help="A further path that completes; may be repeated.")
@click.option("--fault", "rates", multiple=True, callback=_rates, help="FAULT=SHARE; may be repeated.")
@click.option("--pool", default="demo-pool", show_default=True, help="The pool's name in the metrics.")
@click.option("--seed", type=int, default=0, help="Of the drawn faults.")
@click.option("--witness", type=click.Path(path_type=Path), help="File for what it saw, JSON lines.")
def main(**flags: Any) -> None:
    """A simulated OpenAI-compatible gateway with a capacity, latencies and faults on demand."""
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
