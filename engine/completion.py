"""Continues one text with one model, without scheduler, thread or queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.detokenizer import StreamDecoder
from engine.errors import PromptTooLongError
from engine.model_folder import ModelFolder, RunnerSize
from engine.request import Request
from engine.sampling import Sampler
from engine.tokenizer import Tokenizer
from engine.types import Prompt, SamplingParams


def stream_completion(
    model: ModelFolder, tokenizer: Tokenizer, ids: Sequence[int], params: SamplingParams, num_threads: int
) -> Iterator[str]:
    """Load the model and give what it says after `ids`, piece by piece.

    The prompt is computed in one run, as the published example does, so that greedy answers are the same.
    Raises `ModelError`, `PromptTooLongError` and `GenerationFailedError`.
    """
    context = model.context_length
    if len(ids) >= context:
        raise PromptTooLongError(len(ids), context - 1)
    slots = model.load_model(RunnerSize(num_threads, 1, context, context))
    slots.prefill(0, list(ids[:2]), 0)  # so that what is lazily set up does not delay the first word
    slots.decode(0, [ids[0]], [1])
    request = Request(
        request_id=0,
        prompt=Prompt(tuple(ids)),
        params=params,
        sampler=Sampler(params, ids),
        decoder=StreamDecoder(tokenizer.token_bytes, opening_space_ids=tokenizer.opening_space_ids),
        stop_ids=frozenset({model.eos_id, *model.stop_ids}),
        max_tokens=context,
    )
    logits = slots.prefill(0, list(ids), 0)
    while not (delta := request.accept(logits[None])).is_final:
        yield delta.text
        logits = slots.decode(0, request.ids[-1:], [len(request.ids) - 1])[0]
    yield delta.text
