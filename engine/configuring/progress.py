"""Shows what is being fetched or converted: bars in a terminal, else a line for each stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from engine.convert.default_model import Progress as OnProgress


@contextmanager
def showing_progress(console: Console) -> Iterator[OnProgress]:
    """Give the function that is told what is being done and the share of it that is done."""
    if not console.is_terminal:
        yield _line_writer(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)

        yield on_progress


def _line_writer(console: Console) -> OnProgress:
    stages: set[str] = set()

    def on_progress(stage: str, share: float) -> None:  # noqa: ARG001 - one line a stage
        if stage not in stages:
            stages.add(stage)
            console.print(f"{stage} …", markup=False, highlight=False)

    return on_progress
