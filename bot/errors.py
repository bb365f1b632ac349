"""The bot's exceptions, and the one table that turns any exception into a sentence for users.

    ChatError
    ├── EmptyQuestionError          nothing to answer
    ├── ConversationBusyError       too many questions wait in this conversation
    ├── QuestionGoneError           the question was deleted before it was taken
    ├── AttachmentError             a file that cannot be read
    ├── ModelSwitchError            another model cannot be loaded
    ├── NothingHereError            nothing is running, or nothing was said
    ├── NothingToContinueError      the newest answer is whole
    ├── ParameterError              a parameter's value or name that is not allowed
    ├── SystemPromptError           a system prompt that is too long
    ├── NotAllowedError             this person may not do that
    ├── CannotWriteError            we may not write in this place
    ├── NotOfThisMessageError       a button that does not belong to its message
    ├── ShuttingDownError           the bot is about to stop
    ├── WithheldError               nothing of an answer may be shown
    └── RefusalError                the gate does not let a question in
        ├── OptedOutError               this person wants no answers
        ├── BlockedError                moderators blocked this person here
        ├── NotHereError                not in this channel, or not for this person
        ├── RateLimitedError            asked too much; says when to ask again
        ├── RepeatedError               the same text again and again: a loop
        └── ForbiddenTextError          the server's lists do not allow the text

The sentences are phrases of `bot.language`: whoever shows one renders it in the reader's language. No class
name and no path reaches a user: what the table does not know becomes one general sentence.
"""

from __future__ import annotations

import math

from bot.language.phrases import Phrase, phrase
from engine import errors as engine_errors
from storage import errors as storage_errors


class ChatError(Exception):
    """Base of everything the bot refuses on purpose; its text is a sentence for the user."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        super().__init__(sentence)


class EmptyQuestionError(ChatError):
    """There is nothing to answer. `sentence` says how to ask."""

    def __init__(self, sentence: str | None = None) -> None:
        super().__init__(sentence or phrase("errors.empty_question"))


class ConversationBusyError(ChatError):
    """Too many questions wait in this conversation."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(phrase("errors.busy", num=num_waiting))


class QuestionGoneError(ChatError):
    """The question was deleted before it was taken."""

    def __init__(self) -> None:
        super().__init__(phrase("errors.not_found"))


class ParameterError(ChatError):
    """A parameter's value or name that is not allowed."""


class AttachmentError(ChatError):
    """A file that cannot be read."""


class ModelSwitchError(ChatError):
    """Another model cannot be loaded."""


class NothingHereError(ChatError):
    """Nothing is running, or nothing was said."""


class NothingToContinueError(ChatError):
    """The newest answer is whole."""

    def __init__(self) -> None:
        super().__init__(phrase("errors.nothing_to_continue"))


class SystemPromptError(ChatError):
    """A system prompt that is too long."""


class NotAllowedError(ChatError):
    """This person may not do that."""


class CannotWriteError(ChatError):
    """We may not write in this place."""

    def __init__(self) -> None:
        super().__init__(phrase("errors.not_here"))


class NotOfThisMessageError(ChatError):
    """A button that does not belong to its message."""

    def __init__(self) -> None:
        super().__init__(phrase("errors.not_of_this_message"))


class ShuttingDownError(ChatError):
    """The bot is about to stop."""

    def __init__(self) -> None:
        super().__init__(phrase("errors.shutting_down"))


class WithheldError(ChatError):
    """Nothing of an answer may be shown. The text is the sentence that is shown in its place."""


class RefusalError(ChatError):
    """A question is not taken. `quiet_s`: for so long the same person is not told the same in public."""

    quiet_s = 10.0


class OptedOutError(RefusalError):
    """This person wants no answers."""

    quiet_s = 3600.0

    def __init__(self) -> None:
        super().__init__(phrase("opt.refused"))


class BlockedError(RefusalError):
    """Moderators blocked this person here."""

    quiet_s = 3600.0

    def __init__(self) -> None:
        super().__init__(phrase("refusals.blocked"))


class NotHereError(RefusalError):
    """Not in this channel, or not for this person."""

    quiet_s = 60.0


class RateLimitedError(RefusalError):
    """Asked too much."""

    def __init__(self, wait_s: float, *, is_server: bool) -> None:
        self.wait_s = wait_s
        self.quiet_s = min(wait_s, 30.0)
        key = "refusals.server_rate" if is_server else "refusals.user_rate"
        super().__init__(phrase(key, seconds=max(1, math.ceil(wait_s))))


class RepeatedError(RefusalError):
    """The same text again and again."""

    quiet_s = 600.0

    def __init__(self) -> None:
        super().__init__(phrase("refusals.repeated"))


class ForbiddenTextError(RefusalError):
    """The server's lists do not allow the text."""

    def __init__(self) -> None:
        super().__init__(phrase("refusals.text"))


_KEYS: tuple[tuple[type[BaseException], str], ...] = (
    (engine_errors.InvalidParameterError, "errors.parameter"),
    (engine_errors.PromptTooLongError, "errors.prompt_too_long"),
    (engine_errors.UnsafePromptError, "errors.unsafe_prompt"),
    (engine_errors.NoChatFormatError, "errors.no_chat_format"),
    (engine_errors.PromptError, "errors.prompt"),
    (engine_errors.NoRoomError, "errors.queue_full"),
    (engine_errors.TooManyWaitingError, "errors.queue_full"),
    (engine_errors.EngineUnavailableError, "errors.engine_unavailable"),
    (engine_errors.GenerationFailedError, "errors.generation_failed"),
    (storage_errors.StorageFullError, "errors.storage_full"),
    (storage_errors.AnswerPendingError, "errors.answer_pending"),
    (storage_errors.NotNewestAnswerError, "errors.not_newest_answer"),
    (storage_errors.NotFoundError, "errors.not_found"),
    (storage_errors.DatabaseUnavailableError, "errors.storage_unavailable"),
    (storage_errors.StorageError, "errors.storage"),
)
"""Exceptions of the other packages and their sentences, the first match counts.

A sentence's placeholders are filled in with the exception's attributes.
"""


def sentence_for(error: BaseException) -> str:
    """Return what a user is told about `error`: a phrase, to be rendered in the user's language."""
    if isinstance(error, ChatError):
        return error.sentence
    for kind, key in _KEYS:
        if isinstance(error, kind):
            return Phrase(key, vars(error))
    return phrase("errors.general")


def is_expected(error: BaseException) -> bool:
    """Tell whether `error` is one that the table knows: worth a line in the log, not a traceback."""
    return isinstance(error, (ChatError, *(kind for kind, _ in _KEYS)))
