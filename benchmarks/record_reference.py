"""Records what others compute: `tests/data/smollm2_reference.npz` and `faithful_ids.json`.

Hugging Face transformers reads the same GGUF file, tokenizes the fixed text and runs it in float32. Kept are
the ids, and for each position the logsumexp of its logits, the eight largest ones, and a fixed random choice
of columns. llama.cpp tokenizes the text too, as transformers reads the tokenizer of a GGUF file without its
rule that digits stand alone. The tests compare the engine with these files, so that they need neither.

    python benchmarks/record_reference.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

It needs none of this project's code, and `pip install torch transformers gguf llama-cpp-python`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import torch
import transformers

DATA = Path(__file__).parent.parent / "tests" / "data"
TEXT_FILE = DATA / "faithful.txt"
REFERENCE_FILE = DATA / "smollm2_reference.npz"
IDS_FILE = DATA / "faithful_ids.json"
NUM_TOP = 8
NUM_COLUMNS = 48


def main() -> None:
    """Run the text through transformers and write the reference."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("Usage: python benchmarks/record_reference.py path/to/model.gguf")
    path = Path(sys.argv[1])
    IDS_FILE.write_text(json.dumps(_llama_cpp_ids(path)) + "\n", encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = tokenizer(TEXT_FILE.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    logits = _logits(path, ids)
    top = torch.topk(logits, NUM_TOP)
    columns = np.sort(np.random.default_rng(0).choice(logits.shape[1], NUM_COLUMNS, replace=False))
    np.savez_compressed(
        REFERENCE_FILE,
        ids=np.array(ids, np.int32),
        logsumexp=torch.logsumexp(logits, dim=-1).numpy().astype(np.float32),
        top_ids=top.indices.numpy().astype(np.int32),
        top_logits=top.values.numpy().astype(np.float32),
        columns=columns.astype(np.int32),
        column_logits=logits[:, columns].numpy().astype(np.float32),
        versions=np.array([f"transformers {transformers.__version__}", f"torch {torch.__version__}"]),
    )
    print(f"{REFERENCE_FILE}: {len(ids)} tokens, {REFERENCE_FILE.stat().st_size / 1e3:.0f} kB")


def _llama_cpp_ids(path: Path) -> list[int]:
    """Return the ids of the text as plain text, nothing added."""
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ids: list[int] = vocabulary.tokenize(TEXT_FILE.read_bytes(), add_bos=False, special=False)
    return ids


def _logits(path: Path, ids: list[int]) -> torch.Tensor:
    """Return the logits [len(ids), vocab] of every position."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


if __name__ == "__main__":
    main()
