"""Records what peft's own merge makes of the tests' tiny adapters: `lora_reference.npz`.

Of each merged matrix its product with a fixed vector is kept.

    python -m benchmarks.record_lora_reference

It needs `pip install torch transformers peft` beside the development requirements.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

REFERENCE_FILE = Path(__file__).parent.parent / "tests" / "data" / "lora_reference.npz"


def main() -> None:
    """Write the file."""
    import peft
    import torch
    import transformers

    from tests.engine.tiny_adapters import ADAPTERS, base, module_shapes, probe

    recorded: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = base().save(Path(scratch) / "base")
        for case, adapters in ADAPTERS.items():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            for index, adapter in enumerate(adapters):
                place = adapter.save(Path(scratch) / f"{case}-{index}")
                model = peft.PeftModel.from_pretrained(model, place).merge_and_unload()
            state = model.state_dict()
            for module in module_shapes(base().decoder):
                recorded[f"{case}/{module}"] = probe(state[f"{module}.weight"].numpy())
    versions = [f"peft {peft.__version__}", f"torch {torch.__version__}"]
    np.savez_compressed(REFERENCE_FILE, versions=np.array(versions), **recorded)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
