"""The pictures of the documentation: what people and moderators do with the bot, done in a browser.

Owns who does what on which picture. Waits on each for what must be seen there, so that a picture of
something else is never saved.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from bot.playground.page import Page

MIA, MAX = "Mia (member) in #general", "Max (moderator) in #general"
MAX_ELSEWHERE, MAX_IN_LOG = "Max (moderator) in #random", "Max (moderator) in #mod-log"

Scene = Callable[[Page], Awaitable[None]]


async def conversation(page: Page) -> None:
    """Two people ask in one channel, and have their answers with what can be done with them."""
    await page.sit(MAX_ELSEWHERE)
    await page.command("settings server", name="temperature", value="0")  # the same pictures each time
    await page.until_shown("temperature")
    await page.sit(MIA)
    await page.begin_picture()
    await page.send("@Llamacord Write hello world in Python.")
    await page.until_answered()
    await page.sit(MAX)
    await page.send("@Llamacord Give me three tips for learning Python.")
    await page.until_answered()


async def streaming(page: Page) -> None:
    """An answer is being written, and can be stopped."""
    await page.sit(MAX_ELSEWHERE)
    await page.begin_picture()
    await page.send("@Llamacord Tell me a long story about a lighthouse keeper.")
    await page.until_grown(400)
    await page.until_shown("Stop")


async def code(page: Page) -> None:
    """The story is stopped; somewhere else comes a long answer with code."""
    await page.click("Stop")
    await page.until_answered(timeout_s=30.0)
    await page.until_shown("Continue")
    await page.sit(MAX)
    await page.begin_picture()
    await page.send("@Llamacord Write a Python class BankAccount with deposit and withdraw, and explain it.")
    await page.until_answered()


async def settings(page: Page) -> None:
    """How answers are made here, and where each value comes from."""
    await page.sit(MAX)
    await page.command("settings set", name="max_new_tokens", value="400")
    await page.until_shown("400")
    await page.begin_picture()
    await page.command("settings show")
    await page.until_shown("max_history_tokens")


async def history(page: Page) -> None:
    """What is remembered here."""
    await page.sit(MIA)
    await page.begin_picture()
    await page.command("history")
    await page.until_shown("What I remember here")


async def config(page: Page) -> None:
    """A server is set up in one panel."""
    await page.sit(MAX)
    await page.begin_picture()
    await page.command("config")
    await page.choose("Channel for the moderators' log", "mod-log")
    await page.until_shown("mod-log")
    await page.click("Lists for questions")
    await page.fill_in_form(question_words="homework*")
    await page.until_shown("for questions: 1")


async def refusal(page: Page) -> None:
    """What the rules of the server do not allow gets a sentence."""
    await page.sit(MIA)
    await page.begin_picture()
    await page.send("@Llamacord Do my homework, please.")
    await page.until_shown("The rules of this server do not allow this text")


async def moderation(page: Page) -> None:
    """The moderators' log: settings, a refusal, a report, a reset with its Undo."""
    await page.sit(MIA)
    await page.click("Report")
    await page.until_shown("The moderators were told.")
    await page.sit(MAX)
    await page.command("reset")
    await page.sit(MAX_IN_LOG)
    await page.begin_picture(with_all=True)
    await page.until_shown("reported an answer")
    await page.until_shown("made me forget")
    await page.until_shown("Undo")


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (conversation, streaming, code, settings, history, config, refusal, moderation)
}
"""In the order in which they are played, for each begins where the one before ended."""


async def take_pictures(page: Page, folder: Path) -> None:
    """Play all scenes and save a picture of each; `folder` is made if need be."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    for name, play in SCENES.items():
        await play(page)
        await page.picture(folder / f"{name}.png")
