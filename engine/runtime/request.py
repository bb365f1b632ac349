"""All state of one request, owned by the engine thread from submission to its one ending."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

from engine.errors import EngineError
from engine.runtime.guessing import Guess
from engine.runtime.sampling import FloatArray, SampledRow, Sampler
from engine.runtime.speculation import Speculation
from engine.text.detokenizer import StreamDecoder
from engine.types import Completion, FinishReason, Prompt, SamplingParams, Usage, tokens_needed

Clock = Callable[[], float]
Rows = FloatArray | list[SampledRow]
"""What tells a request's next tokens: logits [n, vocab], or rows that a device has chosen from."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step did for one request: new text, and the ending if it ended."""

    request_id: int
    text: str
    completion: Completion | None = None
    error: EngineError | None = None

    @property
    def is_final(self) -> bool:
        return self.completion is not None or self.error is not None


def is_all_kept(num_kept: int, ids: Sequence[int]) -> bool:
    """Tell whether nothing of a prompt is to be computed ahead: one id alone is not, see `reusable`."""
    return num_kept >= len(ids) - 1


def reusable(ids: Sequence[int]) -> Sequence[int]:
    """Return that part of a prompt whose KV may be taken from a cache.

    The last two ids are computed in any case: the last one's logits are needed, and a run over one token
    rounds differently from a run over several, which would make an answer depend on what was cached.
    """
    return ids[:-2]


@dataclass(slots=True, eq=False)
class Request:
    """A prompt on its way to an answer.

    `ids` is the prompt and what was sampled so far; `num_computed` of them have their KV in the cache. Decode
    feeds the one id that is missing; prefill feeds the prompt's rest, chunk by chunk.
    """

    request_id: int
    prompt: Prompt
    params: SamplingParams
    sampler: Sampler
    decoder: StreamDecoder
    stop_ids: frozenset[int]
    max_tokens: int
    """Most ids that `ids` may hold: prompt and answer together."""
    clock: Clock = time.monotonic
    ids: list[int] = field(init=False)
    speculation: Speculation | None = None
    """Drafts the next tokens; None for an answer that is decoded one by one."""
    is_ahead: bool = False
    """Whether nobody asked yet: the prompt's KV is computed ahead, and no token is taken."""
    num_computed: int = 0
    num_cached: int = 0
    cancelled: bool = False
    text: list[str] = field(default_factory=list)
    submitted_at: float = field(init=False)
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.ids = list(self.prompt.ids)
        self.submitted_at = self.clock()

    @property
    def num_prompt(self) -> int:
        return len(self.prompt.ids)

    @property
    def num_new(self) -> int:
        return len(self.ids) - self.num_prompt

    @property
    def is_prefilling(self) -> bool:
        """Return whether more than the one id of a decode step is still to be computed."""
        return self.num_new == 0

    @property
    def num_needed(self) -> int:
        """Tokens that it may come to hold."""
        if self.is_ahead:
            return self.num_prompt
        return tokens_needed(self.num_prompt, self.params, self.max_tokens)

    @property
    def num_left(self) -> int:
        """Tokens that it may still get."""
        return self.num_needed - len(self.ids)

    def shorten(self, num_tokens: int) -> None:
        """Leave out what is behind a prompt's first tokens. For what is computed ahead."""
        self.ids = self.ids[:num_tokens]
        self.prompt = replace(self.prompt, ids=self.prompt.ids[:num_tokens])

    def pending_ids(self) -> Sequence[int]:
        """Return the ids whose KV is not computed yet."""
        return self.ids[self.num_computed :]

    def draft(self, max_tokens: int, *, is_alone: bool) -> tuple[int, ...]:
        """Return what the next tokens may be, for `accept` to confirm."""
        room = min(self.num_left - 1, max_tokens)
        if self.speculation is None or room <= 0:
            return ()
        return self.speculation.draft(self.ids, room, is_alone=is_alone)

    def accept(self, rows: Rows, draft: Sequence[int] = (), guesses: Sequence[Guess] = ()) -> Delta:
        """Take the next token from the first of `rows` and return what it means to the listener.

        Row i follows the first i tokens of `draft`: as long as what comes out is what was drafted, the next
        row is valid too and gives a further token. `guesses` say of a draft what it was drawn from.
        Raises `GenerationFailedError` when the logits are unusable.
        """
        text = ""
        for row, drafted, guess in zip(rows, (*draft, None), chain(guesses, repeat(None)), strict=False):
            delta = self._accept(row, guess)
            text += delta.text
            if delta.is_final or self.ids[-1] != drafted:
                break
        return replace(delta, text=text)

    def _accept(self, row: FloatArray | SampledRow, guess: Guess | None) -> Delta:
        if isinstance(row, SampledRow):
            token = self.sampler.take(row)
        else:
            token = self.sampler.sample(row) if guess is None else self.sampler.verify(row, guess)
        if self.first_token_at is None:
            self.first_token_at = self.clock()
        if token in self.stop_ids:
            self.ids.append(token)
            return self.finish(FinishReason.STOP)
        self.ids.append(token)
        piece = self.decoder.push(token)
        if self.decoder.stopped:
            return self.finish(FinishReason.STOP_TEXT, piece)
        if self.num_left <= 0:
            return self.finish(FinishReason.LENGTH, piece)
        self.text.append(piece)
        return Delta(self.request_id, piece)

    def finish(self, reason: FinishReason, piece: str = "") -> Delta:
        """End the request; `piece` is text that came with the ending."""
        piece += self.decoder.finish()
        self.text.append(piece)
        return Delta(self.request_id, piece, Completion("".join(self.text), reason, self.usage()))

    def fail(self, error: EngineError) -> Delta:
        """End the request with an error; the text so far was given out already."""
        return Delta(self.request_id, "", error=error)

    def usage(self) -> Usage:
        now = self.clock()
        first = self.first_token_at if self.first_token_at is not None else now
        return Usage(
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.num_cached,
            num_computed_tokens=min(self.num_computed, self.num_prompt) - self.num_cached,
            num_new_tokens=self.num_new,
            time_to_first_token_s=first - self.submitted_at,
            duration_s=now - self.submitted_at,
        )
