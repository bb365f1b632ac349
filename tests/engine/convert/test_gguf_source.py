"""GGUF files become models that compute what the file says; any other file is one clear sentence."""

from __future__ import annotations

import dataclasses
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.convert.converter import convert
from engine.convert.gguf_source import GGUFSource
from engine.convert.quantize import quantize
from engine.convert.source import MappedSource
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import load_manifest
from engine.errors import ModelFormatError
from engine.opening import open_folder
from engine.text.tokenizer import load_tokenizer
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_gguf import QuantType, TinyGGUF, tiny_smollm_tokenizer
from tests.engine.tiny_model import BOS_ID, CONTROL_TOKENS, EOS_ID, SYSTEM_PROMPT, tiny_config

NUM_DESCRIPTION_BYTES = 13_000
"""Where the file's fields and tensor names lie."""
IDS = [int(token) for token in np.random.default_rng(2).integers(3, 384, 60)]
SHAPES = {
    "gqa-tied": tiny_config(),
    "mha-untied": tiny_config(num_kv_heads=4, tied=False),
    "mqa": tiny_config(num_kv_heads=1),
    "other theta": dataclasses.replace(tiny_config(), rope_theta=100000.0, rms_norm_eps=1e-6),
}


def converted(file: TinyGGUF, folder: Path, precision: Precision = Precision.FP32) -> CpuModel:
    convert(GGUFSource(file.save(folder / "tiny.gguf")), folder / "model", precision)
    return CpuModel(folder / "model", load_manifest(folder / "model"), ModelOptions(1, 1, 64))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_the_model_computes_what_the_file_says(tmp_path: Path, config: DecoderConfig) -> None:
    file = TinyGGUF(config)
    logits = converted(file, tmp_path).score(0, IDS, 0)
    assert np.abs(logits - reference_logits(config, file.tensor, IDS)).max() < 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_files_are_read_exactly(tmp_path: Path, kind: str) -> None:
    file = TinyGGUF(quant_type=QuantType[kind])
    logits = converted(file, tmp_path).score(0, IDS, 0)
    exact = reference_logits(file.config, file.tensor, IDS)
    assert np.abs(logits - exact).max() < 1e-4
    assert np.abs(exact - reference_logits(file.config, file.source.tensor, IDS)).max() > 1e-3


def test_the_description_is_read(tmp_path: Path) -> None:
    file = TinyGGUF(tiny_config(tied=False))
    source = GGUFSource(file.save(tmp_path / "tiny.gguf"))
    eps = float(np.float32(1e-5))
    assert source.config == dataclasses.replace(file.config, rms_norm_eps=eps)
    assert (source.name, source.bos_id, source.eos_id) == ("Tiny", BOS_ID, EOS_ID)
    assert (source.chat.format, source.chat.default_system_prompt) == ("chatml", SYSTEM_PROMPT)
    assert source.origin == {"format": "gguf", "file": "tiny.gguf", "license": "mit"}


ROPE_FIELDS: dict[str, tuple[dict[str, object], float]] = {
    "linear": ({"scaling.type": "linear", "scaling.factor": 4.0}, 4.0),
    "no type": ({"scaling.factor": 2.0}, 2.0),
    "none": ({"scaling.type": "none", "scaling.factor": 2.0}, 1.0),
    "old": ({"scale_linear": 8.0}, 8.0),
    "old and unset": ({"scale_linear": 0.0}, 1.0),
}


@pytest.mark.parametrize(("fields", "factor"), ROPE_FIELDS.values(), ids=ROPE_FIELDS)
def test_linear_rope_scaling_is_followed(tmp_path: Path, fields: dict[str, object], factor: float) -> None:
    file = TinyGGUF(dataclasses.replace(tiny_config(), rope_factor=factor))
    file.fields.update({f"llama.rope.{key}": value for key, value in fields.items()})
    logits = converted(file, tmp_path).score(0, IDS, 0)
    assert load_manifest(tmp_path / "model").decoder.rope_factor == factor
    assert np.abs(logits - reference_logits(file.config, file.tensor, IDS)).max() < 1e-4


def test_whatever_ends_a_turn_is_kept(tmp_path: Path) -> None:
    file = TinyGGUF()
    assert GGUFSource(file.save(tmp_path / "one.gguf")).stop_ids == (0,)  # <|endoftext|>
    file.fields |= {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 9}
    convert(GGUFSource(file.save(tmp_path / "two.gguf")), tmp_path / "model", Precision.FP32)
    assert load_manifest(tmp_path / "model").stop_ids == (0, 7, 9)


def test_the_authors_advice_is_kept(tmp_path: Path) -> None:
    file = TinyGGUF()
    file.fields |= {
        "general.sampling.temp": 0.3,
        "general.sampling.top_p": 0.95,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 50.0,
    }
    convert(GGUFSource(file.save(tmp_path / "tiny.gguf")), tmp_path / "model", Precision.FP32)
    advice = open_folder(tmp_path / "model").sampling
    assert advice == {"temperature": 0.3, "top_p": 0.95, "top_k": 20}
    assert isinstance(advice["top_k"], int)


