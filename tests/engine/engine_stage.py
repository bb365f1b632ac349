"""An engine over a scripted model: says what it is told to say, in tokens of a tiny tokenizer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine.engine import Engine, EngineOptions
from engine.runtime.request import Request
from engine.runtime.runner import Runner
from engine.runtime.scheduler import StepPlan
from engine.types import Completion, Generation, Prompt, SamplingParams
from tests.engine.fakes import ScriptedRunner, make_model_folder
from tests.engine.tiny_model import VOCAB_SIZE, tiny_tokenizer

END = 2
GREEDY = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=32_768)
TIMEOUT_S = 60.0


class Stage:
    """Makes engines in a folder of their own; all that it opened are closed in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: list[Engine] = []
        self.runner = ScriptedRunner(self._next_token, VOCAB_SIZE, self._on_step)
        self.respond: Callable[[Request], list[int]] = lambda _request: [END]
        self.fault: Exception | None = None
        self.load_error: Exception | None = None
        self.load_gate: threading.Event | None = None
        self.num_steps = 0
        self._step_s = 0.0
        self._answers: dict[Request, list[int]] = {}

    def make_folder(self, chat_format: str | None = "chatml") -> Path:
        """Write the next model folder."""
        return make_model_folder(
            self.folder / f"model-{len(list(self.folder.glob('*')))}", chat_format=chat_format
        )

    def make(self, options: EngineOptions | None = None, chat_format: str | None = "chatml") -> Engine:
        """Make an engine that is not started."""
        folder = self.make_folder(chat_format)
        self.engines.append(Engine(folder, options or EngineOptions(), self._load))
        return self.engines[-1]

    async def open(self, options: EngineOptions | None = None, chat_format: str | None = "chatml") -> Engine:
        """Make an engine and start it."""
        engine = self.make(options, chat_format)
        await engine.start()
        return engine

    def close(self) -> None:
        """End the threads of all engines that were made, with a running event loop or without."""
        for engine in self.engines:
            engine._worker.close()
            engine._worker.join()

    def encode(self, text: str) -> list[int]:
        return list(tiny_tokenizer().encode(text).ids)

    def says(self, text: str, step_s: float = 0.0) -> None:
        """Answer with `text` from now on, one token in `step_s`."""
        self.answers([*self.encode(text), END], step_s)

    def says_for_ever(self, text: str, step_s: float = 0.0) -> None:
        """Repeat `text`, a single token, without end."""
        self.answers(self.encode(text), step_s)

    def answers(self, tokens: list[int], step_s: float = 0.0) -> None:
        """Answer with `tokens`, the last one for ever; -1 is a fault."""
        self.respond = lambda _request: list(tokens)
        self._step_s = step_s

    def _load(self) -> Runner:
        if self.load_gate is not None and not self.load_gate.wait(TIMEOUT_S):
            raise TimeoutError
        if self.load_error is not None:
            raise self.load_error
        return self.runner

    def _next_token(self, request: Request) -> int:
        answer = self._answers.setdefault(request, self.respond(request))
        return answer.pop(0) if len(answer) > 1 else answer[0]

    def _on_step(self, plan: StepPlan) -> None:
        self.num_steps += 1
        time.sleep(self._step_s)
        if self.fault is not None:
            raise self.fault


async def read(generation: Generation) -> Completion:
    """Read an answer to its end, and return it whole."""
    async with asyncio.timeout(TIMEOUT_S):
        pieces = [piece async for piece in generation]
    completion = generation.completion
    if completion is None or not completion.text.endswith("".join(pieces)):
        raise AssertionError(f"{pieces} do not make {completion}")
    return completion


async def ask(engine: Engine, prompt: Prompt, params: SamplingParams) -> Completion:
    """Begin an answer as soon as there is room for it, and read it to its end."""
    num_tokens = engine.tokens_needed(prompt, params)
    await wait_until(lambda: engine.load.has_room(num_tokens))
    return await read(engine.generate(prompt, params))


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the engine thread has brought `condition` about."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - a thread sets no asyncio event
            await asyncio.sleep(0.001)
