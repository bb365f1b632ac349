"""How faithful is the engine to the model it was given?

    python -m benchmarks.faithful
    python -m benchmarks.faithful --file Qwen2.5-0.5B-Instruct-Q4_K_M.gguf

Over a fixed text: the float32 model against logits that transformers recorded (`record_reference.py`), the
other precisions against the float32 one, and llama.cpp on the same file against the float32 one, where it is
installed. KL is KL(fp32 || other) in nats a token.

With `--file` that GGUF file is converted to each precision, into a folder that is removed afterwards, and
held to llama.cpp on the same file: its tokens of the text, and KL(llama.cpp || ours). llama.cpp rounds what
flows through the model to 8 bits, so that much stays between the two even where all weights are the same.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import cache_folder, default_model, print_table
from engine.convert.converter import convert
from engine.convert.default_model import DEFAULT_PRECISION, fetch_gguf
from engine.convert.gguf_source import GGUFSource
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.text.tokenizer import load_tokenizer

_DATA = Path(__file__).parent.parent / "tests" / "data"
REFERENCE_FILE = _DATA / "smollm2_reference.npz"
TEXT_FILE = _DATA / "faithful.txt"
GOAL_KL, GOAL_TOP1, GOAL_LOGITS = 0.02, 0.965, 1e-3
GOAL_FILE_KL = 0.01
_CHUNK = 128
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean KL in nats a token and the share of positions with the same most likely token."""

    kl: float
    top1: float


def engine_logits(folder: Path, ids: list[int]) -> Logits:
    """Return the logits [len(ids), vocab] of every position, computed in chunks."""
    model = CpuModel(folder, load_manifest(folder), ModelOptions(2, 1, len(ids)))
    chunks = [model.score(0, ids[at : at + _CHUNK], at).copy() for at in range(0, len(ids), _CHUNK)]
    return np.concatenate(chunks)


def agreement(reference: Logits, other: Logits) -> Agreement:
    """Compare two models' logits [positions, vocab]."""
    kl = [_kl(p, q) for p, q in zip(reference, other, strict=True)]
    return Agreement(float(np.mean(kl)), float((reference.argmax(1) == other.argmax(1)).mean()))


def largest_difference(logits: Logits, recorded: dict[str, npt.NDArray[Any]]) -> float:
    """Return the largest difference to the recorded logits: top ones, fixed columns and logsumexp."""
    rows = np.arange(len(logits))[:, None]
    pairs = [
        (logits[rows, recorded["top_ids"]], recorded["top_logits"]),
        (logits[:, recorded["columns"]], recorded["column_logits"]),
        (np.log(np.exp(logits.astype(np.float64)).sum(1)), recorded["logsumexp"]),
    ]
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)


def load_reference() -> dict[str, npt.NDArray[Any]]:
    """Return what `record_reference.py` wrote."""
    with np.load(REFERENCE_FILE) as file:
        return dict(file)


def llama_cpp_logits(path: Path, ids: list[int]) -> Logits | None:
    """Return llama.cpp's logits for the same text, or None where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    peer = llama_cpp.Llama(
        str(path), n_ctx=len(ids), n_batch=len(ids), n_threads=2, logits_all=True, verbose=False
    )
    peer.eval(ids)
    logits = np.array(peer.scores[: len(ids)], np.float32)
    peer.close()
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # `silence` ends here
    return logits


def _kl(p_logits: Logits, q_logits: Logits) -> float:
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (p_logits, q_logits))
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def llama_cpp_ids(path: Path, text: str) -> list[int]:
    """Return the ids that llama.cpp makes of `text`, begun as the file says."""
    import llama_cpp

    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ids = [int(token) for token in peer.tokenize(text.encode(), add_bos=True, special=False)]
    peer.close()
    return ids


def compare_file(path: Path) -> None:
    """Hold each precision of a GGUF file to llama.cpp on the same file, and print the table."""
    text = TEXT_FILE.read_text(encoding="utf-8")
    ids = llama_cpp_ids(path, text)
    theirs = llama_cpp_logits(path, ids)
    if theirs is None:
        raise SystemExit("llama-cpp-python is not installed.")
    rows = []
    for precision in Precision:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            convert(GGUFSource(path), folder, precision, lambda _share: None)
            tokenizer = load_tokenizer(folder, load_manifest(folder).tokenizer)
            own_ids = tokenizer.encode(text)
            figures = agreement(theirs, engine_logits(folder, ids))
        has_same_ids = own_ids == ids[len(ids) - len(own_ids) :]
        rows.append(
            [precision, "equal" if has_same_ids else "DIFFERENT", f"{figures.kl:.4f}", f"{figures.top1:.1%}"]
        )
    rows.append(["goal", "equal", f"{GOAL_FILE_KL}", ""])
    columns = ["", "tokens", "mean KL", "same top-1"]
    print_table(f"{path.name} against llama.cpp over {len(ids)} tokens", columns, rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="a GGUF file instead of the default model")
    file = parser.parse_args().file
    if file is None:
        compare_default_model()
    else:
        compare_file(file)


def compare_default_model() -> None:
    """Hold the default model to transformers, and its precisions to each other, and print the table."""
    recorded = load_reference()
    ids = [int(token) for token in recorded["ids"]]
    fp32 = engine_logits(default_model(Precision.FP32), ids)
    others: dict[str, Logits | None] = {}
    for precision in (Precision.FP16, Precision.INT8, Precision.INT4):
        default = " (the default)" if precision is DEFAULT_PRECISION else ""
        others[f"{precision}{default}"] = engine_logits(default_model(precision), ids)
    others["llama.cpp, Q4_1 as shipped"] = llama_cpp_logits(fetch_gguf(cache_folder()), ids)
    difference = largest_difference(fp32, recorded)
    rows = [["fp32 against transformers", "", "", f"{difference:.1e}"]]
    for name, logits in others.items():
        if logits is None:
            rows.append([name, "not installed", "", ""])
        else:
            figures = agreement(fp32, logits)
            rows.append([name, f"{figures.kl:.4f}", f"{figures.top1:.1%}", ""])
    rows.append(["goal", f"{GOAL_KL}", f"{GOAL_TOP1:.1%}", f"{GOAL_LOGITS:.0e}"])
    columns = ["", "mean KL", "same top-1", "largest logit difference"]
    print_table(f"Fidelity over {len(ids)} tokens", columns, rows)


if __name__ == "__main__":
    main()