def test_optional_fields_have_the_usual_values(tmp_path: Path) -> None:
    file = TinyGGUF(tiny_config(num_kv_heads=4))
    for key in ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count"):
        del file.fields[f"llama.{key}"]
    for key in ("general.name", "general.license", "tokenizer.chat_template"):
        del file.fields[key]
    source = GGUFSource(file.save(tmp_path / "tiny.gguf"))
    assert (source.config.num_kv_heads, source.config.rope_theta) == (4, 10000.0)
    assert (source.name, source.origin["license"], source.chat.format) == ("tiny", "unknown", None)


@pytest.mark.parametrize(
    "text",
    ["The user asks 1234 questions.", "Grüße 🙂 你好\n\n\tx = 10", "", " ", "<|im_start|>system<|im_end|>"],
)
def test_the_tokenizer_is_the_files(tmp_path: Path, text: str) -> None:
    spec = GGUFSource(TinyGGUF().save(tmp_path / "tiny.gguf")).save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, spec)
    ids = tokenizer.encode(text)
    assert ids == tiny_smollm_tokenizer().encode(text).ids
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == text.encode()
    assert dict(tokenizer.special_ids) == {piece: i for i, piece in enumerate(CONTROL_TOKENS)}
    assert not set(ids) & set(tokenizer.special_ids.values())


def set_field(key: str, value: object) -> Callable[[TinyGGUF], object]:
    return lambda file: file.fields.update({key: value})


def drop_field(key: str) -> Callable[[TinyGGUF], object]:
    return lambda file: file.fields.pop(key)


def drop_tensor(name: str) -> Callable[[TinyGGUF], object]:
    return lambda file: file.tensors.pop(name)


def add_tensor(name: str, *shape: int) -> Callable[[TinyGGUF], object]:
    return lambda file: file.tensors.update({name: np.ones(shape, np.float32)})


SPOILS: dict[str, tuple[Callable[[TinyGGUF], object], str]] = {
    "another architecture": (set_field("general.architecture", "bert"), "'bert', which .* do: Llama 2 and 3"),
    "experts by name": (set_field("general.architecture", "qwen3moe"), "a mixture of experts, .* Qwen3 4B"),
    "experts of a llama": (set_field("llama.expert_count", 8), "a mixture of experts, .* Mistral 7B"),
    "wide values": (set_field("llama.attention.value_length", 32), "keys and values differ in size"),
    "a window of too few layers": (
        lambda file: file.fields.update(
            {
                "llama.attention.sliding_window": 8,
                "llama.attention.sliding_window_pattern": [True, False],
            }
        ),
        "sliding_window_pattern is not one of 3 layers",
    ),
    "fused rows that are missing": (
        lambda file: (
            [file.tensors.pop(f"blk.0.attn_{part}.weight") for part in "qkv"],
            file.tensors.update({"blk.0.attn_qkv.weight": np.ones((100, 64), np.float32)}),
        ),
        "blk.0.attn_qkv.weight has 100 rows: some are missing",
    ),
    "a missing field": (drop_field("llama.context_length"), "lacks the field llama.context_length"),
    "no embeddings": (drop_tensor("token_embd.weight"), "has no token embeddings"),
    "a missing tensor": (drop_tensor("blk.1.ffn_up.weight"), "has no tensor blk.1.ffn_up.weight"),
    "a missing norm": (drop_tensor("output_norm.weight"), "has no tensor output_norm.weight"),
    "a missing layer": (set_field("llama.block_count", 4), "has no tensor blk.3"),
    "a layer too many": (set_field("llama.block_count", 2), "has the tensor blk.2.* not supported"),
    "a bias": (add_tensor("blk.1.attn_q.bias", 64), "tensor blk.1.attn_q.bias, which is not supported"),
    "half of the biases": (add_tensor("blk.0.attn_q.bias", 64), "has no tensor blk.0.attn_k.bias"),
    "rope factors": (add_tensor("rope_freqs.weight", 7), "rope factors are no 8 numbers above 0"),
    "experts": (add_tensor("blk.0.ffn_gate_inp.weight", 8, 64), "ffn_gate_inp.weight, which is not supp"),
    "long rope without factors": (
        set_field("llama.rope.scaling.type", "longrope"),
        "of the kind 'longrope', not supported",
    ),
    "rope scaling": (set_field("llama.rope.scaling.type", "su"), "of the kind 'su', not supported"),
    "a negative rope factor": (set_field("llama.rope.scaling.factor", -2.0), "rope factor .* above 0"),
    "partial rope": (set_field("llama.rope.dimension_count", 8), "rotates only a part of each head"),
    "no heads": (set_field("llama.attention.head_count", 0), "damaged description"),
    "heads by layer": (set_field("llama.attention.head_count", [4, 4, 4]), "damaged description"),
    "more KV heads": (set_field("llama.attention.head_count_kv", 3), "cannot share 3 key/value heads"),
    "fewer KV heads": (set_field("llama.attention.head_count_kv", 1), "do not fit|has the shape"),
    "another width": (set_field("llama.feed_forward_length", 64), "has the shape"),
    "text for a number": (set_field("llama.block_count", "many"), "damaged description"),
    "an odd head size": (set_field("llama.attention.key_length", 24), "Heads of 24|rotates only a part"),
    "no epsilon": (set_field("llama.attention.layer_norm_rms_epsilon", 0.0), "must be above 0"),
    "end token outside": (set_field("tokenizer.ggml.eos_token_id", 384), "eos token 384 is outside"),
    "unknown splitting": (
        set_field("tokenizer.ggml.pre", "qwen99"),
        "'qwen99', which is not supp",
    ),
    "unknown tokenizer": (set_field("tokenizer.ggml.model", "bert"), "'bert', which is not supported"),
    "no tokenizer": (drop_field("tokenizer.ggml.model"), "lacks the field tokenizer.ggml.model"),
    "no merges": (drop_field("tokenizer.ggml.merges"), "lacks the field tokenizer.ggml.merges"),
    "an unknown merge": (set_field("tokenizer.ggml.merges", ["zzz qqq"]), "damaged tokenizer"),
    "half a merge": (set_field("tokenizer.ggml.merges", ["Ġ"]), "damaged tokenizer"),
    "too few tokens": (set_field("tokenizer.ggml.tokens", ["a", "b"]), "2 tokens for 384 embeddings"),
    "too few types": (set_field("tokenizer.ggml.token_type", [1, 1]), "384 tokens and 2 token types"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILS.values(), ids=SPOILS)
def test_a_spoiled_file_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[TinyGGUF], object], message: str
) -> None:
    file = TinyGGUF()
    spoil(file)
    path = file.save(tmp_path / "tiny.gguf")
    with pytest.raises(ModelFormatError, match=message) as caught:
        convert(GGUFSource(path), tmp_path / "model", Precision.INT8)
    assert str(caught.value).endswith(".")
    assert os.fspath(tmp_path / "model") not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_eight_bits_need_whole_blocks(tmp_path: Path) -> None:
    file = TinyGGUF(dataclasses.replace(tiny_config(), hidden_size=48))
    file.fields["llama.attention.key_length"] = 16
    path = file.save(tmp_path / "tiny.gguf")
    with pytest.raises(ModelFormatError, match="48 inputs are not a multiple of the block size 32"):
        convert(GGUFSource(path), tmp_path / "model", Precision.INT8)
    assert list(tmp_path.iterdir()) == [path]
    convert(GGUFSource(path), tmp_path / "model", Precision.FP32)


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.0001, 0.01, 0.02, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_said_so(tmp_path: Path, share: float) -> None:
    path = TinyGGUF().save(tmp_path / "tiny.gguf")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ModelFormatError, match=r"not a readable GGUF file; it may be truncated\. Get it"):
        GGUFSource(path)


