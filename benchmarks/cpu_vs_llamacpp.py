"""Compare the engine with llama.cpp on the default model: same file, same threads, same sampling, one run.

    python -m benchmarks.cpu_vs_llamacpp --threads 2 --rounds 9
    python -m benchmarks.cpu_vs_llamacpp --shape llama-3.2-1b

The engine is driven through its public API as the bot drives it, sampling and detokenizing included; where a
single answer is running it drafts tokens, which `--speculation off` switches off. llama.cpp is driven
through its C API with one batch per step and its own sampler chain, as its server does, and also turns tokens
into text. Each side is a process of its own; they are measured by turns, and the other one idles meanwhile. A
single conversation answers questions; several have random prompts, since all of those go on for as long.
With `--shape` both run one file of true dimensions and random weights, whose conversations are all random.
Needs `pip install llamacord[bench]`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Side, answer, cache_folder, default_model, print_table, random_prompt
from benchmarks.random_gguf import random_folder, random_gguf
from engine.bench.figures import SHAPES
from engine.convert.default_model import DEFAULT_PRECISION, fetch_gguf
from engine.engine import Engine, EngineOptions
from engine.opening import open_folder
from engine.text.prompt import fit_prompt, make_chat_format
from engine.types import ChatMessage, Prompt, SamplingParams

PROMPT_TOKENS = 64
NEW_TOKENS = 192
PREFILL_TOKENS = 512
MAX_CONVERSATIONS = 16
PREFILL = "prefill, 512 tokens"
CONVERSATIONS = {"decode, 1 conversation": 1, "decode, 8 conversations": 8, "decode, 16 conversations": 16}
GOALS = {
    "decode, 1 conversation": 1.1,
    PREFILL: 2.5,
    "decode, 8 conversations": 1.8,
    "decode, 16 conversations": 2.5,
}
SHAPE_GOALS = {"decode, 1 conversation": 1.0, PREFILL: 2.0, "decode, 8 conversations": 1.6}
QUESTIONS = (
    "Write a long story about a lighthouse keeper who finds a letter.",
    "Explain step by step how bread is baked.",
    "Why is the sky blue, and why are sunsets red? Explain it to a child.",
    "Write a diary of a week in the mountains.",
)


def _prompts(num: int, shape: str = "") -> list[Prompt]:
    """Return the prompts of `num` conversations; of one, another question each time."""
    if num > 1 or shape:
        return [random_prompt(100 + index, PROMPT_TOKENS) for index in range(num)]
    model = open_folder(default_model())
    chat = make_chat_format(model, model.load_tokenizer())
    return [fit_prompt(chat, [ChatMessage("user", question)], 1024) for question in QUESTIONS]


def _params(num_new: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_new)


def _file(shape: str) -> Path:
    """Return the GGUF file that is compared."""
    if not shape:
        return fetch_gguf(cache_folder())
    return random_gguf(cache_folder() / "benchmarks", shape, SHAPES[shape])


def _folder(shape: str) -> Path:
    """Return the same file, converted."""
    if not shape:
        return default_model()
    return random_folder(cache_folder() / "benchmarks", shape, SHAPES[shape])


async def serve_ours(threads: int, *, speculation: bool, shape: str = "") -> None:
    """Measure the engine as often as asked: tokens/s of each kind of work."""
    options = EngineOptions(
        num_threads=threads, max_concurrent=MAX_CONVERSATIONS, context_tokens=1024, speculation=speculation
    )
    async with await Engine.open(_folder(shape), options) as engine:
        seeds = itertools.count(1)
        questions = itertools.cycle(_prompts(1, shape))
        await answer(engine, random_prompt(0, PROMPT_TOKENS), _params(32))
        for work in sys.stdin:
            if work.strip() == PREFILL:
                usage = (await answer(engine, random_prompt(next(seeds), PREFILL_TOKENS), _params(1))).usage
                figure = PREFILL_TOKENS / usage.time_to_first_token_s
            else:
                num = CONVERSATIONS[work.strip()]
                figure = await _decode_speed(engine, _prompts(num) if num > 1 else [next(questions)])
            print(figure, flush=True)


async def _decode_speed(engine: Engine, prompts: list[Prompt]) -> float:
    """Tokens/s in total while the conversations are past their first token."""
    # The prompts' KV is kept from this first round, so that the timed one is all decode.
    await asyncio.gather(*(answer(engine, prompt, _params(1)) for prompt in prompts))
    started = time.perf_counter()
    usages = [
        a.usage for a in await asyncio.gather(*(answer(engine, p, _params(NEW_TOKENS)) for p in prompts))
    ]
    seconds = time.perf_counter() - started - min(usage.time_to_first_token_s for usage in usages)
    return (sum(usage.num_new_tokens for usage in usages) - len(prompts)) / seconds


class LlamaCpp:
    """A minimal batched loop over llama.cpp's C API, with one sampler chain per sequence."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        # Silence its log: it goes to stderr line by line.
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = MAX_CONVERSATIONS * 1024
        params.n_batch = params.n_ubatch = PREFILL_TOKENS
        params.n_seq_max = MAX_CONVERSATIONS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.batch = llama_cpp.llama_batch_init(PREFILL_TOKENS, 0, 1)
        self.piece = ctypes.create_string_buffer(256)

    def sampler(self) -> Any:
        api, params = self.api, _params(1)
        num_words = api.llama_vocab_n_tokens(self.vocab)
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for link in (
            api.llama_sampler_init_penalties(num_words, 64, params.repetition_penalty, 0.0, 0.0),
            api.llama_sampler_init_top_k(params.top_k),
            api.llama_sampler_init_top_p(params.top_p, 1),
            api.llama_sampler_init_temp(params.temperature),
            api.llama_sampler_init_dist(1),
        ):
            api.llama_sampler_chain_add(chain, link)
        return chain

    def forget(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, logits) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = logits
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode the batch.")
        self.api.llama_synchronize(self.context)

    def prefill_seconds(self, seed: int) -> float:
        self.forget()
        ids = random_prompt(seed, PREFILL_TOKENS).ids
        started = time.perf_counter()
        self.decode([(t, i, 0, i == len(ids) - 1) for i, t in enumerate(ids)])
        self.api.llama_sampler_sample(self.sampler(), self.context, -1)
        return time.perf_counter() - started

    def decode_speed(self, prompts: list[Prompt]) -> float:
        self.forget()
        samplers = [self.sampler() for _ in prompts]
        tokens = []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt.ids) - 1
            self.decode([(t, i, sequence, i == last) for i, t in enumerate(prompt.ids)])
            tokens.append(self.api.llama_sampler_sample(samplers[sequence], self.context, -1))
        started = time.perf_counter()
        for step in range(NEW_TOKENS - 1):
            self.decode(
                [
                    (token, len(prompt.ids) + step, sequence, True)
                    for sequence, (token, prompt) in enumerate(zip(tokens, prompts, strict=True))
                ]
            )
            for index, sampler in enumerate(samplers):
                tokens[index] = self.api.llama_sampler_sample(sampler, self.context, index)
                self.api.llama_token_to_piece(self.vocab, tokens[index], self.piece, 256, 0, True)
        return len(prompts) * (NEW_TOKENS - 1) / (time.perf_counter() - started)


