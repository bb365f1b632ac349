"""Reads a released Llama-2-Onnx model: recognises its graph, hands out its weights, compares the import."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.convert.dataflow import Dataflow
from engine.convert.quantize import BlockQuantized
from engine.convert.release_graph import PARTS, Layer, recognise
from engine.convert.rope_probe import measure_rotation
from engine.convert.source import FloatArray
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import ChatSpec, Manifest, TokenizerSpec, load_manifest
from engine.errors import ModelFormatError
from engine.machine import machine
from engine.release.contract import load_graph, read_contract, read_tensor
from engine.release.files import ReleaseFiles, find_release, read_embeddings
from engine.release.folder import check_vocabulary, open_release_tokenizer, release_tokenizer_spec
from engine.release.model import ReleaseModel
from engine.runtime.runner import SlotModel
from engine.text.chat_choice import llama2_chat

_NORMS = ("attn_norm", "mlp_norm")


class ReleaseSource:
    """A `ModelSource` over a release folder; each tensor is read when it is asked for."""

    bos_id = 1
    eos_id = 2
    stop_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `ModelFormatError` where a file is missing or damaged, or the graph is no Llama's."""
        self._files = find_release(path)
        model = load_graph(self._files.graph)
        contract = read_contract(model, self._files.graph)
        flow = Dataflow(model)
        self._graph = recognise(flow, contract.num_layers)
        self._rotation = measure_rotation(model, flow, self._graph, contract, self._files.graph)
        linears = self._graph.layers[0].linears
        self.config = DecoderConfig(
            num_layers=contract.num_layers,
            hidden_size=contract.hidden_size,
            intermediate_size=linears["gate"].shape[1],
            num_heads=linears["q"].shape[1] // contract.head_dim,
            num_kv_heads=contract.num_heads,
            head_dim=contract.head_dim,
            vocab_size=self._graph.head.shape[1],
            context_length=contract.context_length,
            rope_theta=self._rotation.theta,
            rms_norm_eps=self._graph.eps,
            tied_embeddings=False,
        )
        check_vocabulary(self._files, self.config.vocab_size, open_release_tokenizer(self._files))
        self.name = self._files.name
        self.chat = llama2_chat() if self._files.is_fine_tuned else ChatSpec(None)
        self.sampling: Mapping[str, float] = {}
        self.origin = {
            "format": "llama-2-onnx",
            "file": self._files.graph.name,
            "license": "Llama 2 Community License",
            "precision": contract.precision,
        }

    def tensor(self, name: str) -> FloatArray:
        part = name.rpartition(".")[2]
        if part == "embed":
            return np.asarray(read_embeddings(self._files.embeddings), np.float32)
        if part == "final_norm":
            return np.asarray(read_tensor(self._graph.final_norm.weight, self._files.graph), np.float32)
        if part in _NORMS:
            norm = getattr(self._layer(name), part)
            return np.asarray(read_tensor(norm.weight, self._files.graph), np.float32)
        if part not in (*PARTS, "head"):
            raise ModelFormatError(f"A release has no tensor {name}.")
        linear = self._graph.head if part == "head" else self._layer(name).linears[part]
        stored = np.asarray(read_tensor(linear.weight, self._files.graph), np.float32)
        matrix = stored if linear.transposed else stored.T
        if part in ("q", "k") and self._rotation.interleaved:
            return self._half_split(matrix)
        return np.ascontiguousarray(matrix)

    def blocks(self, name: str) -> BlockQuantized | None:  # noqa: ARG002
        return None

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        spec = release_tokenizer_spec(self._files)
        shutil.copyfile(self._files.tokenizer, folder / spec.file)
        return spec

    def verify(self, folder: Path) -> None:
        """Raise `ModelFormatError` unless the model in `folder` says what the release says."""
        verify_import(self._files, folder)

    def _layer(self, name: str) -> Layer:
        return self._graph.layers[int(name.split(".")[1])]

    def _half_split(self, rows: FloatArray) -> FloatArray:
        """(0, 1, 2, 3 …) -> (0, 2 … | 1, 3 …) within each head."""
        by_pair = rows.reshape(-1, self.config.head_dim // 2, 2, rows.shape[1])
        return by_pair.swapaxes(1, 2).reshape(rows.shape)


_NUM_PREFILL, _NUM_CHUNK, _NUM_STEPS = 40, 7, 8
_MAX_ERROR = {"fp32": 1e-3, "fp16": 5e-2}
"""Largest difference of two logits, as a share of their spread, at the lower of both precisions."""
_MAX_DIVERGENCE = 0.05
"""Mean Kullback-Leibler divergence, in nats, for 8-bit weights."""
_MAX_DIVERGENCE_4_BITS = 0.5
DoubleArray = npt.NDArray[np.float64]


def verify_import(files: ReleaseFiles, folder: Path) -> None:
    """Raise `ModelFormatError` unless the model in `folder` says what the release says."""
    manifest = load_manifest(folder)
    num_threads = machine.num_physical_cores()
    num_tokens = min(_NUM_PREFILL + _NUM_CHUNK + _NUM_STEPS, manifest.decoder.context_length)
    ids = np.random.default_rng(0).integers(3, manifest.decoder.vocab_size, num_tokens).tolist()
    # A copy of the weights for each matrix product, widened where they are float16, is what loading may take.
    release = ReleaseModel(files, num_threads, lean=3 * files.num_bytes > machine.memory_bytes())
    precision = release.contract.precision
    expected = np.array(list(_logits(release, ids)))
    del release
    imported = CpuModel(folder, manifest, ModelOptions(num_threads, 1, num_tokens))
    _compare(expected, np.array(list(_logits(imported, ids))), manifest, precision)


def _logits(model: SlotModel, ids: list[int]) -> Iterator[DoubleArray]:
    """Give the logits after a prompt, after a chunk behind it, and after single cached steps."""
    ends = [len(ids) - _NUM_CHUNK - _NUM_STEPS, *range(len(ids) - _NUM_STEPS, len(ids) + 1)]
    start = 0
    for end in ends:
        yield model.prefill(0, ids[start:end], start).astype(np.float64)
        start = end


def _compare(expected: DoubleArray, imported: DoubleArray, manifest: Manifest, released: str) -> None:
    precision = str(manifest.precision)
    if precision in _MAX_ERROR:
        limit = max(_MAX_ERROR[precision], _MAX_ERROR[released])
        found = float(np.abs(imported - expected).max() / expected.std())
        what = "logits differ by {:.1%} of their spread"
    else:
        limit = _MAX_DIVERGENCE if manifest.precision is Precision.INT8 else _MAX_DIVERGENCE_4_BITS
        found = _divergence(expected, imported)
        what = "probabilities diverge by {:.3f} nats"
    if not found <= limit:
        raise ModelFormatError(
            f"The converted model does not say what the released one says: {what.format(found)}, more than "
            f"{limit:g} at {precision}. Nothing was written."
        )


def _divergence(expected: DoubleArray, imported: DoubleArray) -> float:
    """Return the mean Kullback-Leibler divergence of the rows."""
    first, second = _log_softmax(expected), _log_softmax(imported)
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())


def _log_softmax(logits: DoubleArray) -> DoubleArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    rest: DoubleArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return rest