def test_a_flipped_bit_converts_or_is_refused(tmp_path: Path) -> None:
    content = TinyGGUF().save(tmp_path / "tiny.gguf").read_bytes()
    random = np.random.default_rng(3)
    num_refused = 0
    for number in range(60):
        damaged = bytearray(content)
        damaged[random.integers(NUM_DESCRIPTION_BYTES)] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            convert(GGUFSource(tmp_path / "damaged.gguf"), tmp_path / f"{number}", Precision.INT8)
        except ModelFormatError:
            num_refused += 1
            assert not (tmp_path / f"{number}").exists()
    assert 20 < num_refused < 60


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 1000, b"\0" * 4096])
def test_what_is_no_gguf_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="not a readable GGUF file"):
        GGUFSource(path)


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"cannot be read: No such file or directory\.$"):
        GGUFSource(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelFormatError, match=r"cannot be read: Is a directory\.$"):
        GGUFSource(tmp_path)


def test_rounding_a_matrix_never_holds_all_of_it_as_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.convert.gguf_source.exact_blocks", lambda _kind, _rows: None)
    model = TinyGGUF(tiny_config(vocab_size=40_000), QuantType.Q8_0)
    source = GGUFSource(model.save(tmp_path / "model.gguf"))
    expected = quantize(source.tensor("embed"), 8)
    tracemalloc.start()
    try:
        blocks = source.blocks("embed")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert blocks is not None
    np.testing.assert_array_equal(blocks.values, expected.values)
    np.testing.assert_array_equal(blocks.scales, expected.scales)
    assert peak < 3 * source.tensor("embed").size  # bytes a weight; as float32 it would be four


def test_what_was_read_is_let_go_and_can_be_read_again(tmp_path: Path) -> None:
    source = GGUFSource(TinyGGUF().save(tmp_path / "model.gguf"))
    before = source.tensor("layers.1.q")
    assert isinstance(source, MappedSource)
    source.let_go()
    np.testing.assert_array_equal(source.tensor("layers.1.q"), before)
