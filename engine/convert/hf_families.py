"""The families that Hugging Face folders may be of: a table from names and keys to the description.

Defaults are those of transformers' configuration classes. Keys that a family's class does not read are not
read here either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.describing.layers import Norms, QueryKeyNorm

FULL, SLIDING = "full_attention", "sliding_attention"
"""What `layer_types` calls the layers that see everything, and those with a window."""
_ALL_LAYERS = 0


@dataclass(frozen=True, slots=True)
class Family:
    """What the keys of a family mean.

    defaults: of keys that are missing. whole_every: of so many layers the last one sees all tokens, where
    there is a window, 0 where none does; None where there is no window. has_kinds: whether `layer_types` says
    so itself. biases: the keys that add some, beside `qkv_bias`. norm_offset: added to the weights of norms.
    multiplies: whether it has Granite's factors. has_local_rope: whether layers with a window rotate by a
    base of their own. is_fused: whether q, k and v lie in one matrix, and gate and up.
    """

    defaults: Mapping[str, object] = field(default_factory=dict)
    norms: Norms = Norms.BEFORE
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE
    biases: tuple[str, ...] = ()
    qkv_bias: bool = False
    whole_every: int | None = None
    has_kinds: bool = True
    norm_offset: float = 0.0
    has_local_rope: bool = False
    multiplies: bool = False
    is_gemma: bool = False
    is_fused: bool = False
    ends: tuple[int | None, int | None] = (1, 2)
    """The ids that begin and end a text where nothing says which."""


_GEMMA: dict[str, object] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
}
_MISTRAL: dict[str, object] = {"max_position_embeddings": 131072, "num_key_value_heads": 8}
_QWEN: dict[str, object] = {
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FAMILIES: Mapping[str, Family] = {
    "llama": Family(biases=("attention_bias", "mlp_bias")),
    "mistral": Family({**_MISTRAL, "sliding_window": 4096}, whole_every=_ALL_LAYERS, has_kinds=False),
    "ministral": Family({**_MISTRAL, "sliding_window": 4096}, whole_every=_ALL_LAYERS),
    "ministral3": Family({**_MISTRAL, "head_dim": 128, "rms_norm_eps": 1e-5}),
    "qwen2": Family(_QWEN, qkv_bias=True, whole_every=_ALL_LAYERS, ends=(None, None)),
    "qwen3": Family(
        {**_QWEN, "head_dim": 128},
        query_key_norm=QueryKeyNorm.HEAD,
        biases=("attention_bias",),
        whole_every=_ALL_LAYERS,
        ends=(None, None),
    ),
    "gemma2": Family(
        {
            **_GEMMA,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        norms=Norms.AROUND,
        biases=("attention_bias",),
        whole_every=2,
        norm_offset=1.0,
        is_gemma=True,
        ends=(2, 1),
    ),
    "gemma3_text": Family(
        {**_GEMMA, "vocab_size": 262208, "max_position_embeddings": 131072},
        norms=Norms.AROUND,
        query_key_norm=QueryKeyNorm.HEAD,
        biases=("attention_bias",),
        whole_every=6,
        norm_offset=1.0,
        has_local_rope=True,
        is_gemma=True,
        ends=(2, 1),
    ),
    "phi3": Family(
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
        whole_every=_ALL_LAYERS,
        has_kinds=False,
        is_fused=True,
        ends=(1, 32000),
    ),
    "smollm3": Family(
        {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2000000.0,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
        biases=("attention_bias", "mlp_bias"),
        ends=(128000, 128001),
    ),
    "olmo2": Family(
        {"rms_norm_eps": 1e-5},
        norms=Norms.AFTER,
        query_key_norm=QueryKeyNorm.WHOLE,
        biases=("attention_bias",),
        ends=(None, 50279),
    ),
    "olmo3": Family(
        {"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 500000.0},
        norms=Norms.AFTER,
        query_key_norm=QueryKeyNorm.WHOLE,
        biases=("attention_bias",),
        whole_every=4,
        has_local_rope=True,
        ends=(None, 50279),
    ),
    "granite": Family(biases=("attention_bias", "mlp_bias"), multiplies=True),
}
"""By `model_type`. Falcon 3, SmolLM 2, Yi and many others are of the type llama."""
