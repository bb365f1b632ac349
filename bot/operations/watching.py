"""Which figures of a running bot are read at each scrape."""

from __future__ import annotations

from typing import Protocol

from bot.conversation.service import ChatService
from bot.operations.health import State, Vitals
from bot.operations.metrics import Metrics


class Watched(Protocol):
    """What is looked at: the bot on Discord."""

    chat: ChatService
    metrics: Metrics

    @property
    def latency(self) -> float:
        """Seconds that Discord's gateway takes to answer a heartbeat; not a number before the first one."""

    def vitals(self) -> Vitals:
        """Return how the bot is now."""


def watch(bot: Watched) -> None:
    """Have the figures of `bot` read from now on. Call it once."""
    chat, metrics = bot.chat, bot.metrics
    metrics.watch("answers_running", "Answers being made.", lambda: chat.num_running)
    metrics.watch("questions_waiting", "Questions that wait for their turn.", lambda: chat.num_waiting)
    metrics.watch("engine_requests", "Requests in the engine.", lambda: chat.engine.load.num_requests)
    metrics.watch("kv_tokens", "Tokens whose KV is held.", lambda: chat.engine.load.num_kv_tokens)
    metrics.watch("kv_tokens_max", "Tokens whose KV may be held.", lambda: chat.engine.load.max_kv_tokens)
    metrics.watch("gateway_latency_seconds", "Latency of Discord's gateway.", lambda: bot.latency)
    for state in State:
        metrics.watch(f"is_{state}", f"1 while the bot is {state}.", lambda s=state: bot.vitals().state is s)  # type: ignore[misc]
