"""What drafting tokens brings: decode speed with and without it, of answers that quote and of others.

    python -m benchmarks.speculation --threads 2 --rounds 5
    python -m benchmarks.speculation --draft-models well badly

Default model, one conversation and several at once, through the public API, with the bot's usual sampling
but for the repetition penalty, which speaks against quoting. Both engines answer the same prompts by turns;
the ratio is the median of the rounds' ratios. Answers that must be reproducible (a seed, temperature 0) have
no drafts. With `--draft-models` small models draft for a large one, see `agreeing_models.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

from benchmarks.agreeing_models import NOISE, draft_model, large_model
from benchmarks.common import answer, default_model, print_table
from engine.engine import Engine, EngineOptions
from engine.types import ChatMessage, SamplingParams

MAX_NEW_TOKENS = 160
STORY = (
    "The old lighthouse on the cliff had not been lit for thirty years. Then, one evening in November, Tomas "
    "saw a faint yellow glow behind its dusty windows. He rowed closer and called out, but nobody "
    "answered. The next morning he climbed the ninety-nine steps and found a small oil lamp, still warm, and "
    "beside it a letter with his own name on it. It said: keep the light burning until I come back."
)
CODE = """def read_settings(path):
    settings = {}
    for line in open(path):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, _, value = line.partition("=")
        settings[key.strip()] = value.strip()
    return settings
"""
WORKLOADS: dict[str, tuple[Sequence[str], float]] = {
    "quoting and summing up": (
        (
            f"Repeat this text word for word:\n\n{STORY}",
            f"Repeat this code exactly as it is:\n\n{CODE}",
            f"Sum this text up in its own words:\n\n{STORY}",
            f"Add a docstring to this code and show all of it again:\n\n{CODE}",
        ),
        1.2,
    ),
    "other questions": (
        (
            "Why is the sky blue?",
            "Write a short poem about the sea.",
            "Give me three tips for learning Python.",
            "What should I cook tonight with rice and tomatoes?",
        ),
        0.97,
    ),
}


async def speed(engine: Engine, questions: Sequence[str], num_at_once: int, seed: int) -> float:
    """Return tokens/s in total while so many conversations answer all of these, question after question.

    `seed` gives the random numbers: both engines make the same answers, as far as rounding lets them.
    """
    prompts = deque(engine.fit_prompt([ChatMessage("user", question)], 2048) for question in questions)
    params = SamplingParams(repetition_penalty=1.0, max_new_tokens=MAX_NEW_TOKENS)
    num_tokens = 0

    async def converse() -> None:
        nonlocal num_tokens
        while prompts:
            usage = (await answer(engine, prompts.popleft(), params)).usage
            num_tokens += usage.num_new_tokens

    with mock.patch("secrets.randbits", random.Random(seed).getrandbits):
        started = time.perf_counter()
        await asyncio.gather(*(converse() for _ in range(num_at_once)))
        return num_tokens / (time.perf_counter() - started)


async def compare(threads: int, rounds: int, conversations: Sequence[int]) -> None:
    """Measure the default model without drafts and with them, by turns, and print the table."""
    options = EngineOptions(num_threads=threads, max_concurrent=max(conversations), device="cpu")
    engines = [await Engine.open(default_model(), replace(options, speculation=on)) for on in (False, True)]
    rows = []
    for num in conversations:
        for name, (questions, goal) in WORKLOADS.items():
            asked = list(questions) * (1 + num // 2)
            figures = await by_turns(engines, asked, num, rounds)
            rows.append([f"{num}: {name}", *figures, f"{goal if num == 1 else min(goal, 1.0)}x"])
    for engine in engines:
        await engine.close()
    columns = ["tokens/s", "one by one", "drafting", "ratio", "over the rounds", "goal"]
    print_table(f"{threads} threads, {rounds} rounds", columns, rows)


async def compare_draft_models(threads: int, rounds: int, names: Sequence[str]) -> None:
    """Measure a large model alone and with small ones that draft for it, by turns, and print the table."""
    options = EngineOptions(num_threads=threads, max_concurrent=1, context_tokens=1024, device="cpu")
    alone = await Engine.open(large_model(), replace(options, speculation=False))
    rows = []
    for name in names:
        drafting = await Engine.open(large_model(), replace(options, draft_model=draft_model(name)))
        questions = WORKLOADS["other questions"][0][:2]
        rows.append(
            [
                f"drafts of a model that guesses {name}",
                *await by_turns([alone, drafting], questions, 1, rounds),
            ]
        )
        await drafting.close()
    await alone.close()
    columns = ["tokens/s", "one by one", "drafting", "ratio", "over the rounds"]
    print_table(f"{threads} threads, {rounds} rounds, other questions", columns, rows)


async def by_turns(engines: Sequence[Engine], questions: Sequence[str], num: int, rounds: int) -> list[str]:
    """Return the medians of both engines and of their ratio, and how far that spreads."""
    for engine in engines:  # the prompts' KV is kept from here on: what is timed is nearly all decode
        await speed(engine, list(dict.fromkeys(questions)), 1, 0)
    pairs: list[tuple[float, float]] = []
    for seed in range(rounds):
        slow, fast = [await speed(engine, questions, num, seed) for engine in engines]
        pairs.append((slow, fast))
    ratios = [fast / slow for slow, fast in pairs]
    medians = [f"{statistics.median(side):.0f}" for side in zip(*pairs, strict=True)]
    return [*medians, f"{statistics.median(ratios):.2f}x", f"{min(ratios):.2f} - {max(ratios):.2f}"]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--draft-models", nargs="+", choices=NOISE, help="of a large model with such small ones instead"
    )
    arguments = parser.parse_args()
    if arguments.draft_models:
        asyncio.run(compare_draft_models(arguments.threads, arguments.rounds, arguments.draft_models))
    else:
        asyncio.run(compare(arguments.threads, arguments.rounds, arguments.conversations))


if __name__ == "__main__":
    main()
