"""Records what llama.cpp makes of the tests' tiny models, and says of them: `families_gguf.json`, `.npz`.

llama.cpp's own converter writes each folder as a GGUF file in float32, and llama.cpp computes all recorded
tokens with it, its cache in float32 too. Kept are the file's fields, a checksum of its tensors, the best
token of each position, and of some positions the logsumexp of the logits and a fixed random choice of
columns. The tests write the files anew from that.

    python -m benchmarks.record_families_gguf LLAMA_CPP

LLAMA_CPP is a checkout of llama.cpp. It needs `pip install torch transformers llama-cpp-python` beside the
development requirements.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record_families import REFERENCE_FILE

_CHUNK = 256
_LIBRARY_NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "ministral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "granite": "GraniteForCausalLM",
}


def main() -> None:
    """Write both files."""
    gguf = _own_gguf(Path(sys.argv[1]))
    from tests.engine.tiny_families import CASES
    from tests.engine.tiny_family_gguf import GGUF_FIELDS_FILE, GGUF_LOGITS_FILE, digest

    with np.load(REFERENCE_FILE) as file:
        recorded = dict(file)
    described: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.gguf"
            _convert(name, path)
            reader = gguf.GGUFReader(path)
            fields = {key: field.contents() for key, field in reader.fields.items()}
            tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
            described[name] = {
                "fields": {
                    key: value
                    for key, value in fields.items()
                    if not key.startswith(("GGUF.", "general.", "tokenizer."))
                    or key == "general.architecture"
                },
                "rope": {key: values.tolist() for key, values in tensors.items() if key.startswith("rope_")},
                "digest": digest(tensors),
            }
            try:
                logits = _logits(path, [int(token) for token in recorded[f"{name}/ids"]])
            except ValueError:
                print(f"{name}: llama.cpp does not load it", flush=True)
                continue
        rows = recorded["rows"]
        said[f"{name}/logits"] = logits[rows][:, recorded["columns"]]
        said[f"{name}/logsumexp"] = np.logaddexp.reduce(logits[rows].astype(float), axis=1)
        said[f"{name}/best"] = logits.argmax(axis=1).astype(np.int16)
        print(name, flush=True)
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in described.items())
    GGUF_FIELDS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    np.savez_compressed(GGUF_LOGITS_FILE, **said)


def _own_gguf(checkout: Path) -> Any:
    """Import the library `gguf` of a checkout, which its converter needs, and make that importable."""
    sys.path.insert(0, str(checkout / "gguf-py"))
    import gguf

    del sys.path[0]
    sys.path.append(str(checkout))
    return gguf


def _convert(name: str, path: Path) -> None:
    """Have llama.cpp's converter write a case; only the tokenizer, which it does not know, is made up."""
    import gguf
    import torch
    from conversion import get_model_class  # type: ignore[import-not-found]

    from tests.engine.tiny_families import TinyFamily

    made = TinyFamily(name)
    library_name = _LIBRARY_NAMES[made.config["model_type"]]
    made.config["architectures"] = [library_name]
    kind = get_model_class(library_name)
    kind = type(kind.__name__, (kind,), {"set_vocab": _set_vocab, "model_arch": kind.model_arch})
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder = made.save(Path(scratch) / "checkpoint")
        model = kind(folder, gguf.LlamaFileType.ALL_F32, path)
        if hasattr(model, "impl"):
            model.impl.set_vocab = types.MethodType(_set_vocab, model.impl)
        model.write()


def _set_vocab(self: Any) -> None:
    count = self.hparams["vocab_size"]
    writer = self.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"<{token}>" for token in range(count)])
    writer.add_token_types([1] * count)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _logits(path: Path, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return llama.cpp's logits of all positions, computed in chunks and single steps."""
    import llama_cpp

    from tests.engine.tiny_families import MAX_TOKENS

    model = llama_cpp.Llama(
        str(path), n_ctx=MAX_TOKENS, n_batch=_CHUNK, logits_all=True, n_threads=1, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    model.eval(ids[:-16])
    for token in ids[-16:]:
        model.eval([token])
    return np.array(model.scores[: len(ids)], np.float32)


if __name__ == "__main__":
    main()
