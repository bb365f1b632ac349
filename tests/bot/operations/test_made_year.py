"""A day of the made year: kills at every step at which the bot waits, with a Discord that loses requests."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMMAND = "-W ignore -m benchmarks.made_year --days 1 --questions 60 --kills 30 --seed 7"


async def test_a_day_with_thirty_kills_shows_all_as_it_is_stored() -> None:
    """In a process of its own: what is left of killed lives complains when it is collected."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *COMMAND.split(), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    assert b"differences" in printed
