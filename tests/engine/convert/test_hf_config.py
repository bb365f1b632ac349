"""What is read from a configuration beside what the models of every family prove."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main
from engine.convert.converter import open_source
from engine.convert.hf_config import describe_decoder, rounded_as
from engine.describing.architecture import DecoderConfig
from engine.describing.layers import Layer, Rotation
from engine.errors import ModelFormatError
from tests.engine.family_sources import folder_source
from tests.engine.tiny_families import CASES, TinyFamily

GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def described(config: dict[str, Any], stored_as: str = "F32", *, has_head: bool = True) -> DecoderConfig:
    return describe_decoder(config, has_head=has_head, stored_as=stored_as).config


def test_what_gemma_3_leaves_out_is_as_transformers_has_it() -> None:
    config = described(GEMMA_3_4B, "BF16", has_head=False)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.context_length) == (262208, 131072)
    assert (config.rope_theta, config.rope_factor, config.local_rope_theta) == (1e6, 8.0, 1e4)
    assert config.tied_embeddings
    assert config.layers[4:7] == (
        *[Layer(window=1024, rotation=Rotation.LOCAL)],
        *[Layer()],
        *[Layer(window=1024, rotation=Rotation.LOCAL)],
    )
    assert config.attention_scale == 0.0
    assert config.embedding_scale == 50.5


@pytest.mark.parametrize(
    ("size", "stored_as", "scale"),
    [
        (2560, "F32", pytest.approx(50.596443, abs=1e-6)),
        (2560, "F16", 50.59375),
        (2560, "BF16", 50.5),
        (3072, "BF16", 55.5),
        (2304, "BF16", 48.0),
        (3584, "BF16", 59.75),
        (3840, "BF16", 62.0),
    ],
)
def test_the_embeddings_factor_is_rounded_as_it_was_trained(size: int, stored_as: str, scale: Any) -> None:
    assert rounded_as(size**0.5, stored_as) == scale


def test_a_part_of_a_larger_model_is_taken_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = TinyFamily("gemma-3-linear").save(tmp_path / "source")
    source = open_source(folder)
    assert source.notes == (
        "Only the part of the model that reads and writes text is taken: it sees no images.",
    )
    assert (source.eos_id, source.stop_ids) == (2, (0, 1))
    assert main(["inspect", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "it sees no images" in said
    assert "6 of 7 see only the newest 48 tokens" in said


def test_attention_that_is_another_one_from_some_length_on_is_not_computed_there() -> None:
    source = folder_source("ministral-3")
    assert source.config.context_length == 768
    assert source.notes == ("Its context is 768 tokens here: beyond, its attention is another one.",)


MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({}, 4096),
        ({"sliding_window": None}, 0),
        ({"sliding_window": 8192, "max_position_embeddings": 8192}, 0),
    ],
)
def test_a_window_counts_where_it_is_smaller_than_the_context(keys: dict[str, Any], window: int) -> None:
    assert described(MISTRAL | keys).layer(1).window == window


def test_qwens_windows_are_off_unless_they_are_on() -> None:
    qwen = MISTRAL | {"model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 1}
    assert described(qwen).layers == ()
    assert described(qwen | {"use_sliding_window": True}).layers == (Layer(), Layer(window=4096))


ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3.7, 1e308, float("nan"), float("inf"), 10**30),
    *("x", "", [], [1], [None], {}, {"a": 1}, [[]], ["full_attention"]),
)
ADDED = ("rope_scaling", "rope_parameters", "layer_types", "sliding_window", "no_rope_layers")


def places(config: dict[str, Any], inside: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give the way to each value of a configuration."""
    for key, value in config.items():
        yield (*inside, key)
        if isinstance(value, dict):
            yield from places(value, (*inside, key))


@pytest.mark.parametrize(
    "name", ["llama-yarn", "gemma-2", "gemma-3-linear", "phi-4-mini", "smollm3", "granite", "olmo-3"]
)
def test_no_odd_value_is_more_than_a_sentence(name: str) -> None:
    num_refused = 0
    for place in (*places(CASES[name]), *((key,) for key in ADDED)):
        for odd in ODD:
            config = copy.deepcopy(CASES[name])
            inner = functools.reduce(lambda part, key: part[key], place[:-1], config)
            inner[place[-1]] = odd
            with contextlib.suppress(ModelFormatError):
                described(config)
                continue
            num_refused += 1
    assert num_refused > 100


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("keys", "context"),
    [
        ({"rope_scaling": YARN, "max_position_embeddings": 32768}, 131072),
        ({"rope_scaling": YARN, "max_position_embeddings": 131072}, 131072),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4096}, 8192),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 8192}, 8192),
    ],
)
def test_the_context_is_what_the_scaling_makes_of_it(keys: dict[str, Any], context: int) -> None:
    assert described(MISTRAL | keys).context_length == context


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_quantised_parts_of_larger_models_are_refused(place: str) -> None:
    quantised = {"quantization_config": {"quant_method": "awq"}}
    config = GEMMA_3_4B | quantised if place == "outside" else GEMMA_3_4B
    if place == "inside":
        config = config | {"text_config": config["text_config"] | quantised}
    with pytest.raises(ModelFormatError, match=r"quantised already\. They are of AWQ"):
        described(config)
