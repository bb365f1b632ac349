"""How much a person and a server may ask in a minute. Pure.

The operator's limits hold everywhere; a server can only be stricter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bot.limits.buckets import Buckets, Rate
from bot.servers.refusals import RateLimitedError
from bot.servers.server_config import ServerConfig


@dataclass(frozen=True, slots=True)
class Allowance:
    """Questions a minute that the operator allows; 0 is no limit."""

    per_user: int = 10
    per_server: int = 120


class RateLimits:
    """Counts questions."""

    def __init__(self, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._allowance = allowance
        self._buckets = Buckets(clock)

    def admit(self, user_id: int, guild_id: int | None, config: ServerConfig) -> None:
        """Count one question. Raises `RateLimitedError`, and then counts nothing."""
        of_person, of_server = self._rates(user_id, guild_id, config)
        wait_s = max((self._buckets.wait_s(rate) for rate in of_person), default=0.0)
        if wait_s > 0:
            raise RateLimitedError(wait_s, is_server=False)
        wait_s = max((self._buckets.wait_s(rate) for rate in of_server), default=0.0)
        if wait_s > 0:
            raise RateLimitedError(wait_s, is_server=True)
        self._buckets.take((*of_person, *of_server))

    def _rates(
        self, user_id: int, guild_id: int | None, config: ServerConfig
    ) -> tuple[list[Rate], list[Rate]]:
        of_person = _rate(("user", user_id), self._allowance.per_user)
        if guild_id is None:
            return of_person, []
        of_person += _rate(("member", guild_id, user_id), config.user_per_minute)
        of_server = _rate(("server", guild_id), self._allowance.per_server)
        of_server += _rate(("own", guild_id), config.server_per_minute)
        return of_person, of_server


def _rate(key: tuple[str | int, ...], per_minute: int | None) -> list[Rate]:
    return [Rate(key, per_minute)] if per_minute else []
