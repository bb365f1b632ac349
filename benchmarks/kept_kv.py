"""What keeping a conversation's KV brings for its next turn, and what it takes in memory.

    python -m benchmarks.kept_kv

Eight conversations of 1,000 tokens each are held, then each asks again: once with its KV still there and
once as a conversation that the engine has never seen. Memory is this process's resident set.
"""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.common import answer, default_model, print_table, random_prompt, resident_mb
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.types import Prompt, SamplingParams

NUM_CONVERSATIONS = 8
HISTORY_TOKENS = 1000
QUESTION_TOKENS = 30
GOAL_RATIO, GOAL_MB = 5, 900


def _next_turn(number: int) -> Prompt:
    history = random_prompt(number, HISTORY_TOKENS).ids
    return Prompt((*history, *random_prompt(5000 + number, QUESTION_TOKENS).ids))


async def _first_token_s(engine: Engine, prompt: Prompt) -> float:
    return (
        await answer(engine, prompt, SamplingParams(max_new_tokens=1, seed=1))
    ).usage.time_to_first_token_s


async def measure() -> list[list[str]]:
    """Return the rows of the table."""
    folder = default_model()
    before_mb = resident_mb()
    async with await Engine.open(folder, EngineOptions()) as engine:
        loaded_mb = resident_mb()
        prompts = [random_prompt(number, HISTORY_TOKENS) for number in range(NUM_CONVERSATIONS)]
        params = SamplingParams(max_new_tokens=16, seed=1)
        await asyncio.gather(*(answer(engine, prompt, params) for prompt in prompts))
        held_mb = resident_mb()
        kept = [await _first_token_s(engine, _next_turn(number)) for number in range(NUM_CONVERSATIONS)]
        anew = [await _first_token_s(engine, _next_turn(100 + number)) for number in range(NUM_CONVERSATIONS)]
    decoder = load_manifest(folder).decoder
    kv_mb = NUM_CONVERSATIONS * HISTORY_TOKENS * decoder.kv_bytes_per_token() / 1e6
    weights_mb = (folder / "weights.bin").stat().st_size / 1e6
    kept_ms, anew_ms = statistics.median(kept) * 1e3, statistics.median(anew) * 1e3
    return [
        ["first token of the next turn, KV kept", f"{kept_ms:.0f} ms", ""],
        ["first token, KV computed anew", f"{anew_ms:.0f} ms", ""],
        ["ratio", f"{anew_ms / kept_ms:.1f}x", f"{GOAL_RATIO}x"],
        ["Python and libraries", f"{before_mb:.0f} MB", ""],
        ["+ model loaded (weights file and packed copies)", f"{loaded_mb - before_mb:.0f} MB", ""],
        ["   of which the weights file", f"{weights_mb:.0f} MB", ""],
        ["+ 8 conversations of 1,000 tokens", f"{held_mb - loaded_mb:.0f} MB", ""],
        ["   of which KV", f"{kv_mb:.0f} MB", ""],
        ["resident in total", f"{held_mb:.0f} MB", f"{GOAL_MB} MB"],
    ]


def main() -> None:
    """Print the table."""
    print_table("Kept KV", ["", "measured", "goal"], asyncio.run(measure()))


if __name__ == "__main__":
    main()
