"""The figures of one running bot, for Prometheus. The only file that imports `prometheus_client`.

Holds numbers and the names of states, never ids or what anybody wrote. Knows nothing of how they are served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engine.types import Completion
from storage.conversations import MessageState

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FIRST_TOKEN_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_DURATION_BUCKETS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)
_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """Counts what happens, and reads at each scrape what stands still."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._answers = Counter(
            "llamacord_answers", "Answers that ended, by how.", ["state"], registry=registry
        )
        self._tokens = Counter(
            "llamacord_tokens",
            "Tokens: of prompts computed, of prompts whose KV was still there, and of answers.",
            ["kind"],
            registry=registry,
        )
        self._first_token = Histogram(
            "llamacord_time_to_first_token_seconds",
            "From the submission of a request to its first token.",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "llamacord_answer_duration_seconds",
            "From the submission of a request to its end.",
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._refusals = Counter(
            "llamacord_refusals", "Questions that were not taken, by reason.", ["reason"], registry=registry
        )
        self._errors = Counter(
            "llamacord_errors",
            "Records in the log at level ERROR and above, by origin.",
            ["origin"],
            registry=registry,
        )
        self._lag = Histogram(
            "llamacord_loop_lag_seconds",
            "How late the event loop is.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    def answered(self, state: MessageState, completion: Completion | None) -> None:
        """Count an answer that ended."""
        self._answers.labels(str(state)).inc()
        if completion is None:
            return
        usage = completion.usage
        self._tokens.labels("prompt").inc(usage.num_computed_tokens)
        self._tokens.labels("cached").inc(usage.num_cached_tokens)
        self._tokens.labels("answer").inc(usage.num_new_tokens)
        self._duration.observe(usage.duration_s)
        if usage.num_new_tokens:
            self._first_token.observe(usage.time_to_first_token_s)

    def refused(self, error: Exception) -> None:
        """Count a question that was not taken."""
        self._refusals.labels(type(error).__name__.removesuffix("Error")).inc()

    def lagged(self, lag_s: float) -> None:
        """Count how late the event loop was."""
        self._lag.observe(lag_s)

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Have `read` called at each scrape for the figure `llamacord_<name>`."""
        Gauge(f"llamacord_{name}", meaning, registry=self._registry).set_function(read)

    def error_counter(self) -> logging.Handler:
        """Return a handler for the log that counts errors."""
        return _ErrorCounter(lambda origin: self._errors.labels(origin).inc())

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _ErrorCounter(logging.Handler):
    def __init__(self, count: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._count = count

    def emit(self, record: logging.LogRecord) -> None:
        self._count(record.name)
