"""The engine's face for a bot whose model runs somewhere else: the same `TextEngine` over HTTP.

Prompts are made here, with the tokenizer that the servers gave. No weights, and nothing that runs them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from engine.errors import (
    EngineUnavailableError,
    GenerationFailedError,
    ModelError,
    ModelFormatError,
    NoRoomError,
    PromptTooLongError,
)
from engine.remote.answer import Asked, RemoteAnswer
from engine.remote.description import Cabinet, RemoteModel
from engine.remote.http_wire import HttpWire
from engine.remote.replica import NO_ROOM
from engine.remote.replicas import Replicas
from engine.remote.warming import RemoteWarming
from engine.remote.wire import Patience, RefusedError, Wire, WireError
from engine.types import (
    ChatMessage,
    EngineLoad,
    Generation,
    Health,
    ModelInfo,
    Prompt,
    SamplingParams,
    Warming,
)

_log = logging.getLogger(__name__)

_AHEAD = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=1)
_OPEN_S = 60.0
"""How long a server is waited for whose model is not known yet."""
_SESSION_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Servers:
    """Where a model answers. addresses: of servers, or of a balancer before them. key: what they know us by.

    replicas: all that are told to forget, where these are others: behind a balancer, or with another model.
    cache: where the small files are kept that they give. secret: hides from them which conversation is whose.
    chat_format: in the place of the model's own.
    """

    addresses: tuple[str, ...]
    cache: Path
    key: str = field(default="", repr=False)
    replicas: tuple[str, ...] = ()
    secret: bytes = field(default=b"", repr=False)
    chat_format: str = ""
    patience: Patience = Patience()  # noqa: RUF009 - it never changes


class RemoteEngine:
    """Satisfies `engine.types.TextEngine`. Use as an async context manager, on one event loop."""

    def __init__(self, servers: Servers, wire: Wire, model: RemoteModel, cabinet: Cabinet) -> None:
        self.on_other_model: Callable[[], object] = lambda: None
        """Called when the servers have another model, and prompts are to be made anew."""
        self._servers = servers
        self._wire = wire
        self._model = model
        self._cabinet = cabinet
        self._answers: set[RemoteAnswer] = set()
        self._is_closed = False
        self._replicas = Replicas(wire, servers.addresses, servers.replicas, servers.patience)
        self._replicas.fingerprint = model.description.fingerprint
        self._replicas.on_other_model = self._begin_change
        self._changing: asyncio.Task[None] | None = None
        self._replicas.start()

    @classmethod
    async def open(cls, servers: Servers, wire: Wire | None = None) -> RemoteEngine:
        """Learn which model it is; where no server says so, the one of the last time. Raises `ModelError`."""
        wire = wire or HttpWire(servers.key, servers.patience)
        cabinet = Cabinet(servers.cache, servers.chat_format)
        try:
            model = await _first_model(servers, wire, cabinet)
        except BaseException:
            await wire.close()
            raise
        engine = cls(servers, wire, model, cabinet)
        await engine._replicas.until_known()
        return engine

    async def __aenter__(self) -> RemoteEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End running answers with an error, and all connections. Closing twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._changing is not None:
            self._changing.cancel()
        answers = list(self._answers)
        for answer in answers:
            answer.fail(GenerationFailedError("The engine was closed."))
        for answer in answers:
            await answer.closed()
        await self._replicas.close()
        await self._wire.close()

    @property
    def info(self) -> ModelInfo:
        """What the servers have."""
        return self._model.info

    @property
    def fingerprint(self) -> str:
        """That of the model."""
        return self._model.description.fingerprint

    @property
    def health(self) -> Health:
        """How the servers are together; while none can be reached, who asks waits."""
        if self._is_closed:
            return Health.CLOSED
        return Health.RECOVERING if self._changing is not None else self._replicas.health

    @property
    def load(self) -> EngineLoad:
        """What is ours, and what there is room for.

        What others do there is between them and the servers: who could wait there in line beside others does
        not wait here without a place in it.
        """
        room = self._replicas.room
        if not room.max_requests:
            return NO_ROOM
        return dataclasses.replace(
            room,
            num_requests=len(self._answers),
            num_reserved_tokens=sum(answer.num_tokens for answer in self._answers),
        )

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """See `TextEngine.fit_prompt`."""
        model = self._model
        prompt = model.text.fit_prompt(
            dialog, max_prompt_tokens, answer_so_far=answer_so_far, thinking=thinking
        )
        return dataclasses.replace(prompt, fingerprint=model.description.fingerprint)

    def is_safe(self, text: str) -> bool:
        """See `TextEngine.is_safe`."""
        return self._model.text.is_safe(text)

    def count_tokens(self, text: str) -> int:
        """See `TextEngine.count_tokens`."""
        return self._model.text.count_tokens(text)

    def tokens_needed(self, prompt: Prompt, params: SamplingParams) -> int:
        """See `TextEngine.tokens_needed`."""
        return self._model.tokens_needed(len(prompt.ids), params)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        session: str = "",
        tell: Callable[[int], object] | None = None,
    ) -> Generation:
        """See `TextEngine.generate`."""
        if self.health in (Health.UNHEALTHY, Health.CLOSED):
            raise EngineUnavailableError(f"The model is {self.health}. Try again later.")
        if prompt.fingerprint not in ("", self.fingerprint):
            raise EngineUnavailableError("The model was changed meanwhile. Try again.")
        most = self._model.description.max_tokens - 1
        if not 0 < len(prompt.ids) <= most:
            raise PromptTooLongError(len(prompt.ids), most)
        if not self.load.has_room(self.tokens_needed(prompt, params)):
            raise NoRoomError("There is no room for another answer now. Try again in a minute.")
        asked = Asked(self._model, prompt, params, self._hidden(session), tell)
        answer = RemoteAnswer(asked, self._replicas, self._wire, self._servers.patience)
        self._answers.add(answer)
        answer.on_end = self._answers.discard
        return answer

    def warm(self, prompt: Prompt, *, session: str = "") -> Warming:
        """See `TextEngine.warm`."""
        return RemoteWarming(
            Asked(self._model, prompt, _AHEAD, self._hidden(session)), self._replicas, self._wire
        )

    def drop_idle_cache(self) -> None:
        """See `TextEngine.drop_idle_cache`: every server is told, also one that is away now."""
        self._model.text.forget()
        self._replicas.forget()

    @property
    def is_forgetting(self) -> bool:
        """See `TextEngine.is_forgetting`."""
        return self._replicas.are_forgetting

    def _hidden(self, session: str) -> str:
        """Return what servers may know a conversation by."""
        if not session:
            return ""
        return hmac.new(self._servers.secret, session.encode(), hashlib.sha256).hexdigest()[
            :_SESSION_CHARACTERS
        ]

    def _begin_change(self) -> None:
        if self._changing is None and not self._is_closed:
            self._changing = asyncio.ensure_future(self._change())

    async def _change(self) -> None:
        """Fetch what the servers have now, and go on with that."""
        try:
            for answer in list(self._answers):
                answer.fail(GenerationFailedError("The model was changed meanwhile."))
            model = await _fetch_any(self._servers, self._wire, self._cabinet)
        except (ModelError, WireError, RefusedError) as error:
            _log.warning("The servers have another model, which cannot be used: %s", error)
            await asyncio.sleep(self._servers.patience.idle_poll_s)
        else:
            self._model = model
            self._replicas.fingerprint = model.description.fingerprint
            _log.warning("The servers have another model now: %s (%s)", model.info.name, model.info.precision)
            self.on_other_model()
        finally:
            self._changing = None


async def _first_model(servers: Servers, wire: Wire, cabinet: Cabinet) -> RemoteModel:
    """Return the model that the first server that answers has, or the one of the last time."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _OPEN_S
    while True:
        try:
            return await _fetch_any(servers, wire, cabinet)
        except WireError as error:
            known = [await asyncio.to_thread(cabinet.known, address) for address in servers.addresses]
            for model in filter(None, known):
                _log.warning("No engine can be reached yet; the model was %s last time", model.info.name)
                return model
            if loop.time() >= until_s:
                raise ModelError(f"No server of ENGINE can be reached: {error}. Is it running?") from error
            _log.warning("No engine can be reached yet: %s", error)
            await asyncio.sleep(servers.patience.busy_poll_s)
        except RefusedError as error:
            remedy = " Check ENGINE_KEY." if error.status in (401, 403) else ""
            raise ModelError(f"The server of ENGINE refuses this bot: {error}{remedy}") from error


async def _fetch_any(servers: Servers, wire: Wire, cabinet: Cabinet) -> RemoteModel:
    """Raises what the last server was at fault with, the first fault of our own before others."""
    worst: WireError | RefusedError | ModelFormatError | None = None
    for address in servers.addresses:
        try:
            return await cabinet.fetch(wire, address)
        except (WireError, RefusedError, ModelFormatError) as error:
            if worst is None or isinstance(worst, WireError):
                worst = error
    raise worst or WireError("there is no address")
