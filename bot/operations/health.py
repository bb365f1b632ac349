"""How the bot is, in one word for machines and a few for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.types import Health


class State(StrEnum):
    """What can be expected of the bot now."""

    READY = "ready"
    BUSY = "busy"
    """Questions wait."""
    RECOVERING = "recovering"
    """The model is being loaded anew after a fault."""
    CONNECTING = "connecting"
    """The connection to Discord is not there, or not yet."""
    FAILED = "failed"
    """The model is gone for good: the operator is needed."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known at one moment."""

    engine: Health
    is_connected: bool
    num_running: int
    num_waiting: int

    @property
    def state(self) -> State:
        """The worst that applies."""
        if self.engine in (Health.UNHEALTHY, Health.CLOSED):
            return State.FAILED
        if self.engine is Health.RECOVERING:
            return State.RECOVERING
        if not self.is_connected:
            return State.CONNECTING
        return State.BUSY if self.num_waiting else State.READY

    @property
    def is_well(self) -> bool:
        """Whether nothing needs to be done about it; a model that recovers does so by itself."""
        return self.state in (State.READY, State.BUSY, State.RECOVERING)