def serve_theirs(threads: int, shape: str = "") -> None:
    """Measure llama.cpp as often as asked: tokens/s of each kind of work."""
    peer = LlamaCpp(_file(shape), threads)
    seeds = itertools.count(1)
    questions = itertools.cycle(_prompts(1, shape))
    peer.prefill_seconds(0)
    for work in sys.stdin:
        if work.strip() == PREFILL:
            figure = PREFILL_TOKENS / peer.prefill_seconds(next(seeds))
        else:
            num = CONVERSATIONS[work.strip()]
            figure = peer.decode_speed(_prompts(num) if num > 1 else [next(questions)])
        print(figure, flush=True)


def main() -> None:
    """Print the comparison, or with --only serve one side's figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--speculation", choices=("on", "off"), default="on")
    parser.add_argument("--only", choices=("ours", "theirs"))
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), default="", help="random weights instead of the default model"
    )
    arguments = parser.parse_args()
    threads, shape, speculation = arguments.threads, arguments.shape, arguments.speculation
    if arguments.only == "ours":
        asyncio.run(serve_ours(threads, speculation=speculation == "on", shape=shape))
    elif arguments.only == "theirs":
        serve_theirs(threads, shape)
    else:
        compare(threads, arguments.rounds, speculation, shape)


def compare(threads: int, rounds: int, speculation: str, shape: str = "") -> None:
    """Measure both sides by turns and print medians; the ratio is the median of the rounds' ratios."""
    _folder(shape)
    options = ("--threads", threads, "--speculation", speculation, *(("--shape", shape) if shape else ()))
    ours, theirs = (Side("benchmarks.cpu_vs_llamacpp", "--only", who, *options) for who in ("ours", "theirs"))
    rows = []
    for work, goal in (SHAPE_GOALS if shape else GOALS).items():
        pairs = [(ours.measure(work), theirs.measure(work)) for _ in range(rounds)]
        speeds = [f"{statistics.median(side):.0f}" for side in zip(*pairs, strict=True)]
        ratios = sorted(mine / other for mine, other in pairs)
        spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
        rows.append([work, *speeds, f"{statistics.median(ratios):.2f}x", spread, f"{goal}x"])
    ours.close()
    theirs.close()
    columns = [
        "tokens/s",
        f"Llamacord {DEFAULT_PRECISION}",
        f"llama.cpp {'Q4_0' if shape else 'Q4_1'}",
        "ratio",
        "over the rounds",
        "goal",
    ]
    print_table(f"{threads} threads, speculation {speculation}, medians of {rounds} rounds", columns, rows)


if __name__ == "__main__":
    main()
