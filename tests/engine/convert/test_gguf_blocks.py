"""GGUF's blocks and ours stand for the same weights, to the last bit that float32 holds."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from engine.convert.converter import convert
from engine.convert.gguf_blocks import BLOCK_SIZES, KIND_BITS, WITH_ZERO_POINTS, exact_blocks
from engine.convert.gguf_source import GGUFSource
from engine.convert.quantize import BlockQuantized, ByteArray, FloatArray, stack
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision, source_shapes
from engine.describing.manifest import load_manifest
from engine.describing.stored import DenseTensor
from engine.errors import ModelFormatError
from tests.engine.convert.test_gguf_source import IDS
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_gguf import QuantType, TinyGGUF
from tests.engine.tiny_model import tiny_config

EXACT = ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K"]
WITHOUT_MINIMUM = ("Q8_0", "Q4_0", "Q5_0", "Q6_K")


def random_rows(
    kind: str, seed: int, num_rows: int = 6, num_weights: int = 512, spread: float = 2.0
) -> ByteArray:
    """Return rows of any bytes at all, but for scales that are numbers."""
    random = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[QuantType[kind]]
    rows = random.integers(0, 256, (num_rows, num_weights // block, size), np.uint8)
    num_floats = 1 if kind in WITHOUT_MINIMUM else 2
    floats = random.uniform(-spread, spread, (*rows.shape[:2], num_floats)).astype("<f2")
    places = slice(-2, None) if kind == "Q6_K" else slice(2 * num_floats)
    rows[..., places] = floats.view(np.uint8)
    return rows.reshape(num_rows, -1)


def dequantized(kind: str, rows: ByteArray) -> FloatArray:
    values: FloatArray = gguf.dequantize(rows, QuantType[kind])
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", EXACT)
def test_blocks_stand_for_the_files_weights(kind: str, seed: int) -> None:
    rows = random_rows(kind, seed)
    blocks, expected = exact_blocks(kind, rows), dequantized(kind, rows)
    assert blocks is not None
    assert blocks.bits == (4 if kind.startswith("Q4") else 8)
    assert blocks.block_size == BLOCK_SIZES.get(kind, 32)
    assert (blocks.bits, blocks.zero_points is None) == (KIND_BITS[kind], kind not in WITH_ZERO_POINTS)
    assert blocks.shape == expected.shape
    np.testing.assert_allclose(blocks.dequantize(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    if kind in WITHOUT_MINIMUM:
        np.testing.assert_array_equal(blocks.dequantize(), expected)
    np.testing.assert_array_equal(blocks.widened().dequantize(), blocks.dequantize())


@pytest.mark.parametrize("kind", ["IQ4_XS", "Q2_K", "Q3_K", "F16"])
def test_other_types_are_not_taken_for_blocks(kind: str) -> None:
    assert exact_blocks(kind, np.zeros((1, 1024), np.uint8)) is None


@pytest.mark.parametrize(
    "kinds", [("Q4_K", "Q4_K", "Q6_K"), ("Q6_K", "Q5_K", "Q8_0"), ("Q4_0", "Q6_K", "Q4_1")]
)
def test_matrices_of_different_blocks_are_joined_exactly(kinds: tuple[str, ...]) -> None:
    rows = [random_rows(kind, seed) for seed, kind in enumerate(kinds)]
    parts = [blocks for kind, row in zip(kinds, rows, strict=True) if (blocks := exact_blocks(kind, row))]
    joined = stack(parts)
    assert (joined.bits, joined.block_size) == (8, 16)
    np.testing.assert_array_equal(joined.dequantize(), np.concatenate([part.dequantize() for part in parts]))


class Mixed(GGUFSource):
    """A file whose matrices of whole super-blocks are of one of GGUF's finer types, of random bytes."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(path)
        self._kind = kind

    def rows(self, name: str) -> ByteArray:
        num_rows, num_weights = source_shapes(self.config)[name]
        seed = zlib.crc32(name.encode())
        wide = dequantized(self._kind, random_rows(self._kind, seed, num_rows, num_weights)).std()
        rows = random_rows(self._kind, seed, num_rows, num_weights, spread=float(2 * 0.06 / wide))
        return self._half_split(name, rows)

    def tensor(self, name: str) -> FloatArray:
        values = super().tensor(name)
        if values.ndim == 1:
            return values
        return dequantized(self._kind, self.rows(name))

    def blocks(self, name: str) -> BlockQuantized | None:
        return exact_blocks(self._kind, self.rows(name))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_the_model_computes_with_the_finer_types_too(tmp_path: Path, kind: str) -> None:
    """In 8 and 4 bits as in float32, but for what rounding the activations costs."""
    config = replace(tiny_config(), hidden_size=256, intermediate_size=256, head_dim=64)
    path = TinyGGUF(config).save(tmp_path / "tiny.gguf")
    rows: dict[Precision, npt.NDArray[np.float64]] = {}
    for precision in (Precision.FP32, Precision.INT8, Precision.INT4):
        source = Mixed(path, kind)
        convert(source, tmp_path / precision, precision)
        manifest = load_manifest(tmp_path / precision)
        model = CpuModel(tmp_path / precision, manifest, ModelOptions(1, 1, 64))
        rows[precision] = log_softmax(model.score(0, IDS, 0))
        stored = manifest.tensors["layers.0.down"]
        assert isinstance(stored, DenseTensor) or stored.block_size == BLOCK_SIZES.get(kind, 32)
    exact = rows[Precision.FP32]
    for precision in (Precision.INT8, Precision.INT4):
        lost = float((np.exp(exact) * (exact - rows[precision])).sum(axis=-1).mean())
        assert 0 <= lost < 0.02, precision


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def divergence(file: TinyGGUF, folder: Path, precision: Precision) -> float:
    """Return the mean KL, in nats, of the converted model to exactly what the file says."""
    folder.mkdir()
    convert(GGUFSource(file.save(folder / "tiny.gguf")), folder / "model", precision)
    model = CpuModel(folder / "model", load_manifest(folder / "model"), ModelOptions(1, 1, 64))
    exact = log_softmax(reference_logits(file.config, file.tensor, IDS))
    return float((np.exp(exact) * (exact - log_softmax(model.score(0, IDS, 0)))).sum(axis=-1).mean())


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantised_file_loses_only_what_rounding_the_activations_costs(
    tmp_path: Path, kind: str, precision: Precision
) -> None:
    lost = divergence(TinyGGUF(quant_type=QuantType[kind]), tmp_path / "quantised", precision)
    assert 0 < lost < 4e-3
    assert lost < divergence(TinyGGUF(), tmp_path / "rounded", Precision.INT4) / 10


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    file = TinyGGUF(quant_type=QuantType.Q4_0)
    path = file.save(tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    tensor.data[3, :2] = np.array([np.nan], "<f2").view(np.uint8)
    reader.data.flush()
    with pytest.raises(ModelFormatError, match=r"layers\.1\.up is damaged"):
        convert(GGUFSource(path), tmp_path / "model", Precision.INT4)
