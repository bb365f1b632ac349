"""What choosing a token costs, for each mix of parameters and size of vocabulary.

    python -m benchmarks.sampling

Prints microseconds a token, and in parentheses how many times what the default parameters take in the same
rounds: for logits as a chat model has them, and for flat ones, where nearly every token counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from benchmarks.common import print_table
from engine.runtime.sampling import FloatArray, Sampler
from engine.types import SamplingParams

VOCABULARIES = (32_000, 49_152, 131_072, 262_144)
DEFAULT = "default"
NUM_PROMPT, NUM_LONG_PROMPT = 500, 30_000
TOKENS_A_ROUND = 8
MIXES = {
    DEFAULT: SamplingParams(),
    "default, long prompt": SamplingParams(),
    "greedy": SamplingParams(temperature=0.0, repetition_penalty=1.0),
    "greedy, penalty": SamplingParams(temperature=0.0),
    "min-p alone": SamplingParams(1.0, 1.0, 0, 0.05, 1.0),
    "small min-p alone": SamplingParams(1.0, 1.0, 0, 0.0001, 1.0),
    "top-p alone": SamplingParams(1.0, 0.9, 0, 0.0, 1.0),
    "top-p 0.99": SamplingParams(1.0, 0.99, 0, 0.0, 1.0),
    "top-p and min-p": SamplingParams(1.0, 0.95, 0, 0.05, 1.0),
    "top-p 0.99, temperature 2": SamplingParams(2.0, 0.99, 0, 0.0, 1.0),
    "min-p, temperature 2": SamplingParams(2.0, 1.0, 0, 0.05, 1.0),
    "top-k 1000, temperature 2": SamplingParams(2.0, 0.95, 1000, 0.0, 1.0),
    "nothing: pure sampling": SamplingParams(1.0, 1.0, 0, 0.0, 1.0),
    "all of them, long prompt": SamplingParams(1.3, 0.95, 200, 0.02, 1.1),
}


def logits_of(kind: str, vocab_size: int) -> FloatArray:
    """Return a model's usual logits, whose likelihood falls as ranks grow, or flat ones."""
    random = np.random.default_rng(vocab_size)
    noise = random.normal(0.0, 0.5, vocab_size)
    ranks = random.permutation(vocab_size) + 1
    return np.asarray(noise if kind == "flat" else noise - 2.0 * np.log(ranks), np.float32)


def seconds_a_token(sampler: Sampler, logits: FloatArray) -> float:
    """Return the time of one choice, the best of a few."""
    scratch, best = np.empty_like(logits), np.inf
    for _ in range(TOKENS_A_ROUND):
        scratch[:] = logits
        started = time.perf_counter()
        sampler.sample(scratch)
        best = min(best, time.perf_counter() - started)
    return best


def measure(kind: str, vocab_size: int, num_rounds: int) -> dict[str, tuple[float, float]]:
    """Return microseconds of each mix and the ratio to the default's, medians of interleaved rounds."""
    logits, random = logits_of(kind, vocab_size), np.random.default_rng(0)
    samplers = {}
    for name, params in MIXES.items():
        num_prompt = NUM_LONG_PROMPT if "long prompt" in name else NUM_PROMPT
        samplers[name] = Sampler(params, random.integers(0, vocab_size, num_prompt).tolist())
    rounds = [
        {name: seconds_a_token(sampler, logits) for name, sampler in samplers.items()}
        for _ in range(num_rounds)
    ]
    return {
        name: (
            1e6 * statistics.median(times[name] for times in rounds),
            statistics.median(times[name] / times[DEFAULT] for times in rounds),
        )
        for name in MIXES
    }


def main() -> None:
    """Print a table for each kind of logits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    num_rounds = parser.parse_args().rounds
    for kind in ("a chat model's", "flat"):
        by_size = [measure(kind, size, num_rounds) for size in VOCABULARIES]
        rows = [
            [name, *(f"{us:.0f} ({ratio:.1f}x)" for us, ratio in (by[name] for by in by_size))]
            for name in MIXES
        ]
        print_table(f"microseconds a token, {kind} logits", ["", *(f"{n:,}" for n in VOCABULARIES)], rows)


if __name__ == "__main__":
    main()
