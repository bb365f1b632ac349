"""The whole program as a process of its own, over real sockets: signals, figures, exit code."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import aiohttp
import pytest

from tests.bot.operations.bot_process import SHORT
from tests.bot.operations.local_discord import LocalDiscord, local_discord
from tests.bot.operations.test_metrics import figures
from tests.bot.test_check import TOKEN

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60.0
SPEED = 5
"""How many times faster than here time passes in the bot's process."""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM nor SIGHUP")


@dataclass
class Bot:
    """A running bot, its settings file and what it logs."""

    process: asyncio.subprocess.Process
    discord: LocalDiscord
    folder: Path
    port: int

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    async def until_logged(self, text: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while text not in self.log:
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.05)

    async def exit_code(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()

    async def get(self, path: str) -> tuple[int, bytes]:
        address = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(address) as response:
            return response.status, await response.read()

    async def figures(self) -> dict[str, float]:
        _, exposition = await self.get("/metrics")
        return figures(exposition)

    def is_served(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def free_port() -> int:
    """Return a port that nobody listens on, nor is given by the system to somebody else in the meantime."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("No port is free.")


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[Bot]:
    """Start the bot and wait until it is connected; kill what is left of it at the end."""
    async with started(folder, settings) as bot:
        await bot.until_logged("Ready: connected to Discord as Llamacord")
        yield bot


@asynccontextmanager
async def started(
    folder: Path, changes: Mapping[str, str], *, gateway: str = "", loading_s: float = 0
) -> AsyncIterator[Bot]:
    """Start the bot on a Discord of its own; kill what is left of it at the end."""
    async with (
        local_discord() as discord,
        on_discord(discord, folder, changes, gateway=gateway, loading_s=loading_s, speed=SPEED) as bot,
    ):
        yield bot


@asynccontextmanager
async def on_discord(
    discord: LocalDiscord,
    folder: Path,
    changes: Mapping[str, str] = MappingProxyType({}),
    *,
    gateway: str = "",
    loading_s: float = 0,
    speed: float = 1,
) -> AsyncIterator[Bot]:
    """Start the bot, perhaps once more in the same folder; kill what is left of it at the end."""
    port = free_port()
    (folder / "model").mkdir(exist_ok=True)
    settings = {
        "DISCORD_TOKEN": TOKEN,
        "MODEL": str(folder / "model"),
        "DATABASE": str(folder / "bot.sqlite3"),
        "METRICS_PORT": str(port),
        **changes,
    }
    (folder / ".env").write_text("\n".join(f"{key}={value}" for key, value in settings.items()) + "\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DISCORD_API": discord.url,
        "LOADING_S": str(loading_s),
        "DISCORD_GATEWAY": gateway or discord.url.replace("http", "ws", 1) + "/gateway",
        "LLAMA_CACHE": str(folder / "cache"),
        "SPEED": str(speed),
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bot.operations.bot_process", "run"),
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    bot = Bot(process, discord, folder, port)
    try:
        yield bot
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_running_answers_end_within_the_grace_and_the_program_with_zero(tmp_path: Path) -> None:
    async with running(tmp_path, SHUTDOWN_GRACE="30") as bot:
        bot.discord.ask("something short")
        await bot.discord.until(lambda texts: any("word" in text for text in texts))
        found = await bot.figures()
        bot.process.send_signal(signal.SIGTERM)
        assert found["llamacord_answers_running"] == 1
        assert await bot.exit_code() == 0, bot.log
        assert not bot.is_served()
    (text,) = bot.discord.texts
    assert text.endswith("".join(SHORT))
    assert bot.discord.unknown == []
    assert "Traceback" not in bot.log


async def test_what_outlasts_the_grace_is_marked_and_the_program_still_ends_with_zero(tmp_path: Path) -> None:
    async with running(tmp_path, SHUTDOWN_GRACE="1") as bot:
        bot.discord.ask("something without end")
        await bot.discord.until(lambda texts: any("word" in text for text in texts))
        bot.process.send_signal(signal.SIGTERM)
        assert await bot.exit_code() == 0, bot.log
    (text,) = bot.discord.texts
    assert "word0" in text
    assert "Interrupted by a restart" in text
    assert "Traceback" not in bot.log


async def test_figures_and_health_of_a_connected_bot_are_served_while_it_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as bot:
        status, health = await bot.get("/healthz")
        assert (status, b'"ready"' in health) == (200, True)
        await bot.discord.until_heartbeat(2)  # the answer to the first one has come
        found = await bot.figures()
        assert 0 < found["llamacord_gateway_latency_seconds"] < TIMEOUT_S
        assert found["llamacord_is_ready"] == 1
        bot.process.send_signal(signal.SIGINT)
        assert await bot.exit_code() == 0, bot.log
        assert not bot.is_served()


async def test_settings_are_read_anew_at_the_signal(tmp_path: Path) -> None:
    async with running(tmp_path, TEMPERATURE="0.5") as bot:
        bot.discord.ask("something short")
        await bot.discord.until(lambda texts: any("temperature 0.5:" in text for text in texts))
        file = tmp_path / ".env"
        file.write_text(file.read_text().replace("TEMPERATURE=0.5", "TEMPERATURE=0.25"))
        bot.process.send_signal(signal.SIGHUP)
        await bot.until_logged("changed: TEMPERATURE")
        bot.discord.ask("something short again")
        await bot.discord.until(lambda texts: any("temperature 0.25:" in text for text in texts))
        file.write_text(file.read_text().replace("TEMPERATURE=0.25", "TEMPERATURE=hot"))
        bot.process.send_signal(signal.SIGHUP)
        await bot.until_logged("The settings stay as they were.")
        assert bot.process.returncode is None


async def test_a_signal_to_reload_while_the_model_is_loaded_does_not_end_the_program(tmp_path: Path) -> None:
    async with started(tmp_path, {}, loading_s=5) as bot:
        await bot.until_logged("Loading")
        bot.process.send_signal(signal.SIGHUP)
        await bot.until_logged("Ready: connected to Discord as Llamacord")


async def test_a_gateway_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    async with started(tmp_path, {}, gateway="ws://127.0.0.1:9/") as bot:
        assert await bot.exit_code() == 1
    assert "llamacord: Discord cannot be reached." in bot.log
    assert "bug in Llamacord" not in bot.log
