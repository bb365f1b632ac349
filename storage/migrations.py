"""The schema, as the steps that lead to it, and the rule by which they are applied.

Step n brings a database from version n-1 to n (`PRAGMA user_version`). A step that was released is never
edited: append another. Knows nothing of files, threads or who reads the tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import CorruptDatabaseError, NewerDatabaseError

APPLICATION_ID = 0x4C4C4D43
"""'LLMC', written to the file's header, so that a database of another program is never migrated."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema. Its statements and the new version are one transaction."""

    name: str
    statements: tuple[str, ...]


# Times are UTC, in milliseconds since 1970. Ids named discord, channel, guild, author or user are Discord's.
# AUTOINCREMENT: buttons on Discord carry ids of answers, so an id must never come back after a deletion.
_CONVERSATIONS = """
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    channel_id INTEGER NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('channel', 'thread', 'direct')),
    guild_id INTEGER,
    created_at INTEGER NOT NULL
) STRICT"""
# superseded_by is set while a regeneration of this answer runs; it clears itself if that one is deleted.
_MESSAGES = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    state TEXT NOT NULL CHECK (state IN ('pending', 'complete', 'stopped', 'failed', 'interrupted')),
    author_id INTEGER,
    author_name TEXT NOT NULL,
    content TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    reply_to INTEGER REFERENCES messages (id) ON DELETE CASCADE,
    superseded_by INTEGER REFERENCES messages (id) ON DELETE SET NULL,
    num_prompt_tokens INTEGER,
    num_tokens INTEGER,
    finish_reason TEXT,
    CHECK ((role = 'assistant') = (reply_to IS NOT NULL)),
    CHECK ((role = 'user') = (author_id IS NOT NULL)),
    CHECK ((state = 'pending') = (ended_at IS NULL))
) STRICT"""
# The Discord messages that show a message: one for a question, one or more for an answer.
_DISCORD_MESSAGES = """
CREATE TABLE discord_messages (
    discord_id INTEGER PRIMARY KEY,
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    position INTEGER NOT NULL CHECK (position >= 0),
    UNIQUE (message_id, position)
) STRICT"""
# value is a JSON scalar.
_SETTINGS = """
CREATE TABLE settings (
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    by_user_id INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (conversation_id, key)
) STRICT, WITHOUT ROWID"""
_RESETS = """
CREATE TABLE resets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    by_user_id INTEGER NOT NULL,
    reset_at INTEGER NOT NULL,
    num_messages INTEGER NOT NULL
) STRICT"""
# value is JSON: a scalar or a list of scalars.
_SERVER_SETTINGS = """
CREATE TABLE server_settings (
    guild_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    by_user_id INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (guild_id, key)
) STRICT, WITHOUT ROWID"""
_BLOCKS = """
CREATE TABLE blocks (
    guild_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    by_user_id INTEGER NOT NULL,
    blocked_at INTEGER NOT NULL,
    PRIMARY KEY (guild_id, user_id)
) STRICT, WITHOUT ROWID"""
# One report a person and answer. The answer may be gone by now.
_REPORTS = """
CREATE TABLE reports (
    answer_id INTEGER NOT NULL,
    by_user_id INTEGER NOT NULL,
    reported_at INTEGER NOT NULL,
    PRIMARY KEY (answer_id, by_user_id)
) STRICT, WITHOUT ROWID"""
_OPT_OUTS = """
CREATE TABLE opt_outs (
    user_id INTEGER PRIMARY KEY,
    opted_out_at INTEGER NOT NULL
) STRICT"""
# Servers that we left and channels that were deleted: what is kept of them goes after a while.
_DEPARTURES = """
CREATE TABLE departures (
    place TEXT NOT NULL CHECK (place IN ('server', 'channel')),
    discord_id INTEGER NOT NULL,
    gone_at INTEGER NOT NULL,
    PRIMARY KEY (place, discord_id)
) STRICT, WITHOUT ROWID"""

# What a question refers to: the message it replies to, or is about. It goes when that message is deleted.
_QUOTES = """
CREATE TABLE quotes (
    message_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    discord_id INTEGER NOT NULL,
    author_id INTEGER NOT NULL,
    author_name TEXT NOT NULL,
    content TEXT NOT NULL
) STRICT"""
# A question may refer to several messages.
_SEVERAL_QUOTES = """
CREATE TABLE several_quotes (
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    discord_id INTEGER NOT NULL,
    author_id INTEGER NOT NULL,
    author_name TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (message_id, position)
) STRICT"""
# The answer that a thread was started from: its history goes before that of the thread.
_CONTINUES = """
ALTER TABLE conversations ADD COLUMN continues_id INTEGER REFERENCES messages (id) ON DELETE SET NULL"""
# Answers that ended and that no Discord message is known to show so. note is JSON of the program's.
_UNSHOWN = """
CREATE TABLE unshown_endings (
    answer_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    note TEXT
) STRICT"""

# Of an answer: the first message that the model saw for it, where older ones were left out. It may be gone.
_VIEW = "ALTER TABLE messages ADD COLUMN view_from INTEGER"

# What was said before a message, in short, and which messages that was. Empty: there is to be none.
_SUMMARIES = """
CREATE TABLE summaries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    until_id INTEGER NOT NULL,
    content TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT"""
_SUMMED_UP = """
CREATE TABLE summed_up (
    summary_id INTEGER NOT NULL REFERENCES summaries (id) ON DELETE CASCADE,
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    PRIMARY KEY (summary_id, message_id)
) STRICT, WITHOUT ROWID"""
# A summary goes with any message that is in it, with what that quotes, and with what was said before an edit.
_GO_WITH_MESSAGES = """
CREATE TRIGGER summaries_go_with_messages AFTER DELETE ON summed_up BEGIN
    DELETE FROM summaries WHERE id = OLD.summary_id;
