"""What moderators decide, put together: settings, blocks, a gate for questions, a screen for answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bot.safety.safety_model import SafetyModel
from bot.servers.gate import Gate
from bot.servers.rates import Allowance, RateLimits, Repetitions, loop_seconds
from bot.servers.screening import Screening
from bot.servers.servers import Notices, Servers
from storage.conversations import Conversations
from storage.database import Database
from storage.moderation import Blocks, Reports
from storage.people import People
from storage.settings import ServerSettingsStore


@dataclass(frozen=True, slots=True)
class Moderation:
    """The parts, each of which knows its own business."""

    servers: Servers
    blocks: Blocks
    reports: Reports
    notices: Notices
    gate: Gate
    screening: Screening
    safety_model: SafetyModel | None

    @classmethod
    def over(
        cls,
        database: Database,
        conversations: Conversations,
        allowance: Allowance,
        *,
        safety_model: SafetyModel | None = None,
        clock: Callable[[], float] = loop_seconds,
    ) -> Moderation:
        """Return the parts over one database. `clock` counts seconds."""
        blocks, notices = Blocks(database), Notices()
        servers = Servers(ServerSettingsStore(database), notices)
        gate = Gate(
            servers, blocks, RateLimits(allowance, clock), Repetitions(clock), notices, People(database)
        )
        screening = Screening(servers, conversations, notices, clock, safety_model)
        return cls(servers, blocks, Reports(database), notices, gate, screening, safety_model)
