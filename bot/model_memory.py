"""How much memory a model needs with the answers it is to make."""

from __future__ import annotations

from engine.engine import EngineOptions, context_tokens, max_kv_tokens
from engine.footprint import PROCESS_BYTES, running_bytes
from engine.model_folder import ModelFolder


def memory_needed(options: EngineOptions, model: ModelFolder) -> int:
    """Estimate the bytes of weights, KV and process."""
    in_use = (model.max_answers or options.max_concurrent) * context_tokens(model, options)
    num_tokens = min(in_use, max_kv_tokens(model, options))
    return (
        running_bytes(model.num_bytes, model.precision)
        + num_tokens * model.kv_bytes_per_token
        + PROCESS_BYTES
    )
