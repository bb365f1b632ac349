"""A conversation in the terminal, with the same service that answers on Discord.

Owns reading lines, the few commands, Ctrl-C, and how an answer is shown as it grows: with nothing in it that
could command the terminal. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console

from bot.conversation.jobs import Question
from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.errors import ChatError, is_expected, sentence_for
from bot.language.phrases import phrase
from storage.conversations import ConversationKind, ConversationRef

HERE = ConversationRef(channel_id=-1, kind=ConversationKind.DIRECT, guild_id=None)
"""The terminal's conversation. Discord has no ids below zero, so nothing is mixed up in the database."""
PROMPT = "you> "
HELP = """\
/reset                    forget this conversation
/settings                 show the parameters; /settings set NAME VALUE; /settings reset [NAME]
/system                   show the system prompt; /system set TEXT; /system preset NAME; /system clear
/help                     show this list
/quit                     leave, as Ctrl-D does
Ctrl-C stops an answer."""
_USER_ID = 0
_USER_NAME = "You"


class TerminalChat:
    """Reads questions and commands from `read` and answers them on `console` until `EOFError`."""

    def __init__(self, service: ChatService, console: Console, read: Callable[[], str]) -> None:
        self._service = service
        self._console = console
        self._read = read
        self._view: TerminalView | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Talk until the end of the input or `/quit`."""
        with _on_interrupt(self.interrupt):
            async for line in _lines(self._read):
                if line == "/quit":
                    return
                try:
                    await self._handle(line)
                except Exception as error:
                    if not is_expected(error):
                        raise
                    self._say(sentence_for(error))

    def interrupt(self) -> None:
        """Stop the running answer; without one, say how to leave."""
        if self._view is not None:
            self._is_stopping = True
            self._stop_if_asked(self._view)
        else:
            self._say("\nCtrl-D or /quit leaves.")
            write(self._console, PROMPT if self._console.is_terminal else "")

    async def _handle(self, line: str) -> None:
        if line.startswith("/"):
            self._say(await self._command(line))
        elif line:
            await self._answer(line)

    async def _answer(self, content: str) -> None:
        self._view = TerminalView(self._console)
        question = Question(
            conversation=HERE,
            discord_id=-time.time_ns(),
            author_id=_USER_ID,
            author_name=_USER_NAME,
            content=content,
            created_at=datetime.now(UTC),
        )
        try:
            await self._service.ask(question, self._view)
            self._stop_if_asked(self._view)
            await self._view.ended.wait()
        finally:
            self._view, self._is_stopping = None, False

    def _stop_if_asked(self, view: TerminalView) -> None:
        """Stop the answer once it has an id: Ctrl-C may come before the question is stored."""
        if self._is_stopping and view.answer_id is not None:
            self._service.stop(view.answer_id)

    async def _command(self, line: str) -> str:
        """Carry a command out and return what to say."""
        name, _, rest = line[1:].partition(" ")
        verb, _, argument = rest.strip().partition(" ")
        match name, verb:
            case "help", "":
                return HELP
            case "reset", "":
                reset = await self._service.memory.reset(HERE, by_user_id=_USER_ID, at=datetime.now(UTC))
                return phrase("reset.done", num=reset.num_messages)
            case "settings", _:
                return await self._settings(verb, argument.split())
            case "system", _:
                return await self._system(verb, argument.strip())
        raise ChatError("There is no such command. /help lists them.")

    async def _settings(self, verb: str, arguments: list[str]) -> str:
        preferences = self._service.preferences
        match verb, arguments:
            case (("" | "show"), []):
                lines = await preferences.describe(HERE)
                return "\n".join(line.replace("**", "").replace("`", "") for line in lines)
            case "set", [name, value]:
                name, changed = await preferences.set(HERE, name, value, by_user_id=_USER_ID)
                return f"{name} is {changed} now."
            case "reset", ([] | [_]):
                count = await preferences.reset(HERE, arguments[0] if arguments else None)
                return f"Set back to the default: {count}."
        raise ChatError("Use /settings, /settings set NAME VALUE or /settings reset [NAME].")

    async def _system(self, verb: str, text: str) -> str:
        prompts = self._service.system_prompts
        match verb:
            case "" | "show":
                prompt = await prompts.read(HERE)
                return prompt.text or "There is no system prompt."
            case "set":
                cost = await prompts.set(HERE, text, by_user_id=_USER_ID)
                return f"The system prompt is set; it takes {cost.num_tokens} tokens."
            case "preset":
                cost = await prompts.set_preset(HERE, text, by_user_id=_USER_ID)
                return f"The preset {text} holds now; the model is told {cost.num_tokens} tokens."
            case "clear":
                await prompts.clear(HERE, by_user_id=_USER_ID)
                return "The default system prompt holds again."
        raise ChatError("Use /system, /system set TEXT, /system preset NAME or /system clear.")

    def _say(self, text: str) -> None:
        self._console.print(
            without_controls(text), style="dim", markup=False, highlight=False, soft_wrap=True
        )


class TerminalView:
    """Shows one answer as it grows. Satisfies `bot.conversation.views.AnswerView`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""
        self.answer_id: int | None = None
        self.ended = asyncio.Event()

    shows_thoughts = False

    @property
    def part_ids(self) -> Sequence[int]:
        return ()

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:  # noqa: ARG002 - no messages to edit here
        self.answer_id = answer_id

    def waiting(self, place: int, *, for_others: bool) -> None:
        """Nobody else asks here."""

    def working(self) -> None:
        """The answer is about to appear."""

    def moved(self, from_id: int, to_id: int) -> None:
        """Nothing is copied here."""

    def followed(self) -> None:
        """Nobody else asks here."""

    def thinking(self, seconds: int) -> None:
        """What a model thinks is not written."""

    def update(self, text: str) -> None:
        """Write what is new; white space at the end waits until something follows it."""
        visible = without_controls(text.strip())
        if visible.startswith(self._shown):
            write(self._console, visible[len(self._shown) :])
            self._shown = visible

    async def finish(self, ending: Ending) -> None:
        self.update(ending.text)
        if self._shown:
            write(self._console, "\n")
        if ending.note:
            self._console.print(
                f"({ending.note})", style="dim", markup=False, highlight=False, soft_wrap=True
            )
        self.ended.set()

    @property
    def is_lost(self) -> bool:
        return False


