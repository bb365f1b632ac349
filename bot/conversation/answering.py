"""Makes one answer: history, prompt, its turn in the waiting room, text; stored, then shown.

Every answer ends exactly once, and holds room in the engine only while its text is made. Knows nothing of
queues and of Discord.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bot.conversation.dialog import spoken
from bot.conversation.jobs import Job, StopReason, session_of
from bot.conversation.mentions import label
from bot.conversation.outcome import STOP_NOTES, Outcome, can_go_on, outcome_of
from bot.conversation.preferences import Preferences, Surroundings
from bot.conversation.prompting import MAX_MESSAGES, FittedPrompt, Prompts, fit_history, with_talk
from bot.conversation.talk import SHARE, Ears, Heard, Moment, NoEars, lately
from bot.conversation.upkeep import Checkpointer
from bot.conversation.views import Ending
from bot.errors import RefusalError, WithheldError, is_expected, sentence_for
from bot.language.phrases import packed, phrase, together
from bot.parameters import ChatParameters, apply_overrides
from bot.servers.moderation import Gate
from bot.servers.screening import Screen, Screening
from engine.types import Completion, Generation, Prompt, SamplingParams, TextEngine
from engine.waiting.room import WaitingRoom, end
from storage.conversations import ConversationRef, Conversations, Message, MessageState, Role

_log = logging.getLogger(__name__)

_FORGOTTEN = {StopReason.QUESTION_DELETED, StopReason.RESET}
"""The answer is deleted, or about to be."""
_UNSEEN = {*_FORGOTTEN, StopReason.FORGOTTEN, StopReason.BLOCKED}
"""Nothing is shown that was not shown before."""
THINKING_INTERVAL_S = 3.0
"""How often the seconds of thinking are told."""

Answered = Callable[[MessageState, Completion | None], None]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the model is to be given. `text`: what the asker wrote of the question."""

    prompt: Prompt
    params: SamplingParams
    text: str


