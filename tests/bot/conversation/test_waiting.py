"""A question on its way: at the entrance, in front of the engine, and after its last token."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.conversation.jobs import Question, StopReason
from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.errors import BlockedError, ForbiddenTextError, OptedOutError, QuestionGoneError, sentence_for
from bot.language.phrases import phrase
from bot.origin import Origin
from bot.parameters import ChatParameters
from bot.safety.safety_model import SafetyModel
from bot.servers.moderation import Moderation
from bot.servers.rates import Allowance
from engine.types import Health
from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState, Quote, Role
from storage.database import Database
from storage.errors import AnswerPendingError, StorageFullError
from storage.people import People
from storage.settings import SettingsStore
from tests.fakes import RecordingView, Script, ScriptedEngine

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FOREVER = Script(("word ",), delay_s=0.001, loops=True)
SLOW_VERDICT = Script(("safe",), first_delay_s=3600)


class SlowView(RecordingView):
    """A view whose ending Discord does not take until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_finish = asyncio.Event()

    async def finish(self, ending: Ending) -> None:
        await self.may_finish.wait()
        await super().finish(ending)


class LostStore(Conversations):
    """Conversations some of which cannot be found."""

    finds: Callable[[ConversationRef], bool] = staticmethod(lambda _: True)

    async def find(self, ref: ConversationRef) -> int | None:
        if not self.finds(ref):
            raise StorageFullError("No space left.")
        return await super().find(ref)


@dataclass
class Setup:
    """A service with a gate, a moderation model and everything below it."""

    chat: ChatService
    engine: ScriptedEngine
    guard: ScriptedEngine
    conversations: LostStore
    moderation: Moderation
    people: People
    num_asked: int = field(default=1000)

    async def ask(
        self,
        content: str,
        *,
        channel_id: int = 10,
        user_id: int = 1,
        guild_id: int = 1,
        view: RecordingView | None = None,
        **more: object,
    ) -> RecordingView:
        view = view or RecordingView()
        self.num_asked += 1
        ref = ConversationRef(channel_id, ConversationKind.CHANNEL, guild_id)
        question = Question(ref, self.num_asked, user_id, f"Person {user_id}", content, NOW)
        await self.chat.ask(dataclasses.replace(question, **more), view)  # type: ignore[arg-type]
        return view

    async def stored(self, channel_id: int = 10) -> list[tuple[Role, str]]:
        ref = ConversationRef(channel_id, ConversationKind.CHANNEL, 1)
        messages = await self.conversations.recent(await self.conversations.open(ref), 100)
        return [(message.role, message.content) for message in messages]

    def asked(self) -> list[str]:
        """Return what the model was asked last, for each answer."""
        return [dialog[-1].content for dialog in self.engine.dialogs]


@pytest.fixture
def guard() -> ScriptedEngine | None:
    """Return the moderation model; None where there is none."""
    return None


@pytest.fixture
async def setup(tmp_path: Path, guard: ScriptedEngine | None) -> AsyncIterator[Setup]:
    async with await Database.open(tmp_path / "test.sqlite3") as database:
        engine, conversations = ScriptedEngine(max_requests=1), LostStore(database)
        safety_model = None if guard is None else SafetyModel(guard, refuses_unchecked=True)
        moderation = Moderation.over(
            database, conversations, Allowance(per_user=0, per_server=0), safety_model=safety_model
        )
        async with ChatService(
            engine,
            conversations,
            SettingsStore(database),
            ChatParameters(),
            gate=moderation.gate,
            servers=moderation.servers,
            screening=moderation.screening,
        ) as chat:
            yield Setup(chat, engine, guard or ScriptedEngine(), conversations, moderation, People(database))


