"""What was measured, beside the floor of memory, others and the goals: as a table, as JSON, as a picture.

The goals are for one H100 of 80 GB with Llama 2 7B's shapes, whose memory moves 3.03 TB/s; those of other
GPUs are in proportion to theirs. Pure, but for the picture of how tokens a second grow with the conversations
at once, which needs Pillow.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.bench.figures import Figures, Plan
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import gpu_step_bytes, size, step_bytes
from engine.errors import ModelResourceError

COLUMNS = ("at once", "first token", "tokens/s", "in total", "ms a step", "of floor")
_SPEED = "tokens/s"
_H100_BYTES_PER_S = 3.03e12
_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 900, 520, 80, 22
_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 900, 520, 80, 22
_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 900, 520, 80, 22
_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 900, 520, 80, 22
_COLOURS = ("#1f6feb", "#d1482f", "#2e8b57", "#8250df", "#9a6700")


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


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that must be reached. `is_time` is one that must not be exceeded; `scales` with bandwidth."""

    name: str
    precision: Precision
    bound: float
    unit: str
    read: Callable[[Run], float | None]
    is_time: bool = False
    scales: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was measured, None where it was not."""

    goal: Goal
    bound: float
    found: float | None

    @property
    def is_met(self) -> bool:
        """Whether the figure is there and reaches its bound."""
        if self.found is None:
            return False
        return self.found <= self.bound if self.goal.is_time else self.found >= self.bound

    def cells(self) -> list[str]:
        """Return the row of a table."""
        sign, unit = ("at most" if self.goal.is_time else "at least"), self.goal.unit
        found = "not measured" if self.found is None else f"{self.found:.4g} {unit}"
        verdict = "PASS" if self.is_met else "FAIL"
        return [self.goal.name, f"{sign} {self.bound:.4g} {unit}", found, verdict]


def verdicts(runs: Sequence[Run]) -> Iterator[Verdict]:
    """Compare the runs, one of each precision, with the goals; a peer's goals only where it was measured."""
    for goal in GOALS:
        run = next((run for run in runs if run.precision is goal.precision), None)
        if run is None:
            yield Verdict(goal, goal.bound, None)
            continue
        factor = run.bandwidth / _H100_BYTES_PER_S if goal.scales else 1.0
        yield Verdict(goal, goal.bound / factor if goal.is_time else goal.bound * factor, goal.read(run))
    for run in runs:
        for peer in run.peers:
            yield from _beside(run, peer)


def _beside(run: Run, peer: Figures) -> Iterator[Verdict]:
    """Compare with a peer."""
    bounds = {1: 22.0, 64: 650.0} if peer.name.startswith("published loop") else {1: 1.0, 32: 1.1}
    for number, bound in bounds.items():
        name = f"{run.precision}, {number} at once, beside {peer.name}"
        goal = Goal(name, run.precision, bound, "x", lambda _: None, scales=False)
        yield Verdict(goal, bound, run.ratio(peer, number))


def _total(number: int) -> Callable[[Run], float | None]:
    def read(run: Run) -> float | None:
        load = run.figures.load(number)
        return None if load is None else load.tokens_per_s

    return read


def _step_ms(run: Run) -> float | None:
    load = run.figures.load(1)
    return None if load is None else load.step_s * 1e3


def _second_turn_ms(run: Run) -> float | None:
    seconds = run.figures.second_turn_s
    return None if seconds is None else seconds * 1e3


GOALS = (
    Goal("fp16, one conversation", Precision.FP16, 6.2, "ms a token", _step_ms, is_time=True),
    Goal("int4, one conversation", Precision.INT4, 310, _SPEED, _total(1)),
    Goal("fp16, 64 conversations in total", Precision.FP16, 5000, _SPEED, _total(64)),
    Goal("fp16, 128 conversations in total", Precision.FP16, 6200, _SPEED, _total(128)),
    Goal("int4, 32 conversations in total", Precision.INT4, 3600, _SPEED, _total(32)),
    Goal("fp16, prefill", Precision.FP16, 28_000, _SPEED, lambda run: run.figures.prefill),
    Goal("fp16, first token of a second turn", Precision.FP16, 25, "ms", _second_turn_ms, is_time=True),
)


Point = tuple[float, float]


def require_pillow() -> None:
    """Raise `ModelResourceError` where nothing can be drawn, before anything is measured."""
    if importlib.util.find_spec("PIL") is None:
        raise ModelResourceError("--plot needs Pillow: .venv/bin/python -m pip install pillow")


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG: both axes logarithmic, a run solid, its floor dotted. Raises `ModelResourceError`."""
    require_pillow()
    from PIL import Image, ImageDraw

    lines = _lines(runs)
    points = [point for _, line in lines for point in line]
    if not points:
        raise ModelResourceError("There is nothing to draw: no conversation was measured.")
    place = _scale(points)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for number in sorted({x for x, _ in points}):
        x, _ = place((number, points[0][1]))
        pen.line([(x, _MARGIN), (x, _HEIGHT - _MARGIN)], fill="#dddddd")
        pen.text((x - 6, _HEIGHT - _MARGIN + 8), f"{number:g}", fill="black")
    for value in _round_values([y for _, y in points]):
        _, y = place((points[0][0], value))
        pen.line([(_MARGIN, y), (_WIDTH - _MARGIN, y)], fill="#dddddd")
        pen.text((12, y - 6), f"{value:g}", fill="black")
    pen.text((_MARGIN, _HEIGHT - _MARGIN + 28), "conversations at once", fill="black")
    pen.text((12, _MARGIN - 44), "tokens a second in total", fill="black")
    for index, (name, line) in enumerate(lines):
        colour = _COLOURS[index // 2 % len(_COLOURS)]
        placed = [place(point) for point in line]
        if index % 2 == 0:
            pen.line(placed, fill=colour, width=3)
        for x, y in placed:
            pen.ellipse(
                [(x - 3, y - 3), (x + 3, y + 3)], outline=colour, fill="white" if index % 2 else colour
            )
        pen.text((_MARGIN + 20, _MARGIN + _LEGEND * index), name, fill=colour)
    image.save(path, "PNG")


def _lines(runs: Sequence[Run]) -> list[tuple[str, list[Point]]]:
    lines = []
    for run in runs:
        loads = run.figures.loads
        lines.append((run.title, [(load.conversations, load.tokens_per_s) for load in loads]))
        floor = [(load.conversations, load.conversations / run.floor_s(load.conversations)) for load in loads]
        lines.append((f"open dots: what its memory of {run.bandwidth / 1e9:.0f} GB/s allows", floor))
    return [(name, [(float(x), y) for x, y in line]) for name, line in lines]


def _scale(points: Sequence[Point]) -> Callable[[Point], Point]:
    """Return a function from values to pixels."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    left, right = min(x for x, _ in logs), max(x for x, _ in logs)
    low, high = min(y for _, y in logs), max(y for _, y in logs)

    def place(point: Point) -> Point:
        x = (math.log(point[0]) - left) / ((right - left) or 1)
        y = (math.log(point[1]) - low) / ((high - low) or 1)
        inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
        return _MARGIN + x * inner_width, _HEIGHT - _MARGIN - y * inner_height

    return place


def _round_values(values: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between the smallest and the largest value."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    candidates = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    return [value for value in candidates if min(values) <= value <= max(values)]
