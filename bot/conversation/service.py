"""The conversation service: questions in, answers stored and shown; the same for Discord and the terminal.

Owns what may enter and what must end, and stores before it queues. Knows nothing of Discord.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType

from bot.conversation.answering import Answered, Answering
from bot.conversation.catching_up import CatchingUp
from bot.conversation.dialog import with_quotes
from bot.conversation.idle import IdleWork
from bot.conversation.intake import Arrival, Arrivals, Intake
from bot.conversation.jobs import Job, Question, StopReason
from bot.conversation.memory import Memory
from bot.conversation.outcome import can_go_on
from bot.conversation.preferences import Preferences
from bot.conversation.queues import AnswerQueues
from bot.conversation.summing import Summing
from bot.conversation.system_prompts import SystemPrompts
from bot.conversation.talk import Ears, Heard
from bot.conversation.upkeep import Steering, Upkeep
from bot.conversation.views import AnswerView, HeldView
from bot.errors import NothingToContinueError, sentence_for
from bot.language.phrases import packed
from bot.origin import Keys, Origin
from bot.parameters import ChatParameters
from bot.servers.moderation import Gate
from bot.servers.screening import Screening
from bot.servers.servers import Servers
from bot.tasks import Tasks
from engine.tracing import current_trace, new_trace, traced
from engine.types import TextEngine
from engine.waiting.room import WaitingRoom
from storage.conversations import (
    ConversationRef,
    Conversations,
    InterruptedAnswer,
    MessageState,
)
from storage.errors import AnswerPendingError
from storage.settings import SettingsStore

_log = logging.getLogger(__name__)

REPAIR_TIME = timedelta(days=7)
"""How long after its end an answer whose ending never reached its readers is still shown to them."""
MAX_REPAIRED = 1000
"""Such answers, at one start."""
Settle = Callable[[Question, AnswerView], Awaitable[tuple[Question, AnswerView]]]
"""Says where a question is to be asked, and what shows its answer. Raises `StorageError`."""
MAX_WAITING = 8
"""Questions that may wait in one conversation besides the one being answered."""


class ChatService:
    """Answers questions, each conversation's in order. An async context manager; closing twice is fine."""

    def __init__(
        self,
        engine: TextEngine,
        conversations: Conversations,
        settings: SettingsStore,
        defaults: ChatParameters,
        *,
        gate: Gate | None = None,
        servers: Servers | None = None,
        screening: Screening | None = None,
        on_answered: Answered | None = None,
        on_removed: Callable[[], None] = lambda: None,
        room: WaitingRoom | None = None,
        may_work_ahead: Callable[[], bool] | None = None,
        sums_up: Callable[[], bool] = lambda: False,
        shutdown_grace_s: float = 0.0,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`on_removed`: called where texts were removed because somebody asked for it, so that nothing keeps
        them. `room`: the engine's, where others use the engine too. `may_work_ahead`: whether the machine is
        free for what next questions may need; without it nothing is done ahead. `sums_up`: whether what is
        let go of a history is summed up meanwhile. `shutdown_grace_s`: how long `close` lets answers in the
        making come to their end.
        """
        self.engine = engine
        self.conversations = conversations
        self.preferences = Preferences(engine, conversations, settings, defaults, servers, sums_up)
        self.system_prompts = SystemPrompts(self.preferences, engine, conversations, settings, servers)
        self._gate = gate
        self._intake = Intake(engine, conversations, self.preferences)
        self._shutdown_grace_s = shutdown_grace_s
        room = room or WaitingRoom(lambda: engine.load)
        self._answering = answering = Answering(
            engine,
            room,
            conversations,
            self.preferences,
            gate=gate,
            screening=screening,
            on_answered=on_answered,
        )
        self.idle = IdleWork(
            engine,
            room,
            conversations,
            self.preferences,
            summing=Summing(engine, room, screening),
            may_work=may_work_ahead or (lambda: False),
        )
        self.catching_up = CatchingUp(engine, room, gate, screening)
        self._works_ahead = may_work_ahead is not None
        self._tasks = Tasks()
        self._queues = AnswerQueues(answering, room, max_waiting=max_waiting)
        self.arrivals = Arrivals()
        self.memory = Memory(self._queues, conversations, on_removed)
        self.steering = Steering(self._queues, conversations, on_removed)
        self.upkeep = Upkeep(
            self._queues, self.arrivals, conversations, self._intake.check_prompt, on_removed
        )

    async def __aenter__(self) -> ChatService:
        if self._works_ahead:
            self._tasks.start(self.idle.run(), "what is done while nobody asks")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self, question: Question, view: AnswerView) -> int:
        """Store the question, queue its answer and return the answer's id.

        Raises, before anything is stored, what `bot.errors.sentence_for` has a sentence for;
        `DuplicateMessageError` for a question that is known already, and `QuestionGoneError` for one that was
        deleted meanwhile.
        """
        channel_id = question.conversation.channel_id
        with self.arrivals.enter(channel_id, question.discord_id, question.author_id) as arrival:
            return await self.take(question, view, arrival)

    async def take(
        self, question: Question, view: AnswerView, arrival: Arrival, settle: Settle | None = None
    ) -> int:
        """Do as `ask` does with a question that stands in the line of arrivals.

        `settle` is told once it may be asked, and may have it asked and answered somewhere else.
        """
        with traced(current_trace() or new_trace()):
            return await self._take(question, view, arrival, settle)

    async def _take(
        self, question: Question, view: AnswerView, arrival: Arrival, settle: Settle | None
    ) -> int:
        channel_id, origin = question.conversation.channel_id, question.asked_from
        text = with_quotes(question.content, question.quotes)
        if self._gate is not None:
            await self._gate.admit(origin, text)
        if settle is not None:
            await self._intake.check(question)
            arrival.check()
            question, view = await settle(question, view)
            channel_id = question.conversation.channel_id
        async with self._queues.place(channel_id, _keys(origin, channel_id)) as ticket:
            if self._gate is not None:
                await self._gate.readmit(origin, text)  # it may have waited at the entrance
            content, conversation_id = await self._intake.check(question)
            arrival.check()
            self.ears.taken(origin.channel_id, question.discord_id)
            last = self._queues.last(channel_id)
            if last is not None and await self._intake.ask_on(last, question, content):
                await self._forget_gone(question)
                _log.info("Answer %d: its question goes on", last.answer_id)
                return last.answer_id
            arrival.check()
            job = await self._intake.begin(conversation_id, question, content, view, ticket)
            await self._forget_gone(question)
            age_s = (datetime.now(UTC) - question.created_at).total_seconds()
            _log.info("Answer %d: its question was written %.1f s ago", job.answer_id, max(0.0, age_s))
            await self._start(channel_id, job)
        return job.answer_id

    async def _forget_gone(self, question: Question) -> None:
        """Forget what a question quotes that was deleted while it was on its way."""
        for quote in self.arrivals.gone_of(question):
            await self.conversations.turns.forget_quotes(quote.discord_id)

    async def regenerate(
        self,
        channel_id: int,
        answer_id: int,
        view: AnswerView,
        origin: Origin | None = None,
        *,
        go_on: bool = False,
    ) -> int:
        """Queue another answer to the question of the newest answer and return the new one's id.

        `origin` is whoever asks for it. With `go_on` the answer begins with the text of the old one. Raises a
        `RefusalError` where they may not ask here now, `NotFoundError` for an answer that is not the newest,
        gone or not ended yet, and `NothingToContinueError` for one that is whole.
        """
        with traced(current_trace() or new_trace()):
            return await self._regenerate(channel_id, answer_id, view, origin, go_on=go_on)

    async def _regenerate(
        self, channel_id: int, answer_id: int, view: AnswerView, origin: Origin | None, *, go_on: bool
    ) -> int:
        if self._gate is not None and origin is not None:
            await self._gate.admit(origin, "")
        keys = _keys(origin or Origin(0, channel_id), channel_id)
        async with self._queues.place(channel_id, keys) as ticket:
            self._intake.check_engine()
            self._check_shown(answer_id)
            parts = await self.conversations.parts(answer_id)
            asker_id = await self.asker_of(answer_id)
            if go_on:
                await self._check_continuable(answer_id)
                answer = await self.conversations.turns.begin_continuation(answer_id)
            else:
                answer = await self.conversations.begin_regeneration(answer_id)
            job = Job(answer.id, answer.conversation_id, asker_id, HeldView(view), ticket, origin)
            job.begun, job.view_from, job.is_again = answer.content, answer.view_from, True
            _log.info("Answer %d: wanted in the place of answer %d", answer.id, answer_id)
            await self._start(channel_id, job, parts)
        return answer.id

    def takes(self, channel_id: int, author_id: int) -> bool:
        """Tell whether what a person adds in a conversation now joins their question."""
        last = self._queues.last(channel_id)
        return last is not None and last.takes(author_id)

    @property
    def ears(self) -> Ears:
        """What knows what is said in channels besides."""
        return self._answering.ears

    @ears.setter
    def ears(self, ears: Ears) -> None:
        self._answering.ears = ears

    def unsay(self, discord_id: int) -> None:
        """Learn that a message that was not for us was edited or deleted."""
        self._queues.unsay(discord_id)

    async def admit(self, origin: Origin) -> None:
        """Count work that somebody has us do besides questions. Raises a `RefusalError`."""
        if self._gate is not None:
            await self._gate.admit(origin, "")

    async def may_be_heard(self, origin: Origin, heard: Sequence[Heard]) -> Sequence[Heard]:
        """Return what may be told of what people said where somebody asks."""
        return heard if self._gate is None or not heard else await self._gate.may_be_heard(origin, heard)

    async def fitting(self, ref: ConversationRef, text: str, share: float) -> int:
        """Return how many characters of a text fit into a share of what a question may take."""
        return await self._intake.fitting(ref, text, share)

    async def precheck(self, origin: Origin) -> None:
        """Raise the `RefusalError` of somebody who may ask nothing now, before anything is done for it."""
        if self._gate is not None:
            await self._gate.precheck(origin)

    async def check_text(self, origin: Origin, text: str) -> None:
        """Raise the `RefusalError` of a text that the server does not allow."""
        if self._gate is not None:
            await self._gate.check_text(origin, text)

    async def is_shown_by(self, answer_id: int, discord_id: int) -> bool:
        """Tell whether a Discord message shows part of an answer."""
        job = self._queues.find(answer_id)
        if job is not None and discord_id in job.view.part_ids:
            return True
        return discord_id in await self.conversations.parts(answer_id)

    async def is_our_thread(self, thread_id: int) -> bool:
        """Tell whether a thread was started from an answer of ours: its id is that of the message."""
        message = await self.conversations.find_by_discord_id(thread_id)
        return message is not None and message.author_id is None

    async def asker_of(self, answer_id: int) -> int | None:
        """Return who asked the question that `answer_id` answers, or None if that is not known."""
        job = self._queues.find(answer_id)
        if job is not None:
            return job.asker_id
        question = await self.conversations.history_before(answer_id, limit=1)
        return question[-1].author_id if question else None

    def stop(self, answer_id: int, reason: StopReason = StopReason.USER) -> bool:
        """End a running or waiting answer; return whether there was one."""
        return self._queues.stop(answer_id, reason)

    async def drain(self, timeout_s: float) -> bool:
        """Let nothing more begin, and wait until nothing runs; return whether that came about in time."""
        return await self._queues.drain(timeout_s)

    def resume(self) -> None:
        """Let answers begin again."""
        self._queues.resume()
        self.note_change()

    def begin_anew(self) -> None:
        """Have prompts made anew, since the model is another one now."""
        self._queues.reread()
        self.note_change()

    def note_change(self) -> None:
        """Learn that something was written, or that the engine let go of what it kept."""
        self.idle.note_change()

    def place_gone(self, channel_id: int) -> None:
        """End every answer in a channel that is there no more."""
        self._queues.stop_conversation(channel_id, StopReason.NOT_SHOWABLE)

    def server_gone(self, guild_id: int) -> None:
        """End every answer on a server that we are in no more."""
        self._queues.stop_server(guild_id, StopReason.NOT_SHOWABLE)

    def is_unshown(self, answer_id: int) -> bool:
        """Tell whether an answer is being made or shown."""
        return self._queues.find(answer_id) is not None

    def out_of_time(self, answer_id: int) -> None:
        """End an answer that can be shown no longer, if it has not ended."""
        self.stop(answer_id, StopReason.OUT_OF_TIME)

    async def drop_person(
        self, user_id: int, reason: StopReason = StopReason.FORGOTTEN, *, guild_id: int | None = None
    ) -> int:
        """End every answer to a person who is not to be answered any more, and forget what still waited.

        Everywhere, or on one server. Return how many answers there were.
        """
        if guild_id is None:
            self.arrivals.withdraw(author_id=user_id)
            self.ears.forget(user_id)
        jobs = self._queues.stop_asker(user_id, reason, guild_id)
        unanswered = [job for job in jobs if not job.is_again and not job.text.strip()]
        for job in unanswered:
            job.is_withdrawn = True
        for job in unanswered:
            await self.conversations.turns.withdraw(job.answer_id)
        self._queues.reread()
        return len(jobs)

    def reread(self) -> None:
        """Have answers that are still to be made not go on from texts that were removed."""
        self._queues.reread()

    async def interrupt_pending(self) -> list[InterruptedAnswer]:
        """Mark what an earlier run left unfinished. Call once, before the first question.

        Return it, and the newest answers that ended and may still be shown as if they had not, in order.
        """
        interrupted = await self.conversations.interrupt_pending()
        unshown = await self.conversations.unshown(within=REPAIR_TIME, limit=MAX_REPAIRED)
        found = {one.answer.id: one for one in (*interrupted, *unshown)}
        return [found[answer_id] for answer_id in sorted(found)]

    async def close(self, *, is_late: bool = False) -> None:
        """Refuse further questions, and let every answer end or, after the grace, stop and mark it.

        is_late: others have marked them already, and there is no grace.
        """
        await self._tasks.close()
        await self._queues.close(grace_s=0.0 if is_late else self._shutdown_grace_s)

    @property
    def num_running(self) -> int:
        """Answers being made."""
        return self._queues.num_running

    @property
    def num_waiting(self) -> int:
        """Questions that wait for their turn."""
        return self._queues.num_waiting

    @property
    def num_unshown(self) -> int:
        """Answers that are made and still to be shown to their end."""
        return self._queues.num_unshown

    async def _start(self, channel_id: int, job: Job, parts: Sequence[int] = ()) -> None:
        """Queue a job whose answer is stored; if that cannot be, the answer ends."""
        try:
            job.view.opened(job.answer_id, parts)
            self._queues.add(channel_id, job)
        except Exception as error:
            await self.conversations.finish_answer(
                job.answer_id,
                content="",
                state=MessageState.FAILED,
                finish_reason=None,
                num_prompt_tokens=None,
                num_tokens=None,
                note=packed(sentence_for(error)),
            )
            raise

    def _check_shown(self, answer_id: int) -> None:
        """Raise `AnswerPendingError` for an answer that is still to be shown to its end."""
        if self._queues.find(answer_id) is not None:
            raise AnswerPendingError

    async def _check_continuable(self, answer_id: int) -> None:
        answer = await self.conversations.find_answer(answer_id)
        if answer is not None and answer.state is not MessageState.PENDING and not can_go_on(answer):
            raise NothingToContinueError


def _keys(origin: Origin, channel_id: int) -> Keys:
    """Return who takes turns: as by the origin, in the conversation that is answered in."""
    return dataclasses.replace(origin, channel_id=channel_id).keys