def line_source(console: Console) -> Callable[[], str]:
    """Return the function that reads a line: with a prompt and line editing only for a person."""
    if not console.is_terminal:
        return input
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its line editing
    return lambda: input(PROMPT)


def write(console: Console, text: str) -> None:
    """Write `text` as it is, with no wrapping or markup, and show it at once."""
    console.file.write(text)
    console.file.flush()


def without_controls(text: str) -> str:
    """Return `text` without the characters that could command a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cs"})


async def _lines(read: Callable[[], str]) -> AsyncIterator[str]:
    """Give each line without the space around it, until `EOFError`.

    Each is read in a daemon thread of its own, so that a read that waits for ever keeps nobody from leaving.
    """
    loop = asyncio.get_running_loop()
    while True:
        future: asyncio.Future[str | None] = loop.create_future()
        threading.Thread(target=_read_into, args=(future, read), daemon=True).start()
        line = await future
        if line is None:
            return
        yield line.strip()


def _read_into(future: asyncio.Future[str | None], read: Callable[[], str]) -> None:
    line: str | None = None
    with contextlib.suppress(EOFError, OSError):
        line = read()
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        future.get_loop().call_soon_threadsafe(_resolve, future, line)


def _resolve(future: asyncio.Future[str | None], line: str | None) -> None:
    if not future.done():
        future.set_result(line)


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call `act` instead of ending the program."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, act)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
