"""Pictures of a page as files that are small: one that stands still, and one in motion."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

from PIL import Image

_COLOURS = 64
_COLOURS_OF_PICTURES = 256
_LONGEST_S = 1.5
"""Where nothing moves for longer, the film goes on: nobody watches a still."""


def save_picture(picture: bytes, file: Path) -> None:
    """Write an encoded picture as a PNG of few colours, a third as large."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(_COLOURS_OF_PICTURES).save(file, optimize=True)


class Film:
    """Takes pictures of one size, and saves them as a GIF that plays for ever."""

    def __init__(self) -> None:
        self._frames: list[tuple[bytes, float]] = []

    def add(self, picture: bytes, at_s: float) -> None:
        """Add a picture, an encoded one, seen from `at_s` on; one like the one before only lasts longer."""
        if not self._frames or self._frames[-1][0] != picture:
            self._frames.append((picture, at_s))

    def save(self, file: Path) -> None:
        """Write the film. Raises `ValueError` where nothing was filmed."""
        if not self._frames:
            raise ValueError("Nothing was filmed.")
        times = [at_s for _, at_s in self._frames]
        lasting = [min(after - at, _LONGEST_S) for at, after in itertools.pairwise(times)]
        pictures = [Image.open(io.BytesIO(picture)).convert("RGB") for picture, _ in self._frames]
        palette = pictures[-1].quantize(_COLOURS)
        first, *others = (one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures)
        first.save(
            file,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=[round(1000 * seconds) for seconds in [*lasting, 2 * _LONGEST_S]],
            loop=0,
            optimize=True,
        )
