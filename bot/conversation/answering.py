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

from bot.conversation.checkpointer import Checkpointer
from bot.conversation.dialog import spoken
from bot.conversation.jobs import Ending, Job, StopReason
from bot.conversation.preferences import Preferences
from bot.conversation.prompting import MAX_MESSAGES, FittedPrompt, fit_history
from bot.errors import RefusalError, is_expected, sentence_for
from bot.language.phrases import Phrase, packed, phrase, together
from bot.parameters import ChatParameters, apply_overrides
from bot.safety.screening import OpenScreen, Screen, Screening, WithheldError
from bot.servers.gate import Gate
from engine.types import Completion, FinishReason, Generation, Prompt, SamplingParams, TextEngine
from engine.waiting.room import WaitingRoom, end
from storage.conversations import Conversations, Message, MessageState, Role

_log = logging.getLogger(__name__)

_STOP_NOTES = {
    StopReason.USER: "answer.stopped",
    StopReason.QUESTION_DELETED: "answer.stopped_question_deleted",
    StopReason.OUT_OF_TIME: "answer.stopped_out_of_time",
    StopReason.RESET: "answer.stopped_reset",
    StopReason.FORGOTTEN: "answer.stopped_forgotten",
    StopReason.BLOCKED: "answer.stopped_blocked",
    StopReason.NOT_SHOWABLE: "answer.stopped_not_showable",
    StopReason.SHUTDOWN: "answer.interrupted",
}
"""Why an answer was stopped, said below it; not where nobody can see it."""
_FORGOTTEN = {StopReason.QUESTION_DELETED, StopReason.RESET}
"""The answer is deleted, or about to be."""
_UNSEEN = {*_FORGOTTEN, StopReason.FORGOTTEN, StopReason.BLOCKED}
"""Nothing is shown that was not shown before."""


