"""Draws how tokens a second grow with the conversations at once, beside the floor that memory sets.

Needs Pillow.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.bench.report import Run
from engine.errors import ModelResourceError

_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 900, 520, 80, 22
_COLOURS = ("#1f6feb", "#d1482f", "#2e8b57", "#8250df", "#9a6700")
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
