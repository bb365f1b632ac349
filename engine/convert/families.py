"""Which families of models run here, and what to take instead of those that do not.

The tables of their keys: `hf_config.py` and `gguf_config.py`.
"""

from __future__ import annotations

from engine.errors import ModelFormatError

RUNNING = (
    "Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3, Gemma 2 and 3, Phi 3 and 4, SmolLM, OLMo 2 and 3, "
    "Granite 3 and Falcon 3"
)
_EXPERTS, _HYBRID, _IMAGES = "a mixture of experts", "not a plain decoder", "one for images too"
_MISTRAL, _QWEN = "Mistral 7B, Nemo and Small", "Qwen3 4B, 8B and 14B"
_GEMMA, _PHI, _GRANITE = "Gemma 3 1B to 27B", "Phi-4 and Phi-4-mini", "Granite 3.3 2B and 8B"
_LLAMA = "Llama 3.1 8B and Llama 3.2 1B and 3B"
_INSTEAD: dict[str, tuple[str, str]] = {
    "mixtral": (_EXPERTS, _MISTRAL),
    "mistral4": (_EXPERTS, _MISTRAL),
    "llama4": (_EXPERTS, _LLAMA),
    "mllama": (_IMAGES, _LLAMA),
    "qwen2moe": (_EXPERTS, _QWEN),
    "qwen3moe": (_EXPERTS, _QWEN),
    "qwen3next": (_HYBRID, _QWEN),
    "qwen35": (_HYBRID, _QWEN),
    "qwen35moe": (_HYBRID, _QWEN),
    "qwen2vl": (_IMAGES, _QWEN),
    "qwen25vl": (_IMAGES, _QWEN),
    "qwen3vl": (_IMAGES, _QWEN),
    "qwen3vlmoe": (_EXPERTS, _QWEN),
    "gptoss": (_EXPERTS, "Qwen3 8B and 14B, Phi-4 and Mistral Small"),
    "gemma": ("an older kind of Gemma", _GEMMA),
    "gemma3n": (_HYBRID, _GEMMA),
    "gemma4": (_HYBRID, _GEMMA),
    "recurrentgemma": (_HYBRID, _GEMMA),
    "phi": ("an older kind of Phi", _PHI),
    "phi2": ("an older kind of Phi", _PHI),
    "phimoe": (_EXPERTS, _PHI),
    "phi4multimodal": (_IMAGES, _PHI),
    "granitemoe": (_EXPERTS, _GRANITE),
    "granitemoehybrid": (_HYBRID, _GRANITE),
    "granitehybrid": (_HYBRID, _GRANITE),
    "olmoe": (_EXPERTS, "OLMo 2 1B to 13B"),
    "deepseek2": (_EXPERTS, "DeepSeek's R1 distills of Llama and Qwen"),
    "deepseekv2": (_EXPERTS, "DeepSeek's R1 distills of Llama and Qwen"),
    "deepseekv3": (_EXPERTS, "DeepSeek's R1 distills of Llama and Qwen"),
    "lfm2": (_HYBRID, "Llama 3.2 1B, Qwen3 0.6B and 1.7B"),
    "lfm2moe": (_EXPERTS, "Llama 3.2 1B, Qwen3 0.6B and 1.7B"),
    "mamba": (_HYBRID, _LLAMA),
    "mamba2": (_HYBRID, _LLAMA),
    "jamba": (_HYBRID, _LLAMA),
    "falconh1": (_HYBRID, "Falcon 3 1B to 10B"),
    "nemotronh": (_HYBRID, _LLAMA),
    "glm4moe": (_EXPERTS, _QWEN),
}
"""By the names of Hugging Face and GGUF, without what these put between words."""


def refusal(name: object) -> ModelFormatError:
    """Return what to say of a family that does not run here."""
    bare = "".join(character for character in str(name).lower() if character.isalnum())
    found = _INSTEAD.get(bare) or _INSTEAD.get(bare.removesuffix("text"))
    if found is None:
        return ModelFormatError(
            f"The model is of the type {name!r}, which does not run here. These do: {RUNNING}."
        )
    what, instead = found
    return ModelFormatError(
        f"The model is of the type {name!r}, {what}, which does not run here. These do: {instead}."
    )