END"""
_GO_WITH_EDITS = """
CREATE TRIGGER summaries_go_with_edits AFTER UPDATE OF content ON messages WHEN OLD.content <> NEW.content
BEGIN
    DELETE FROM summaries WHERE id IN (SELECT summary_id FROM summed_up WHERE message_id = NEW.id);
END"""
_GO_WITH_QUOTES = """
CREATE TRIGGER summaries_go_with_quotes AFTER DELETE ON quotes BEGIN
    DELETE FROM summaries WHERE id IN (SELECT summary_id FROM summed_up WHERE message_id = OLD.message_id);
END"""

# What several processes of one bot share. holder is the name of a process, and beat counts its signs of life.
_SHARD_LEASES = """
CREATE TABLE shard_leases (
    shard_id INTEGER PRIMARY KEY,
    num_shards INTEGER NOT NULL,
    holder TEXT,
    beat INTEGER NOT NULL,
    wants INTEGER NOT NULL,
    attended_at INTEGER NOT NULL
) STRICT"""
_COUNTERS = """
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID"""
# Kept for minutes only. about is the id of a person or a server.
_NEWS = """
CREATE TABLE news (
    id INTEGER PRIMARY KEY,
    teller TEXT NOT NULL,
    kind TEXT NOT NULL,
    about INTEGER NOT NULL,
    guild_id INTEGER,
    told_at INTEGER NOT NULL
) STRICT"""
# While the database is filled from another one: which, and how far that is. Else empty.
_UNFINISHED_COPY = """
CREATE TABLE unfinished_copy (
    origin TEXT NOT NULL,
    leg INTEGER NOT NULL,
    last TEXT NOT NULL
) STRICT"""

MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        "conversations, messages, settings and resets",
        (
            f"PRAGMA application_id = {APPLICATION_ID}",
            _CONVERSATIONS,
            _MESSAGES,
            "CREATE INDEX messages_by_conversation ON messages (conversation_id, id)",
            "CREATE INDEX messages_by_question ON messages (reply_to) WHERE reply_to IS NOT NULL",
            "CREATE INDEX messages_superseded ON messages (superseded_by) WHERE superseded_by IS NOT NULL",
            "CREATE INDEX messages_pending ON messages (state) WHERE state = 'pending'",
            _DISCORD_MESSAGES,
            _SETTINGS,
            _RESETS,
            "CREATE INDEX resets_by_conversation ON resets (conversation_id)",
        ),
    ),
    Migration("settings of servers", (_SERVER_SETTINGS,)),
    Migration(
        "blocked people, reports, and resets that can be undone",
        (
            _BLOCKS,
            _REPORTS,
            # Where the messages of a reset lie until it can no longer be undone: a conversation of their own,
            # so that nothing that reads the real one ever sees them.
            "ALTER TABLE resets ADD COLUMN shelf_id INTEGER REFERENCES conversations (id) ON DELETE SET NULL",
            "ALTER TABLE resets ADD COLUMN undone_at INTEGER",
            "ALTER TABLE resets ADD COLUMN undone_by_user_id INTEGER",
            "CREATE UNIQUE INDEX resets_by_shelf ON resets (shelf_id) WHERE shelf_id IS NOT NULL",
        ),
    ),
    Migration(
        "people who opted out, places that are gone, and whose and how old messages are",
        (
            _OPT_OUTS,
            _DEPARTURES,
            "CREATE INDEX messages_by_author ON messages (author_id) WHERE author_id IS NOT NULL",
            "CREATE INDEX messages_by_age ON messages (created_at) WHERE role = 'user'",
            "CREATE INDEX conversations_by_guild ON conversations (guild_id) WHERE guild_id IS NOT NULL",
        ),
    ),
    Migration(
        "quotes, and threads that go on from an answer",
        (
            _QUOTES,
            "CREATE INDEX quotes_by_discord_message ON quotes (discord_id)",
            "CREATE INDEX quotes_by_author ON quotes (author_id)",
            _CONTINUES,
            "CREATE INDEX conversations_continuing ON conversations (continues_id)"
            " WHERE continues_id IS NOT NULL",
            "CREATE INDEX messages_in_order"
            " ON messages (conversation_id, coalesce(reply_to, id) DESC, role, id DESC)",
        ),
    ),
    Migration("endings that are still to be shown", (_UNSHOWN,)),
    Migration("where the model's view began", (_VIEW,)),
    Migration(
        "summaries of what the model no longer sees",
        (
            _SUMMARIES,
            "CREATE INDEX summaries_by_conversation ON summaries (conversation_id, until_id)",
            _SUMMED_UP,
            "CREATE INDEX summed_up_by_message ON summed_up (message_id)",
            _GO_WITH_MESSAGES,
            _GO_WITH_EDITS,
            _GO_WITH_QUOTES,
        ),
    ),
    Migration(
        "several quotes in a question",
        (
            _SEVERAL_QUOTES,
            "INSERT INTO several_quotes SELECT message_id, 0, discord_id, author_id, author_name, content"
            " FROM quotes",
            "DROP TABLE quotes",
            "ALTER TABLE several_quotes RENAME TO quotes",
            "CREATE INDEX quotes_by_discord_message ON quotes (discord_id)",
            "CREATE INDEX quotes_by_author ON quotes (author_id)",
            _GO_WITH_QUOTES,
        ),
    ),
    Migration(
        "shards that several processes have, and what these tell each other",
        (_SHARD_LEASES, _COUNTERS, _NEWS),
    ),
    Migration("copies that are not finished", (_UNFINISHED_COPY,)),
    Migration(
        "indexes for what a person left, and what is too old, among a million messages",
        (
            "DROP INDEX messages_by_author",
            "CREATE INDEX messages_by_author ON messages (author_id, id) WHERE author_id IS NOT NULL",
            "CREATE INDEX conversations_direct ON conversations (created_at) WHERE kind = 'direct'",
            "CREATE INDEX settings_by_user ON settings (by_user_id)",
            "CREATE INDEX server_settings_by_user ON server_settings (by_user_id)",
            "CREATE INDEX resets_by_user ON resets (by_user_id)",
            "CREATE INDEX resets_undone_by_user ON resets (undone_by_user_id)"
            " WHERE undone_by_user_id IS NOT NULL",
            "CREATE INDEX resets_by_age ON resets (reset_at) WHERE shelf_id IS NULL",
            "CREATE INDEX blocks_by_user ON blocks (user_id)",
            "CREATE INDEX blocks_by_moderator ON blocks (by_user_id)",
            "CREATE INDEX reports_by_user ON reports (by_user_id)",
            "CREATE INDEX reports_by_age ON reports (reported_at)",
        ),
    ),
)


def check_readable(connection: sqlite3.Connection, num_known: int) -> None:
    """Refuse, before anything is written, a database that is not ours to migrate.

    Raises `CorruptDatabaseError` for another program's database, `NewerDatabaseError` for a later schema.
    """
    application_id = _pragma(connection, "application_id")
    is_empty = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
    if application_id != APPLICATION_ID and not (application_id == 0 and is_empty):
        raise CorruptDatabaseError(
            "The file set as database belongs to another program. Set DATABASE to another file."
        )
    check_version(_pragma(connection, "user_version"), num_known)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the schema to the newest version, one transaction a step; needs foreign keys switched off.

    Writes once (and takes it back) even when nothing is to do, so that a database that cannot be written is
    found here. Another process may migrate at the same time: the version is read under the lock.
    """
    while not _step(connection, migrations):
        pass


def _step(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> bool:
    """Apply the next step; return whether there was none left."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _pragma(connection, "user_version")
        check_version(version, len(migrations))
        is_newest = version == len(migrations)
        if is_newest:
            # To begin succeeds on a file that is read-only, to write does not.
            _set_version(connection, version)
            connection.execute("ROLLBACK")
        else:
            _apply(connection, migrations[version], version + 1)
            connection.execute("COMMIT")
    except BaseException:
        # A full disk rolls back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return is_newest


def _apply(connection: sqlite3.Connection, migration: Migration, version: int) -> None:
    for statement in migration.statements:
        connection.execute(statement)
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise CorruptDatabaseError("The database could not be updated: its records contradict each other.")
    _set_version(connection, version)


def _set_version(connection: sqlite3.Connection, version: int) -> None:
    connection.execute(f"PRAGMA user_version = {version}")


def check_version(version: int, num_known: int) -> None:
    """Refuse a schema that a later program made. Raises `NewerDatabaseError`."""
    if version > num_known:
        raise NewerDatabaseError(
            "The database was made by a newer version of Llamacord."
            " Update Llamacord, or set DATABASE to another file."
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
