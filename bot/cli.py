"""The command line: `python -m bot`, also installed as `llamacord`.

The one place where an expected failure becomes a sentence on stderr and an exit code, without a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from bot import app
from bot.config import Settings, ignore_early_signals, load_settings
from bot.engines import Engines, choose_engines
from bot.fleet.holding import ShardsTakenError
from bot.on_discord.connection import StartError
from bot.operations.health import PortError
from engine.configuring.progress import showing_progress
from engine.configuring.reading import ConfigError
from engine.errors import EngineError
from engine.logs import configure_logging
from storage.errors import StorageError

VERSION = "0.1.0"
ENV_FILE = Path(".env")
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
_log = logging.getLogger(__name__)
_EXPECTED = (ConfigError, EngineError, StorageError, PortError, StartError, ShardsTakenError)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; without a command, `run` is meant."""
    parser = argparse.ArgumentParser(
        prog="llamacord", description="A Discord bot that runs Llama 2 in its own process."
    )
    parser.add_argument("--version", action="version", version=f"llamacord {VERSION}")
    parser.set_defaults(act=_run)
    commands = parser.add_subparsers(title="commands", metavar="")
    run = commands.add_parser("run", help="start on Discord, or, without DISCORD_TOKEN, the playground")
    run.set_defaults(act=_run)
    chat = commands.add_parser("chat", help="talk in this terminal")
    chat.set_defaults(act=_chat)
    check = commands.add_parser("check", help="check the setup, and say what to do")
    check.add_argument("--measure", action="store_true", help="also measure how fast the model answers here")
    check.set_defaults(act=_check)
    play = commands.add_parser("playground", help="try the bot on a simulated Discord in the browser")
    play.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="save the documentation's pictures and exit"
    )
    play.set_defaults(act=_playground)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.act(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the edge of the program
        return _fail(error)
    return code


def _fail(error: Exception) -> int:
    """Say what went wrong; only what nobody expected leaves a traceback, in the log."""
    if isinstance(error, _EXPECTED):
        _say(f"llamacord: {error}")
    else:
        _log.critical("The program ended unexpectedly", exc_info=error)
        _say("llamacord: This is a bug in Llamacord; the line above says where.")
    return EXIT_FAILURE


def _run(options: argparse.Namespace) -> int:
    settings = _load()
    if settings.discord_token is None:
        return _playground(options)
    ignore_early_signals()
    engines = _engines(settings)

    def on_ready(name: str) -> None:
        print(f"Ready: connected to Discord as {name}. Mention it there. Ctrl-C stops it.", flush=True)

    def read_settings() -> Settings:
        return load_settings(os.environ, ENV_FILE)

    _until_stopped(
        lambda stop: app.run_on_discord(
            settings, engines, stop=stop, on_ready=on_ready, read_settings=read_settings
        )
    )
    return 0


def _playground(options: argparse.Namespace) -> int:
    from bot.playground.serve import PlaygroundError

    settings = _load()
    engines = _engines(settings)
    try:
        _play(settings, engines, getattr(options, "pictures", None))
    except PlaygroundError as error:
        raise StartError(str(error)) from error
    return 0


def _play(settings: Settings, engines: Engines, pictures: Path | None) -> None:
    if pictures is not None:
        asyncio.run(app.make_pictures(settings, engines, pictures))
        print(f"Saved the pictures in {pictures}.")
        return

    def on_ready(url: str) -> None:
        print(f"Ready: open {url} in your browser. Ctrl-C stops it.", flush=True)

    _until_stopped(lambda stop: app.run_playground(settings, engines, stop=stop, on_ready=on_ready))


def _chat(_options: argparse.Namespace) -> int:
    settings = _load(quiet=True)
    engines = _engines(settings)
    console = Console()
    if console.is_terminal:
        console.print(
            "Talk to the bot. /help lists the commands, Ctrl-D leaves.", style="dim", highlight=False
        )
    asyncio.run(app.run_in_terminal(settings, engines, console))
    return 0


def _check(options: argparse.Namespace) -> int:
    from bot.check import run_checks

    console = Console(soft_wrap=True)
    is_good = True
    for finding in run_checks(os.environ, ENV_FILE, measure=options.measure):
        mark = Text("✔ ", "green") if finding.is_good else Text("✘ ", "red")
        console.print(mark, Text(f"{finding.subject}: {finding.sentence}"), sep="")
        is_good = is_good and finding.is_good
    return 0 if is_good else EXIT_FAILURE


def _load(*, quiet: bool = False) -> Settings:
    """Read the settings and start logging; `quiet` leaves out what only a server's operator wants."""
    settings = load_settings(os.environ, ENV_FILE)
    level = settings.log_level
    configure_logging(
        max(level, logging.WARNING) if quiet else level,
        secret=settings.discord_token,
        as_json=settings.logs_json,
    )
    for hint in settings.hints:
        _say(f"llamacord: {hint}")
    return settings


def _engines(settings: Settings) -> Engines:
    with showing_progress(Console(stderr=True)) as on_progress:
        return choose_engines(settings, on_progress)


def _until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `work`, which ends in order once the event is set: at Ctrl-C, or when the system says so."""

    async def supervise() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C then cancels `work`
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
        await work(stop)

    asyncio.run(supervise())


def _say(text: str) -> None:
    print(text, file=sys.stderr)