Answered = Callable[[MessageState, Completion | None], None]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came out, before it is stored."""

    state: MessageState
    text: str
    note: str | None = None
    completion: Completion | None = None
    is_refused: bool = False
    """The question may not be asked any more."""


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
        screening: Screening,
        sums_up: Callable[[], bool] = lambda: False,
        on_answered: Answered | None = None,
    ) -> None:
        self._engine = engine
        self._room = room
        self._conversations = conversations
        self._preferences = preferences
        self._gate = gate
        self._screening = screening
        self._sums_up = sums_up
        self._on_answered = on_answered

    async def make(self, job: Job, tell: Callable[[int], None]) -> Ending:
        """Make and store the answer of `job`. Raises only `CancelledError`.

        `tell` learns its place among those who wait for the engine, and 0 when it begins.
        """
        outcome = await self._make(job, tell)
        if self._on_answered is not None:
            self._on_answered(outcome.state, outcome.completion)
        return await self._store(job, outcome)

    async def show(self, job: Job, ending: Ending) -> None:
        """Show how an answer ended. Raises only `CancelledError`."""
        reason = job.stop_reason
        if reason in _UNSEEN and not job.view.has_text and ending.answer_id == job.answer_id:
            note = phrase(_STOP_NOTES[reason])
            ending = Ending(ending.answer_id, MessageState.STOPPED, "", note, can_regenerate=False)
        try:
            await job.view.finish(ending)
        except Exception:  # noqa: BLE001 - an answer ends, whatever happens to its view
            _log.exception("Answer %d: its ending could not be shown", job.answer_id)

    async def _make(self, job: Job, tell: Callable[[int], None]) -> _Outcome:
        screen: Screen | None = None
        try:
            screen = await self._screening.open(job.conversation_id, job.asker_id, job.origin)
            await self._generate(job, screen, tell)
            return await _screened(_outcome_of(job), screen)
        except RefusalError as refusal:
            return _Outcome(MessageState.STOPPED, "", refusal.sentence, is_refused=True)
        except Exception as error:  # noqa: BLE001 - any fault ends this answer and no other
            if is_expected(error):
                _log.warning("Answer %d failed: %s", job.answer_id, error)
            else:
                _log.exception("Answer %d failed", job.answer_id)
            text = "" if screen is None or isinstance(error, WithheldError) else job.whole_text.strip()
            return await _failed(text, sentence_for(error), screen)

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
        parameters, fitted = await self._prompt(job, history)
        text = "\n".join(spoken(message) for message in asked if message.author_id == job.asker_id)
        sampling = dataclasses.replace(parameters.sampling, stop=fitted.stop)
        return _Prepared(fitted.prompt, sampling, "" if job.is_again else text)

    async def _begin(self, job: Job, prepared: _Prepared, tell: Callable[[int], None]) -> Generation:
        """Wait in line, and begin if the question may still be asked when its turn has come."""

        async def begin() -> Generation:
            if self._gate is not None and job.origin is not None:
                await self._gate.readmit(job.origin, prepared.text)
            tell(0)
            if job.begun:
                job.view.update(job.begun)
            job.generation = self._engine.generate(prepared.prompt, prepared.params)
            return job.generation

        return await self._room.begin(
            job.ticket,
            self._engine.tokens_needed(prepared.prompt, prepared.params),
            begin,
            tell,
        )

    async def _prompt(self, job: Job, history: Sequence[Message]) -> tuple[ChatParameters, FittedPrompt]:
        parameters = await self._preferences.parameters(job.settings_id or job.conversation_id)
        parameters = apply_overrides(parameters, job.overrides)
        told = await self._conversations.summaries.of(job.conversation_id) if self._sums_up() else ()
        fitted = await asyncio.to_thread(
            fit_history,
            self._engine,
            history,
            self._preferences.system_prompt_of(parameters),
            parameters.prompt_budget(self._engine.info.context_length),
            job.begun,
            told,
        )
        job.view_from = fitted.view_from if fitted.num_left_out else None
        job.loses_sight = job.view_from is not None and not _was_out_of_sight(history, job)
        return parameters, fitted

    async def _follow(self, job: Job, generation: Generation, screen: Screen) -> None:
        """Take the text as it comes, and show and save what of it may be shown."""
        checkpointer = Checkpointer(self._conversations, job.answer_id)
        try:
            async for piece in generation:
                if job.is_stale:
                    continue
                job.text += piece
                if job.view.is_lost:
                    job.stop(StopReason.NOT_SHOWABLE)
                if job.stop_reason is None:
                    text = await screen.shown(job.whole_text.lstrip())
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

    async def _store(self, job: Job, outcome: _Outcome) -> Ending:
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
            return Ending(job.answer_id, outcome.state, outcome.text, note, can_regenerate=False)
        if standing is None or job.is_withdrawn or job.stop_reason in _FORGOTTEN:
            return Ending(job.answer_id, outcome.state, outcome.text, outcome.note, can_regenerate=False)
        return Ending(
            standing.id,
            standing.state,
            standing.content,
            outcome.note,
            can_continue=can_go_on(standing),
            is_outdated=job.is_outdated,
        )


async def _screened(outcome: _Outcome, screen: Screen) -> _Outcome:
    """Return `outcome` with the text that may be shown. Raises `WithheldError`."""
    text = (await screen.finished(outcome.text)).strip() if outcome.text else ""
    notes = [note for note in (outcome.note, screen.label if text else None) if note]
    return dataclasses.replace(outcome, text=text, note=together(*notes) or None)


async def _failed(text: str, sentence: str, screen: Screen | None) -> _Outcome:
    """Return the outcome of a fault, with what was there before it if that may be shown."""
    try:
        return await _screened(_Outcome(MessageState.FAILED, text, sentence), screen or OpenScreen())
    except Exception as error:  # noqa: BLE001 - what could not be screened is not shown
        _log.warning("What was there of an answer is not shown: %s", type(error).__name__)
        return _Outcome(MessageState.FAILED, "", sentence)


def _was_out_of_sight(history: Sequence[Message], job: Job) -> bool:
    """Tell whether the beginning of the conversation was left out before, and that was said."""
    return any(m.view_from is not None for m in history if m.conversation_id == job.conversation_id)


def can_go_on(answer: Message) -> bool:
    """Tell whether there is more to come of an answer: it was cut short."""
    is_cut = answer.state is not MessageState.COMPLETE or answer.finish_reason == FinishReason.LENGTH
    return is_cut and answer.state is not MessageState.PENDING and bool(answer.content.strip())


def _outcome_of(job: Job) -> _Outcome:
    completion = None if job.generation is None else job.generation.completion
    text = (job.begun + (job.text if completion is None else completion.text)).strip()
    finish = None if completion is None else completion.finish_reason
    if job.stop_reason is StopReason.ANSWER_DELETED:
        return _Outcome(MessageState.STOPPED, "")
    if job.stop_reason is not None and finish in (None, FinishReason.CANCELLED):
        interrupted = job.stop_reason is StopReason.SHUTDOWN
        state = MessageState.INTERRUPTED if interrupted else MessageState.STOPPED
        key = _STOP_NOTES.get(job.stop_reason)
        return _Outcome(state, text, None if key is None else phrase(key), completion)
    if completion is None or finish is FinishReason.CANCELLED or not text:
        return _Outcome(MessageState.FAILED, text, phrase("answer.empty"), completion)
    return _Outcome(MessageState.COMPLETE, text, _length_note(job, completion), completion)


def _length_note(job: Job, completion: Completion) -> Phrase | None:
    """Say that an answer was cut short, and what to do; one that stands alone cannot be gone on with."""
    if completion.finish_reason is not FinishReason.LENGTH:
        return None
    key = "answer.length_alone" if job.stands_alone else "answer.length"
    return phrase(key, num=completion.usage.num_new_tokens)
