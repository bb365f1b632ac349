"""The bot's exceptions, and the one table that turns any exception into a sentence for users.

    ChatError
    ├── EmptyQuestionError          nothing to answer
    ├── ConversationBusyError       too many questions wait in this conversation
    ├── NothingHereError            nothing is running, or nothing was said
    ├── NothingToContinueError      the newest answer is whole
    ├── SystemPromptError           a system prompt that is too long
    ├── NotAllowedError             this person may not do that
    ├── NotOfThisMessageError       a button that does not belong to its message
    └── ShuttingDownError           the bot is about to stop

No class name and no path reaches a user: what the table does not know becomes one general sentence.
"""

from __future__ import annotations

from engine import errors as engine_errors
from storage import errors as storage_errors

GENERAL = "Something went wrong here. Please try again; if it happens again, tell whoever runs me."


class ChatError(Exception):
    """Base of everything the bot refuses on purpose; its text is a sentence for the user."""


class EmptyQuestionError(ChatError):
    """There is nothing to answer."""

    def __init__(self) -> None:
        super().__init__(
            "I can see no text to answer. Write your question in the same message as the mention; "
            "when you reply to me, leave the ping on."
        )


class ConversationBusyError(ChatError):
    """Too many questions wait in this conversation."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(
            f"{num_waiting} questions are waiting here already. Please ask again when some are answered."
        )


class NothingHereError(ChatError):
    """Nothing is running, or nothing was said."""


class NothingToContinueError(ChatError):
    """The newest answer is whole."""

    def __init__(self) -> None:
        super().__init__("The newest answer is complete, so there is nothing to continue. Just ask on.")


class SystemPromptError(ChatError):
    """A system prompt that is too long."""


class NotAllowedError(ChatError):
    """This person may not do that."""


class NotOfThisMessageError(ChatError):
    """A button that does not belong to its message."""

    def __init__(self) -> None:
        super().__init__("That answer is not known here any more, so there is nothing to do.")


class ShuttingDownError(ChatError):
    """The bot is about to stop."""

    def __init__(self) -> None:
        super().__init__("I am being restarted. Please ask again in a minute.")


_SENTENCES: tuple[tuple[type[BaseException], str | None], ...] = (
    (ChatError, None),
    (engine_errors.InvalidParameterError, None),
    (engine_errors.PromptTooLongError, None),
    (
        engine_errors.UnsafePromptError,
        "This text contains control tags of the model's chat format, which I do not accept. "
        "Please write it without them.",
    ),
    (
        engine_errors.NoChatFormatError,
        "The loaded model cannot chat. Whoever runs me must choose a chat model.",
    ),
    (engine_errors.QueueFullError, "Too many people are asking right now. Please try again in a minute."),
    (
        engine_errors.EngineUnavailableError,
        "The model is not available right now. Please try again in a few minutes.",
    ),
    (
        engine_errors.GenerationFailedError,
        "The model failed while it was answering. Please try again.",
    ),
    (
        storage_errors.StorageFullError,
        "The disk I keep conversations on is full, so nothing can be saved. Please tell whoever runs me.",
    ),
    (storage_errors.NotFoundError, None),
    (
        storage_errors.DatabaseUnavailableError,
        "The conversations cannot be read or saved right now. Please try again in a minute.",
    ),
    (
        storage_errors.StorageError,
        "The conversations cannot be read or saved. Please tell whoever runs me.",
    ),
)
"""Exception to sentence, the first match counts; None means the exception's own text is that sentence."""


def sentence_for(error: BaseException) -> str:
    """Return what a user is told about `error`."""
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            return str(error) if sentence is None else sentence
    return GENERAL


def is_expected(error: BaseException) -> bool:
    """Tell whether `error` is one that the table knows: worth a line in the log, not a traceback."""
    return any(isinstance(error, kind) for kind, _ in _SENTENCES)
