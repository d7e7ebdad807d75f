"""How many tokens an answer says it cost: OpenAI's `usage` object, read beside everything else in the body."""

from __future__ import annotations

import msgspec

from handlers.contract.json_limits import MALFORMED


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Body)


def token_usage(body: str | bytes) -> tuple[int, int] | None:
    """Tokens read and written; None where the body does not say (a stream, an error, another protocol)."""
    try:
        usage = _decoder.decode(body).usage
    except MALFORMED:
        return None
    if usage is None:
        return None
    read, written = usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens
    return (read, written) if read >= 0 and written >= 0 else None
