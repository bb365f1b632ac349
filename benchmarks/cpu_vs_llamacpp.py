"""Compare the engine with llama.cpp on the default model: same file, same threads, same sampling, one run.

    python -m benchmarks.cpu_vs_llamacpp --threads 2 --rounds 9
    python -m benchmarks.cpu_vs_llamacpp --shape llama-3.2-1b
    python -m benchmarks.cpu_vs_llamacpp --file gemma-3-270m-it-Q4_K_M.gguf

The engine is driven through its public API as the bot drives it, sampling and detokenizing included; where a
single answer is running it drafts tokens, which `--speculation off` switches off. llama.cpp is driven
through its C API with one batch per step and its own sampler chain, as its server does, and also turns tokens
into text. Each side is a process of its own; they are measured by turns, and the other one idles meanwhile. A
single conversation answers questions; several have random prompts, since all of those go on for as long.
With `--shape` both run one file of true dimensions and random weights, whose conversations are all random.
With `--file` both run that GGUF file, which is converted once, to the precision that `inspect` names.
Needs `pip install llamacord[bench]`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Side, answer, cache_folder, default_model, print_table, random_prompt
from benchmarks.random_gguf import random_folder, random_gguf
from engine.advising.advice import Load, advise
from engine.advising.inspection import inspect
from engine.bench.figures import SHAPES
from engine.convert.converter import convert, open_source
from engine.convert.default_model import DEFAULT_PRECISION, fetch_gguf
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.machine.machine import resources
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
    PREFILL: 3.2,
    "decode, 8 conversations": 2.4,
    "decode, 16 conversations": 2.8,
}
SHAPE_GOALS = {**GOALS, "decode, 1 conversation": 1.0, PREFILL: 2.0}
"""llama.cpp rearranges Q4_0, the blocks of these files, for a processor's int8 units too."""
_LOAD = Load(num_conversations=1, num_tokens=2048)
QUESTIONS = (
    "Write a long story about a lighthouse keeper who finds a letter.",
    "Explain step by step how bread is baked.",
    "Why is the sky blue, and why are sunsets red? Explain it to a child.",
    "Write a diary of a week in the mountains.",
)


@dataclass(frozen=True)
class Subject:
    """What is compared: a GGUF file, the same converted, and whether it can answer questions."""

    file: Path
    folder: Path
    chats: bool

    @functools.cached_property
    def vocab_size(self) -> int:
        """How many tokens the model has."""
        return open_folder(self.folder).vocab_size

    @property
    def options(self) -> tuple[object, ...]:
        """Return what tells it to the process of a side."""
        return ("--file", self.file, "--folder", self.folder, *(() if self.chats else ("--random",)))

    def prompts(self, num: int) -> list[Prompt]:
        """Return the prompts of `num` conversations; of one, another question each time."""
        model = open_folder(self.folder)
        if num == 1 and self.chats:
            chat = make_chat_format(model, model.load_tokenizer())
            return [fit_prompt(chat, [ChatMessage("user", question)], 1024) for question in QUESTIONS]
        return [self.random(100 + index, PROMPT_TOKENS) for index in range(num)]

    def random(self, seed: int, num_tokens: int) -> Prompt:
        """Return a prompt of random tokens that the model has."""
        return random_prompt(seed, num_tokens, min(40000, self.vocab_size))


@contextmanager
def _subject(shape: str, file: Path | None, bits: int) -> Iterator[Subject]:
    """Find, make or convert what is to be compared."""
    cache = cache_folder()
    if file is not None:
        with tempfile.TemporaryDirectory() as scratch:
            folder, description = Path(scratch) / "model", inspect(file).description
            if description is None:
                raise SystemExit(f"{file} cannot be read: python -m engine inspect {file}")
            advice = advise(description.config, resources(), _LOAD, {}, description.blocks)
            precision = advice.chosen.precision if advice.chosen else DEFAULT_PRECISION
            convert(open_source(file), folder, precision)
            yield Subject(file, folder, chats=description.chat.format is not None)
    elif shape:
        made = cache / "benchmarks", shape, SHAPES[shape], bits
        yield Subject(random_gguf(*made), random_folder(*made), chats=False)
    else:
        yield Subject(fetch_gguf(cache), default_model(), chats=True)


