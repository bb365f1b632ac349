"""One answer that is made somewhere else, gone on with at another server where one fails.

What was given out stays, and what comes goes on exactly behind it: the next server gets the prompt and, as
tokens, the text so far. Text that was not given out yet, as half a character, is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from engine.errors import (
    EngineError,
    EngineUnavailableError,
    GenerationFailedError,
    PromptTooLongError,
    UnsafePromptError,
)
from engine.files import from_json
from engine.remote.description import RemoteModel
from engine.remote.replica import Replica
from engine.remote.replicas import FULL, Replicas
from engine.remote.wire import (
    Event,
    EventReader,
    Patience,
    RefusedError,
    Wire,
    WireError,
    one_line,
    parse_object,
)
from engine.tracing import HEADER, current_trace, new_trace
from engine.types import RANGES, Completion, FinishReason, Health, Prompt, SamplingParams, Usage

_log = logging.getLogger(__name__)

MAX_FRUITLESS = 4
"""How often in a row an answer may break off without a word: then the answer itself may be the reason."""
MAX_BREAKS = 32
_MAX_CHARACTERS_PER_TOKEN = 512
"""A server that sends more is not to be listened to."""
_WAITING = b"waiting "
_READ_OUT_S = 1.0
_AGAIN_S = 0.25
"""Before the same address is asked once more: a balancer may need a moment to notice what broke."""
_LOOK_S = 1.0
"""How often an answer that waits for a server looks whether one can be asked again."""
_REASONS = {"stop": FinishReason.STOP, "stop_text": FinishReason.STOP_TEXT, "length": FinishReason.LENGTH}


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer is made of. session: the conversation, as servers may know it. tell: see `generate`."""

    model: RemoteModel
    prompt: Prompt
    params: SamplingParams
    session: str
    tell: Callable[[int], object] | None = None

    @property
    def num_tokens(self) -> int:
        """Return what it may come to need."""
        return self.model.tokens_needed(len(self.prompt.ids), self.params)


@dataclass(frozen=True, slots=True)
class _Ending:
    reason: FinishReason
    usage: Usage | None


