"""`async-processor demo` and `dev`: run a local stack."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlers.cli.shell import stop_at_signals
from handlers.contract.errors import AsyncProcessorError

if TYPE_CHECKING:
    from handlers.demo.stack import Stack
    from handlers.settings.settings import Settings


@click.command(
    epilog="""\b
Examples:
  async-processor demo
  async-processor demo --requests 1000 --no-pubsub

Exit codes: 0 every request got exactly one final result; 1 otherwise; 2 a process could not be started;
130 Ctrl-C; 143 SIGTERM."""
)
@click.option(
    "--requests", type=click.IntRange(20, 100_000), default=200, show_default=True, help="Number of requests."
)
@click.option("--pubsub/--no-pubsub", "has_pubsub", default=True, help="Use Pub/Sub too, if its emulator is found.")
@click.option("--timeout", "seconds", default=90.0, show_default=True, help="Time limit in seconds.")
def demo(requests: int, has_pubsub: bool, seconds: float) -> None:
    """Run requests through all parts on this machine and check the results.

    Requests are queued in a real Valkey. Poller and handler send them to a simulated gateway that fails on purpose, and
    retry them. If Google's Pub/Sub emulator is found, some requests go through a topic and the push door.
    """
    from rich.console import Console

    import handlers.serving.server  # noqa: F401  # a missing extra fails here, and not in a child process
    from handlers.cli.main import fail
    from handlers.demo.demo import DemoOptions, run_demo

    stop_at_signals()  # they end the context managers, which stop all processes
    try:
        is_complete = run_demo(DemoOptions(requests, has_pubsub, seconds), Console())
    except AsyncProcessorError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        sys.exit(0 if is_complete else 1)


_TRY = """
For example:
  async-processor submit --prompt 'Good morning' --model your-model --deadline 10m --wait
  redis-cli -u $REDIS_URL ZADD request-sortedset 1999999999 '{"id" : "testmsg", "payload":{ "model":"your-model", \
"prompt":"Hi, good morning "}, "deadline" :"1999999999" }'
  redis-cli -u $REDIS_URL RPOP result-list"""
_TRY_PUBSUB = """\
  gcloud pubsub topics publish $REQUEST_TOPIC_NAME --message='{"id" : "testmsg", "payload":{ "model":"your-model", \
"prompt":"Hi, good morning "}, "deadline" :"1999999999" }'
  gcloud pubsub subscriptions pull $RESULT_SUBSCRIPTION_ID --auto-ack --limit=1"""

_DISTURB = """
Make the gateway slow or failing; each change takes effect at once:
  curl -d '{"time_to_first_token": 5}' $IGW_BASE_URL/simulate/engine            # slow: 5 s for each request
  curl -d '{"capacity": 1, "queue_size": 0}' $IGW_BASE_URL/simulate/engine      # full: one at a time, others get 429
  curl -d '{"503": 0.5, "reset": 0.1}' $IGW_BASE_URL/simulate/faults            # failing: half get 503, a tenth a reset
  curl -d '{"time_to_first_token": 0.2, "capacity": 32, "queue_size": 256}' $IGW_BASE_URL/simulate/engine   # as before
  curl -d '{}' $IGW_BASE_URL/simulate/faults                                    # no faults
  curl $IGW_BASE_URL/simulate/state"""


@click.command(
    epilog="""\b
Examples:
  async-processor dev
  async-processor dev --redis-port 6379 --gateway-port 8000 --no-pubsub

