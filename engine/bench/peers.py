"""Others to compare with: the example that was published with the models, and onnxruntime-genai."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bench.driving import resident_bytes
from engine.bench.figures import Figures, Load, Plan
from engine.bench.release_author import ReleaseShape, write_release
from engine.describing.architecture import DecoderConfig
from engine.errors import ModelResourceError
from engine.graphs.session import open_session
from engine.machine import machine
from engine.release.files import find_release, read_embeddings

_LOOP_TOKENS = 32
"""It takes seconds for what the engine does in a fraction of one."""


def measure_loop(plan: Plan, config: DecoderConfig) -> Figures:
    """Measure the published loop with a release of these dimensions; it answers one conversation at a time.

    Raises `ModelError`. `plan.device` is "cpu" or "cuda".
    """
    half = plan.device == "cuda"
    shape = ReleaseShape(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        theta=config.rope_theta,
        eps=config.rms_norm_eps,
        dtype=np.float16 if half else np.float32,
        repeats=True,
    )
    with tempfile.TemporaryDirectory(prefix="llamacord-bench-") as scratch:
        started = time.perf_counter()
        release = write_release(Path(scratch) / f"random_{'float16' if half else 'float32'}", shape)
        loop = PublishedLoop(release, plan.threads or machine.num_physical_cores(), plan.device)
        load_s = time.perf_counter() - started
    prompt = np.random.default_rng(1).integers(300 % config.vocab_size, config.vocab_size, plan.context)
    loop.feed(prompt[: plan.prompt_tokens].tolist())
    loop.forget()
    started = time.perf_counter()
    token = int(loop.feed(prompt[: plan.prompt_tokens].tolist()).argmax())
    first_s = time.perf_counter() - started
    loop.feed([token])
    number = min(_LOOP_TOKENS, plan.tokens)
    speed = number / _seconds(lambda: [loop.feed([token]) for _ in range(number)])
    return Figures(
        name="published loop, " + ("fp16" if half else "fp32"),
        provider=plan.device,
        loads=(Load(1, first_s, speed),),
        load_s=load_s,
        first_token_s=first_s,
        prefill=plan.prompt_tokens / first_s,
        resident_bytes=resident_bytes(),
    )


def measure_genai(plan: Plan, folder: Path) -> Figures:
    """Measure onnxruntime-genai with the model in `folder` that its builder made, a batch at a time.

    Raises `ModelResourceError` where it is not installed or cannot run the model.
    """
    genai = genai_library()
    started = time.perf_counter()
    try:
        settings = genai.Config(str(folder))
        settings.clear_providers()
        if plan.device == "cuda":
            settings.append_provider("cuda")
        model = genai.Model(settings)
        load_s = time.perf_counter() - started
        loads = [_genai_load(genai, model, plan, number) for number in plan.conversations]
    except Exception as error:  # whatever the library raises
        raise ModelResourceError(f"onnxruntime-genai failed: {str(error).splitlines()[0][:300]}") from error
    return Figures(
        name=f"onnxruntime-genai {getattr(genai, '__version__', '')}".strip(),
        provider=plan.device,
        loads=tuple(loads),
        load_s=load_s,
        first_token_s=loads[0].first_token_s if plan.conversations[0] == 1 else None,
        resident_bytes=resident_bytes(),
    )


def genai_library() -> Any:
    """Return the module. Raises `ModelResourceError` where it is not installed."""
    try:
        return importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise ModelResourceError(
            "onnxruntime-genai is not installed: pip install onnxruntime-genai-cuda (or onnxruntime-genai "
            "for the CPU)."
        ) from error


def _genai_load(genai: Any, model: Any, plan: Plan, number: int) -> Load:
    """Generate greedily with so many prompts in one batch, all of one length."""
    prompts = np.random.default_rng(number).integers(300, 30000, (number, plan.prompt_tokens), np.int32)
    params = genai.GeneratorParams(model)
    length = plan.prompt_tokens + plan.tokens + 1
    params.set_search_options(
        batch_size=number,
        max_length=length,
        min_length=length,
        do_sample=False,
        past_present_share_buffer=True,
    )
    first_s = seconds = 0.0
    for _ in range(2):  # the first time is slower
        generator = genai.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(prompts)
        generator.generate_next_token()
        first_s = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(plan.tokens - 1):
            generator.generate_next_token()
        seconds = time.perf_counter() - started
        del generator
    return Load(number, first_s, number * (plan.tokens - 1) / seconds)


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


class PublishedLoop:
    """Generates greedily as the published example does: all in and out through numpy, at every step."""

    def __init__(self, folder: Path, num_threads: int = 1, device: str = "cpu") -> None:
        """Load the release in `folder` on "cpu" or "cuda". Raises `ModelError`."""
        files = find_release(folder)
        self._session = open_session(files.graph, num_threads, device)
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._embeddings = read_embeddings(files.embeddings)
        self._type = self._embeddings.dtype
        _, layers, _, heads, dim = shapes["k_cache"]
        self._cache_shape = (1, layers, shapes["attn_mask"][1], heads, dim)
        self._mask = (-10000.0 * np.triu(np.ones(shapes["attn_mask"]), 1)).astype(self._type)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._keys = np.zeros(self._cache_shape, self._type)
        self._values = np.zeros(self._cache_shape, self._type)
        self.position = 0

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute tokens after what was fed before; return the last one's logits."""
        start, end = self.position, self.position + len(ids)
        logits, keys, values = self._session.run(
            None,
            {
                "x": self._embeddings[list(ids)][None],
                "attn_mask": self._mask,
                "k_cache": self._keys[:, :, :start],
                "v_cache": self._values[:, :, :start],
                "pos": np.array(start),
            },
        )
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.position = end
        return np.asarray(logits[0], np.float32)

    def generate(self, ids: Sequence[int], num_new: int, eos_id: int | None = 2) -> list[int]:
        """Return the ids that follow greedily, EOS included."""
        self.forget()
        new: list[int] = []
        pending = list(ids)
        while len(new) < num_new and (not new or new[-1] != eos_id):
            pending = [int(self.feed(pending).argmax())]
            new += pending
        return new
