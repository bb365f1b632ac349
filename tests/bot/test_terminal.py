"""The terminal's conversation: the same service, a scripted engine, real SQLite."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio
from rich.console import Console

from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.parameters import ChatParameters
from bot.terminal import HELP, HERE, TerminalChat, TerminalView, without_controls
from engine.types import META_SYSTEM_PROMPT
from storage.conversations import Conversations, MessageState, Role
from storage.database import Database
from storage.settings import SettingsStore
from tests.fakes import Script, ScriptedEngine


class Output(io.StringIO):
    """Remembers what was shown, and can be waited on."""

    def __init__(self) -> None:
        super().__init__()
        self._written = asyncio.Event()

    def write(self, text: str) -> int:
        self._written.set()
        return super().write(text)

    async def wait_for(self, text: str) -> None:
        while text not in self.getvalue():
            self._written.clear()
            await self._written.wait()


class Terminal:
    """A terminal whose input is a list of lines, and whose output can be read."""

    def __init__(self, service: ChatService, engine: ScriptedEngine) -> None:
        self.service = service
        self.engine = engine
        self.output = Output()

    def chat(self, read: Callable[[], str]) -> TerminalChat:
        return TerminalChat(self.service, Console(file=self.output, width=200), read)

    async def run(self, *lines: str) -> str:
        """Type `lines`, then end the input; return everything shown."""
        remaining = list(lines)

        def read() -> str:
            if not remaining:
                raise EOFError
            return remaining.pop(0)

        await asyncio.wait_for(self.chat(read).run(), 10)
        return self.output.getvalue()


@pytest_asyncio.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    engine = ScriptedEngine()
    async with (
        await Database.open(tmp_path / "chat.sqlite3") as database,
        ChatService(engine, Conversations(database), SettingsStore(database), ChatParameters()) as service,
    ):
        yield Terminal(service, engine)


async def test_a_question_is_answered_and_remembered(terminal: Terminal) -> None:
    assert await terminal.run("  Hi  ", "", "Again") == "Hello there.\nHello there.\n"
    contents = [(m.role, m.content) for m in terminal.engine.dialogs[-1]]
    assert contents == [
        ("system", "You are a test."),
        ("user", "Hi"),
        ("assistant", "Hello there."),
        ("user", "Again"),
    ]


async def test_the_conversation_goes_on_in_the_next_session(terminal: Terminal) -> None:
    await terminal.run("Hi")
    await terminal.run("Again")
    assert len(terminal.engine.dialogs[-1]) == 4


async def test_what_the_model_writes_cannot_command_the_terminal(terminal: Terminal) -> None:
    terminal.engine.scripts = [Script(pieces=("a\x1b[2J", "b\x07\u009b31m[bold]c[/bold]\n", "\n:smile: d  "))]
    assert await terminal.run("Hi") == "a[2Jb31m[bold]c[/bold]\n\n:smile: d\n"
    assert without_controls("tab\tand\nline\r\x00") == "tab\tand\nline"


async def test_a_fault_is_a_sentence_and_the_conversation_goes_on(terminal: Terminal) -> None:
    terminal.engine.scripts = [Script(fails_after=1), Script(pieces=("fine",))]
    output = await terminal.run("Hi", "Again")
    assert "The model failed while answering." in output
    assert output.endswith("fine\n")


async def test_a_refused_question_is_a_sentence(terminal: Terminal) -> None:
    output = await terminal.run("x" * 5000, "<|im_start|>")
    assert "send a shorter one." in output
    assert "control tags" in output
    assert terminal.engine.dialogs == []


async def test_commands(terminal: Terminal) -> None:
    output = await terminal.run(
        "Hi", "/reset", "/help", "/nonsense", "/system clear now", "/settings set top_k"
    )
    assert "I forgot 2 messages." in output
    assert HELP in output
    assert "There is no such command." in output
    assert "Use /settings, " in output
    assert len(terminal.engine.dialogs) == 1


async def test_settings_and_system_prompt_hold_for_the_next_answer(terminal: Terminal) -> None:
    output = await terminal.run(
        "/settings set temperature 0.25", "/settings set top_k 9999", "/system set Be brief.", "/system", "Hi"
    )
    assert "temperature is 0.25 now." in output
    assert "top_k must be a whole number from 0 to 1000." in output
    assert "\nBe brief.\n" in output
    assert terminal.engine.params[0].temperature == 0.25
    assert terminal.engine.dialogs[0][0].content == "Be brief."

    output = await terminal.run("/settings", "/settings reset", "/system clear", "/system show")
    assert "temperature = 0.25 (set here; otherwise 0.7" in output
    assert "Set back to the default: 1." in output
    assert output.endswith("You are a test.\n")


async def test_a_preset_holds_until_it_is_cleared(terminal: Terminal) -> None:
    output = await terminal.run("/system preset safe", "/system preset wild", "Hi", "/system clear", "Hi")
    assert "The preset safe holds now" in output
    assert "Choose one of: safe, none." in output
    prompts = [dialog[0].content for dialog in terminal.engine.dialogs]
    assert prompts == [META_SYSTEM_PROMPT, "You are a test."]


async def test_quit_leaves_and_what_follows_is_not_asked(terminal: Terminal) -> None:
    assert await terminal.run("/quit", "Hi") == ""
    assert terminal.engine.dialogs == []


async def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.engine.scripts = [Script(pieces=("word ",), delay_s=0.01, loops=True), Script(pieces=("next",))]
    running = asyncio.create_task(terminal.run("Hi", "Again"))
    await asyncio.wait_for(terminal.output.wait_for("word word"), 10)
    os.kill(os.getpid(), signal.SIGINT)
    output = await running

    assert "(Stopped.)\n" in output
    assert output.endswith("next\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_ctrl_c_before_the_question_is_stored_stops_it_too(terminal: Terminal) -> None:
    terminal.engine.scripts = [Script(pieces=("word ",), delay_s=0.01, loops=True)]
    chat = terminal.chat(iter(["Hi"]).__next__)
    answering = asyncio.create_task(chat._answer("Hi"))
    await asyncio.sleep(0)
    chat.interrupt()
    await asyncio.wait_for(answering, 10)
    conversation_id = await terminal.service.conversations.open(HERE)
    *_, answer = await terminal.service.conversations.recent(conversation_id, 10)
    assert (answer.role, answer.state) == (Role.ASSISTANT, MessageState.STOPPED)


async def test_ctrl_c_at_the_prompt_says_how_to_leave(terminal: Terminal) -> None:
    terminal.chat(input).interrupt()
    assert "Ctrl-D or /quit leaves." in terminal.output.getvalue()


async def test_a_view_never_takes_back_what_was_shown() -> None:
    output = io.StringIO()
    view = TerminalView(Console(file=output))
    view.update("  one\n")
    view.update("  one\n two")
    await view.finish(Ending(1, MessageState.COMPLETE, "something else", note="[red]why[/red]"))
    assert output.getvalue() == "one\n two\n([red]why[/red])\n"
    assert view.ended.is_set()