class Answering:
    """Makes answers with one engine and one store. `on_answered` learns how each ended, and what it took."""

    def __init__(
        self,
        engine: TextEngine,
        room: WaitingRoom,
        conversations: Conversations,
        preferences: Preferences,
        *,
        gate: Gate | None = None,
        screening: Screening | None = None,
        on_answered: Answered | None = None,
    ) -> None:
        self.ears: Ears = NoEars()
        """Knows what was said in a channel besides; whoever gets its messages sets it."""
        self._engine = engine
        self._room = room
        self._conversations = conversations
        self._preferences = preferences
        self._gate = gate
        self._screening = screening
        self._on_answered = on_answered

    async def make(self, job: Job, tell: Callable[[int], None]) -> Ending:
        """Make and store the answer of `job`. Raises only `CancelledError`.

        `tell` learns its place among those who wait for the engine, and 0 when it begins.
        """
        outcome = await self._make(job, tell)
        ending = await self._store(job, outcome)
        _log.info("Answer %d is %s%s", job.answer_id, outcome.state, _told(outcome.completion))
        if job.stop_reason is None and job.origin is not None:
            ending = dataclasses.replace(ending, waiter_id=job.origin.user_id)
        if self._on_answered is not None:
            self._on_answered(outcome.state, outcome.completion)
        return ending

    async def show(self, job: Job, ending: Ending) -> None:
        """Show how an answer ended. Raises only `CancelledError`."""
        reason = job.stop_reason
        if reason in _UNSEEN and not job.view.has_text and ending.answer_id == job.answer_id:
            note = phrase(STOP_NOTES[reason])
            ending = Ending(ending.answer_id, MessageState.STOPPED, "", note, can_regenerate=False)
        try:
            await job.view.finish(ending)
        except Exception:  # noqa: BLE001 - an answer ends, whatever happens to its view
            _log.exception("Answer %d: its ending could not be shown", job.answer_id)

    async def _make(self, job: Job, tell: Callable[[int], None]) -> Outcome:
        screen: Screen | None = None
        try:
            screen = await self._open_screen(job)
            await self._generate(job, screen, tell)
            return await _screened(outcome_of(job), screen, with_thought=job.view.shows_thoughts)
        except RefusalError as refusal:
            return Outcome(MessageState.STOPPED, "", refusal.sentence, is_refused=True)
        except Exception as error:  # noqa: BLE001 - any fault ends this answer and no other
            if is_expected(error):
                _log.warning("Answer %d failed: %s", job.answer_id, error)
            else:
                _log.exception("Answer %d failed", job.answer_id)
            text = (
                ""
                if screen is None or isinstance(error, WithheldError)
                else job.said(job.text, final=True).answer
            )
            return await _failed(text, sentence_for(error), screen)

    async def _open_screen(self, job: Job) -> Screen:
        if self._screening is None:
            return Screen()
        return await self._screening.open(job.conversation_id, job.asker_id, job.origin)

    async def _generate(self, job: Job, screen: Screen, tell: Callable[[int], None]) -> None:
        """Make the text; anew if the question changes before anything of it is there."""
        try:
            if self._room.has_space and job.stop_reason is None:
                tell(0)
            job.is_stale = job.stop_reason is None
            while job.is_stale and job.stop_reason is None:
                job.is_stale, job.generation, job.text = False, None, ""
                prepared = await job.step(self._prepare(job, screen))
                generation = None if prepared is None else await job.step(self._begin(job, prepared, tell))
                if generation is not None:
                    await self._follow(job, generation, screen)
        finally:
            job.is_made = True
            self._room.leave(job.ticket)

    async def _prepare(self, job: Job, screen: Screen) -> _Prepared:
        """Read the history, have the question judged, and make the prompt."""
        async with job.changing:
            history = await self._conversations.history_before(job.answer_id, limit=MAX_MESSAGES + 1)
        asked = list(itertools.takewhile(lambda message: message.role is Role.USER, reversed(history)))[::-1]
        await screen.check_question("\n".join(spoken(message) for message in asked))
        ref = await self._conversations.ref_of(job.settings_id or job.conversation_id)
        surroundings = self._preferences.surroundings(ref.guild_id, ref.channel_id)
        heard = await self._heard_before(job, asked, ref)
        parameters, fitted = await self._prompt(job, history, surroundings, heard)
        text = "\n".join(spoken(message) for message in asked if message.author_id == job.asker_id)
        # Where answers have an end of their own, a line that begins with a name is part of what is said.
        info = self._engine.info
        stop = () if info.ends_turns or job.begun else fitted.stop
        sampling = dataclasses.replace(parameters.sampling, stop=stop)
        job.reasoning = info.reasoning_when(parameters.thinks)
        names = (surroundings.bot, *(message.author_name for message in asked))
        job.names = tuple(dict.fromkeys(label(name) for name in names if name))
        return _Prepared(fitted.prompt, sampling, "" if job.is_again else text)

    async def _begin(self, job: Job, prepared: _Prepared, tell: Callable[[int], None]) -> Generation:
        """Wait in line, and begin if the question may still be asked when its turn has come."""

        async def begin() -> Generation:
            if self._gate is not None and job.origin is not None:
                await self._gate.readmit(job.origin, prepared.text)
            tell(0)
            if job.begun:
                job.view.update(job.begun)
            _log.info("Answer %d: the engine begins", job.answer_id)
            job.is_seeded = prepared.params.seed is not None
            session = session_of(job.conversation_id)
            job.generation = self._engine.generate(
                prepared.prompt, prepared.params, session=session, tell=tell
            )
            return job.generation

        return await self._room.begin(
            job.ticket,
            self._engine.tokens_needed(prepared.prompt, prepared.params),
            begin,
            tell,
        )

    async def _heard_before(self, job: Job, asked: Sequence[Message], ref: ConversationRef) -> list[Heard]:
        """Return what people said in the channel before a question, as far as the model may be told."""
        job.heard_ids = frozenset()
        if ref.guild_id is None or self._gate is None or not (job.origin and job.origin.reads_back):
            return []
        moment = await self._moment(asked, ref.guild_id, ref.channel_id)
        heard = lately(await self.ears.before(moment), moment)
        heard = await self._gate.may_be_heard(job.origin, heard) if heard else []
        if heard:
            ids = [one.discord_id for one in heard]
            unknown = await self._conversations.beyond_memory(heard[0].channel_id, ids)
            unknown -= {quote.discord_id for message in asked for quote in message.quotes}
            said = "\n".join(spoken(message) for message in asked)
            heard = [one for one in heard if one.discord_id in unknown and one.content not in said]
        job.heard_ids = frozenset(one.discord_id for one in heard)
        return heard

    async def _moment(self, asked: Sequence[Message], guild_id: int, channel_id: int) -> Moment:
        """Return where and when questions were asked; what a thread was opened for, before that."""
        for question in (asked[0], asked[-1]):
            discord_id = next(iter(await self._conversations.parts(question.id)), 0)
            if discord_id == channel_id:
                break
        return Moment(guild_id, channel_id, discord_id, question.created_at)

    async def _prompt(
        self, job: Job, history: Sequence[Message], surroundings: Surroundings, heard: Sequence[Heard]
    ) -> tuple[ChatParameters, FittedPrompt]:
        parameters = await self._preferences.parameters(job.settings_id or job.conversation_id)
        parameters = apply_overrides(parameters, job.overrides)
        told = await self._preferences.summaries(job.conversation_id)
        prompts = Prompts(self._engine, parameters.thinks)
        fitted = await asyncio.to_thread(
            fit_history,
            prompts,
            history,
            self._preferences.system_prompt_of(parameters, surroundings),
            parameters.prompt_budget(self._engine.info.context_length),
            job.begun,
            told,
        )
        if heard:
            context_length = self._engine.info.context_length
            most = int(parameters.prompt_budget(context_length) * SHARE)
            room = parameters.prompt_room(context_length)
            fitted = await asyncio.to_thread(with_talk, prompts, fitted, heard, most, room, job.begun)
        job.view_from = fitted.view_from if fitted.num_left_out else None
        job.loses_sight = job.view_from is not None and not _was_out_of_sight(history, job)
        return parameters, fitted

    async def _follow(self, job: Job, generation: Generation, screen: Screen) -> None:
        """Take the text as it comes, and show and save what of it may be shown."""
        checkpointer = Checkpointer(self._conversations, job.answer_id)
        began_s = told_s = asyncio.get_running_loop().time()
        try:
            async for piece in generation:
                if job.is_stale:
                    continue
                job.text += piece
                if job.view.is_lost:
                    job.stop(StopReason.NOT_SHOWABLE)
                if job.stop_reason is None:
                    said, now_s = job.said(job.text, final=False), asyncio.get_running_loop().time()
                    if said.is_thinking and not said.answer and now_s >= told_s:
                        told_s = now_s + THINKING_INTERVAL_S
                        job.view.thinking(int(now_s - began_s))
                    text = await screen.shown(said.answer.lstrip())
                    if text and job.stop_reason is None:
                        job.view.update(text)
                        checkpointer.offer(text)
        finally:
            await end(generation)
            if job.is_stale and job.stop_reason is None:
                self._room.begin_anew(job.ticket)
            else:
                self._room.leave(job.ticket)
            await checkpointer.wait()

    async def _store(self, job: Job, outcome: Outcome) -> Ending:
        """Store `outcome` and say what is to be shown."""
        is_seen = bool(outcome.text) and outcome.state is not MessageState.FAILED
        view = phrase("answer.view_begins") if is_seen and job.loses_sight else None
        notes = filter(None, (outcome.note, *job.notes, view))
        outcome = dataclasses.replace(outcome, note=together(*notes) or None)
        completion = outcome.completion
        try:
            if outcome.is_refused and not job.is_again:
                job.is_withdrawn = True
                await self._conversations.turns.withdraw(job.answer_id)
            standing = await self._conversations.finish_answer(
                job.answer_id,
                content=outcome.text,
                state=outcome.state,
                finish_reason=None if completion is None else str(completion.finish_reason),
                num_prompt_tokens=None if completion is None else completion.usage.num_prompt_tokens,
                num_tokens=None if completion is None else completion.usage.num_new_tokens,
                view_from=job.view_from,
                note=None if outcome.note is None else packed(outcome.note),
            )
        except Exception as error:  # noqa: BLE001 - what was shown stays, whatever the store says
            _log.warning("Answer %d could not be saved: %s", job.answer_id, error)
            note = together(*filter(None, (outcome.note, phrase("answer.not_saved"))))
            return Ending(
                job.answer_id,
                outcome.state,
                outcome.text,
                note,
                can_regenerate=False,
                thought=outcome.thought,
            )
        if standing is None or job.is_withdrawn or job.stop_reason in _FORGOTTEN:
            return Ending(job.answer_id, outcome.state, outcome.text, outcome.note, can_regenerate=False)
        return Ending(
            standing.id,
            standing.state,
            standing.content,
            outcome.note,
            can_continue=can_go_on(standing),
            is_outdated=job.is_outdated,
            thought=outcome.thought if standing.id == job.answer_id else "",
        )


