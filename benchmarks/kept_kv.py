"""What keeping a conversation's KV brings for its next turn, in memory and on disk, and what it takes.

    python -m benchmarks.kept_kv [--shape 7b] [--folder DISK]

Some conversations of 1,000 tokens each are held, then each asks again: with its KV still there, with its KV
read from disk, which does not have it in memory any more, and as a conversation that the engine has never
seen. Memory is this process's resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import answer, default_model, print_table, random_prompt, resident_mb
from engine.bench.figures import SHAPES
from engine.bench.random_model import write_random_model
from engine.describing.architecture import Precision
from engine.describing.footprint import kv_token_bytes
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.runtime.model_folder import DiskRoom
from engine.types import Prompt, SamplingParams

NUM_CONVERSATIONS = 8
HISTORY_TOKENS = 1000
QUESTION_TOKENS = 30
VOCAB_SIZE = 32_000
GOAL_RATIO, GOAL_MB = 5, 900
CONTEXT_TOKENS = 1280
"""Where memory holds one conversation, and disk the others."""
WRITING_S = 60.0
"""How long it is waited at most until a conversation is on disk."""


def _next_turn(number: int) -> Prompt:
    history = random_prompt(number, HISTORY_TOKENS, VOCAB_SIZE).ids
    return Prompt((*history, *random_prompt(5000 + number, QUESTION_TOKENS, VOCAB_SIZE).ids))


async def _first_token_s(engine: Engine, prompt: Prompt) -> float:
    params = SamplingParams(max_new_tokens=1, seed=1)
    return (await answer(engine, prompt, params)).usage.time_to_first_token_s


async def measure(folder: Path, num_conversations: int) -> list[list[str]]:
    """Return the rows of the table for KV in memory."""
    before_mb = resident_mb()
    async with await Engine.open(folder, EngineOptions()) as engine:
        loaded_mb = resident_mb()
        prompts = [random_prompt(number, HISTORY_TOKENS, VOCAB_SIZE) for number in range(num_conversations)]
        params = SamplingParams(max_new_tokens=16, seed=1)
        await asyncio.gather(*(answer(engine, prompt, params) for prompt in prompts))
        held_mb = resident_mb()
        kept = [await _first_token_s(engine, _next_turn(number)) for number in range(num_conversations)]
        anew = [await _first_token_s(engine, _next_turn(100 + number)) for number in range(num_conversations)]
    manifest = load_manifest(folder)
    kv_mb = num_conversations * HISTORY_TOKENS * kv_token_bytes(manifest.decoder, manifest.precision) / 1e6
    weights_mb = (folder / "weights.bin").stat().st_size / 1e6
    kept_ms, anew_ms = statistics.median(kept) * 1e3, statistics.median(anew) * 1e3
    return [
        ["first token of the next turn, KV kept", f"{kept_ms:.0f} ms", ""],
        ["first token, KV computed anew", f"{anew_ms:.0f} ms", ""],
        ["ratio", f"{anew_ms / kept_ms:.1f}x", f"{GOAL_RATIO}x"],
        ["Python and libraries", f"{before_mb:.0f} MB", ""],
        ["+ model loaded (weights file and packed copies)", f"{loaded_mb - before_mb:.0f} MB", ""],
        ["   of which the weights file", f"{weights_mb:.0f} MB", ""],
        [f"+ {num_conversations} conversations of 1,000 tokens", f"{held_mb - loaded_mb:.0f} MB", ""],
        ["   of which KV", f"{kv_mb:.0f} MB", ""],
        ["resident in total", f"{held_mb:.0f} MB", f"{GOAL_MB} MB"],
    ]


async def measure_disk(folder: Path, place: Path, num_conversations: int) -> list[list[str]]:
    """Return the rows of the table for KV on disk."""
    manifest = load_manifest(folder)
    kv_bytes = kv_token_bytes(manifest.decoder, manifest.precision) * HISTORY_TOKENS
    room = DiskRoom(place, 2 * kv_bytes * num_conversations)
    options = EngineOptions(
        max_concurrent=1, context_tokens=CONTEXT_TOKENS, kv_cache_mb=1, kv_disk=room, device="cpu"
    )
    async with await Engine.open(folder, options) as engine:
        for number in range(num_conversations):
            await _first_token_s(engine, random_prompt(number, HISTORY_TOKENS, VOCAB_SIZE))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITING_S):
                    while _kv_file(place)[1] < 0.95 * kv_bytes * (number + 1):  # noqa: ASYNC110 - as it is
                        await asyncio.sleep(0.05)
        read, shares = list[float](), list[float]()
        for number in range(num_conversations - 1):
            file, _ = _kv_file(place)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            usage = (await answer(engine, _next_turn(number), SamplingParams(max_new_tokens=1, seed=1))).usage
            read.append(usage.time_to_first_token_s)
            shares.append(usage.num_cached_tokens / usage.num_prompt_tokens)
    read_s = statistics.median(read)
    return [
        ["first token of the next turn, KV read from disk", f"{read_s * 1e3:.0f} ms", ""],
        ["   of which was read", f"{statistics.mean(shares):.0%}", ""],
    ]


def _kv_file(place: Path) -> tuple[int, int]:
    """Return the file without a name in a folder: its number in this process, and its size."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith(str(place)) and target.endswith("(deleted)"):
                return int(link.name), os.fstat(int(link.name)).st_size
    raise RuntimeError("There is no KV on disk.")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights instead of the default model")
    parser.add_argument("--conversations", type=int, default=NUM_CONVERSATIONS)
    parser.add_argument("--folder", type=Path, help="where KV is written, instead of a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamacord-kept-") as folder:
        model = default_model()
        if options.shape:
            model = write_random_model(Path(folder, options.shape), SHAPES[options.shape], Precision.INT4)
        place = (options.folder or Path(folder, "kv")).resolve()
        rows = asyncio.run(measure(model, options.conversations))
        rows += asyncio.run(measure_disk(model, place, options.conversations))
        print_table("Kept KV", ["", "measured", "goal"], rows)


if __name__ == "__main__":
    main()
