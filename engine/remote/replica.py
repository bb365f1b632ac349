"""One address at which answers are made: how it is, what it has to do, and what of ours is there.

An address may be a balancer: then each question about its load may be answered by another server behind it.
Pure but for the clock that it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engine.files import from_json
from engine.remote.wire import WireError, parse_object
from engine.types import EngineLoad, Health

SEEN_S = 15.0
"""How long a server behind an address counts after it was last seen."""
_PAUSE_S = 1.0
"""How long a server that is full, and does not say for how long, is left alone."""


class State(StrEnum):
    """How an address is."""

    UNKNOWN = "unknown"
    READY = "ready"
    CLOSING = "closing"
    """It lets running answers end and takes no new ones."""
    RECOVERING = "recovering"
    AWAY = "away"
    UNHEALTHY = "unhealthy"
    REFUSED = "refused"
    """It has another model, does not know us, or is no server of this kind."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a server said of itself."""

    state: State
    load: EngineLoad
    fingerprint: str
    instance: str

    @classmethod
    def read(cls, body: bytes) -> Report:
        """Read an answer to `/engine/load`. Raises `WireError`."""
        told = parse_object(body)
        try:
            health, is_draining = Health(str(told["health"])), bool(told.get("draining"))
            load: EngineLoad = from_json(EngineLoad, told["load"], "load")
            if not all(0 <= number < 2**63 for number in dataclasses.astuple(load)):
                raise ValueError("the load cannot be")
            fingerprint, instance = str(told["fingerprint"])[:128], str(told["instance"])[:128]
        except (KeyError, TypeError, ValueError):
            raise WireError("it does not talk as expected", has_begun=True) from None
        states: dict[Any, State] = {
            Health.READY: State.CLOSING if is_draining else State.READY,
            Health.RECOVERING: State.RECOVERING,
            Health.UNHEALTHY: State.UNHEALTHY,
        }
        return cls(states.get(health, State.AWAY), load, fingerprint, instance)


@dataclass(slots=True, eq=False)
class Replica:
    """One address. now: the clock, in seconds."""

    address: str
    now: Callable[[], float]
    state: State = State.UNKNOWN
    reason: str = ""
    fingerprint: str = ""
    instance: str = ""
    num_own: int = 0
    num_own_tokens: int = 0
    """Of ours that are there now, and the tokens that they may come to need."""
    paused_until_s: float = 0.0
    servers: dict[str, tuple[float, EngineLoad]] = field(default_factory=dict)
    """When each server behind the address was seen, and what it has to do beside what is ours."""

    @property
    def is_open(self) -> bool:
        """Whether it takes another answer."""
        return self.state is State.READY and self.now() >= self.paused_until_s

    @property
    def is_balancer(self) -> bool:
        """Whether several servers answered there of late: one that breaks says nothing of the others."""
        self._drop_unseen()
        return len(self.servers) > 1

    @property
    def others(self) -> EngineLoad:
        """What there is to do and room for, without what is ours."""
        self._drop_unseen()
        return joined([load for _, load in self.servers.values()])

    @property
    def load(self) -> EngineLoad:
        """What there is to do and room for."""
        others = self.others
        return dataclasses.replace(
            others,
            num_requests=others.num_requests + self.num_own,
            num_reserved_tokens=others.num_reserved_tokens + self.num_own_tokens,
        )

    @property
    def busyness(self) -> float:
        """How much of what it can do it does; 1 and more is full."""
        load = self.load
        return max(
            load.num_requests / max(load.max_requests, 1),
            load.num_reserved_tokens / max(load.max_kv_tokens, 1),
        )

    def reports(self, report: Report) -> None:
        """Learn what a server at the address says."""
        others = dataclasses.replace(
            report.load,
            num_requests=max(0, report.load.num_requests - self.num_own),
            num_reserved_tokens=max(0, report.load.num_reserved_tokens - self.num_own_tokens),
        )
        self.servers[report.instance] = self.now(), others
        self.fingerprint, self.instance = report.fingerprint, report.instance
        self.state, self.reason = report.state, ""

    def fails(self, state: State, reason: str) -> None:
        """Learn that it cannot be used, until it reports again."""
        self.state, self.reason = state, reason
        self.servers.clear()

    def pause(self, seconds: float) -> None:
        """Leave it alone for a while, as it asked to be."""
        self.paused_until_s = self.now() + (seconds or _PAUSE_S)

    @contextmanager
    def holding(self, num_tokens: int) -> Iterator[None]:
        """Count an answer of ours."""
        self.num_own += 1
        self.num_own_tokens += num_tokens
        try:
            yield
        finally:
            self.num_own -= 1
            self.num_own_tokens -= num_tokens

    def _drop_unseen(self) -> None:
        for instance, (seen_s, _) in list(self.servers.items()):
            if seen_s < self.now() - SEEN_S:
                del self.servers[instance]


NO_ROOM = EngineLoad(1, 0, 0, 0, 0)
"""Of an engine that nobody is to begin an answer with."""


def joined(loads: Sequence[EngineLoad]) -> EngineLoad:
    """Return what several have to do and room for together."""
    return EngineLoad(
        *(sum(getattr(load, entry.name) for load in loads) for entry in dataclasses.fields(EngineLoad))
    )
