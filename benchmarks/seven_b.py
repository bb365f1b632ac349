"""Convert and run a model of Llama 2 7B's true shapes on this machine, and compare with llama.cpp.

    python -m benchmarks.seven_b --tokenizer tokenizer.model --folder /somewhere/with/30/GB/free

Two sets of random weights are written: a float16 checkpoint of 13.5 GB in Hugging Face's layout, which is
converted to int4, and a Q4_0 GGUF file that both Llamacord (its blocks taken over exactly) and llama.cpp run.
Every stage is a process of its own, whose peak resident memory is reported. The folder is emptied at the end
unless --keep is given. Random weights say nothing, but take as long as true ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import answer, print_table, random_prompt, resident_mb
from engine.describing.architecture import LLAMA_2_SIZES, source_shapes
from engine.engine import Engine, EngineOptions
from engine.types import SamplingParams
from tests.engine.tiny_gguf import gguf_name
from tests.engine.tiny_hf import stored_name

PROMPT_TOKENS, NEW_TOKENS = 128, 32
SHARD_BYTES = 2 * 2**30
CONFIG = LLAMA_2_SIZES["Llama 2 7B"]


class Noise:
    """Random weights from a pool that is drawn from once: fresh numbers for 7B weights would take minutes."""

    def __init__(self, pool: npt.NDArray[Any]) -> None:
        self._pool = pool
        self._random = np.random.default_rng(1)

    def take(self, size: int) -> npt.NDArray[Any]:
        """Return `size` entries from a random place of the pool on, round and round."""
        start = int(self._random.integers(len(self._pool)))
        return np.resize(np.roll(self._pool, -start) if size > len(self._pool) else self._pool[start:], size)


def write_checkpoint(folder: Path, tokenizer: Path) -> None:
    """Write float16 shards, their index, the configuration and the tokenizer."""
    folder.mkdir(parents=True)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": CONFIG.hidden_size,
        "intermediate_size": CONFIG.intermediate_size,
        "num_hidden_layers": CONFIG.num_layers,
        "num_attention_heads": CONFIG.num_heads,
        "num_key_value_heads": CONFIG.num_kv_heads,
        "vocab_size": CONFIG.vocab_size,
        "max_position_embeddings": CONFIG.context_length,
        "rms_norm_eps": CONFIG.rms_norm_eps,
        "rope_theta": CONFIG.rope_theta,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    pool = np.random.default_rng(0).standard_normal(2**24, np.float32) * 0.02
    noise = Noise(pool.astype(np.float16))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, shape in source_shapes(CONFIG).items():
        if (room := room - 2 * int(np.prod(shape))) < 0:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][stored_name(name)] = shape
    where = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        where.update(dict.fromkeys(shard, name))
        _write_shard(folder / name, shard, noise)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: Noise) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    written = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        for shape in shapes.values():
            values = noise.take(int(np.prod(shape)))
            file.write((values + np.float16(1) if len(shape) == 1 else values).data)


def write_gguf(path: Path, tokenizer: Path) -> None:
    """Write a GGUF file of Q4_0 matrices with a Q8_0 head, and the tokenizer in it."""
    import gguf
    import sentencepiece

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Random 7B")
    for add, value in (
        (writer.add_context_length, CONFIG.context_length),
        (writer.add_embedding_length, CONFIG.hidden_size),
        (writer.add_block_count, CONFIG.num_layers),
        (writer.add_feed_forward_length, CONFIG.intermediate_size),
        (writer.add_rope_dimension_count, CONFIG.head_dim),
        (writer.add_head_count, CONFIG.num_heads),
        (writer.add_head_count_kv, CONFIG.num_kv_heads),
    ):
        add(value)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    ids = range(processor.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([processor.id_to_piece(i) for i in ids])
    writer.add_token_scores([processor.get_score(i) for i in ids])
    types = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        for i in ids
    ]
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    noise = Noise(np.random.default_rng(2).integers(0, 256, 2**24, np.uint8))
    written = []
    for name, shape in source_shapes(CONFIG).items():
        kind = kinds.F32 if len(shape) == 1 else kinds.Q8_0 if name == "head" else kinds.Q4_0
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = shape if len(shape) == 1 else (shape[0], shape[1] // block * size)
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.uint8)
        num_bytes = int(np.prod(stored)) * dtype.itemsize
        writer.add_tensor_info(gguf_name(name), stored, dtype, num_bytes, raw_dtype=kind)
        written.append((stored, size, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for stored, size, dtype in written:
        if dtype == np.float32:
            writer.write_tensor_data(np.ones(stored, np.float32))
            continue
        values = noise.take(int(np.prod(stored))).reshape(-1, size).copy()
        values[:, :2] = np.array([0.004 if size == 18 else 0.0003], "<f2").view(np.uint8)
        writer.write_tensor_data(values.reshape(stored))
    writer.close()


async def run_ours(model: Path, threads: int) -> dict[str, float]:
    """Load, prefill and decode; return seconds, tokens/s and MB."""
    started = time.perf_counter()
    async with await Engine.open(
        model, EngineOptions(num_threads=threads, max_concurrent=1, context_tokens=512)
    ) as engine:
        loaded = time.perf_counter() - started
        usage = (
            await answer(
                engine,
                random_prompt(1, PROMPT_TOKENS, CONFIG.vocab_size),
                SamplingParams(max_new_tokens=NEW_TOKENS),
            )
        ).usage
        decode_s = usage.duration_s - usage.time_to_first_token_s
        return {
            "load_s": loaded,
            "prefill": PROMPT_TOKENS / usage.time_to_first_token_s,
            "decode": (usage.num_new_tokens - 1) / decode_s,
            "resident_mb": resident_mb(),
        }


def run_theirs(path: Path, threads: int) -> dict[str, float]:
    """The same with llama.cpp."""
    import llama_cpp

    started = time.perf_counter()
    peer = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, n_threads=threads, n_threads_batch=threads,
                           verbose=False)  # fmt: skip
    peer.eval([1])
    loaded = time.perf_counter() - started
    peer.reset()
    started = time.perf_counter()
    peer.eval(list(random_prompt(1, PROMPT_TOKENS, CONFIG.vocab_size).ids))
    first = time.perf_counter()
    for _ in range(NEW_TOKENS):
        peer.eval([peer.sample(temp=0.7, top_k=40, top_p=0.9, repeat_penalty=1.1)])
    return {
        "load_s": loaded,
        "prefill": PROMPT_TOKENS / (first - started),
        "decode": NEW_TOKENS / (time.perf_counter() - first),
        "resident_mb": resident_mb(),
    }


def bandwidth() -> float:
    """Return the bytes a second that two threads read from memory, the best of a few tries."""
    from concurrent.futures import ThreadPoolExecutor

    halves = [np.ones(2**26, np.float32) for _ in range(2)]
    best = 0.0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.max, halves))
            best = max(best, 2 * 2**28 / (time.perf_counter() - started))
    return best


def staged(*command: str) -> tuple[str, float, float]:
    """Run a command; return what it printed, its seconds and the peak of its resident memory in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise RuntimeError("The process has no pipe.")
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    return printed, time.perf_counter() - started, usage.ru_maxrss / 2**20


