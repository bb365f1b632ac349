"""Authors the decoder as an ONNX graph for a GPU: packed tokens over a paged KV cache, half precision.

    input_ids [T] -> embedding -> layers x (norm, packed QKV, PagedAttention, output projection, norm,
    SwiGLU) -> norm -> the last token of each sequence -> head -> sampler -> a token for each sequence

The T tokens of a run belong to B sequences, one after the other: one token of each that decodes, a chunk of
each whose prompt is read. Inputs: `cumulative` int32 [B + 1], where each begins; `past` int32 [B], tokens
that each holds already; `block_table` int32 [B, W], its blocks in order; `attention_metadata` int32 [3] on
the CPU, bounds of what is new, of the longest sequence, and 0; and per layer `key_cache.{i}`,
`value_cache.{i}` [blocks, block size, kv_heads, head_dim], bound to the same memory as `key_cache_out.{i}`,
`value_cache_out.{i}`. What the sampler takes and gives: `sampler_graph.py`.

The graph is made of a converted model's graph for the CPU: 4- and 8-bit weights, and half precision, are the
same bytes; scales, norms and rotary tables are written once more in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from engine.convert.quantize import BLOCK_SIZE
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import CUDA_DECODER_FILE, CUDA_WEIGHTS_FILE, DECODER_FILE
from engine.errors import ModelFormatError
from engine.graphs.graph_builder import CONTRIB, ExternalDataWriter, GraphBuilder
from engine.graphs.sampler_graph import SamplerGraph

_SHARED = {Precision.FP16, Precision.INT8, Precision.INT4}


def has_paged_graph(precision: Precision) -> bool:
    """Return whether a model of this precision runs on a GPU too: single precision does not."""
    return precision in _SHARED


def write_paged_graph(
    folder: Path,
    config: DecoderConfig,
    open_writer: Callable[[Path], ExternalDataWriter] = ExternalDataWriter,
) -> tuple[str, str]:
    """Write the GPU's graph of the converted model in `folder`; return the names of the new files.

    Raises `ModelFormatError` where a weight is too large for half precision.
    """
    stored = StoredConstants(folder / DECODER_FILE)
    with open_writer(folder / CUDA_WEIGHTS_FILE) as writer:
        model = _PagedGraph(config, stored, writer).build()
    (folder / CUDA_DECODER_FILE).write_bytes(model.SerializeToString())
    return CUDA_DECODER_FILE, CUDA_WEIGHTS_FILE


class _PagedGraph:
    """Builds one decoder over the constants of another one."""

    def __init__(self, config: DecoderConfig, stored: StoredConstants, writer: ExternalDataWriter) -> None:
        self._config = config
        self._stored = stored
        self._graph = GraphBuilder(writer)

    def build(self) -> ModelProto:
        """Return the model."""
        config, graph = self._config, self._graph
        hidden = self._embedding()
        normed = graph.op(
            "SimplifiedLayerNormalization",
            [hidden, self._half("layers.0.attn_norm")],
            epsilon=config.rms_norm_eps,
            axis=-1,
        )
        for layer in range(config.num_layers):
            normed, hidden = self._layer(layer, normed, hidden)
        last = self._last_tokens()
        scores = self._head(graph.op("Gather", [normed, last], axis=0))
        logits = graph.op("Cast", [scores], "logits", to=TensorProto.FLOAT)
        newest = graph.op("Gather", ["input_ids", last], "newest_ids", axis=0)
        sampler = SamplerGraph(graph, config.vocab_size)
        sampler.add(logits, newest)
        inputs = [*_inputs(), *sampler.inputs(), *_cache_values(config, "")]
        outputs = [*sampler.outputs(), *_cache_values(config, "_out")]
        return graph.build("paged_decoder", inputs, outputs)

    def _embedding(self) -> str:
        graph = self._graph
        if "embed.weight" in self._stored:
            return graph.op("Gather", [self._share("embed.weight"), "input_ids"], axis=0)
        inputs = [self._share("embed.rows"), "input_ids", self._half("embed.scales")]
        return graph.op(
            "GatherBlockQuantized", inputs, domain=CONTRIB,
            bits=8, block_size=BLOCK_SIZE, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _layer(self, layer: int, normed: str, hidden: str) -> tuple[str, str]:
        """Add one layer; return its normed and its plain output."""
        prefix = f"layers.{layer}."
        attention = self._attention(layer, self._linear(f"{prefix}qkv", normed))
        attended = self._linear(f"{prefix}o", attention)
        normed, hidden = self._skip_norm(hidden, attended, f"{prefix}mlp_norm")
        both = self._linear(f"{prefix}gate_up", normed)
        gate, up = f"{prefix}gate.out", f"{prefix}up.out"
        self._graph.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one node.
        silu = self._graph.op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)
        down = self._linear(f"{prefix}down", self._graph.op("Mul", [silu, up]))
        last = layer == self._config.num_layers - 1
        return self._skip_norm(hidden, down, "final_norm" if last else f"layers.{layer + 1}.attn_norm")

    def _attention(self, layer: int, qkv: str) -> str:
        output = f"attention.{layer}"
        inputs = [qkv, "", "", f"key_cache.{layer}", f"value_cache.{layer}"]
        inputs += ["cumulative", "past", "block_table", self._half("rope_cos"), self._half("rope_sin")]
        inputs += ["", "", "", "", "", "", "attention_metadata"]
        self._graph.node(
            "PagedAttention",
            inputs,
            [output, f"key_cache_out.{layer}", f"value_cache_out.{layer}"],
            domain=CONTRIB,
            num_heads=self._config.num_heads,
            kv_num_heads=self._config.num_kv_heads,
            do_rotary=1,
        )
        return output

    def _skip_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """Return the norm of hidden + update, and that sum."""
        normed, total = f"{norm}.out", f"{norm}.in"
        self._graph.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, update, self._half(norm)],
            [normed, "", "", total],
            domain=CONTRIB,
            epsilon=self._config.rms_norm_eps,
        )
        return normed, total

    def _last_tokens(self) -> str:
        """Return the index of each sequence's last token, int32 [B]."""
        graph = self._graph
        one = graph.constant("one", np.array([1], np.int32))
        bounds = [graph.constant("from_1", np.array([1])), graph.constant("to_end", np.array([2**31 - 1]))]
        return graph.op("Sub", [graph.op("Slice", ["cumulative", *bounds]), one])

    def _head(self, rows: str) -> str:
        """Return the scores [B, vocab] of rows [B, hidden]."""
        if "embed.blocks" in self._stored:
            return self._blocks(rows, "embed.blocks", "embed.scales")
        if self._config.tied_embeddings:
            return self._graph.op("Gemm", [rows, self._share("embed.weight")], transB=1)
        return self._linear("head", rows)

    def _linear(self, name: str, x: str) -> str:
        """Multiply rows x [n, k] by a matrix."""
        graph = self._graph
        if f"{name}.weight" in self._stored:
            return graph.op("MatMul", [x, self._share(f"{name}.weight")])
        product = self._blocks(x, f"{name}.values", f"{name}.scales")
        if f"{name}.offsets" not in self._stored:
            return product
        offsets = self._half(f"{name}.offsets")
        num_blocks = self._stored.tensor(offsets).dims[0]
        shape = graph.constant(f"blocks.{num_blocks}", np.array([-1, num_blocks, BLOCK_SIZE]))
        blocks = graph.op("Reshape", [x, shape])
        sums = graph.op("ReduceSum", [blocks, graph.constant("last_axis", np.array([-1]))], keepdims=0)
        return graph.op("Gemm", [sums, offsets, product])

    def _blocks(self, x: str, values: str, scales: str) -> str:
        rows, num_blocks, block_bytes = self._stored.tensor(values).dims
        return self._graph.op(
            "MatMulNBits", [x, self._share(values), self._half(scales)], domain=CONTRIB,
            N=rows, K=num_blocks * BLOCK_SIZE, bits=8 * block_bytes // BLOCK_SIZE, block_size=BLOCK_SIZE,
        )  # fmt: skip

    def _share(self, name: str) -> str:
        return self._graph.share(self._stored.tensor(name))

    def _half(self, name: str) -> str:
        """Add a constant in half precision."""
        with np.errstate(over="ignore"):
            values = self._stored.read(name).astype(np.float16)
        if not np.isfinite(values).all():
            raise ModelFormatError(f"{name} is too large for half precision. Convert to fp32, for the CPU.")
        return self._graph.constant(name, values)


