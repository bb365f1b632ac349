"""Figures beside the floor that memory sets and beside what others do:

rows of a table, an object for JSON. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.bench.figures import Figures, Plan
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import gpu_step_bytes, size, step_bytes

COLUMNS = ("at once", "first token", "tokens/s", "in total", "ms a step", "of floor")


@dataclass(frozen=True, slots=True)
class Run:
    """One model measured: what it is, its figures, those of peers, and the bytes a second of the memory."""

    title: str
    config: DecoderConfig
    precision: Precision
    plan: Plan
    figures: Figures
    bandwidth: float
    peers: tuple[Figures, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    def floor_s(self, conversations: int) -> float:
        """Return the seconds in which memory gives a step's weights and KV at the plan's context."""
        held = {"num_tokens": self.plan.context, "num_conversations": conversations}
        count = gpu_step_bytes if self.figures.provider == "cuda" else step_bytes
        return count(self.config, self.precision, **held) / self.bandwidth

    def share(self, conversations: int) -> float | None:
        """Return which share of the floor's speed is reached, None for what was not measured."""
        load = self.figures.load(conversations)
        return None if load is None else self.floor_s(conversations) / load.step_s

    def ratio(self, peer: Figures, conversations: int) -> float | None:
        """Return how many times a peer's tokens a second are made; of one that answers alone, always that."""
        load = self.figures.load(conversations)
        other = peer.load(conversations) or (peer.loads[0] if len(peer.loads) == 1 else None)
        return None if load is None or other is None else load.tokens_per_s / other.tokens_per_s


def columns(run: Run) -> tuple[str, ...]:
    """Return the table's columns, one for each peer."""
    return (*COLUMNS, *(f"beside {peer.name.partition(',')[0]}" for peer in run.peers))


def rows(run: Run) -> Iterator[list[str]]:
    """Return the table's rows."""
    for load in run.figures.loads:
        share = run.share(load.conversations)
        cells = [
            str(load.conversations),
            f"{load.first_token_s * 1e3:.0f} ms",
            f"{load.per_stream:.1f}",
            f"{load.tokens_per_s:.0f}" + ("*" if load.cut_short else ""),
            f"{load.step_s * 1e3:.2f}",
            "" if share is None else f"{share:.0%}",
        ]
        ratios = (run.ratio(peer, load.conversations) for peer in run.peers)
        yield cells + ["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]


def sentences(run: Run) -> Iterator[str]:
    """Say what is no row of the table."""
    figures = run.figures
    moved = f"{run.bandwidth / 1e9:.0f} GB/s"
    yield f"It ran on {figures.provider}, whose memory moves {moved}, measured in the same run."
    if figures.prefill is not None and figures.first_token_s is not None:
        yield (
            f"A prompt of {run.plan.context} tokens is read at {figures.prefill:.0f} tokens/s; its first "
            f"token comes after {figures.first_token_s * 1e3:.0f} ms."
        )
    if figures.second_turn_s is not None:
        yield (
            f"The second turn of a conversation of 1,500 tokens computes {figures.second_turn_tokens} of "
            f"them; its first token comes after {figures.second_turn_s * 1e3:.0f} ms."
        )
    yield f"Loading took {figures.load_s:.1f} s; the process holds {size(figures.resident_bytes or 0)}."
    if figures.free_before is not None and figures.free_after is not None:
        yield f"Of the GPU's memory it takes {size(figures.free_before - figures.free_after)}."
    if any(load.cut_short for load in figures.loads):
        yield "* An answer ended early: the figure rests on few tokens."
    for peer in run.peers:
        told = ", ".join(f"{load.tokens_per_s:.1f} at {load.conversations}" for load in peer.loads)
        yield f"{peer.name} on {peer.provider}: {told} (tokens/s in total at so many conversations)."
    yield from run.notes


def as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the runs as objects for JSON, with floors and shares."""
    made = []
    for run in runs:
        described = asdict(run)
        described["floors_s"] = {
            load.conversations: run.floor_s(load.conversations) for load in run.figures.loads
        }
        described["shares"] = {
            load.conversations: run.share(load.conversations) for load in run.figures.loads
        }
        made.append(described)
    return made