def main() -> None:
    """Make the weights, convert, run, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--stage", choices=("ours", "theirs"))
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    if arguments.stage == "ours":
        print(json.dumps(asyncio.run(run_ours(arguments.model, arguments.threads))))
    elif arguments.stage == "theirs":
        print(json.dumps(run_theirs(arguments.model, arguments.threads)))
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run every stage and print what it took."""
    folder: Path = arguments.folder
    checkpoint, file = folder / "checkpoint", folder / "random-7b.Q4_0.gguf"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, arguments.tokenizer)
    if not file.exists():
        write_gguf(file, arguments.tokenizer)
    rows = []
    for source, model in ((checkpoint, folder / "from-float16"), (file, folder / "from-gguf")):
        shutil.rmtree(model, ignore_errors=True)
        _, seconds, peak = staged("-m", "engine", "convert", str(source), str(model), "--precision", "int4")
        rows.append([f"convert {source.name} to int4", f"{seconds:.0f} s", f"{peak:.2f} GiB", "", ""])
    common = ["-m", "benchmarks.seven_b", "--threads", str(arguments.threads)]
    common += ["--tokenizer", str(arguments.tokenizer), "--folder", str(folder)]
    for name, stage, model in (
        ("Llamacord, int4 from float16", "ours", folder / "from-float16"),
        ("Llamacord, Q4_0 exactly", "ours", folder / "from-gguf"),
        ("llama.cpp, Q4_0", "theirs", file),
    ):
        printed, _, peak = staged(*common, "--stage", stage, "--model", str(model))
        figures = json.loads(printed.splitlines()[-1])
        speeds = [f"{figures['prefill']:.1f}", f"{figures['decode']:.2f}"]
        rows.append([f"{name}: load", f"{figures['load_s']:.1f} s", f"{peak:.2f} GiB", *speeds])
    weights = (folder / "from-gguf" / "weights.bin").stat().st_size
    floor = bandwidth() / weights
    rows.append([f"reading {weights / 2**30:.2f} GiB once a token", "", "", "", f"{floor:.2f}"])
    columns = ["Llama 2 7B's shapes", "time", "peak memory", "prefill tokens/s", "decode tokens/s"]
    print_table(f"{arguments.threads} threads, {PROMPT_TOKENS} + {NEW_TOKENS} tokens", columns, rows)
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