async def until(is_so: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nothing here sets an event
            await asyncio.sleep(0.001)


# What the engine holds


@pytest.mark.parametrize("holds", ["one answer", "tokens for one answer"])
async def test_another_server_is_next_whatever_limits_the_engine(setup: Setup, holds: str) -> None:
    """One person asks in eight channels of a server; somebody on another server comes last, and is next."""
    if holds != "one answer":
        setup.engine.max_requests, setup.engine.max_kv_tokens = 8, 1000
    setup.engine.scripts = [Script(("ok",), first_delay_s=0.3), Script(("ok",))]
    views = [await setup.ask(f"flood {number}", channel_id=100 + number) for number in range(8)]
    views.append(await setup.ask("other", channel_id=500, user_id=2, guild_id=2))
    await views[-1].told.wait()
    assert views[-1].places == [1]
    assert not views[-1].is_working
    for view in views:
        assert (await view.ending()).state is MessageState.COMPLETE
    assert setup.asked() == ["flood 0", "other", *(f"flood {number}" for number in range(1, 8))]


async def test_an_answer_that_needs_much_is_not_overtaken_for_ever(setup: Setup) -> None:
    setup.engine.max_requests, setup.engine.max_kv_tokens = 8, 1500
    setup.engine.scripts = [Script(("ok",), first_delay_s=0.05)]
    views = [await setup.ask("small", channel_id=100, guild_id=1, user_id=1)]
    views.append(await setup.ask("x" * 900, channel_id=200, guild_id=2, user_id=2))
    views += [await setup.ask("tiny", channel_id=300 + n, guild_id=3 + n, user_id=3 + n) for n in range(4)]
    for view in views:
        await view.ending()
    assert setup.asked()[:2] == ["small", "x" * 900]


# Making and showing


async def test_nothing_waits_for_an_answer_to_be_shown(setup: Setup) -> None:
    first, second = SlowView(), SlowView()
    await setup.ask("one", view=first)
    await setup.ask("two", user_id=2, view=second)
    elsewhere = await setup.ask("elsewhere", channel_id=11, user_id=3)
    assert (await elsewhere.ending()).text == "Hello there."
    await until(lambda: len(setup.engine.dialogs) == 3 and setup.engine.num_running == 0)
    (seen,) = [dialog for dialog in setup.engine.dialogs if dialog[-1].content == "Person 2: two"]
    assert [m.content for m in seen][-3:] == ["Person 1: one", "Hello there.", "Person 2: two"]
    await until(lambda: setup.chat.num_unshown == 2)
    assert setup.chat.num_running == 0
    assert second.updates == []  # it would stand above the end of the answer before it
    second.may_finish.set()
    await asyncio.sleep(0.05)
    assert not second.endings
    first.may_finish.set()
    assert (await first.ending()).text == (await second.ending()).text == "Hello there."


async def test_what_was_held_is_shown_once_the_answer_before_is(setup: Setup) -> None:
    setup.engine.scripts = [Script(), FOREVER]
    first = SlowView()
    await setup.ask("one", view=first)
    await until(lambda: setup.chat.num_unshown)
    second = await setup.ask("two", user_id=2)
    third = await setup.ask("three", user_id=3)
    fourth = await setup.ask("four", user_id=4)
    await until(lambda: len(setup.engine.dialogs) == 2 and setup.engine.generations[1]._num_given > 3)
    assert (second.updates, third.places, fourth.places) == ([], [], [])
    assert second.states == []
    first.may_finish.set()
    await second.shown.wait()
    assert second.states == ["working", "followed"]
    assert len(second.updates[0]) > len("word word word")
    assert (third.places, fourth.places) == ([1], [2])


async def test_an_answer_can_be_acted_on_once_it_is_shown(setup: Setup) -> None:
    view = SlowView()
    await setup.ask("one", view=view)
    await until(lambda: setup.chat.num_unshown)
    ref = ConversationRef(10, ConversationKind.CHANNEL, 1)
    with pytest.raises(AnswerPendingError):
        await setup.chat.regenerate(10, view.answer_id, RecordingView())
    with pytest.raises(AnswerPendingError):
        await setup.chat.steering.undo(ref, lambda _: True)
    assert not setup.chat.stop(view.answer_id)
    view.may_finish.set()
    await view.ending()
    await until(lambda: not setup.chat.num_unshown)
    await setup.chat.steering.undo(ref, lambda _: True)
    assert await setup.stored() == []


async def test_of_an_answer_that_is_reset_before_it_is_shown_nothing_is_shown(setup: Setup) -> None:
    first, second = SlowView(), SlowView()
    await setup.ask("one", view=first)
    await setup.ask("two", user_id=2, view=second)
    await until(lambda: setup.chat.num_unshown == 2)
    await setup.chat.memory.reset(ConversationRef(10, ConversationKind.CHANNEL, 1), by_user_id=9, at=NOW)
    for view in (first, second):
        view.may_finish.set()
    ending = await second.ending()
    assert (ending.text, ending.note, ending.can_regenerate) == ("", phrase("answer.stopped_reset"), False)


async def test_how_many_are_still_to_be_shown_is_bounded(setup: Setup) -> None:
    view = SlowView()
    await setup.ask("0", view=view)
    for number in range(1, 9):
        await setup.ask(f"{number}", user_id=number + 1)
    await until(lambda: setup.chat.num_unshown == 9)
    with pytest.raises(Exception, match="8 questions are already waiting"):
        await setup.ask("one too many", user_id=50)
    view.may_finish.set()


# The moderation model


@pytest.mark.parametrize("guard", [ScriptedEngine(scripts=[SLOW_VERDICT, Script(("safe",))])])
async def test_a_slow_verdict_keeps_nobody_in_the_conversation_waiting(setup: Setup) -> None:
    first = await setup.ask("one")
    await until(lambda: setup.guard.num_running == 1)
    other = await setup.ask("two", user_id=2)
    more = RecordingView()
    await setup.ask("and more", user_id=1, view=more)
    reset = await setup.chat.memory.reset(
        ConversationRef(10, ConversationKind.CHANNEL, 1), by_user_id=9, at=NOW
    )
    assert reset.num_messages == 6
    for view in (first, other, more):
        assert (await view.ending()).note == phrase("answer.stopped_reset")


@pytest.mark.parametrize(
    "guard",
    [
        ScriptedEngine(
            respond=lambda dialog: Script(("unsafe",) if "evil" in str(dialog) else ("safe",), 0.05)
        )
    ],
)
async def test_what_joins_a_question_while_it_is_judged_is_judged_too(setup: Setup) -> None:
    view = await setup.ask("a harmless question")
    await until(lambda: setup.guard.num_running == 1)
    await setup.ask("with an evil end")
    ending = await view.ending()
    assert (ending.state, ending.text) == (MessageState.FAILED, "")
    assert setup.engine.dialogs == []


@pytest.mark.parametrize("guard", [ScriptedEngine(scripts=[Script(("safe",))])])
async def test_a_question_is_judged_once_whatever_changes_around_it(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    running = await setup.ask("long", channel_id=11, user_id=2)
    await until(lambda: setup.engine.num_running)
    view = await setup.ask("hi")
    await view.told.wait()
    num_verdicts = len(setup.guard.dialogs)
    setup.chat.reread()
    setup.chat.stop(running.answer_id)
    await view.ending()
    questions = [str(dialog) for dialog in setup.guard.dialogs[num_verdicts:]]
    assert not [text for text in questions if "Agent: " not in text]


@pytest.mark.parametrize("guard", [ScriptedEngine(scripts=[SLOW_VERDICT])])
async def test_a_question_that_is_judged_can_be_stopped(setup: Setup) -> None:
    view = await setup.ask("one")
    await until(lambda: setup.guard.num_running == 1)
    setup.chat.stop(view.answer_id)
    assert (await view.ending()).note == phrase("answer.stopped")
    assert setup.guard.num_running == 0


@pytest.mark.parametrize("guard", [ScriptedEngine(max_requests=1, scripts=[Script(("safe",), 0.02)])])
async def test_verdicts_wait_for_one_another(setup: Setup) -> None:
    setup.engine.max_requests = 8
    views = [await setup.ask("hi", channel_id=20 + n, user_id=n) for n in range(4)]
    for view in views:
        assert (await view.ending()).state is MessageState.COMPLETE


# The gate, once more


async def test_who_opts_out_while_waiting_at_the_entrance_is_not_answered(setup: Setup) -> None:
    ref = ConversationRef(10, ConversationKind.CHANNEL, 1)
    async with setup.chat._queues.entrance(10):
        asking = asyncio.create_task(setup.ask("hi"))
        blocked = asyncio.create_task(setup.ask("hi", user_id=2))
        forbidden = asyncio.create_task(setup.ask("a secret", user_id=3))
        await until(lambda: setup.chat._queues._lanes[10].num_visitors == 4)
        await setup.people.opt_out(1)
        await setup.moderation.blocks.add(1, 2, by_user_id=9, at=NOW)
        await setup.moderation.servers.change(1, {"question_words": ["secret"]}, by_user_id=9)
    for task, error in ((asking, OptedOutError), (blocked, BlockedError), (forbidden, ForbiddenTextError)):
        with pytest.raises(error):
            await task
    assert await setup.conversations.recent(await setup.conversations.open(ref), 9) == []


async def test_what_is_decided_while_a_question_waits_for_the_engine_counts(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    running = await setup.ask("hi")
    await running.shown.wait()
    out = await setup.ask("one", channel_id=11, user_id=2)
    word = await setup.ask("my secret", channel_id=12, user_id=3)
    fine = await setup.ask("three", channel_id=13, user_id=4)
    await asyncio.gather(*(view.told.wait() for view in (out, word, fine)))
    await setup.people.opt_out(2)  # the command would end it at once; whatever else may do it counts too
    await setup.moderation.servers.change(1, {"question_words": ["secret"]}, by_user_id=9)
    setup.chat.stop(running.answer_id)
    assert (await fine.ending()).state is MessageState.COMPLETE
    for view, error in ((out, OptedOutError()), (word, ForbiddenTextError())):
        ending = await view.ending()
        assert (ending.text, ending.note, ending.can_regenerate) == ("", sentence_for(error), False)
    assert await setup.stored(11) == await setup.stored(12) == []
    assert setup.asked() == ["hi", "three"]


async def test_a_regeneration_that_is_not_allowed_any_more_leaves_the_answer(setup: Setup) -> None:
    setup.engine.scripts = [Script(("old",)), FOREVER]
    view = await setup.ask("hi")
    await view.ending()
    running = await setup.ask("long", channel_id=11, user_id=2)
    await running.shown.wait()
    await until(lambda: not setup.chat.num_unshown)
    again = RecordingView()
    await setup.chat.regenerate(10, view.answer_id, again, Origin(1, 10, 1))
    await again.told.wait()
    await setup.moderation.blocks.add(1, 1, by_user_id=9, at=NOW)
    setup.chat.stop(running.answer_id)
    ending = await again.ending()
    assert (ending.text, ending.note) == ("old", sentence_for(BlockedError()))
    assert await setup.stored() == [(Role.USER, "hi"), (Role.ASSISTANT, "old")]


# What is deleted or edited on the way


@pytest.mark.parametrize("waits_at", ["gate", "entrance"])
async def test_a_question_that_is_deleted_before_it_is_stored_is_not_stored(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, waits_at: str
) -> None:
    go_on = asyncio.Event()
    gate = setup.moderation.gate
    held = gate.admit if waits_at == "gate" else gate.readmit

    async def hold(origin: Origin, text: str) -> None:
        await go_on.wait()
        await held(origin, text)

    monkeypatch.setattr(gate, "admit" if waits_at == "gate" else "readmit", hold)
    asking = asyncio.create_task(setup.ask("to be deleted", discord_id=77))
    await asyncio.sleep(0.01)
    deleting = asyncio.create_task(setup.chat.upkeep.message_deleted(10, 77))
    await asyncio.sleep(0.01)
    go_on.set()
    with pytest.raises(QuestionGoneError):
        await asking
    await deleting
    assert await setup.stored() == []
    assert setup.engine.dialogs == []


async def test_a_prompt_that_waits_loses_what_is_deleted_and_gets_what_is_edited(setup: Setup) -> None:
    setup.engine.scripts = [Script(("ok",)), FOREVER, Script()]
    await (await setup.ask("a secret", discord_id=70)).ending()
    running = await setup.ask("long", channel_id=11, user_id=2)
    await running.shown.wait()
    view = await setup.ask("waiting", discord_id=71)
    await view.told.wait()
    await setup.chat.upkeep.message_deleted(10, 70)
    await setup.chat.upkeep.question_edited(10, 71, "edited")
    setup.chat.stop(running.answer_id)
    await view.ending()
    assert [m.content for m in setup.engine.dialogs[-1] if m.role != "system"] == ["edited"]


async def test_a_prompt_that_waits_loses_a_quote_whose_message_is_deleted(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    running = await setup.ask("long", channel_id=11, user_id=2)
    await running.shown.wait()
    view = await setup.ask("Is it?", quotes=(Quote("Bob", "a secret", discord_id=77, author_id=3),))
    await view.told.wait()
    await setup.chat.upkeep.message_deleted(10, 77)
    setup.chat.stop(running.answer_id)
    await view.ending()
    assert setup.asked()[-1] == "Is it?"


async def test_somebody_who_is_forgotten_is_not_answered_whatever_is_on_its_way(setup: Setup) -> None:
    async with setup.chat._queues.entrance(10):
        asking = asyncio.create_task(setup.ask("hi"))
        await until(lambda: setup.chat._queues._lanes[10].num_visitors == 2)
        await setup.chat.drop_person(1)
    with pytest.raises(QuestionGoneError):
        await asking
    assert await setup.stored() == []


# Faults


async def test_an_intake_that_fails_leaves_no_answer_behind(setup: Setup) -> None:
    elsewhere = ConversationRef(99, ConversationKind.CHANNEL, 1)
    setup.conversations.finds = lambda ref: ref != elsewhere
    with pytest.raises(StorageFullError):
        await setup.ask("hi", settings_of=elsewhere)
    assert await setup.stored() == []
    setup.conversations.finds = lambda _: True
    assert (await (await setup.ask("hi")).ending()).state is MessageState.COMPLETE


async def test_a_view_that_fails_when_it_is_opened_ends_its_answer(setup: Setup) -> None:
    class Broken(RecordingView):
        def opened(self, answer_id: int, parts: object) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        await setup.ask("hi", view=Broken())
    newest = await setup.conversations.turns.newest(
        await setup.conversations.open(ConversationRef(10, ConversationKind.CHANNEL, 1))
    )
    assert newest is None or newest.answer.state is MessageState.FAILED


async def test_a_message_that_joins_a_question_brings_its_notes(setup: Setup) -> None:
    setup.engine.scripts = [Script(("ok",), first_delay_s=0.1)]
    note = phrase("files.image")
    view = await setup.ask("Look", notes=(phrase("answer.quote_unseen"),))
    await setup.ask("at this", notes=(note,))
    await setup.ask("and this", notes=(note,))
    ending = await view.ending()
    assert ending.note is not None
    assert ending.note.count(str(note)) == 1
    assert str(phrase("answer.quote_unseen")) in ending.note


async def test_questions_wait_while_the_model_is_changed_and_are_prepared_for_the_new_one(
    setup: Setup,
) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    running = await setup.ask("long", channel_id=11, user_id=2)
    await running.shown.wait()
    view = await setup.ask("hi")
    await view.told.wait()
    draining = asyncio.create_task(setup.chat.drain(10))
    await asyncio.sleep(0)
    setup.chat.stop(running.answer_id, StopReason.USER)
    assert await draining
    setup.engine._fitted.clear()  # the new model knows nothing of prompts for the old one
    setup.engine.health = Health.READY
    setup.chat.resume()
    assert (await view.ending()).text == "Hello there."
