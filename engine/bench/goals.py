"""What the engine must reach on a GPU with Llama 2 7B's shapes, and whether it does. Pure.

The goals are for one H100 of 80 GB, whose memory moves 3.03 TB/s; those of other GPUs are in proportion to
theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.bench.figures import Figures
from engine.bench.report import Run
from engine.describing.architecture import Precision

_H100_BYTES_PER_S = 3.03e12


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


_SPEED = "tokens/s"
GOALS = (
    Goal("fp16, one conversation", Precision.FP16, 6.2, "ms a token", _step_ms, is_time=True),
    Goal("int4, one conversation", Precision.INT4, 310, _SPEED, _total(1)),
    Goal("fp16, 64 conversations in total", Precision.FP16, 5000, _SPEED, _total(64)),
    Goal("fp16, 128 conversations in total", Precision.FP16, 6200, _SPEED, _total(128)),
    Goal("int4, 32 conversations in total", Precision.INT4, 3600, _SPEED, _total(32)),
    Goal("fp16, prefill", Precision.FP16, 28_000, _SPEED, lambda run: run.figures.prefill),
    Goal("fp16, first token of a second turn", Precision.FP16, 25, "ms", _second_turn_ms, is_time=True),
)
