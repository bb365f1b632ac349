"""What came of one answer: its state, its text, and what is said below it. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bot.conversation.dialog import Said
from bot.conversation.jobs import Job, StopReason
from bot.language.phrases import Phrase, phrase, together
from engine.types import Completion, FinishReason
from storage.conversations import Message, MessageState

STOP_NOTES = {
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
_CUT = {FinishReason.LENGTH, FinishReason.STOP_TEXT}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out, before it is stored. `thought`: what the model thought, which never is."""

    state: MessageState
    text: str
    note: str | None = None
    completion: Completion | None = None
    is_refused: bool = False
    """The question may not be asked any more."""
    thought: str = ""


def outcome_of(job: Job) -> Outcome:
    """Return what came of a job that ended without a fault."""
    completion = None if job.generation is None else job.generation.completion
    finish = None if completion is None else completion.finish_reason
    output = job.text if completion is None else completion.text
    said = job.said(output, final=True)
    if said.is_thinking and finish is FinishReason.STOP and job.reasoning is None:
        said = Said(job.begun + output)  # it began with a mark, but only to speak of it
    outcome = dataclasses.replace(_ended(job, said, completion), thought=said.thought)
    if job.is_seeded and completion is not None and completion.num_breaks and outcome.text:
        notes = filter(None, (outcome.note, phrase("answer.gone_on_with")))
        outcome = dataclasses.replace(outcome, note=together(*notes))
    if said.is_thinking and outcome.note is not None:
        return dataclasses.replace(outcome, note=_thinking_note(job, outcome, finish))
    return outcome


def can_go_on(answer: Message) -> bool:
    """Tell whether there is more to come of an answer: it was cut short."""
    is_cut = answer.state is not MessageState.COMPLETE or answer.finish_reason in _CUT
    return is_cut and answer.state is not MessageState.PENDING and bool(answer.content.strip())


def _ended(job: Job, said: Said, completion: Completion | None) -> Outcome:
    text, finish = said.answer.strip(), None if completion is None else completion.finish_reason
    if job.stop_reason is StopReason.ANSWER_DELETED:
        return Outcome(MessageState.STOPPED, "")
    # Whoever stopped it was told so, also if the model came to its end in that moment.
    is_cut = finish in (None, FinishReason.CANCELLED) or job.stop_reason is StopReason.USER
    if job.stop_reason is not None and is_cut:
        interrupted = job.stop_reason is StopReason.SHUTDOWN
        state = MessageState.INTERRUPTED if interrupted else MessageState.STOPPED
        key = STOP_NOTES.get(job.stop_reason)
        return Outcome(state, text, None if key is None else phrase(key), completion)
    if completion is None or finish is FinishReason.CANCELLED or not text:
        return Outcome(MessageState.FAILED, text, phrase("answer.empty"), completion)
    return Outcome(MessageState.COMPLETE, text, _cut_note(job, completion), completion)


def _thinking_note(job: Job, outcome: Outcome, finish: FinishReason | None) -> str | None:
    """Say that an answer ended before the model was done thinking."""
    if finish is FinishReason.LENGTH and outcome.completion is not None:
        return phrase("answer.length_thinking", num=outcome.completion.usage.num_new_tokens)
    if job.stop_reason is StopReason.USER:
        return phrase("answer.stopped_thinking")
    return phrase("answer.only_thought") if finish is FinishReason.STOP else outcome.note


def _cut_note(job: Job, completion: Completion) -> Phrase | None:
    """Say that an answer was cut short, and what to do; one that stands alone cannot be gone on with."""
    if completion.finish_reason is FinishReason.STOP_TEXT:
        return phrase("answer.stopped_at_name")
    if completion.finish_reason is not FinishReason.LENGTH:
        return None
    key = "answer.length_alone" if job.stands_alone else "answer.length"
    return phrase(key, num=completion.usage.num_new_tokens)