Exit codes: 0 stopped by Ctrl-C or SIGTERM; 1 a process ended by itself; 2 a process could not be started."""
)
@click.option("--redis-port", type=click.IntRange(0, 65_535), default=0, help="Port of Valkey; 0 picks a free one.")
@click.option(
    "--gateway-port", type=click.IntRange(0, 65_535), default=0, help="Port of the gateway; 0 picks a free one."
)
@click.option("--pubsub/--no-pubsub", "has_pubsub", default=True, help="Use Pub/Sub too, if its emulator is found.")
def dev(redis_port: int, gateway_port: int, has_pubsub: bool) -> None:
    """Run a local stack until Ctrl-C.

    Starts Valkey, a simulated gateway, a handler and a poller. Prints commands that use them, and commands that make
    the gateway slow or failing. Settings of the environment apply to handler and poller, also CONFIG_FILE.
    """
    import handlers.serving.server  # noqa: F401  # a missing extra fails here, and not in a child process
    from handlers.cli.main import fail
    from handlers.cli.services import check_free_port
    from handlers.demo.stack import Stack, StackOptions
    from handlers.settings.settings import load_settings

    stopped = threading.Event()

    def started(part: str, address: str) -> None:
        click.echo(f"{part:24} {address}")
        if stopped.is_set():
            raise KeyboardInterrupt  # between two parts, so that each started one is stopped

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    options = StackOptions(
        redis_port=redis_port,
        gateway_port=gateway_port,
        has_pubsub=has_pubsub,
        gateway_arguments=("--time-to-first-token", "0.2"),
        variables={"SHUTDOWN_GRACE_SECONDS": "5"},
        on_started=started,
    )
    try:
        settings = load_settings(os.environ)  # noqa: TID251  # the process's entry
        check_free_port("--redis-port", "127.0.0.1", redis_port)
        check_free_port("--gateway-port", "127.0.0.1", gateway_port)
        with Stack(options) as stack:
            _print_commands(stack, settings, has_pubsub)
            ended = _wait(stopped, stack)
    except KeyboardInterrupt:
        return
    except AsyncProcessorError as error:
        fail(error)
    if ended:
        click.echo(ended, err=True)
        sys.exit(1)


def _print_commands(stack: Stack, settings: Settings, has_pubsub: bool) -> None:
    """Print the configured queues, and commands that use the stack."""
    from handlers.demo.pubsub_emulator import NoEmulator

    if settings.env.config_file:
        names = ", ".join(queue.queue_name for queue in settings.queues)
        click.echo(f"{'CONFIG_FILE':24} {_files(settings)}: queues {names}")
    click.echo()
    folder = shlex.quote(str(Path(sys.executable).parent))
    click.echo("Paste this into another terminal. Then every command in the README works as written:")
    click.echo(f"  export PATH={folder}:$PATH")
    for variable, value in (variables_of(stack) | _queue_variables(settings)).items():
        click.echo(f"  export {variable}={shlex.quote(value)}")
    queue, results = map(shlex.quote, _queue(settings))
    click.echo(_TRY.replace("request-sortedset", queue).replace("result-list", results))
    if stack.emulator_host:
        click.echo(_TRY_PUBSUB)
    elif isinstance(stack.pubsub, NoEmulator) and has_pubsub:
        click.echo(f"\nWithout Pub/Sub: {stack.pubsub.reason}")
    click.echo(_DISTURB)
    click.echo("\nCtrl-C stops everything.")


def _files(settings: Settings) -> str:
    return ",".join(str(Path(name.strip()).absolute()) for name in settings.env.config_file.split(","))


def _queue(settings: Settings) -> tuple[str, str]:
    """The first queue and its result list."""
    queue = settings.queues[0]
    return queue.queue_name, queue.result_queue_name or settings.result_queue_name


def _queue_variables(settings: Settings) -> dict[str, str]:
    """Variables that make commands use the first queue."""
    from handlers.settings.environment import Environment

    defaults = Environment()
    queue, results = _queue(settings)
    found = {"CONFIG_FILE": _files(settings)} if settings.env.config_file else {}
    if queue != defaults.request_queue_name:
        found["REQUEST_QUEUE_NAME"] = queue
    if results != defaults.result_queue_name:
        found["RESULT_QUEUE_NAME"] = results
    if settings.retry_queue_name != defaults.retry_queue_name:
        found["RETRY_QUEUE_NAME"] = settings.retry_queue_name
    return found


def variables_of(stack: Stack) -> dict[str, str]:
    """Variables for the README's commands, so that they use this stack."""
    from handlers.demo.pubsub_emulator import DEMO_PROJECT, REQUEST_TOPIC, RESULT_SUBSCRIPTION, RESULT_TOPIC

    variables = {"REDIS_URL": stack.redis_url, "IGW_BASE_URL": stack.gateway_url}
    if not stack.emulator_host:
        return variables
    return variables | {
        "PUBSUB_EMULATOR_HOST": stack.emulator_host,
        "PROJECT_ID": DEMO_PROJECT,
        "REQUEST_TOPIC_NAME": REQUEST_TOPIC,
        "REQUEST_TOPIC_ID": REQUEST_TOPIC,
        "RESULT_TOPIC_ID": RESULT_TOPIC,
        "RESULT_SUBSCRIPTION_ID": RESULT_SUBSCRIPTION,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{stack.emulator_host}/",
        "CLOUDSDK_CORE_PROJECT": DEMO_PROJECT,
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
    }


def _wait(stopped: threading.Event, stack: Stack) -> str:
    """Wait for a stop. If a part ends by itself, return its last output."""
    while not stopped.wait(0.5):
        for child in stack.children.values():
            if child.process.poll() is not None:
                return f"{child.name} ended:\n{child.log_tail()}"
    return ""
