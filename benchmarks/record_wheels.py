"""Writes tests/data/wheels.txt: the wheels that the index has of the locked packages.

    make lock

pipes what uv resolved (`--format pylock.toml`) into this. `tests/test_installing.py` holds the lock to it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

WHEELS_FILE = Path(__file__).parent.parent / "tests" / "data" / "wheels.txt"
HASH_CHARACTERS = 16
"""Of a SHA-256: enough to tell the files of the lock from each other."""
_OF_USE = re.compile(
    r"-(?:[a-z0-9.]*py3|cp31[1-4]-cp31[1-4]|cp3\d{1,2}-abi3)[^-]*(?:-none)?"
    r"-(?:any|manylinux\S*_(?:x86_64|aarch64)|win_amd64|macosx\S*_(?:arm64|universal2))\.whl$"
)


def main() -> None:
    """Read a lock from standard input and write the file."""
    locked = tomllib.load(sys.stdin.buffer)
    lines = set()
    for package in locked["packages"]:
        for wheel in package.get("wheels", []):
            name = wheel["url"].rpartition("/")[2]
            if _OF_USE.search(name):
                lines.add(f"{wheel['hashes']['sha256'][:HASH_CHARACTERS]} {name}")
    WHEELS_FILE.write_text(
        "\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n", encoding="ascii"
    )


if __name__ == "__main__":
    main()