class RemoteAnswer:
    """Satisfies `engine.types.Generation`. Make it on the event loop; it begins at once."""

    def __init__(self, asked: Asked, replicas: Replicas, wire: Wire, patience: Patience) -> None:
        self._asked = asked
        self._replicas = replicas
        self._wire = wire
        self._patience = patience
        self._request_id = current_trace() or new_trace()
        self._now = asyncio.get_running_loop().time
        self._began_s = self._now()
        self._alive_s = self._began_s
        """When a server last said something."""
        self._first_s: float | None = None
        self._pieces: asyncio.Queue[str] = asyncio.Queue()
        self._text = ""
        self._place = 0
        self._is_in_line = False
        self._num_breaks = 0
        self._completion: Completion | None = None
        self._error: EngineError | None = None
        self._has_ended = False
        self.on_end: Callable[[RemoteAnswer], object] = lambda _answer: None
        self._task = asyncio.ensure_future(self._make())
        self._task.add_done_callback(self._ended)

    @property
    def completion(self) -> Completion | None:
        return self._completion

    @property
    def num_tokens(self) -> int:
        """Return what it may come to need."""
        return self._asked.num_tokens

    def cancel(self) -> None:
        """End it: the connection is closed, which the server notices at once."""
        self._task.cancel()

    def fail(self, error: EngineError) -> None:
        """End it with an error."""
        self._error = self._error or error
        self._task.cancel()

    async def closed(self) -> None:
        """Wait until nothing of it is left."""
        await asyncio.wait({self._task})

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            if self._pieces.empty() and self._has_ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if piece := await self._pieces.get():
                return piece

    def _ended(self, task: asyncio.Task[_Ending]) -> None:
        """Learn of the one end, however it came: a task that was cancelled may never have run."""
        fault = None if task.cancelled() else task.exception()
        if isinstance(fault, EngineError):
            self._error = fault
        elif fault is not None:
            _log.error("An answer from elsewhere ended with a fault", exc_info=fault)
            self._error = GenerationFailedError("The answer could not be made.")
        elif self._error is None:
            self._completion = self._completed(
                _Ending(FinishReason.CANCELLED, None) if task.cancelled() else task.result()
            )
        self._has_ended = True
        self._pieces.put_nowait("")
        self.on_end(self)

    def _completed(self, ending: _Ending) -> Completion:
        num_prompt, usage = len(self._asked.prompt.ids), ending.usage
        now = self._now()
        return Completion(
            self._text,
            ending.reason,
            Usage(
                num_prompt_tokens=num_prompt,
                num_cached_tokens=min(usage.num_cached_tokens, num_prompt) if usage else 0,
                num_computed_tokens=usage.num_computed_tokens if usage else 0,
                num_new_tokens=usage.num_new_tokens if usage and not self._num_breaks else self._num_said(),
                time_to_first_token_s=(self._first_s or now) - self._began_s,
                duration_s=now - self._began_s,
            ),
            num_breaks=self._num_breaks,
        )

    async def _make(self) -> _Ending:
        num_fruitless = 0
        shunned: list[Replica] = []
        while num_fruitless < MAX_FRUITLESS and self._num_breaks < MAX_BREAKS:
            said = await asyncio.to_thread(self._said_ids) if self._text else []
            if len(said) >= self._asked.params.max_new_tokens or not self._has_context(said):
                return _Ending(FinishReason.LENGTH, None)
            replica = await self._replica(shunned)
            if replica in shunned and replica.is_balancer:
                await asyncio.sleep(_AGAIN_S)
            before = len(self._text)
            self._is_in_line = False
            try:
                with replica.holding(self._asked.num_tokens):
                    return await self._follow(replica, said)
            except RefusedError as error:
                self._raise_if_ours(error)
                self._replicas.failed(replica, error)
                num_fruitless += error.status not in FULL
            except WireError as error:
                if error.has_begun:
                    self._num_breaks += bool(self._text)
                    # What only waited in line when its server went is not the reason.
                    if len(self._text) > before:
                        num_fruitless = 1
                    elif not self._is_in_line:
                        num_fruitless += 1
                    _log.warning(
                        "Request %s broke off at %s after %d characters: %s",
                        self._request_id,
                        replica.address,
                        len(self._text),
                        error,
                    )
                self._replicas.failed(replica, error)
            shunned = [replica]
        raise GenerationFailedError("The answer broke off again and again.")

    async def _replica(self, shunned: Sequence[Replica]) -> Replica:
        """Wait until somebody can go on with the answer."""
        while True:
            self._check_model()
            replica = self._replicas.choose(self._asked.session, self._asked.num_tokens, shunned)
            if replica is not None:
                return replica
            is_over = self._now() > self._alive_s + self._patience.away_s
            if is_over or self._replicas.health is Health.UNHEALTHY:
                raise EngineUnavailableError("No engine can be reached. Try again later.")
            self._tell(1)
            await self._replicas.until_changed(_LOOK_S)

    def _check_model(self) -> None:
        if self._replicas.fingerprint != self._asked.model.description.fingerprint:
            raise GenerationFailedError("The model was changed meanwhile.")

    async def _follow(self, replica: Replica, said: Sequence[int]) -> _Ending:
        """Take what one server says, to the end. Raises `WireError` where it breaks off; `RefusedError`."""
        reader = EventReader()
        stream = self._wire.stream(replica.address, "/v1/completions", self._body(said), self._headers())
        async with stream as chunks:
            async for chunk in chunks:
                for event in reader.feed(chunk):
                    self._alive_s = self._now()
                    if (ending := self._take(event)) is not None:
                        await _read_out(chunks)
                        return ending
        raise WireError("it ended too early", has_begun=True)

    def _take(self, event: Event) -> _Ending | None:
        self._is_in_line = event.comment.startswith(_WAITING)
        if self._is_in_line:
            place = event.comment.removeprefix(_WAITING)
            if place.isdigit() and len(place) < 8:
                self._tell(int(place))
            return None
        if not event.data or event.data == b"[DONE]":
            return None
        told = parse_object(event.data)
        if "error" in told:
            error = told["error"]
            message = error.get("message") if isinstance(error, dict) else error
            raise WireError(one_line(str(message)), has_begun=True)
        choices = told.get("choices")
        if not isinstance(choices, list) or not choices:
            return None
        choice = choices[0]
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str | None):
            raise WireError("it does not talk as expected", has_begun=True)
        self._say(choice.get("text") or "")
        return _ending(choice.get("finish_reason"), told.get("llamacord"))

    def _say(self, text: str) -> None:
        if not text:
            return
        self._tell(0)
        if self._first_s is None:
            self._first_s = self._now()
        self._text += text
        if len(self._text) > _MAX_CHARACTERS_PER_TOKEN * self._asked.params.max_new_tokens:
            raise GenerationFailedError("A server sends more than it was asked for.")
        self._pieces.put_nowait(text)

    def _tell(self, place: int) -> None:
        """Tell the place in line, as long as there is nothing to read."""
        if self._asked.tell is not None and place != self._place and not self._text:
            self._place = place
            self._asked.tell(place)

    def _said_ids(self) -> list[int]:
        if not self._text:
            return []
        text, is_continued = self._asked.model.text, self._asked.prompt.is_continued
        return text.output_ids(self._text, is_continued=is_continued)

    def _num_said(self) -> int:
        return len(self._said_ids())

    def _has_context(self, said: Sequence[int]) -> bool:
        return len(self._asked.prompt.ids) + len(said) < self._asked.model.description.max_tokens

    def _body(self, said: Sequence[int]) -> dict[str, Any]:
        prompt, params = self._asked.prompt, self._asked.params
        body: dict[str, Any] = {name: getattr(params, name) for name in RANGES}
        body["max_tokens"] = body.pop("max_new_tokens") - len(said)
        if params.seed is None:
            del body["seed"]
        else:  # the same numbers would be drawn again as for the beginning
            body["seed"] = (params.seed + self._num_breaks) % (int(RANGES["seed"].high) + 1)
        if params.stop:
            body["stop"] = list(params.stop)
        return {
            **body,
            "prompt": [*prompt.ids, *said],
            "is_continued": prompt.is_continued or bool(said),
            "stream": True,
        }

    def _headers(self) -> dict[str, str]:
        headers = {
            HEADER: self._request_id,
            "x-fingerprint": self._asked.model.description.fingerprint,
        }
        return headers | ({"x-session-id": self._asked.session} if self._asked.session else {})

    def _raise_if_ours(self, error: RefusedError) -> None:
        """Raise what another server would say, too."""
        if error.code == "context_length_exceeded":
            raise PromptTooLongError(
                len(self._asked.prompt.ids), self._asked.model.description.max_tokens - 1
            ) from error
        if error.code == "unsafe_prompt":
            raise UnsafePromptError(str(error)) from error
        if error.status in (400, 413):
            _log.warning("Request %s is refused: %s", self._request_id, error)
            raise GenerationFailedError("The server does not take this request.") from error


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read what comes behind the end, so that the connection can be used again."""
    with contextlib.suppress(TimeoutError, WireError):
        async with asyncio.timeout(_READ_OUT_S):
            async for _ in chunks:
                pass


def _ending(reason: object, told: object) -> _Ending | None:
    """Return how an answer ended, None where it goes on."""
    if reason is None:
        return None
    if not isinstance(told, dict):
        return _Ending(_REASONS.get(str(reason), FinishReason.STOP), None)
    wanted = [entry.name for entry in fields(Usage)]
    try:
        usage = from_json(Usage, {name: told[name] for name in wanted}, "usage")
    except (KeyError, TypeError, ValueError):
        usage = None
    return _Ending(_REASONS.get(str(told.get("finish_reason", reason)), FinishReason.STOP), usage)
