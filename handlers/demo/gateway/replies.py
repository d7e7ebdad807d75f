"""Bodies in OpenAI's format; metrics of vLLM and the inference extension."""

from __future__ import annotations

from typing import Final

import msgspec

from handlers.demo.gateway.engine import Engine
from handlers.demo.gateway.injected_faults import CompletionBody

MODEL: Final = "demo-model"
_WORDS: Final = ("hello", "there", "idle", "capacity", "is", "filled", "again", "and", "again")
_CREATED: Final = 1_700_000_000


def text_completion(payload: CompletionBody, number: int, tokens: int) -> bytes:
    """A completion of `tokens` words; the same for the same number."""
    return _completion(payload, number, tokens, is_chat=False)


def chat_completion(payload: CompletionBody, number: int, tokens: int) -> bytes:
    """A chat completion of `tokens` words; the same for the same number."""
    return _completion(payload, number, tokens, is_chat=True)


def embeddings(payload: CompletionBody, number: int, _tokens: int) -> bytes:
    """One embedding of 8 numbers per input, determined by `number`."""
    inputs = payload.input if isinstance(payload.input, list) else [payload.input]
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [((number + index + place) % 8) / 8 for place in range(8)],
        }
        for index in range(len(inputs))
    ]
    asked = max(1, len(str(payload.input)) // 4)
    usage = {"prompt_tokens": asked, "total_tokens": asked}
    return msgspec.json.encode({"object": "list", "data": rows, "model": payload.model or MODEL, "usage": usage})


def _completion(payload: CompletionBody, number: int, tokens: int, *, is_chat: bool) -> bytes:
    words = " ".join(_WORDS[(number + place) % len(_WORDS)] for place in range(min(tokens, 256)))
    content = {"message": {"role": "assistant", "content": words}} if is_chat else {"text": words}
    asked = max(1, len(str(payload.prompt)) // 4)
    return msgspec.json.encode(
        {
            "id": f"cmpl-{number}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": _CREATED,
            "model": payload.model or MODEL,
            "choices": [{"index": 0, **content, "finish_reason": "length"}],
            "usage": {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens},
        }
    )


def models() -> bytes:
    """The list of models."""
    return msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "demo"}]})


def error(status: int, message: str) -> bytes:
    """An error in OpenAI's format."""
    return msgspec.json.encode({"error": {"message": message, "type": "simulated", "code": status}})


def metrics(engine: Engine, pool: str) -> bytes:
    """The metrics of one model server and of the router in front.

    Those of the router have their old and new names.
    """
    model, by_pool, by_name = (
        f'model_name="{MODEL}",inference_pool="{pool}"',
        f'inference_pool="{pool}"',
        f'name="{pool}"',
    )
    rows = (
        ("vllm:num_requests_running", model, engine.running),
        ("vllm:num_requests_waiting", model, engine.waiting),
        ("vllm:kv_cache_usage_perc", model, min(1.0, engine.running / max(1, engine.options.capacity))),
        ("vllm:generation_tokens_total", model, engine.tokens),
        ("inference_extension_flow_control_pool_saturation", by_pool, engine.saturation),
        ("llm_d_epp_flow_control_pool_saturation", by_pool, engine.saturation),
        ("inference_extension_flow_control_queue_size", by_pool, engine.waiting),
        ("llm_d_epp_flow_control_queue_size", by_pool, engine.waiting),
        ("inference_pool_ready_pods", by_name, 1),
        ("llm_d_epp_ready_endpoints", by_name, 1),
        ("inference_pool_per_pod_queue_size", by_name, engine.waiting),
        ("llm_d_epp_per_endpoint_queue_size", by_name, engine.waiting),
    )
    return "".join(
        f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n{name}{{{labels}}} {value}\n"
        for name, labels, value in rows
    ).encode()
