"""`python -m tests.bot.operations.bot_process …`: the program, with another Discord and a scripted engine.

DISCORD_API and DISCORD_GATEWAY are the addresses of that Discord. Answers say which temperature they are made
with, then words: a few of them for a question with "short" in it, without end for others.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Self

import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot import app
from bot.cli import main
from engine.types import ChatMessage, Generation, Prompt, SamplingParams
from tests.fakes import Script, ScriptedEngine

WORD_S = 0.1
SHORT = tuple(f" word{number}" for number in range(30))


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

    def generate(self, prompt: Prompt, params: SamplingParams) -> Generation:
        """Begin the answer."""
        question: ChatMessage = self._fitted[prompt.ids][-1]
        is_short = "short" in question.content
        begin = f"temperature {params.temperature}:"
        pieces = (begin, *SHORT) if is_short else (begin, *SHORT * 100)
        self.scripts = [Script(pieces, delay_s=WORD_S)]
        return super().generate(prompt, params)


if __name__ == "__main__":
    Route.BASE = os.environ["DISCORD_API"]
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(os.environ["DISCORD_GATEWAY"])
    setattr(app, "Engine", ProcessEngine)  # noqa: B010 - not a name that the module offers
    sys.exit(main(sys.argv[1:]))
