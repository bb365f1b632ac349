"""The engine's exceptions. Each message is a sentence that says what is wrong and what to do.

EngineError
├── InvalidParameterError      a sampling parameter out of its range
├── PromptError                this dialog cannot be answered
│   ├── PromptTooLongError     does not fit the context
│   ├── UnsafePromptError      contains the chat format's control tags
│   └── NoChatFormatError      a base model cannot chat
├── NoRoomError                no room for one more answer now: ask `EngineLoad.has_room` first
├── TooManyWaitingError        nobody else may wait for an answer now
├── EngineUnavailableError     closed, reloading or unhealthy
├── GenerationFailedError      a running request was ended by a fault
└── ModelError                 a model could not be fetched, converted or loaded
    ├── ModelFormatError       files missing, truncated, changed or of another kind
    ├── ModelDownloadError     the default model could not be fetched
    └── ModelResourceError     too little disk, memory or permission
"""


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class InvalidParameterError(EngineError, ValueError):
    """A sampling parameter is out of its range."""


class PromptError(EngineError):
    """This dialog cannot be answered."""


class PromptTooLongError(PromptError):
    """The dialog does not fit even after dropping its oldest turns."""

    def __init__(self, num_tokens: int, max_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        super().__init__(
            f"The message takes {num_tokens} tokens, and {max_tokens} are left for it. Send a shorter one."
        )


class UnsafePromptError(PromptError):
    """A message contains control tags of the chat format."""


class NoChatFormatError(PromptError):
    """The loaded model is a base model, which has no chat format."""


class NoRoomError(EngineError):
    """There is no room for one more answer now."""


class TooManyWaitingError(EngineError):
    """Nobody else may wait for an answer now."""


class EngineUnavailableError(EngineError):
    """The engine is closed, reloading or unhealthy."""


class GenerationFailedError(EngineError):
    """A running request was ended by a fault."""


class ModelError(EngineError):
    """A model could not be fetched, converted or loaded."""


class ModelFormatError(ModelError):
    """Model files are missing, truncated, changed or of another kind."""


class ModelDownloadError(ModelError):
    """The default model could not be fetched."""


class ModelResourceError(ModelError):
    """Too little disk space, memory or permission for a model."""
