"""Fills all that an engine may come to take, and prints what was stated and what the process takes.

A process of its own: `python -m tests.bot.memory_probe FOLDER KV_MB CONTEXT`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from pathlib import Path

import bot.app  # noqa: F401 - as the bot's process has it
from bot.models import model_bytes
from engine.cpu.runner import SlotRunner
from engine.describing.footprint import PROCESS_BYTES
from engine.engine import Engine, EngineOptions, kv_room
from engine.opening import open_folder
from engine.runtime.scheduler import PrefillPace
from engine.types import Prompt, SamplingParams
from tests.engine.engine_stage import read, wait_until


def taken_mb(name: str) -> float:
    """Return this process's memory in MiB, from `/proc`: VmRSS now, VmHWM at most."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


async def fill(engine: Engine, vocab_size: int, page: int) -> None:
    """Take the largest step, then hold as many tokens as may be held, and make as many answers at once."""
    rng, load = random.Random(1), engine.load
    longest = engine.info.context_length // page * page
    length, rest = divmod(load.max_kv_tokens // page, 2 * load.max_requests)
    lengths = [min(longest, page * (length + (number < rest))) for number in range(2 * load.max_requests)]

    async def converse(num_tokens: int) -> None:
        ids = tuple(rng.randrange(3, vocab_size) for _ in range(num_tokens - 8))
        await read(engine.generate(Prompt(ids), SamplingParams(temperature=1.0, max_new_tokens=8)))

    await converse(longest)
    for some in (lengths[: load.max_requests], lengths[load.max_requests :]):
        await asyncio.gather(*map(converse, some))


async def main(folder: Path, kv_mb: int, context: int) -> None:
    """Print the figures as JSON."""
    SlotRunner.pace = PrefillPace(
        alone_s=1000.0, beside_s=1000.0
    )  # the largest steps, also on a slow machine
    options = EngineOptions(num_threads=2, kv_cache_mb=kv_mb, context_tokens=context, device="cpu")
    model = open_folder(folder)
    stated = model_bytes(options, model) + PROCESS_BYTES
    async with await Engine.open(folder, options) as engine:
        loaded = taken_mb("VmRSS")
        await fill(engine, model.vocab_size, model.page_tokens)
        taken, share = taken_mb("VmRSS"), engine.load.num_kv_tokens / engine.load.max_kv_tokens
        engine.drop_idle_cache()
        await wait_until(lambda: engine.load.num_kv_tokens == 0)
        figures = {
            "stated": stated / 2**20,
            "taken": taken,
            "left": taken_mb("VmRSS"),
            "most": taken_mb("VmHWM"),
            "loaded": loaded,
            "kv": kv_room(model, options).num_bytes / 2**20,
            "share": share,
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
