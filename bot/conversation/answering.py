"""Makes one answer: history, prompt, text, ending; stored, then shown. Every answer ends exactly once.

Knows nothing of queues and of Discord.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from bot.conversation.jobs import Ending, Job, StopReason
from bot.conversation.parameters import ChatParameters, apply_overrides
from bot.conversation.preferences import Preferences
from bot.conversation.prompting import FittedPrompt, fit_history
from bot.errors import is_expected, sentence_for
from engine.types import Completion, FinishReason, Generation, TextEngine
from storage.conversations import Conversations, Message, MessageState
from storage.errors import StorageError

_log = logging.getLogger(__name__)

CHECKPOINT_INTERVAL_S = 2.0
EMPTY_ANSWER = "The model had nothing to say. Try Regenerate, or ask in other words."
NOT_SAVED = "This answer could not be saved, so I will not remember it."
_STOP_NOTES = {
    StopReason.USER: "Stopped.",
    StopReason.QUESTION_DELETED: "Stopped, because the message this answers was deleted.",
    StopReason.ANSWER_DELETED: None,
    StopReason.OUT_OF_TIME: "Stopped: Discord gives me a quarter of an hour here, and it is over.",
    StopReason.RESET: "Stopped, because this conversation was reset.",
    StopReason.SHUTDOWN: "Interrupted: I am being restarted. Regenerate makes a new answer.",
    StopReason.NOT_SHOWABLE: None,
}
_FORGOTTEN = {StopReason.QUESTION_DELETED, StopReason.RESET}
"""The answer is deleted, or about to be."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came out, before it is stored."""

    state: MessageState
    text: str
    note: str | None = None
    completion: Completion | None = None


class Checkpointer:
    """Saves the text of a running answer from time to time, one write at a time, none of them waited for."""

    def __init__(self, conversations: Conversations, answer_id: int) -> None:
        self._conversations = conversations
        self._answer_id = answer_id
        self._due_s = 0.0
        self._write: asyncio.Task[None] | None = None

    def offer(self, text: str) -> None:
        """Save `text` if the last save is long enough ago and done."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._due_s or (self._write is not None and not self._write.done()):
            return
        self._due_s = now_s + CHECKPOINT_INTERVAL_S
        self._write = asyncio.create_task(self._save(text))

    async def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._write is not None:
            await self._write

    async def _save(self, text: str) -> None:
        try:
            await self._conversations.checkpoint(self._answer_id, text)
        except StorageError as error:
            _log.warning("Answer %d: the partial text was not saved: %s", self._answer_id, error)


class Answering:
    """Makes answers with one engine and one store."""

    def __init__(self, engine: TextEngine, conversations: Conversations, preferences: Preferences) -> None:
        self._engine = engine
        self._conversations = conversations
        self._preferences = preferences

    async def run(self, job: Job) -> Ending:
        """Make, store and show the answer of `job`. Raises only `CancelledError`."""
        outcome = await self._make(job)
        ending = await self._store(job, outcome)
        try:
            await job.view.finish(ending)
        except Exception:  # noqa: BLE001 - an answer ends, whatever happens to its view
            _log.exception("Answer %d: its ending could not be shown", job.answer_id)
        return ending

    async def _make(self, job: Job) -> _Outcome:
        try:
            if job.stop_reason is None:
                job.view.working()
                await self._generate(job)
            return _outcome_of(job)
        except Exception as error:  # noqa: BLE001 - any fault ends this answer and no other
            if is_expected(error):
                _log.warning("Answer %d failed: %s", job.answer_id, error)
            else:
                _log.exception("Answer %d failed", job.answer_id)
            return _Outcome(MessageState.FAILED, (job.begun + job.text).strip(), sentence_for(error))

    async def _generate(self, job: Job) -> None:
        """Make the text; anew if the question changes before anything of it is there."""
        await self._generate_once(job)
        while job.is_stale and job.stop_reason is None:
            await self._generate_once(job)

    async def _generate_once(self, job: Job) -> None:
        async with job.changing:
            job.is_stale = False
            parameters, fitted = await self._prompt(job)
        if job.stop_reason is not None:
            return
        job.generation = self._engine.generate(fitted.prompt, parameters.sampling(fitted.stop))
        checkpointer = Checkpointer(self._conversations, job.answer_id)
        try:
            await _follow(job, job.generation, checkpointer)
        finally:
            job.generation.cancel()
            await checkpointer.wait()

    async def _prompt(self, job: Job) -> tuple[ChatParameters, FittedPrompt]:
        history = await self._conversations.history_before(job.answer_id)
        parameters = await self._preferences.parameters(job.settings_id or job.conversation_id)
        parameters = apply_overrides(parameters, job.overrides)
        fitted = await asyncio.to_thread(
            fit_history,
            self._engine,
            history,
            self._preferences.system_prompt_of(parameters),
            parameters.prompt_budget(self._engine.info.context_length),
            job.begun,
        )
        return parameters, fitted

    async def _store(self, job: Job, outcome: _Outcome) -> Ending:
        """Store `outcome` and say what is to be shown."""
        completion = outcome.completion
        try:
            standing = await self._conversations.finish_answer(
                job.answer_id,
                content=outcome.text,
                state=outcome.state,
                finish_reason=None if completion is None else str(completion.finish_reason),
                num_prompt_tokens=None if completion is None else completion.usage.num_prompt_tokens,
                num_tokens=None if completion is None else completion.usage.num_new_tokens,
            )
        except Exception as error:  # noqa: BLE001 - what was shown stays, whatever the store says
            _log.warning("Answer %d could not be saved: %s", job.answer_id, error)
            note = NOT_SAVED if outcome.note is None else f"{outcome.note} {NOT_SAVED}"
            return Ending(job.answer_id, outcome.state, outcome.text, note, can_regenerate=False)
        if standing is None or job.stop_reason in _FORGOTTEN:
            return Ending(job.answer_id, outcome.state, outcome.text, outcome.note, can_regenerate=False)
        return Ending(
            standing.id,
            standing.state,
            standing.content,
            outcome.note,
            can_continue=can_go_on(standing),
            is_outdated=job.is_outdated,
        )


async def _follow(job: Job, generation: Generation, checkpointer: Checkpointer) -> None:
    """Take the text as it comes, and show and save it."""
    async for piece in generation:
        if job.is_stale:
            continue
        job.text += piece
        text = (job.begun + job.text).lstrip()
        if job.view.is_lost:
            job.stop(StopReason.NOT_SHOWABLE)
        if text and job.stop_reason is None:
            job.view.update(text)
            checkpointer.offer(text)


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
        return _Outcome(state, text, _STOP_NOTES[job.stop_reason], completion)
    if completion is None or finish is FinishReason.CANCELLED or not text:
        return _Outcome(MessageState.FAILED, text, EMPTY_ANSWER, completion)
    return _Outcome(MessageState.COMPLETE, text, _length_note(completion), completion)


def _length_note(completion: Completion) -> str | None:
    if completion.finish_reason is not FinishReason.LENGTH:
        return None
    return (
        f"This answer reached its limit after {completion.usage.num_new_tokens} tokens. "
        "`/continue` goes on, or have a moderator raise max_new_tokens with /settings set."
    )
