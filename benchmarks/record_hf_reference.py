"""Records what transformers does with the tests' tiny models: `hf_reference.npz` and two files of prompts.

For each checkpoint transformers reads the folder in float32, runs a random prompt of 700 tokens and generates
32 tokens greedily with its cache. Kept are all ids and, for every eighth position and the last ones, the
logsumexp of the logits and a fixed random choice of columns. The tests prove their own reference with it.

And transformers applies chat templates to dialogs, for tokenizers of every kind. No message holds a control
token: with those it is wrong, as it takes them for its own.

    python -m benchmarks.record_hf_reference [--prompts]

It needs `pip install torch transformers` beside the development requirements.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE_FILE = Path(__file__).parent.parent / "tests" / "data" / "hf_reference.npz"
PROMPTS_FILE = REFERENCE_FILE.with_name("hf_prompts.json")
FAMILY_PROMPTS_FILE = REFERENCE_FILE.with_name("family_prompts.json")
NUM_PROMPT, NUM_GREEDY = 700, 32
_NUM_COLUMNS = 32
_STEP = 8


def main() -> None:
    """Write the files, or those of the prompts alone."""
    if "--prompts" not in sys.argv:
        _record_logits()
    _record_prompts()
    _record_families()


def _record_families() -> None:
    """Record the prompts for each family's template with its real kinds of tokenizer, each as a digest."""
    import transformers

    from benchmarks.published_templates import transformers_ids
    from tests.engine.prompt_cases import DIALOGS, FAMILIES, FAMILY_CASES, SWITCHED, SWITCHED_CASES, digest
    from tests.engine.tokenizer_kinds import KINDS

    def tokenizer_of(kind: str, template: str, control: Sequence[str]) -> Any:
        with tempfile.TemporaryDirectory() as scratch:
            for file, content in KINDS[kind].folder(template, control).items():
                (Path(scratch) / file).write_bytes(content)
            return transformers.AutoTokenizer.from_pretrained(scratch)

    recorded: dict[str, list[str]] = {}
    for name, kind in FAMILY_CASES:
        _, template, control = FAMILIES[name]
        tokenizer = tokenizer_of(kind, template, control)
        found = [transformers_ids(tokenizer, dialog) for dialog in DIALOGS]
        recorded[f"{name}, {kind}"] = [one if isinstance(one, str) else digest(one) for one in found]
    for name, thinking in SWITCHED_CASES:
        case = SWITCHED[name]
        tokenizer = tokenizer_of("qwen2", case.template, case.control)
        switches = {} if thinking is None else {case.switch: thinking}
        found = [transformers_ids(tokenizer, dialog, switches) for dialog in case.dialogs()]
        recorded[f"{name}, {thinking}"] = [one if isinstance(one, str) else digest(one) for one in found]
    text = json.dumps(recorded, indent=1)
    FAMILY_PROMPTS_FILE.write_text(text + "\n", encoding="utf-8")


def _record_prompts() -> None:
    import transformers

    from tests.engine.prompt_cases import CASES, DIALOGS

    recorded: dict[str, list[list[int]]] = {}
    for name, case in CASES.items():
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=case.library(), bos_token=case.bos_token, eos_token=case.eos_token
        )
        tokenizer.chat_template = case.template
        recorded[name] = [
            tokenizer.apply_chat_template(dialog, add_generation_prompt=True, return_dict=False)
            for dialog in DIALOGS
            if case.takes_system or dialog[0]["role"] != "system"
        ]
    PROMPTS_FILE.write_text(json.dumps(recorded) + "\n", encoding="utf-8")


def _record_logits() -> None:
    import torch
    import transformers

    from tests.engine.tiny_hf import CHECKPOINTS

    random = np.random.default_rng(0)
    columns = np.sort(random.choice(384, _NUM_COLUMNS, replace=False))
    rows = np.array([*range(0, NUM_PROMPT, _STEP), *range(NUM_PROMPT - 1, NUM_PROMPT + NUM_GREEDY)])
    recorded: dict[str, Any] = {
        "columns": columns,
        "versions": np.array([f"transformers {transformers.__version__}", f"torch {torch.__version__}"]),
    }
    for name, make in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = make().save(Path(scratch) / "checkpoint")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
        prompt = torch.from_numpy(random.integers(3, 384, (1, NUM_PROMPT)))
        with torch.inference_mode():
            ids = model.generate(
                prompt,
                do_sample=False,
                min_new_tokens=NUM_GREEDY,
                max_new_tokens=NUM_GREEDY,
                eos_token_id=383,
            )
            logits = model(ids).logits[0]
        recorded[f"{name}/ids"] = ids[0].numpy().astype(np.int32)
        recorded[f"{name}/rows"] = rows.astype(np.int32)
        recorded[f"{name}/logits"] = logits[rows][:, columns].numpy()
        recorded[f"{name}/logsumexp"] = torch.logsumexp(logits[rows], dim=-1).numpy()
        print(f"{name}: {len(set(ids[0, NUM_PROMPT:].tolist()))} different tokens generated")
    np.savez_compressed(REFERENCE_FILE, **recorded)
    print(f"{REFERENCE_FILE}: {REFERENCE_FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
