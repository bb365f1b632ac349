"""The storage's exceptions. Each message is a sentence that says what is wrong and what to do.

StorageError
├── DatabaseUnavailableError   cannot be opened, locked by another program, not writable, or closed
├── StorageFullError           no space left for it
├── CorruptDatabaseError       damaged, or not a database of this program
├── NewerDatabaseError         made by a newer version of this program
├── DuplicateMessageError      this Discord message is stored already
└── NotFoundError              the conversation or message is gone
    └── RegenerationRefusedError   the answer is there, but cannot be regenerated
        ├── AnswerPendingError     it is still being written, or written anew
        └── NotNewestAnswerError   the conversation has gone on since
"""


class StorageError(Exception):
    """Base of everything the storage raises on purpose."""


class DatabaseUnavailableError(StorageError):
    """The database cannot be opened, read or written at the moment."""


class StorageFullError(StorageError):
    """There is no space left for the database."""


class CorruptDatabaseError(StorageError):
    """The file is damaged, or is not a database of this program."""


class NewerDatabaseError(StorageError):
    """The schema is newer than this program."""


class DuplicateMessageError(StorageError):
    """A Discord message is stored already."""

    def __init__(self, discord_id: int) -> None:
        self.discord_id = discord_id
        super().__init__("This message was taken already.")


class NotFoundError(StorageError):
    """A conversation or message is gone."""

    def __init__(self, message: str = "This conversation or message no longer exists.") -> None:
        super().__init__(message)


class RegenerationRefusedError(NotFoundError):
    """The answer is there, but cannot be regenerated."""


class AnswerPendingError(RegenerationRefusedError):
    """The answer is still being written."""

    def __init__(self) -> None:
        super().__init__("This answer is still being written. Wait until it ends, or stop it.")


class NotNewestAnswerError(RegenerationRefusedError):
    """The conversation has gone on since this answer."""

    def __init__(self) -> None:
        super().__init__("Only the newest answer of a conversation can be regenerated.")