async def _screened(outcome: Outcome, screen: Screen, *, with_thought: bool = False) -> Outcome:
    """Return `outcome` with the text that may be shown. Raises `WithheldError`."""
    text = (await screen.finished(outcome.text)).strip() if outcome.text else ""
    thought = (await screen.finished(outcome.thought)).strip() if outcome.thought and with_thought else ""
    notes = [note for note in (outcome.note, screen.label if text else None) if note]
    return dataclasses.replace(outcome, text=text, thought=thought, note=together(*notes) or None)


async def _failed(text: str, sentence: str, screen: Screen | None) -> Outcome:
    """Return the outcome of a fault, with what was there before it if that may be shown."""
    try:
        return await _screened(Outcome(MessageState.FAILED, text, sentence), screen or Screen())
    except Exception as error:  # noqa: BLE001 - what could not be screened is not shown
        _log.warning("What was there of an answer is not shown: %s", type(error).__name__)
        return Outcome(MessageState.FAILED, "", sentence)


def _told(completion: Completion | None) -> str:
    """Return what an answer took, for the log."""
    if completion is None:
        return ""
    usage = completion.usage
    return (
        f": {usage.num_prompt_tokens} tokens read, {usage.num_cached_tokens} cached;"
        f" {usage.time_to_first_token_s:.2f} s to first, {usage.num_new_tokens} in {usage.duration_s:.2f} s"
    )


def _was_out_of_sight(history: Sequence[Message], job: Job) -> bool:
    """Tell whether the beginning of the conversation was left out before, and that was said."""
    return any(m.view_from is not None for m in history if m.conversation_id == job.conversation_id)
