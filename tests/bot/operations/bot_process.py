"""`python -m tests.bot.operations.bot_process …`: the program, with another Discord and a scripted engine.

DISCORD_API and DISCORD_GATEWAY are the addresses of that Discord. SPEED is how many times faster than the
world's the process's time passes: its pauses, timeouts and answers. Answers say which temperature they are
made with, then words: a few of them for a question with "short" in it, so many for one with "20 words", and
without end for others.
"""

from __future__ import annotations

import asyncio
import os
import re
import selectors
import sys
import time
from typing import Any, Self

import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot import models
from bot.cli import main
from bot.on_discord import traffic
from engine.types import ChatMessage, Generation, Prompt, SamplingParams
from tests.fakes import Script, ScriptedEngine

WORD_S = 0.1
SPEED = float(os.environ.get("SPEED", "1"))
SHORT = tuple(f" word{number}" for number in range(50))
HANDSHAKE_S = 2.0
"""Of the world's time: a machine that has other things to do needs some for a connection."""


class FastSelector(selectors.DefaultSelector):
    """Waits for a shorter time than it is told."""

    ahead_s = 0.0
    """What passed here and not in the world."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout and timeout / SPEED)
        self.ahead_s += (time.monotonic() - began) * (SPEED - 1)
        return found


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes faster while it waits, so that a busy machine is no slow network."""

    def __init__(self) -> None:
        self._waiting = FastSelector()
        super().__init__(self._waiting)

    def time(self) -> float:
        return time.monotonic() + self._waiting.ahead_s


class ProcessEngine(ScriptedEngine):
    """A scripted engine that is opened as the real one is, in LOADING_S seconds."""

    @classmethod
    async def open(cls, *_: object) -> Self:
        """Open it, whatever the model."""
        print("Loading", flush=True)
        await asyncio.sleep(float(os.environ["LOADING_S"]))
        return cls()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def generate(self, prompt: Prompt, params: SamplingParams, **options: Any) -> Generation:
        """Begin the answer."""
        question: ChatMessage = self._fitted[prompt.ids][-1]
        wanted = re.search(r"(\d+) words", question.content)
        number = int(wanted[1]) if wanted else len(SHORT) * (1 if "short" in question.content else 100)
        words = (f" word{number}" for number in range(number)) if wanted else SHORT * (number // len(SHORT))
        self.scripts = [Script((f"temperature {params.temperature}:", *words), delay_s=WORD_S)]
        return super().generate(prompt, params, **options)


if __name__ == "__main__":
    Route.BASE = os.environ["DISCORD_API"]
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(os.environ["DISCORD_GATEWAY"])
    setattr(models, "Engine", ProcessEngine)  # noqa: B010 - not a name that the module offers
    traffic.CONNECT_TIMEOUT_S = max(traffic.CONNECT_TIMEOUT_S, HANDSHAKE_S * SPEED)
    asyncio.events.new_event_loop = FastLoop
    sys.exit(main(sys.argv[1:]))
