"""What the Discord messages of one answer show, what they shall show, and what to ask for next.

Pure bookkeeping for the delivery: times are values it is given. Knows nothing of tasks or of Discord.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from bot.delivery.outbox import Buttons

PLACEHOLDER = "…"
"""Shown where there is no text yet."""
REFUSAL = "-# Discord doesn't accept this text."
"""Shown at the end where Discord refuses what is to be shown."""


class Look(NamedTuple):
    """What one message shows."""

    content: str
    buttons: Buttons
    attachment: str = ""
    """The text of a file."""


@dataclass(slots=True, eq=False)
class Part:
    """One message of ours. `look` is None for one from before, until it is edited."""

    discord_id: int
    look: Look | None = None
    editable_at_s: float = 0.0
    may_be_gone: bool = False
    """We tried to delete it, and it has no record until it is seen to be there."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send one more message."""

    look: Look


@dataclass(frozen=True, slots=True)
class Edit:
    """Edit a message, not before `due_s`."""

    part: Part
    look: Look
    due_s: float


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a message that is not needed."""

    part: Part


Request = Send | Edit | Delete


class Board:
    """The messages of one answer, in order.

    looks: what existing ones show, where that is known. refusal: shown at the end in the place of what
    Discord does not take.
    """

    def __init__(
        self,
        existing_parts: Sequence[int],
        looks: Mapping[int, Look] = MappingProxyType({}),
        refusal: str = REFUSAL,
    ) -> None:
        self._refusal = refusal
        self._refused: set[Look] = set()
        self._parts = [Part(discord_id, looks.get(discord_id)) for discord_id in existing_parts]
        self._wanted: list[Look] = []
        self._is_final = False
        self._unconfirmed: Look | None = None
        self._next_position = len(existing_parts)

    @property
    def is_final(self) -> bool:
        """Whether what is wanted is the complete answer."""
        return self._is_final

    @property
    def ids(self) -> tuple[int, ...]:
        """The Discord ids of the messages."""
        return tuple(part.discord_id for part in self._parts)

    @property
    def last(self) -> Part | None:
        """The last message, None if there is none."""
        return self._parts[-1] if self._parts else None

    @property
    def may_grow(self) -> bool:
        """Whether more messages may be needed: some are missing, or the text goes on and is long already."""
        num_wanted = len(self._wanted)
        return num_wanted > len(self._parts) or (not self._is_final and max(num_wanted, len(self._parts)) > 1)

    def want(self, contents: Sequence[str], buttons: Buttons, *, final: bool, attachment: str = "") -> None:
        """Set what shall be shown. Only the last message with text has buttons, and the attachment.

        Messages beyond it wait for more text with a placeholder; once it is `final` they are deleted.
        """
        *full, last = contents or [PLACEHOLDER]
        self._wanted = [*(Look(content, Buttons.NONE) for content in full), Look(last, buttons, attachment)]
        if not final:
            num_beyond = len(self._parts) - len(self._wanted)
            self._wanted += [Look(PLACEHOLDER, Buttons.NONE)] * num_beyond
        self._is_final = final
        self._refused.intersection_update(self._wanted)
        for look in tuple(self._refused):
            self.refuse(look)

    def next_request(self) -> Request | None:
        """Return what to do next: edits first, the soonest allowed one, then more messages, then fewer.

        A send is repeated as it was until it is known to have arrived, so that Discord can tell the
        repetition from another message; what it lacks is an edit afterwards.
        """
        pairs = zip(self._parts, self._wanted, strict=False)
        edits = [
            Edit(part, look, part.editable_at_s)
            for part, look in pairs
            if part.look != look and look not in self._refused
        ]
        if edits:
            return min(edits, key=lambda edit: edit.due_s)
        if len(self._parts) < len(self._wanted):
            look = self._unconfirmed or self._wanted[len(self._parts)]
            self._unconfirmed = None if look in self._refused else look
            return None if self._unconfirmed is None else Send(look)
        return Delete(self._parts[-1]) if len(self._parts) > len(self._wanted) else None

    def refuse(self, look: Look) -> bool:
        """Note that Discord takes `look` never; return whether something can be shown in its place.

        Before the end that is the next text.
        """
        instead = Look(self._refusal, look.buttons)
        if self._unconfirmed == look:
            self._unconfirmed = None
        self._refused.add(look)
        if self._is_final:
            self._wanted = [instead if wanted == look else wanted for wanted in self._wanted]
        return not (self._is_final and instead in self._refused)

    def note_sent(self, discord_id: int, look: Look, editable_at_s: float) -> int:
        """Add a message that was sent and return its position, which no other one had before."""
        self._unconfirmed = None
        self._parts.append(Part(discord_id, look, editable_at_s))
        self._next_position += 1
        return self._next_position - 1

    def is_expendable(self, part: Part) -> bool:
        """Tell whether the answer can do without `part`: it has shown nothing of it, and there are others."""
        return part.may_be_gone or (part.look is None and len(self._parts) > 1)

    def remove(self, part: Part) -> None:
        """Note that a message is gone."""
        self._parts.remove(part)
