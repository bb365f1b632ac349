"""Compare a released Llama-2-Onnx model, in the loop that was published with it, with its import.

    python -m benchmarks.release_vs_import --threads 2 --rounds 5

The model has the shape of SmolLM2-135M and random weights, and is written in the layout of the releases. The
published loop generates greedily, one answer at a time, everything in and out through numpy. The import is
driven through the engine's public API, sampling and detokenizing included. Each side is a process of its own;
they are measured by turns, at a context of about 512 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Side, answer, print_table, random_prompt
from engine.bench.peers import PublishedLoop
from engine.bench.release_author import ReleaseShape, write_release
from engine.convert.converter import convert, open_source
from engine.describing.architecture import Precision
from engine.engine import Engine, EngineOptions
from engine.types import SamplingParams

SHAPE = ReleaseShape(
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    vocab_size=49152,
    context_length=1024,
)
PROMPT_TOKENS = 480
NEW_TOKENS = 32
NUM_CONVERSATIONS = 8
PRECISIONS = (Precision.FP32, Precision.INT8)
GOALS = {
    (Precision.FP32, 1): 1.3,
    (Precision.FP32, NUM_CONVERSATIONS): 5.0,
    (Precision.INT8, 1): 3.0,
    (Precision.INT8, NUM_CONVERSATIONS): 8.0,
}


def serve_published(folder: Path, threads: int) -> None:
    """Measure the published loop as often as asked: tokens/s, of one answer or of one after the other."""
    loop = PublishedLoop(folder, threads)
    loop.feed(random_prompt(1, PROMPT_TOKENS).ids)
    for _ in sys.stdin:
        loop.position = PROMPT_TOKENS
        token = 300
        started = time.perf_counter()
        for _ in range(NEW_TOKENS):
            token = int(loop.feed([token]).argmax())
        print(NEW_TOKENS / (time.perf_counter() - started), flush=True)


async def serve_import(folder: Path, threads: int) -> None:
    """Measure the engine as often as asked, for as many conversations as asked: tokens/s in total."""
    options = EngineOptions(num_threads=threads, kv_cache_mb=4096)
    async with await Engine.open(folder, options) as engine:
        for line in sys.stdin:
            print(await _decode_speed(engine, int(line)), flush=True)


async def _decode_speed(engine: Engine, num: int) -> float:
    """Tokens/s in total while all `num` conversations are past their first token."""
    prompts = [random_prompt(100 + index, PROMPT_TOKENS) for index in range(num)]
    # The prompts' KV is kept from this first round, so that the timed one is all decode.
    await asyncio.gather(*(answer(engine, prompt, SamplingParams(max_new_tokens=1)) for prompt in prompts))
    params = SamplingParams(max_new_tokens=NEW_TOKENS, seed=1)
    started = time.perf_counter()
    usages = [a.usage for a in await asyncio.gather(*(answer(engine, p, params) for p in prompts))]
    seconds = time.perf_counter() - started - min(usage.time_to_first_token_s for usage in usages)
    return (sum(usage.num_new_tokens for usage in usages) - num) / seconds


def main() -> None:
    """Print the comparison, or with --only serve one side's figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("published", "import"))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.only == "published":
        serve_published(arguments.folder, arguments.threads)
    elif arguments.only == "import":
        asyncio.run(serve_import(arguments.folder, arguments.threads))
    else:
        with tempfile.TemporaryDirectory(prefix="release-vs-import-") as folder:
            compare(Path(folder), arguments.threads, arguments.rounds)


def compare(folder: Path, threads: int, rounds: int) -> None:
    """Write and import the release, measure by turns, and print medians of the rounds' ratios."""
    release = write_release(folder / "135M_float32", SHAPE)
    module, options = "benchmarks.release_vs_import", ("--threads", threads, "--folder")
    published = Side(module, "--only", "published", *options, release)
    imports = {}
    for precision in PRECISIONS:
        convert(open_source(release), folder / precision, precision)
        imports[precision] = Side(module, "--only", "import", *options, folder / precision)
    published.measure(1)
    pairs: dict[tuple[Precision, int], list[tuple[float, float]]] = {work: [] for work in GOALS}
    for _ in range(rounds):
        for precision, num in GOALS:
            theirs = published.measure(1)
            ours = imports[precision].measure(num)
            pairs[precision, num].append((ours, theirs))
            print(f"{precision}, {num}: {ours:.1f} against {theirs:.1f} tokens/s", file=sys.stderr)
    for side in (published, *imports.values()):
        side.close()
    rows = []
    for (precision, num), goal in GOALS.items():
        ratios = sorted(mine / other for mine, other in pairs[precision, num])
        work = f"decode, {num} conversation{'s' * (num > 1)}, {precision}"
        speeds = [f"{statistics.median(side):.1f}" for side in zip(*pairs[precision, num], strict=True)]
        spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
        rows.append([work, *speeds, f"{statistics.median(ratios):.2f}x", spread, f"{goal}x"])
    columns = ["tokens/s in total", "import", "published loop, fp32", "ratio", "over the rounds", "goal"]
    print_table(f"{threads} threads, medians of {rounds} rounds", columns, rows)


if __name__ == "__main__":
    main()