def _params(num_new: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_new)


async def serve_ours(subject: Subject, threads: int, *, speculation: bool) -> None:
    """Measure the engine as often as asked: tokens/s of each kind of work."""
    options = EngineOptions(
        num_threads=threads, max_concurrent=MAX_CONVERSATIONS, context_tokens=1024, speculation=speculation
    )
    async with await Engine.open(subject.folder, options) as engine:
        seeds = itertools.count(1)
        questions = itertools.cycle(subject.prompts(1))
        await answer(engine, subject.random(0, PROMPT_TOKENS), _params(32))
        for work in sys.stdin:
            if work.strip() == PREFILL:
                usage = (await answer(engine, subject.random(next(seeds), PREFILL_TOKENS), _params(1))).usage
                figure = PREFILL_TOKENS / usage.time_to_first_token_s
            else:
                num = CONVERSATIONS[work.strip()]
                figure = await _decode_speed(engine, subject.prompts(num) if num > 1 else [next(questions)])
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

    def prefill_seconds(self, prompt: Prompt) -> float:
        self.forget()
        ids = prompt.ids
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


def serve_theirs(subject: Subject, threads: int) -> None:
    """Measure llama.cpp as often as asked: tokens/s of each kind of work."""
    peer = LlamaCpp(subject.file, threads)
    seeds = itertools.count(1)
    questions = itertools.cycle(subject.prompts(1))
    peer.prefill_seconds(subject.random(0, PREFILL_TOKENS))
    for work in sys.stdin:
        if work.strip() == PREFILL:
            figure = PREFILL_TOKENS / peer.prefill_seconds(subject.random(next(seeds), PREFILL_TOKENS))
        else:
            num = CONVERSATIONS[work.strip()]
            figure = peer.decode_speed(subject.prompts(num) if num > 1 else [next(questions)])
        print(figure, flush=True)


def main() -> None:
    """Print the comparison, or with --only serve one side's figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--speculation", choices=("on", "off"), default="on")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=sorted(SHAPES), default="", help="of random weights")
    what.add_argument("--file", type=Path, help="a GGUF file instead of the default model")
    bits = "of a shape: Q4_0 or Q8_0 on llama.cpp's side"
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help=bits)
    for name in ("--only", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--random", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threads, speculation = arguments.threads, arguments.speculation
    if arguments.only is None:
        with _subject(arguments.shape, arguments.file, arguments.bits) as subject:
            goals = SHAPE_GOALS if arguments.shape else GOALS
            compare(subject, threads, arguments.rounds, speculation, goals)
        return
    subject = Subject(arguments.file, Path(arguments.folder), chats=not arguments.random)
    if arguments.only == "ours":
        asyncio.run(serve_ours(subject, threads, speculation=speculation == "on"))
    else:
        serve_theirs(subject, threads)


def compare(
    subject: Subject, threads: int, rounds: int, speculation: str, goals: Mapping[str, float]
) -> None:
    """Measure both sides by turns and print medians; the ratio is the median of the rounds' ratios."""
    options = ("--threads", threads, "--speculation", speculation, *subject.options)
    ours, theirs = (Side("benchmarks.cpu_vs_llamacpp", "--only", who, *options) for who in ("ours", "theirs"))
    rows = []
    for work, goal in goals.items():
        pairs = [(ours.measure(work), theirs.measure(work)) for _ in range(rounds)]
        speeds = [f"{statistics.median(side):.0f}" for side in zip(*pairs, strict=True)]
        ratios = sorted(mine / other for mine, other in pairs)
        spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
        rows.append([work, *speeds, f"{statistics.median(ratios):.2f}x", spread, f"{goal}x"])
    ours.close()
    theirs.close()
    precision = load_manifest(subject.folder).precision
    columns = ["tokens/s", f"Llamacord {precision}", "llama.cpp", "ratio", "over the rounds", "goal"]
    title = f"{subject.file.name}, {threads} threads, speculation {speculation}, medians of {rounds} rounds"
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
