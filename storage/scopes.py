"""Names the conversation that a transaction stays within, so that others can go on meanwhile.

Only for what reads and writes nothing of other conversations, except to follow or cut a link to them, and
moves no message elsewhere.
"""

from __future__ import annotations

from storage.backend import Within


def conversation(conversation_id: int) -> Within:
    """Name it by its id."""
    return Within("SELECT ?", (conversation_id,))


def conversation_of(message_id: int) -> Within:
    """Name the one of a question or an answer."""
    return Within("SELECT conversation_id FROM messages WHERE id = ?", (message_id,))


def conversation_showing(discord_id: int) -> Within:
    """Name the one of the question or answer that a Discord message shows."""
    return Within(
        "SELECT conversation_id FROM discord_messages JOIN messages ON messages.id = message_id"
        " WHERE discord_id = ?",
        (discord_id,),
    )


FLEET = Within("SELECT 0", ())
"""What several processes of one bot agree on: no conversation, and one such transaction at a time."""
