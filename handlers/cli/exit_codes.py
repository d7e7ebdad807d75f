"""What `submit`, `results` and `batch` say to the shell that ran them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

from handlers.contract.errors import AsyncProcessorError

P = ParamSpec("P")


class ExitCode(IntEnum):
    """Exit codes; click's own for wrong usage is 2 as well."""

    DONE = 0
    """All that was asked for."""
    FAILED_REQUESTS = 1
    """It ran, and some final result is an error."""
    WRONG_INPUT = 2
    """Flags, file or request cannot be used; nothing was queued."""
    NOT_YET = 3
    """The time given was over before all results were there."""
    UNREACHABLE = 4
    """The broker did not answer."""
    CANCELLED = 5
    """The batch was cancelled."""
    INTERRUPTED = 130
    """Ctrl-C; what was queued stays queued."""


EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 a final result is an error; 2 wrong flags or input; "
    "3 no result in the time given; 4 the broker does not answer; 130 interrupted."
)


def exits(command: Callable[P, ExitCode]) -> Callable[P, None]:
    """Let a command return its exit code, and turn the errors that users meet into one line and a code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from handlers.client.errors import BrokerUnreachable, NoResultYet

        try:
            code = command(*args, **kwargs)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nobody is left to tell, nothing to flush.
            sys.stdout = None
            code = ExitCode.DONE
        except NoResultYet as error:
            code = _say(error, ExitCode.NOT_YET)
        except BrokerUnreachable as error:
            code = _say(error, ExitCode.UNREACHABLE)
            if str(error).startswith("Redis:"):
                print("REDIS_URL or --redis-url names the server.", file=sys.stderr)
        except (AsyncProcessorError, OSError) as error:
            code = _say(error, ExitCode.WRONG_INPUT)
        sys.exit(int(code))

    return run


def _say(error: Exception, code: ExitCode) -> ExitCode:
    print(f"error: {error}", file=sys.stderr)
    return code
