"""Bursts, going on, taking back, edits, threads and fair turns, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bot.conversation.jobs import MAX_BURST, Question
from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.errors import NotAllowedError, NothingHereError, NothingToContinueError
from bot.parameters import ChatParameters
from engine.errors import TooManyWaitingError
from engine.types import ChatMessage, FinishReason
from engine.waiting.room import WaitingRoom
from storage.conversations import ConversationKind, ConversationRef, MessageState, Quote
from storage.database import Database
from storage.errors import AnswerPendingError
from storage.settings import SettingsStore
from tests.bot.conversation.test_service import (
    FOREVER,
    GENERAL_CHANNEL,
    NOW,
    RANDOM_CHANNEL,
    FullDisk,
    Setup,
    person,
)
from tests.fakes import RecordingView, Script, ScriptedEngine


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with await Database.open(tmp_path / "test.sqlite3") as database:
        engine, conversations = ScriptedEngine(max_requests=2), FullDisk(database)
        settings = SettingsStore(database)
        room = WaitingRoom(lambda: engine.load, max_waiting=20)
        async with ChatService(engine, conversations, settings, ChatParameters(), room=room) as chat:
            yield Setup(chat, engine, conversations)


def anybody(_asker_id: int | None) -> bool:
    return True


async def test_a_burst_before_the_first_word_is_one_question(setup: Setup) -> None:
    setup.engine.scripts = [Script(("one answer",), delay_s=0.2)]
    first = await setup.ask("Can you help me?", discord_id=1)
    for number, text in enumerate(["It is about tea.", "Green tea."], start=2):
        await setup.ask(text, discord_id=number)
    assert (await first.ending()).text == "one answer"
    assert setup.seen() == ["Can you help me?\nIt is about tea.\nGreen tea."]
    assert [content for *_, content in await setup.stored()] == [
        "Can you help me?",
        "It is about tea.",
        "Green tea.",
        "one answer",
    ]
    await (await setup.ask("More?")).ending()
    assert setup.seen() == ["Can you help me?\nIt is about tea.\nGreen tea.", "one answer", "More?"]


async def test_a_burst_while_another_answer_runs_waits_as_one(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    running = await setup.ask("0", author=person(0))
    await running.shown.wait()
    waiting = await setup.ask("1", author=person(1))
    await setup.ask("2", author=person(1))
    other = await setup.ask("3", author=person(2))
    setup.chat.stop(running.answer_id)
    await waiting.ending()
    assert setup.seen()[-1] == "Person 1: 1\nPerson 1: 2"
    await other.ending()
    assert setup.seen()[-1] == "Person 2: 3"
    assert [text for *_, text in await setup.stored()][2:] == ["1", "2", "Hello there.", "3", "Hello there."]


async def test_what_is_said_after_the_first_word_is_a_question_of_its_own(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    first = await setup.ask("1")
    await first.shown.wait()
    second = await setup.ask("2")
    assert second.places == [1]
    setup.chat.stop(first.answer_id)
    await second.ending()
    assert setup.seen()[-1] == "2"


async def test_a_burst_has_a_bound(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, FOREVER]
    running = await setup.ask("0", author=person(0))
    await running.shown.wait()
    views = [await setup.ask(str(number)) for number in range(MAX_BURST + 1)]
    setup.chat.stop(running.answer_id)
    await views[0].shown.wait()
    assert setup.seen()[-1].count("\n") == MAX_BURST - 1
    assert [view.answer_id > 0 for view in views] == [True, *[False] * (MAX_BURST - 1), True]


async def test_of_a_burst_one_message_is_deleted_and_the_rest_is_answered(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER, Script()]
    running = await setup.ask("0", author=person(0))
    await running.shown.wait()
    waiting = await setup.ask("kept", discord_id=1)
    await setup.ask("typo", discord_id=2)
    await setup.chat.upkeep.message_deleted(10, 2)
    setup.chat.stop(running.answer_id)
    await waiting.ending()
    assert setup.seen()[-1] == "Anna: kept"


@pytest.mark.parametrize("cut", ["length", "stopped"])
async def test_an_answer_that_was_cut_short_is_gone_on_with(setup: Setup, cut: str) -> None:
    if cut == "length":
        setup.engine.scripts = [Script(("One,", " two,"), finish_reason=FinishReason.LENGTH)]
        view = await setup.ask("Count!")
    else:
        setup.engine.scripts = [Script(("One,", " two,", ""), delay_s=0.05, loops=True)]
        view = await setup.ask("Count!")
        await view.shown.wait()
        setup.chat.stop(view.answer_id)
    ending = await view.ending()
    assert ending.can_continue
    begun = ending.text
    setup.engine.scripts = [Script((" three", "."))]
    again = RecordingView()
    await setup.chat.regenerate(10, view.answer_id, again, go_on=True)
    ending = await again.ending()
    assert again.updates[:2] == [begun, f"{begun} three"]
    assert (ending.text, ending.can_continue) == (f"{begun} three.", False)
    assert setup.seen() == ["Count!", begun]
    assert [text for *_, text in await setup.stored()] == ["Count!", f"{begun} three."]


async def test_a_whole_answer_is_not_gone_on_with(setup: Setup) -> None:
    view = await setup.ask("Hi")
    assert not (await view.ending()).can_continue
    with pytest.raises(NothingToContinueError):
        await setup.chat.regenerate(10, view.answer_id, RecordingView(), go_on=True)


async def test_a_continuation_that_fails_keeps_what_was_there(setup: Setup) -> None:
    setup.engine.scripts = [Script(("One,",), finish_reason=FinishReason.LENGTH), Script(fails_after=0)]
    view = await setup.ask("Count!")
    await view.ending()
    again = RecordingView()
    await setup.chat.regenerate(10, view.answer_id, again, go_on=True)
    ending = await again.ending()
    assert (ending.text, ending.can_continue) == ("One,", True)


async def test_undo_takes_back_the_last_turn_with_its_whole_burst(setup: Setup) -> None:
    await (await setup.ask("Hi")).ending()
    setup.engine.scripts = [Script(("answer",), delay_s=0.2)]
    view = await setup.ask("1")
    await setup.ask("2")
    await view.ending()
    turn = await setup.chat.steering.undo(GENERAL_CHANNEL, anybody)
    assert (turn.answer.id, turn.asker_id) == (view.answer_id, 1)
    assert [text for *_, text in await setup.stored()] == ["Hi", "Hello there."]
    await setup.chat.steering.undo(GENERAL_CHANNEL, anybody)
    with pytest.raises(NothingHereError):
        await setup.chat.steering.undo(GENERAL_CHANNEL, anybody)


async def test_undo_is_refused_to_others_and_while_the_answer_is_written(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Hi")
    await view.shown.wait()
    with pytest.raises(NotAllowedError):
        await setup.chat.steering.undo(GENERAL_CHANNEL, lambda asker_id: asker_id == 2)
    with pytest.raises(AnswerPendingError):
        await setup.chat.steering.undo(GENERAL_CHANNEL, anybody)
    assert len(await setup.stored()) == 2


async def test_stop_ends_the_first_answer_that_one_may_end(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    running, waiting = await setup.ask("1"), await setup.ask("2", author=person(2))
    await running.shown.wait()
    assert setup.chat.steering.stop(10, lambda asker_id: asker_id == 102) == waiting.answer_id
    with pytest.raises(NotAllowedError):
        setup.chat.steering.stop(10, lambda asker_id: asker_id == 102)
    assert setup.chat.steering.stop(10, anybody) == running.answer_id
    await running.ending()
    await waiting.ending()
    await asyncio.sleep(0.01)
    with pytest.raises(NothingHereError):
        setup.chat.steering.stop(10, anybody)


async def test_what_is_said_of_a_stop_is_what_is_stored(setup: Setup) -> None:
    """The model comes to its end in the moment of the stop, which was said to count."""
    setup.engine.scripts = [Script(("one ", "two ", "three"), delay_s=0.02)]
    view = await setup.ask("Hi")
    await view.shown.wait()
    setup.engine.generations[-1].cancel = lambda: None  # type: ignore[method-assign]
    assert setup.chat.steering.stop(10, anybody) == view.answer_id
    ending = await view.ending()
    assert (ending.state, ending.note) == (MessageState.STOPPED, "Stopped.")
    assert (await setup.stored())[-1][1:] == (MessageState.STOPPED, "one two three")


async def test_what_is_whole_cannot_be_stopped_any_more(setup: Setup) -> None:
    """Neither while it is being saved, nor while Discord takes its time with the ending."""
    saving, showing = asyncio.Event(), asyncio.Event()
    setup.engine.scripts = [Script(("one ", "two"), delay_s=0.01)]

    class SlowView(RecordingView):
        async def finish(self, ending: Ending) -> None:
            await showing.wait()
            await super().finish(ending)

    async def slowly(answer_id: int, content: str) -> bool:
        await saving.wait()
        return True

    setup.conversations.checkpoint = slowly  # type: ignore[method-assign]
    view = SlowView()
    await setup.chat.ask(Question(GENERAL_CHANNEL, 1, 1, "Anna", "Hi", NOW), view)
    for may_go_on in (saving, showing):
        while not setup.engine.generations or setup.engine.generations[-1].completion is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not setup.chat.stop(view.answer_id)
        with pytest.raises(NothingHereError):
            setup.chat.steering.stop(10, anybody)
        may_go_on.set()
        await asyncio.sleep(0.05)
    assert (await view.ending()).state is MessageState.COMPLETE
    assert (await setup.stored())[-1][1:] == (MessageState.COMPLETE, "one two")


async def test_an_edited_question_is_answered_as_edited_while_nothing_is_said(setup: Setup) -> None:
    setup.engine.scripts = [Script(("answer",), delay_s=0.2)]
    view = await setup.ask("Waht?", discord_id=5)
    assert await setup.chat.upkeep.question_edited(10, 5, "What?") is None
    await view.ending()
    assert setup.seen() == ["What?"]


async def test_an_edit_while_it_is_answered_marks_the_answer(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    view = await setup.ask("Waht?", discord_id=5)
    await view.shown.wait()
    assert await setup.chat.upkeep.question_edited(10, 5, "What?") is None
    setup.chat.stop(view.answer_id)
    assert (await view.ending()).is_outdated


async def test_an_edit_afterwards_offers_the_newest_answer_only(setup: Setup) -> None:
    old = await setup.ask("old", discord_id=5)
    await old.ending()
    view = await setup.ask("new", discord_id=6)
    await view.ending()
    assert await setup.chat.upkeep.question_edited(10, 5, "older") is None
    turn = await setup.chat.upkeep.question_edited(10, 6, "newer")
    assert turn is not None
    assert turn.answer.id == view.answer_id
    assert [text for *_, text in await setup.stored()][::2] == ["older", "newer"]
    assert await setup.chat.upkeep.question_edited(10, 6, "newer") is None
    assert await setup.chat.upkeep.question_edited(10, 999, "unknown") is None


async def test_a_quote_comes_before_the_question_and_goes_with_its_message(setup: Setup) -> None:
    quote = Quote("Bob", "Tea is\nbest.", discord_id=77, author_id=2)
    view = RecordingView()
    await setup.chat.ask(Question(GENERAL_CHANNEL, 1, 1, "Anna", "Is it?", NOW, (quote,)), view)
    await view.ending()
    assert setup.seen() == ["About what Bob wrote:\n> Tea is\n> best.\n\nIs it?"]
    await setup.chat.upkeep.message_deleted(10, 77)
    await (await setup.ask("More?")).ending()
    assert setup.seen()[0] == "Is it?"


async def test_a_question_may_quote_several_messages_and_each_goes_by_itself(setup: Setup) -> None:
    quotes = (
        Quote("Bob", "Tea.", discord_id=77, author_id=2),
        Quote("Eve", "Milk.", 78, 3),
        Quote("", "Ah."),
    )
    view = RecordingView()
    await setup.chat.ask(Question(GENERAL_CHANNEL, 1, 1, "Anna", "Which?", NOW, quotes), view)
    await view.ending()
    assert setup.seen() == [
        "About what Bob wrote:\n> Tea.\n\nAbout what Eve wrote:\n> Milk.\n\n"
        "About what you wrote:\n> Ah.\n\nWhich?"
    ]
    await setup.chat.upkeep.message_deleted(10, 77)
    await (await setup.ask("More?")).ending()
    assert setup.seen()[0] == "About what Eve wrote:\n> Milk.\n\nAbout what you wrote:\n> Ah.\n\nWhich?"


async def test_a_thread_goes_on_from_the_answer_it_was_started_from(setup: Setup) -> None:
    first = await setup.ask("one", discord_id=1)
    await first.ending()
    await setup.conversations.attach_part(first.answer_id, 50, 0)
    await (await setup.ask("two")).ending()
    thread = ConversationRef(50, ConversationKind.THREAD, 1)
    view = RecordingView()
    await setup.chat.ask(Question(thread, 9, 1, "Anna", "in the thread", NOW, starter_id=50), view)
    await view.ending()
    assert setup.seen() == ["one", "Hello there.", "in the thread"]
    await (await setup.ask("three")).ending()
    assert "in the thread" not in setup.seen()
    await setup.chat.upkeep.message_deleted(10, 1)
    view = RecordingView()
    await setup.chat.ask(Question(thread, 10, 1, "Anna", "again", NOW, starter_id=50), view)
    await view.ending()
    assert setup.seen() == ["in the thread", "Hello there.", "again"]


async def test_a_thread_never_goes_on_from_an_answer_of_another_server(setup: Setup) -> None:
    first = await setup.ask("secret")
    await first.ending()
    await setup.conversations.attach_part(first.answer_id, 50, 0)
    foreign = ConversationRef(50, ConversationKind.THREAD, 2)
    view = RecordingView()
    await setup.chat.ask(Question(foreign, 9, 1, "Anna", "hello", NOW, starter_id=50), view)
    await view.ending()
    assert setup.seen() == ["hello"]


async def test_no_more_run_at_once_than_the_engine_takes_and_the_queue_is_bounded(setup: Setup) -> None:
    setup.engine.scripts = [FOREVER]
    views = []
    for number in range(22):
        ref = ConversationRef(100 + number, ConversationKind.CHANNEL, number)
        views.append(await setup.ask("Hi", ref=ref, author=person(number)))
    await asyncio.gather(views[0].shown.wait(), views[1].shown.wait())
    await asyncio.gather(*(view.told.wait() for view in views[2:]))
    assert setup.engine.num_running == 2
    assert [view.places[-1] for view in views[2:6]] == [1, 2, 3, 4]
    assert all(view.waits_for_others for view in views[2:])
    with pytest.raises(TooManyWaitingError):
        await setup.ask("Hi", ref=RANDOM_CHANNEL, author=person(50))
    setup.chat.stop(views[0].answer_id)
    await views[2].shown.wait()
    assert setup.engine.num_running == 2
    assert views[3].places[-1] == 1


async def test_a_place_is_said_of_the_queue_that_one_waits_in(setup: Setup) -> None:
    """Who is first in a conversation where nothing runs waits for other conversations, the rest for it."""
    setup.engine.scripts = [FOREVER]
    refs = [ConversationRef(100 + number, ConversationKind.CHANNEL, number) for number in range(4)]
    running = [await setup.ask("Hi", ref=ref, author=person(number)) for number, ref in enumerate(refs[:2])]
    first = await setup.ask("Hi", ref=refs[2], author=person(2))
    head = await setup.ask("Hi", ref=refs[3], author=person(3))
    behind = await setup.ask("Hi", ref=refs[3], author=person(4))
    here = await setup.ask("Hi", ref=refs[0], author=person(5))
    await asyncio.gather(*(view.told.wait() for view in (first, head)))
    assert [(view.places[-1], view.waits_for_others) for view in (first, head, behind, here)] == [
        (1, True),
        (2, True),
        (2, False),
        (1, False),
    ]
    setup.chat.stop(running[1].answer_id)
    await first.shown.wait()
    assert (head.places[-1], head.waits_for_others) == (1, True)


async def test_a_busy_server_does_not_keep_a_quiet_one_waiting(setup: Setup) -> None:
    """One person asks in twelve channels of a server; somebody in another server comes last, and is next."""
    order: list[str] = []

    def respond(dialog: Sequence[ChatMessage]) -> Script:
        order.append(dialog[-1].content)
        return Script(("ok",), 1.5 if len(order) <= 2 else 0.01)

    setup.engine.respond = respond
    views = []
    for number in range(12):
        ref = ConversationRef(100 + number, ConversationKind.CHANNEL, 1)
        views.append(await setup.ask(f"busy {number}", ref=ref))
    quiet = ConversationRef(500, ConversationKind.CHANNEL, 2)
    views.append(await setup.ask("quiet", ref=quiet, author=person(2)))
    for view in views:
        assert (await view.ending()).state is MessageState.COMPLETE
    assert order.index("quiet") == 2
    assert [text for text in order if text != "quiet"] == [f"busy {number}" for number in range(12)]
