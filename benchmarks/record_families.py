"""Records what transformers says of the tests' tiny model of every family: `families.npz`.

transformers reads each folder in float32, runs a random prompt and generates the likeliest tokens, none of
them twice, with its cache. Where its rotation depends on how long a sequence is, that is as long as it will
be, from the beginning. Kept are all ids and, of some
positions, the logsumexp of the logits and a fixed random choice of columns. The tests make the weights anew
and prove their own reference with it.

    python -m benchmarks.record_families

It needs `pip install torch transformers` beside the development requirements.
"""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE_FILE = Path(__file__).parent.parent / "tests" / "data" / "families.npz"
_NUM_COLUMNS = 16
_STEP = 24


def main() -> None:
    """Write the file."""
    import torch
    import transformers

    from tests.engine.tiny_families import CASES, MAX_TOKENS, NUM_GREEDY, NUM_PROMPT, TinyFamily

    columns = np.sort(np.random.default_rng(0).choice(384, _NUM_COLUMNS, replace=False))
    rows = np.array([*range(0, NUM_PROMPT, _STEP), *range(NUM_PROMPT - 1, MAX_TOKENS, 4)])
    recorded: dict[str, Any] = {
        "columns": columns,
        "rows": rows,
        "versions": np.array([f"transformers {transformers.__version__}", f"torch {torch.__version__}"]),
    }
    for name in CASES:
        made = TinyFamily(name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = made.save(Path(scratch) / "checkpoint")
            kind = transformers.AutoModelForCausalLM
            if "text_config" in made.config:
                kind = transformers.AutoModelForImageTextToText
            model, info = kind.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
        lacking = {part for part in info["missing_keys"] if "vision" not in part and "projector" not in part}
        assert not lacking, lacking
        assert not info["unexpected_keys"], info["unexpected_keys"]
        ids = np.random.default_rng(zlib.crc32(name.encode())).integers(4, 384, NUM_PROMPT).tolist()
        with torch.inference_mode():
            cache = None
            rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
            is_growing = getattr(rotary, "rope_type", "default") in ("dynamic", "longrope")
            for _ in range(NUM_GREEDY):
                if is_growing:
                    whole = model(torch.tensor([ids + [0] * (MAX_TOKENS - len(ids))])).logits[0]
                    scores = whole[len(ids) - 1].clone()
                else:
                    fed = torch.tensor([ids if cache is None else ids[-1:]])
                    out = model(fed, past_key_values=cache, use_cache=True)
                    cache, scores = out.past_key_values, out.logits[0, -1].clone()
                scores[ids[NUM_PROMPT:]] = -torch.inf
                ids.append(int(scores.argmax()))
            logits = model(torch.tensor([ids])).logits[0]
        recorded[f"{name}/ids"] = np.array(ids, np.int16)
        recorded[f"{name}/logits"] = logits[rows][:, columns].numpy()
        recorded[f"{name}/logsumexp"] = torch.logsumexp(logits[rows], dim=-1).numpy()
        print(name, flush=True)
    np.savez_compressed(REFERENCE_FILE, **recorded)
    print(f"{REFERENCE_FILE}: {REFERENCE_FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
