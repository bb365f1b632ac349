"""The conversation service on a real database: order, endings, what the model sees, what is stored."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bot.conversation.jobs import Question, StopReason
from bot.conversation.service import ChatService
from bot.conversation.system_prompts import SystemPrompt
from bot.errors import (
    ConversationBusyError,
    EmptyQuestionError,
    ParameterError,
    ShuttingDownError,
    SystemPromptError,
    sentence_for,
)
from bot.language.phrases import phrase
from bot.parameters import ChatParameters
from engine.errors import (
    EngineUnavailableError,
    PromptTooLongError,
    UnsafePromptError,
)
from engine.types import ChatMessage, FinishReason, Health
from storage.conversations import (
    ConversationKind,
    ConversationRef,
    Conversations,
    Message,
    MessageState,
    Role,
)
from storage.database import Database
from storage.errors import (
    AnswerPendingError,
    DuplicateMessageError,
    NotNewestAnswerError,
    StorageFullError,
)
from storage.settings import SettingsStore
from tests.fakes import CONTROL_TAG, RecordingView, Script, ScriptedEngine

GENERAL_CHANNEL = ConversationRef(10, ConversationKind.CHANNEL, 1)
RANDOM_CHANNEL = ConversationRef(11, ConversationKind.CHANNEL, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FOREVER = Script(("word ",), delay_s=0.001, loops=True)


def person(number: int) -> tuple[int, str]:
    """Return one of many people: messages in a row of one and the same would be one question."""
    return 100 + number, f"Person {number}"


class FullDisk(Conversations):
    """Conversations whose answers can no longer be saved."""

    is_full = False

    async def checkpoint(self, answer_id: int, content: str) -> bool:
        if self.is_full:
            raise StorageFullError("No space left.")
        return await super().checkpoint(answer_id, content)

    async def finish_answer(self, answer_id: int, **how: Any) -> Message | None:
        if self.is_full:
            raise StorageFullError("No space left.")
        return await super().finish_answer(answer_id, **how)


@dataclass
class Setup:
    """A service with everything below it."""

    chat: ChatService
    engine: ScriptedEngine
    conversations: FullDisk
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1000))

    async def ask(
        self,
        content: str,
        *,
        ref: ConversationRef = GENERAL_CHANNEL,
        author: tuple[int, str] = (1, "Anna"),
        discord_id: int | None = None,
    ) -> RecordingView:
        view = RecordingView()
        number = next(self.ids) if discord_id is None else discord_id
        await self.chat.ask(Question(ref, number, *author, content, NOW), view)
        return view

    async def stored(self, ref: ConversationRef = GENERAL_CHANNEL) -> list[tuple[Role, MessageState, str]]:
        conversation_id = await self.conversations.open(ref)
        messages = await self.conversations.recent(conversation_id, 100)
        return [(m.role, m.state, m.content) for m in messages]

    def seen(self, index: int = -1) -> list[str]:
        """Return what the model saw, without the system prompt."""
        return [m.content for m in self.engine.dialogs[index] if m.role != "system"]


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with await Database.open(tmp_path / "test.sqlite3") as database:
        engine, conversations = ScriptedEngine(), FullDisk(database)
        defaults = ChatParameters(system_prompt="Be kind.")
        async with ChatService(engine, conversations, SettingsStore(database), defaults) as chat:
            yield Setup(chat, engine, conversations)


async def test_an_answer_is_shown_as_it_grows_and_stored(setup: Setup) -> None:
    view = await setup.ask("Hi")
    ending = await view.ending()
    assert view.updates == ["Hello", "Hello there", "Hello there."]
    assert (ending.state, ending.text, ending.note) == (MessageState.COMPLETE, "Hello there.", None)
    assert ending.can_regenerate
    assert await setup.stored() == [
        (Role.USER, MessageState.COMPLETE, "Hi"),
        (Role.ASSISTANT, MessageState.COMPLETE, "Hello there."),
    ]
    assert setup.engine.dialogs[0][0].content == "Be kind."


async def test_question_and_pending_answer_are_stored_before_generation(setup: Setup) -> None:
    setup.engine.scripts = [Script(("Hello",), delay_s=0.3)]
    view = await setup.ask("Hi")
    assert await setup.stored() == [
        (Role.USER, MessageState.COMPLETE, "Hi"),
        (Role.ASSISTANT, MessageState.PENDING, ""),
    ]
    assert view.updates == []


async def test_the_next_question_sees_the_conversation(setup: Setup) -> None:
    await (await setup.ask("Hi")).ending()
    await (await setup.ask("And you?")).ending()
    assert setup.seen() == ["Hi", "Hello there.", "And you?"]


async def test_two_people_are_named_to_the_model(setup: Setup) -> None:
    await (await setup.ask("Hi")).ending()
    await (await setup.ask("Me too", author=(2, "Bob"))).ending()
    assert setup.seen() == ["Anna: Hi", "Hello there.", "Bob: Me too"]
    assert setup.engine.params[-1].stop == ()


async def test_conversations_never_mix(setup: Setup) -> None:
    setup.engine.scripts = [Script(("answer",), delay_s=0.005)]
    views = []
    for number in range(3):
        views.append(await setup.ask(f"general {number}", author=person(number)))
        views.append(await setup.ask(f"random {number}", ref=RANDOM_CHANNEL, author=person(number)))
    for view in views:
        await view.ending()
    for dialog in setup.engine.dialogs:
        text = " ".join(m.content for m in dialog)
        assert ("general" in text) != ("random" in text)


async def test_questions_of_one_conversation_are_answered_in_order_one_at_a_time(setup: Setup) -> None:
    num_running: list[int] = []

    def respond(dialog: Sequence[ChatMessage]) -> Script:
        num_running.append(setup.engine.num_running)
        return Script((f"to {dialog[-1].content}",), delay_s=0.05)

    setup.engine.respond = respond
    views = await asyncio.gather(*(setup.ask(str(n), author=person(n)) for n in range(5)))
    endings = [await view.ending() for view in views]
    assert num_running == [0] * 5, "another one was being made when it began"
    assert [ending.text for ending in endings] == [
        "to 0",
        *(f"to Person {number}: {number}" for number in range(1, 5)),
    ]
    assert all(view.places == list(range(len(view.places), 0, -1)) for view in views)
    assert len(views[4].places) > 1
    spoken = [f"Person {number}: {number}" for number in range(5)]
    assert setup.seen()[::2] == spoken
    assert setup.seen()[1::2] == ["to 0", *(f"to {text}" for text in spoken[1:4])]


async def test_other_conversations_do_not_wait(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    slow = await setup.ask("slow")
    quick = await setup.ask("quick", ref=RANDOM_CHANNEL)
    assert (await quick.ending()).text == "Hello there."
    assert not slow.ended.is_set()


async def test_a_full_queue_refuses_and_stores_nothing(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    views = [await setup.ask(str(number), author=person(number)) for number in range(9)]
    with pytest.raises(ConversationBusyError, match="8 questions are already waiting"):
        await setup.ask("one too many")
    assert len(await setup.stored()) == 18
    await setup.chat.close()
    assert all(view.endings for view in views)


async def test_a_burst_cannot_pass_the_bound(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    results = await asyncio.gather(
        *(setup.ask(str(n), author=person(n)) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, RecordingView) for result in results) == 9
    assert sum(isinstance(result, ConversationBusyError) for result in results) == 41


async def test_stop_keeps_what_was_said(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Hi")
    await view.shown.wait()
    assert setup.chat.stop(view.answer_id)
    ending = await view.ending()
    assert (ending.state, ending.note) == (MessageState.STOPPED, "Stopped.")
    assert ending.text.startswith("word")
    assert (await setup.stored())[-1][1:] == (MessageState.STOPPED, ending.text)
    assert not setup.chat.stop(view.answer_id)
    assert setup.engine.num_running == 0


async def test_a_waiting_question_can_be_stopped_and_the_others_move_up(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    first, second, third = [await setup.ask(str(n), author=person(n)) for n in (1, 2, 3)]
    assert setup.chat.stop(second.answer_id)
    ending = await second.ending()
    assert (ending.state, ending.text) == (MessageState.STOPPED, "")
    assert not second.is_working
    assert third.places == [2, 1]
    setup.chat.stop(first.answer_id)
    assert (await third.ending()).state is MessageState.COMPLETE


async def test_the_token_limit_is_said(setup: Setup) -> None:
    await setup.chat.preferences.set(GENERAL_CHANNEL, "max_new_tokens", "2", by_user_id=1)
    ending = await (await setup.ask("Hi")).ending()
    assert (ending.state, ending.text) == (MessageState.COMPLETE, "Hello there")
    assert ending.note is not None
    assert "limit" in ending.note
    assert "2 tokens" in ending.note


async def test_a_fault_ends_one_answer_and_keeps_its_text(setup: Setup) -> None:
    setup.engine.scripts = [Script(fails_after=2), Script()]
    ending = await (await setup.ask("Hi")).ending()
    assert (ending.state, ending.text) == (MessageState.FAILED, "Hello there")
    assert ending.note == "The model failed while answering. Please try again."
    assert (await (await setup.ask("Again")).ending()).state is MessageState.COMPLETE
    assert setup.seen() == ["Hi\nAgain"]


async def test_an_unknown_fault_is_told_without_its_details(setup: Setup) -> None:
    def explode(_dialog: object) -> Script:
        raise KeyError("/secret/path")

    setup.engine.respond = explode
    ending = await (await setup.ask("Hi")).ending()
    assert (ending.state, ending.note) == (MessageState.FAILED, phrase("errors.general"))


async def test_an_empty_answer_is_a_failure_with_a_way_out(setup: Setup) -> None:
    setup.engine.scripts = [Script((" ", "\n"))]
    view = await setup.ask("Hi")
    ending = await view.ending()
    assert ending.state is MessageState.FAILED
    assert ending.can_regenerate
    assert "nothing to say" in (ending.note or "")
    assert view.updates == []


async def test_engines_know_which_answers_are_of_one_conversation(setup: Setup) -> None:
    for ref in (GENERAL_CHANNEL, GENERAL_CHANNEL, dataclasses.replace(GENERAL_CHANNEL, channel_id=99)):
        await (await setup.ask("Hi", ref=ref)).ending()
    first, second, other = setup.engine.sessions
    assert first == second != other
    assert "" not in setup.engine.sessions


async def test_the_place_in_a_line_elsewhere_is_shown(setup: Setup) -> None:
    setup.engine.scripts = [Script(places=(3, 2, 0), first_delay_s=1.0)]
    view = await setup.ask("Hi")
    await view.ending()
    assert (view.places, view.waits_for_others) == ([3, 2], True)
    assert view.states == ["working", "working"]


@pytest.mark.parametrize(("seed", "num_breaks", "is_told"), [(7, 1, True), (7, 0, False), (None, 1, False)])
async def test_who_set_a_seed_is_told_that_the_answer_was_gone_on_with(
    setup: Setup, seed: int | None, num_breaks: int, is_told: bool
) -> None:
    setup.engine.scripts = [Script(num_breaks=num_breaks)]
    if seed is not None:
        await setup.chat.preferences.set(GENERAL_CHANNEL, "seed", str(seed), by_user_id=1)
    ending = await (await setup.ask("Hi")).ending()
    assert ending.state is MessageState.COMPLETE
    assert ("another one" in (ending.note or "")) is is_told


async def test_while_servers_are_away_questions_are_taken(setup: Setup) -> None:
    setup.engine.health = Health.AWAY
    setup.chat._intake.check_engine()
    setup.engine.health = Health.UNHEALTHY
    with pytest.raises(EngineUnavailableError):
        setup.chat._intake.check_engine()


async def test_regenerate_replaces_the_newest_answer(setup: Setup) -> None:
    setup.engine.scripts = [Script(("one",)), Script(("two",))]
    first = await setup.ask("Hi")
    await first.ending()
    again = RecordingView()
    await setup.chat.regenerate(10, first.answer_id, again)
    ending = await again.ending()
    assert (ending.text, ending.answer_id) == ("two", again.answer_id)
    assert setup.seen() == ["Hi"]
    assert [content for *_, content in await setup.stored()] == ["Hi", "two"]
    assert await setup.chat.asker_of(again.answer_id) == 1


async def test_regenerate_is_for_the_newest_ended_answer_only(setup: Setup) -> None:
    setup.engine.scripts = [Script(), FOREVER]
    first = await setup.ask("Hi")
    await first.ending()
    second = await setup.ask("More")
    with pytest.raises(NotNewestAnswerError):
        await setup.chat.regenerate(10, first.answer_id, RecordingView())
    with pytest.raises(AnswerPendingError):
        await setup.chat.regenerate(10, second.answer_id, RecordingView())


async def test_a_failed_regeneration_shows_the_former_answer_again(setup: Setup) -> None:
    setup.engine.scripts = [Script(("one",)), Script(fails_after=0)]
    first = await setup.ask("Hi")
    await first.ending()
    again = RecordingView()
    await setup.chat.regenerate(10, first.answer_id, again)
    ending = await again.ending()
    assert (ending.answer_id, ending.text) == (first.answer_id, "one")
    assert "failed" in (ending.note or "")
    assert [content for *_, content in await setup.stored()] == ["Hi", "one"]


async def test_reset_forgets_and_stops_everything(setup: Setup) -> None:
    setup.engine.scripts = [Script(), FOREVER]
    await (await setup.ask("Hi")).ending()
    running, waiting = await setup.ask("1"), await setup.ask("2", author=person(2))
    assert (await setup.chat.memory.reset(GENERAL_CHANNEL, by_user_id=9, at=NOW)).num_messages == 6
    for view in (running, waiting):
        ending = await view.ending()
        assert not ending.can_regenerate
        assert "reset" in (ending.note or "")
    assert await setup.stored() == []
    setup.engine.scripts = [Script()]
    await (await setup.ask("New")).ending()
    assert setup.seen() == ["New"]


async def test_reset_of_one_conversation_leaves_the_others(setup: Setup) -> None:
    await (await setup.ask("Hi", ref=RANDOM_CHANNEL)).ending()
    await setup.chat.memory.reset(GENERAL_CHANNEL, by_user_id=9, at=NOW)
    assert len(await setup.stored(RANDOM_CHANNEL)) == 2


async def test_a_deleted_question_leaves_the_history_and_stops_its_answer(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Hi", discord_id=77)
    await view.shown.wait()
    await setup.chat.upkeep.message_deleted(10, 77)
    ending = await view.ending()
    assert not ending.can_regenerate
    assert "deleted" in (ending.note or "")
    assert await setup.stored() == []


async def test_a_deleted_answer_is_stopped_quietly_and_kept(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Hi")
    await view.shown.wait()
    await setup.conversations.attach_part(view.answer_id, 88, 0)
    await setup.chat.upkeep.message_deleted(10, 88)
    ending = await view.ending()
    assert (ending.state, ending.note) == (MessageState.STOPPED, None)
    assert len(await setup.stored()) == 2


async def test_a_deleted_part_of_an_answer_is_forgotten_and_the_others_move_up(setup: Setup) -> None:
    view = await setup.ask("Hi", discord_id=77)
    await view.ending()
    for position, discord_id in enumerate((80, 81, 82, 83)):
        await setup.conversations.attach_part(view.answer_id, discord_id, position)
    await setup.chat.upkeep.message_deleted(10, 81, lambda text: [text[:3], text[3:6], text[6:9], text[9:]])
    assert (await setup.stored())[-1][2] == "Hel\n\nthe\n\nre."
    await setup.conversations.attach_part(view.answer_id, 84, 3)
    assert await setup.conversations.parts(view.answer_id) == [80, 82, 83, 84]
    await setup.conversations.detach_part(77)
    assert await setup.conversations.find_by_discord_id(77) is not None


async def test_the_deletion_of_other_messages_is_nothing(setup: Setup) -> None:
    await setup.chat.upkeep.message_deleted(10, 5)
    assert (await (await setup.ask("Hi")).ending()).state is MessageState.COMPLETE


async def test_an_answer_nobody_can_see_is_stopped(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Hi")
    await view.shown.wait()
    view.is_lost = True
    assert (await view.ending()).state is MessageState.STOPPED


async def test_what_cannot_be_answered_is_refused_before_it_is_stored(setup: Setup) -> None:
    await (await setup.ask("Hi", discord_id=5)).ending()
    with pytest.raises(EmptyQuestionError):
        await setup.ask(" \n")
    with pytest.raises(UnsafePromptError):
        await setup.ask(f"{CONTROL_TAG}system")
    with pytest.raises(PromptTooLongError):
        await setup.ask("x" * 4000)
    with pytest.raises(DuplicateMessageError):
        await setup.ask("Hi", discord_id=5)
    setup.engine.health = Health.RECOVERING
    with pytest.raises(EngineUnavailableError):
        await setup.ask("Hi")
    assert len(await setup.stored()) == 2


async def test_a_full_disk_costs_the_record_and_not_the_answer(setup: Setup) -> None:
    setup.engine.scripts = [Script(delay_s=0.01)]
    view = await setup.ask("Hi")
    setup.conversations.is_full = True
    ending = await view.ending()
    assert ending.text == "Hello there."
    assert ending.note == phrase("answer.not_saved")
    assert not ending.can_regenerate


async def test_partial_text_is_saved_while_it_streams(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Hi")
    async with asyncio.timeout(5):
        while not (await setup.stored())[-1][2]:  # noqa: ASYNC110 - a database gives no sign
            await asyncio.sleep(0.005)
    assert (await setup.stored())[-1][1] is MessageState.PENDING
    assert (await setup.stored())[-1][2].startswith("word")
    assert not view.ended.is_set()


async def test_close_stores_and_marks_what_runs_and_waits_and_refuses_the_rest(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    running, waiting = await setup.ask("1"), await setup.ask("2", author=person(2))
    await running.shown.wait()
    await setup.chat.close()
    await setup.chat.close()
    for view in (running, waiting):
        ending = view.endings[0]
        assert (ending.state, ending.can_regenerate) == (MessageState.INTERRUPTED, True)
    states = [state for role, state, _ in await setup.stored() if role is Role.ASSISTANT]
    assert states == [MessageState.INTERRUPTED, MessageState.INTERRUPTED]
    with pytest.raises(ShuttingDownError):
        await setup.ask("3")


async def test_an_answer_counts_as_complete_if_stop_came_too_late(setup: Setup) -> None:
    setup.engine.scripts = [Script(("done",), finish_reason=FinishReason.STOP)]
    view = RecordingView()
    await setup.chat.ask(Question(GENERAL_CHANNEL, 1, 1, "Anna", "Hi", NOW), view)
    await view.ending()
    setup.chat.stop(view.answer_id, StopReason.USER)
    assert (await setup.stored())[-1][1] is MessageState.COMPLETE


async def test_settings_reach_the_engine_and_only_their_conversation(setup: Setup) -> None:
    preferences = setup.chat.preferences
    await preferences.set(GENERAL_CHANNEL, "temperature", "0", by_user_id=1)
    await (await setup.ask("Hi")).ending()
    await (await setup.ask("Hi", ref=RANDOM_CHANNEL)).ending()
    assert [params.temperature for params in setup.engine.params] == [0.0, 0.7]
    assert await preferences.reset(GENERAL_CHANNEL, None) == 1
    await (await setup.ask("Hi")).ending()
    assert setup.engine.params[-1].temperature == 0.7


async def test_system_prompt_own_then_operators_then_models(setup: Setup) -> None:
    preferences = setup.chat.preferences
    prompts = setup.chat.system_prompts
    assert (await prompts.set(GENERAL_CHANNEL, " Rhyme. ", by_user_id=1)).num_tokens == 6
    await (await setup.ask("Hi")).ending()
    assert setup.engine.dialogs[-1][0].content == "Rhyme."
    assert await prompts.read(GENERAL_CHANNEL) == SystemPrompt("Rhyme.", "Rhyme.", False)
    assert await preferences.reset(GENERAL_CHANNEL, None) == 0
    assert await prompts.clear(GENERAL_CHANNEL, by_user_id=1)
    assert not await prompts.clear(GENERAL_CHANNEL, by_user_id=1)
    assert await prompts.read(GENERAL_CHANNEL) == SystemPrompt("Be kind.", None, False)
    preferences.defaults = ChatParameters()
    assert await prompts.read(GENERAL_CHANNEL) == SystemPrompt("You are a test.", None, False)


@pytest.mark.parametrize("text", ["", " ", "x" * 1501])
async def test_a_system_prompt_has_bounds(setup: Setup, text: str) -> None:
    with pytest.raises(SystemPromptError):
        await setup.chat.system_prompts.set(GENERAL_CHANNEL, text, by_user_id=1)


async def test_a_system_prompt_must_leave_room_and_be_safe(setup: Setup) -> None:
    preferences = setup.chat.preferences
    await preferences.set(GENERAL_CHANNEL, "max_history_tokens", "128", by_user_id=1)
    with pytest.raises(SystemPromptError, match="the limit is 64"):
        await setup.chat.system_prompts.set(GENERAL_CHANNEL, "x" * 65, by_user_id=1)
    with pytest.raises(UnsafePromptError):
        await setup.chat.system_prompts.set(GENERAL_CHANNEL, CONTROL_TAG, by_user_id=1)
    await preferences.set(GENERAL_CHANNEL, "max_history_tokens", "512", by_user_id=1)
    await setup.chat.system_prompts.set(GENERAL_CHANNEL, "x" * 65, by_user_id=1)
    with pytest.raises(ParameterError, match="system prompt"):
        await preferences.set(GENERAL_CHANNEL, "max_history_tokens", "128", by_user_id=1)


async def test_history_drops_its_oldest_turns_to_fit(setup: Setup) -> None:
    await setup.chat.preferences.set(GENERAL_CHANNEL, "max_history_tokens", "128", by_user_id=1)
    for number in range(6):
        await (await setup.ask(f"question {number}")).ending()
    assert setup.seen()[-1] == "question 5"
    assert "question 0" not in setup.seen()
    assert setup.engine.dialogs[-1][0].content == "Be kind."


def test_nothing_technical_reaches_a_user() -> None:
    for error in (KeyError("x"), OSError("/etc/passwd"), StorageFullError("/data/db is full")):
        sentence = sentence_for(error)
        assert "/" not in sentence
        assert "Error" not in sentence
        assert sentence.endswith(".")
