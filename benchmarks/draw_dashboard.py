"""Draws the panels of deploy/grafana.json from what a Prometheus has recorded, without Grafana.

    python -m benchmarks.draw_dashboard http://127.0.0.1:9090 dashboard.png --minutes 5

Each panel's queries are run by Prometheus as Grafana has them run; only the drawing is our own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana.json"
CELL_X, CELL_Y = 50, 28
"""Pixels of a cell of the grid, which has 24 in a line."""
MARGIN = 8
NUM_POINTS = 150
RATE_INTERVAL = "20s"
COLOURS = ("#73bf69", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#fade2a", "#8ab8ff", "#ffa6b0")
BACKGROUND, PANEL, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2c3235", "#ccccdc", "#8e8e99"
MAX_LEGENDS = 6


@dataclass(frozen=True)
class Line:
    """One series: its name, and its points as seconds of the epoch and values."""

    name: str
    points: Sequence[tuple[float, float]]


def ask(prometheus: str, query: str, start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Have Prometheus run a query over a time."""
    given = {"query": query, "start": start_s, "end": end_s, "step": (end_s - start_s) / NUM_POINTS}
    address = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(given)}"
    with urllib.request.urlopen(address, timeout=30) as response:  # noqa: S310 - the operator's own address
        found: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return found


def lines_of(prometheus: str, panel: dict[str, Any], start_s: float, end_s: float) -> list[Line]:
    """Return the series of a panel, named as its legends say."""
    lines = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for series in ask(prometheus, query, start_s, end_s):
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            points = [(at, float(value)) for at, value in series["values"]]
            lines.append(Line(name, [(at, value) for at, value in points if math.isfinite(value)]))
    return lines


def told(value: float, unit: str) -> str:
    """Return a value as people read it."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    return f"{value:.3g}"


def draw_panel(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    panel: dict[str, Any],
    lines: Sequence[Line],
    span: tuple[float, float],
) -> None:
    """Draw a panel into a box of pixels: left, top, right, bottom."""
    small, title = ImageFont.load_default(size=10), ImageFont.load_default(size=12)
    left, top, right, bottom = box
    draw.rectangle(box, PANEL)
    draw.text((left + 8, top + 6), panel["title"], TEXT, title)
    defaults = panel["fieldConfig"]["defaults"]
    most = max((value for line in lines for _, value in line.points), default=0.0)
    high = defaults.get("max") or (most * 1.1 if most > 0 else 1.0)
    x0, x1, y0, y1 = left + 56, right - 10, bottom - 34, top + 28
    for part in (0.0, 0.5, 1.0):
        y = y0 + (y1 - y0) * part
        draw.line((x0, y, x1, y), GRID)
        draw.text((x0 - 6, y), told(high * part, defaults["unit"]), FAINT, small, anchor="rm")
    for line, colour in zip(lines, COLOURS * len(lines), strict=False):
        places = [
            (x0 + (x1 - x0) * (at - span[0]) / (span[1] - span[0]), y0 + (y1 - y0) * min(value / high, 1.0))
            for at, value in line.points
        ]
        if len(places) > 1:
            draw.line(places, colour, 1)
    x = float(left + 8)
    for line, colour in list(zip(lines, COLOURS * len(lines), strict=False))[:MAX_LEGENDS]:
        width = draw.textlength(line.name, small) + 24
        if x + width > right:
            break
        draw.line((x, bottom - 14, x + 10, bottom - 14), colour, 2)
        draw.text((x + 14, bottom - 14), line.name, FAINT, small, anchor="lm")
        x += width


def draw_all(prometheus: str, minutes: float) -> Image.Image:
    """Return the picture of the last minutes."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    end_s = time.time()
    span = (end_s - minutes * 60, end_s)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    image = Image.new("RGB", (24 * CELL_X + MARGIN, height * CELL_Y + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] * CELL_X + MARGIN, place["y"] * CELL_Y + MARGIN
        right, bottom = left + place["w"] * CELL_X - MARGIN, top + place["h"] * CELL_Y - MARGIN
        if panel["type"] == "row":
            draw.text((left, top), panel["title"], TEXT, ImageFont.load_default(size=14))
        else:
            draw_panel(draw, (left, top, right, bottom), panel, lines_of(prometheus, panel, *span), span)
    return image


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("picture", type=Path, help="where to write")
    parser.add_argument("--minutes", type=float, default=5.0, help="back from now")
    options = parser.parse_args()
    image = draw_all(options.prometheus.rstrip("/"), options.minutes)
    image.quantize(64).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
