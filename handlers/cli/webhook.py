"""`async-processor webhook`: deliver results to an HTTPS address."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlers.cli.flags import DurationType, QueueFlags, queue_flags
from handlers.cli.results import report_undecodable
from handlers.cli.shell import ExitCode, exits
from handlers.contract.errors import InvalidSetting
from handlers.contract.result import Result, encode_result

if TYPE_CHECKING:
    from handlers.webhook.deliver import WebhookOptions
    from handlers.webhook.destinations import Destination


@click.command(
    epilog="""\b
Examples:
  async-processor webhook https://example.com/hooks/results --secret-file /secrets/webhook
  async-processor webhook http://receiver.team-a/results --secret-file s --allow-private
  async-processor webhook https://example.com/rest --secret-file s --destination a.example/hooks/=/secrets/a

Each result is sent as a POST, signed according to the Standard Webhooks specification. A 2xx response acknowledges it.
A result that is sent again has the same webhook-id. Results that URL does not accept within --give-up are printed as
JSON lines.

A request may name a receiver of --destination as webhook_url in its metadata; this needs RESULT_DETAILS=true on
handlers and poller. If that receiver is not allowed or refuses the result, the result goes to URL, with the reason in
"undelivered". A receiver that is down delays at most those of the same --destination.

Exit codes: 0 stopped, or no result for --for; 1 the receiver answered 410 (gone); 2 invalid flags;
4 the broker does not answer."""
)
@click.argument("url")
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="File with secrets (whsec_…), one per line. Each result is signed with all of them.",
)
@click.option(
    "--destination",
    "destinations",
    multiple=True,
    metavar="HOST/PATH=SECRET_FILE",
    help="Receiver that requests may name, with its own secrets; a path that ends in / allows all paths below it. "
    "May be repeated.",
)
@click.option("--allow-private", is_flag=True, help="Allow receivers in private networks, and http:// URLs.")
@click.option(
    "--at-once",
    type=click.IntRange(1, 1_000),
    default=16,
    show_default=True,
    help="Maximum number of calls at once, to URL and to each --destination.",
)
@click.option(
    "--give-up", type=DurationType(), default="3d", show_default=True, help="Longest time to retry one result."
)
@click.option("--for", "idle", type=DurationType(), help="Stop after this time without a result.")
@queue_flags("--from", "--to", meaning="Broker of the results.")
@exits
def webhook(
    *,
    url: str,
    secret_file: Path,
    destinations: tuple[str, ...],
    allow_private: bool,
    at_once: int,
    give_up: timedelta,
    idle: timedelta | None,
    queue: QueueFlags,
) -> ExitCode:
    """Deliver signed results to URL until stopped."""
    from handlers.webhook.call import read_secrets
    from handlers.webhook.deliver import WebhookOptions

    options = WebhookOptions(
        url,
        read_secrets(_secret_text(secret_file), "--secret-file"),
        allow_private,
        at_once,
        give_up_seconds=give_up.total_seconds(),
        destinations=[_destination(text) for text in destinations],
    )
    return asyncio.run(_deliver(queue, options, idle))


def _destination(text: str) -> Destination:
    from handlers.webhook.call import read_secrets
    from handlers.webhook.destinations import read_destination

    place, _, path = text.partition("=")
    keys = read_secrets(_secret_text(Path(path), "--destination"), "--destination")
    return read_destination(place, keys, "--destination")


def _secret_text(path: Path, setting: str = "--secret-file") -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        found = (error.strerror or "") if isinstance(error, OSError) else "bytes that are not ASCII"
        raise InvalidSetting(setting, found=f"{path}: {found}", accepted="lines of whsec_…") from None


async def _deliver(queue: QueueFlags, options: WebhookOptions, idle: timedelta | None) -> ExitCode:
    from handlers.webhook.deliver import Webhook, WebhookGone

    async def given_up(result: Result) -> None:
        sys.stdout.write(encode_result(result).decode() + "\n")
        sys.stdout.flush()

    async with queue.client() as client, client.results(idle=idle) as stream, Webhook(options, given_up) as hook:
        running = asyncio.ensure_future(hook.run(stream))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        try:
            await running
        except WebhookGone:
            print("the receiver answered 410 (gone); the remaining results stay in the list", file=sys.stderr)
            return ExitCode.FAILED_REQUESTS
        except asyncio.CancelledError:
            pass  # a signal: leased results are returned at once
        print(f"{hook.delivered} delivered, {hook.given_up} given up", file=sys.stderr)
        report_undecodable(stream)
    return ExitCode.DONE
