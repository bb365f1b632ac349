"""The figures of one server, for Prometheus. Numbers, names of keys and of states, never what anybody wrote.

Knows nothing of how they are served.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engine.types import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FIRST_TOKEN_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_DURATION_BUCKETS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """Counts what happens, and reads at each scrape what stands still."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "llamacord_engine_requests",
            "Requests that ended, by key and status; 499 is a client that left.",
            ["key", "status"],
            registry=registry,
        )
        self._tokens = Counter(
            "llamacord_engine_tokens",
            "Tokens: of prompts computed, of prompts whose KV was still there, and of answers.",
            ["key", "kind"],
            registry=registry,
        )
        self._first_token = Histogram(
            "llamacord_engine_time_to_first_token_seconds",
            "From the beginning of an answer, after any waiting, to its first token.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self._waiting = Histogram(
            "llamacord_engine_waiting_seconds",
            "From a request to the beginning of its answer.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "llamacord_engine_answer_duration_seconds",
            "From the beginning of an answer, after any waiting, to its end.",
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )

    def ended(self, key: str, status: int) -> None:
        """Count a request that ended."""
        self._requests.labels(key, str(status)).inc()

    def began(self, waited_s: float) -> None:
        """Count an answer that began."""
        self._waiting.observe(waited_s)

    def answered(self, key: str, usage: Usage) -> None:
        """Count what an answer took."""
        self._tokens.labels(key, "prompt").inc(usage.num_computed_tokens)
        self._tokens.labels(key, "cached").inc(usage.num_cached_tokens)
        self._tokens.labels(key, "answer").inc(usage.num_new_tokens)
        self._duration.observe(usage.duration_s)
        if usage.num_new_tokens:
            self._first_token.observe(usage.time_to_first_token_s)

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Have `read` called at each scrape for the figure `llamacord_engine_<name>`."""
        Gauge(f"llamacord_engine_{name}", meaning, registry=self._registry).set_function(read)

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)
