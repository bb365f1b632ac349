"""The playground: the very same bot, met in the local browser instead of on Discord.

Owns the checks before it, its two ways of running (`serve` for people, `make_pictures` for documentation) and
the sentences for what can go wrong. Knows nothing of simcord beyond its name and version.
"""

import asyncio
import contextlib
import errno
import importlib.metadata
import importlib.util
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import discord

from bot.playground.chromium import ChromiumError, find_chromium, launch
from bot.playground.page import Page
from bot.playground.pictures import take_pictures
from bot.tasks import Tasks

if TYPE_CHECKING:
    from bot.playground.simulated_discord import SimulatedDiscord

SIMCORD_VERSION = "3.2.1"

_HOST = "127.0.0.1"
_WIDTH, _HEIGHT = 860, 700
_INSTALL = "Start it with `make run`, or run `pip install llamacord[playground]`."
_PREVIEW_MODULES = ("linkify_it", "markdown_it", "PIL", "regex")  # simcord names them in an extra of its own


class PlaygroundError(Exception):
    """The playground cannot run; the message is a sentence for the user."""


async def serve(
    make_client: Callable[[], discord.Client],
    *,
    port: int,
    on_ready: Callable[[str], None],
    stop: asyncio.Event,
    greeting: Callable[[object], str] | None = None,
) -> None:
    """Run the bot on a simulated Discord until `stop` is set or the session is ended in the browser.

    `greeting` gives what the bot says first, in the language of one of Discord's locales.

    `port` is a loopback port, 0 for any free one. `on_ready` gets the page's URL once it answers; the URL is
    a secret, since whoever has it can use the page.
    """
    async with _simulation(make_client, port=port) as world:
        await _check_answers(world.page.url)
        if greeting is not None:
            await world.greet(greeting)
        on_ready(world.page.url)
        async with Tasks() as tasks:
            ends = (
                tasks.start(stop.wait(), "the end"),
                tasks.start(world.page.wait_closed(), "the page's end"),
            )
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)


async def make_pictures(make_client: Callable[[], discord.Client], folder: Path) -> None:
    """Play the scenes of the documentation in a headless browser and save a picture of each."""
    if find_chromium() is None:
        raise PlaygroundError("No Chromium was found. Install Debian's package chromium, or Google Chrome.")
    async with _simulation(make_client, port=0) as world:
        try:
            async with launch(width=_WIDTH, height=_HEIGHT) as tab:
                page = Page(tab, send_held=world.send_held)
                await page.open(world.page.url)
                await take_pictures(page, folder)
        except (ChromiumError, TimeoutError, OSError) as error:
            raise PlaygroundError(f"The pictures could not be made: {error}") from error


@contextlib.asynccontextmanager
async def _simulation(
    make_client: Callable[[], discord.Client], *, port: int
) -> "AsyncIterator[SimulatedDiscord]":
    _check_simcord()
    _check_port(port)
    with _without_warnings_of("discord.state"):  # simcord tries a client without intents while it is imported
        from simcord import SetupError

        from bot.playground.simulated_discord import (
            simulate,  # needs the optional packages that were just checked
        )

    try:
        async with simulate(make_client(), port=port) as world:
            yield world
    except SetupError as error:  # above all a port that was taken since we looked
        raise PlaygroundError(f"The playground could not start: {error}.") from error


@contextlib.contextmanager
def _without_warnings_of(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_simcord() -> None:
    """Refuse any simcord but the one whose private names we use."""
    try:
        version = importlib.metadata.version("simcord")
    except importlib.metadata.PackageNotFoundError:
        raise PlaygroundError(f"The playground needs the package simcord. {_INSTALL}") from None
    if version != SIMCORD_VERSION:
        raise PlaygroundError(
            f"The playground needs simcord {SIMCORD_VERSION}, and version {version} is installed. {_INSTALL}"
        )
    missing = [name for name in _PREVIEW_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise PlaygroundError(f"The playground needs the packages {', '.join(missing)}. {_INSTALL}")


def _check_port(port: int) -> None:
    """Find out before the bot is started, which may take long, whether its port can be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else "cannot be used"
            raise PlaygroundError(
                f"Port {port} {reason}. Set PLAYGROUND_PORT to another one, or to 0 for any free port."
            ) from None
        except OverflowError:
            raise PlaygroundError(f"PLAYGROUND_PORT is {port}; it must be 0 to 65535.") from None


async def _check_answers(url: str) -> None:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            response.raise_for_status()
    except aiohttp.ClientError as error:
        raise PlaygroundError(f"The playground's page does not answer: {error}") from error