def _inputs() -> Iterator[ValueInfoProto]:
    yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"])
    yield helper.make_tensor_value_info("cumulative", TensorProto.INT32, ["sequences + 1"])
    yield helper.make_tensor_value_info("past", TensorProto.INT32, ["sequences"])
    yield helper.make_tensor_value_info("block_table", TensorProto.INT32, ["sequences", "table_width"])
    yield helper.make_tensor_value_info("attention_metadata", TensorProto.INT32, [3])


def _cache_values(config: DecoderConfig, suffix: str) -> Iterator[ValueInfoProto]:
    shape = ["num_blocks", "block_size", config.num_kv_heads, config.head_dim]
    for layer in range(config.num_layers):
        for part in ("key", "value"):
            name = f"{part}_cache{suffix}.{layer}"
            yield helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)


class StoredConstants:
    """The initializers of one graph file, whose large ones lie in files beside it."""

    def __init__(self, graph: Path) -> None:
        """Read the graph at `graph`, not its weights."""
        self._folder = graph.parent
        model = onnx.load(str(graph), load_external_data=False)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> TensorProto:
        """Return an initializer as it is, which points at the bytes where they lie."""
        return self._tensors[name]

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Return a constant's values; large ones are mapped, not read at once."""
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(tensor))
        place = {entry.key: entry.value for entry in tensor.external_data}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        return np.memmap(self._folder / place["location"], kind, "r", int(place["offset"]), shape)
