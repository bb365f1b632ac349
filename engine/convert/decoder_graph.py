"""Authors the decoder as an ONNX graph for the CPU provider.

    input_ids [B, S] -> embedding -> layers x (norm, packed QKV, GroupQueryAttention, output projection,
    norm, SwiGLU) -> norm -> the rows that are asked for -> head -> logits [R, vocab]

Inputs beside the ids: `seqlens_k` int32 [B], each row's total length minus 1 (its positions follow from
it); `total_sequence_length` int32, the longest; `logit_rows` int64 [R], indices into the B*S rows; and per
layer `past_key.{i}`, `past_value.{i}` [B, kv_heads, max_len, head_dim], updated in place when bound to the
same memory as `present_key.{i}`, `present_value.{i}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from engine.architecture import DecoderConfig, Precision
from engine.convert.external_data import ExternalDataWriter
from engine.convert.quantize import BLOCK_SIZE, quantize_int8
from engine.convert.source import FloatArray, ModelSource, tensor_shape
from engine.errors import ModelFormatError

_OPSETS = {"": 21, "com.microsoft": 1}
_INLINE_BYTES = 256
"""Smaller constants stay in the graph: shapes are needed to infer others."""
_INT8_ACTIVATIONS = 4
"""MatMulNBits accuracy level: activations as int8. Without it 8-bit weights are 100 times slower."""


class DecoderGraph:
    """Builds one decoder; weights go to `writer` as they are read from `source`."""

    def __init__(self, source: ModelSource, precision: Precision, writer: ExternalDataWriter) -> None:
        self._source = source
        self._config = source.config
        self._quantized = precision is Precision.INT8
        self._writer = writer
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []

    def build(self, on_layer: Callable[[int], None] = lambda _: None) -> ModelProto:
        """Return the model; `on_layer` is told the number of layers done."""
        config = self._config
        self._rope_tables()
        hidden = self._embedding()
        normed = self._op(
            "SimplifiedLayerNormalization",
            [hidden, self._weight("layers.0.attn_norm")],
            epsilon=config.rms_norm_eps,
            axis=-1,
        )
        for layer in range(config.num_layers):
            normed, hidden = self._layer(layer, normed, hidden)
            on_layer(layer + 1)
        flat = self._op(
            "Reshape", [normed, self._constant("hidden_shape", np.array([-1, config.hidden_size]))]
        )
        self._head(self._op("Gather", [flat, "logit_rows"], axis=0))
        graph = helper.make_graph(
            self._nodes, "decoder", list(_inputs(config)), list(_outputs(config)), self._initializers
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="llamacord")

    def _layer(self, layer: int, normed: str, hidden: str) -> tuple[str, str]:
        """Add one layer; return its normed and its plain output."""
        prefix = f"layers.{layer}."
        attention = self._attention(
            layer, self._linear(f"{prefix}qkv", normed, [f"{prefix}{p}" for p in "qkv"])
        )
        attended = self._linear(f"{prefix}o", attention, [f"{prefix}o"])
        normed, hidden = self._skip_norm(hidden, attended, f"{prefix}mlp_norm")
        both = self._linear(f"{prefix}gate_up", normed, [f"{prefix}gate", f"{prefix}up"])
        gate, up = f"{prefix}gate.out", f"{prefix}up.out"
        self._nodes.append(helper.make_node("Split", [both], [gate, up], axis=-1, num_outputs=2))
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one node.
        silu = self._op("QuickGelu", [gate], domain="com.microsoft", alpha=1.0)
        down = self._linear(f"{prefix}down", self._op("Mul", [silu, up]), [f"{prefix}down"])
        last = layer == self._config.num_layers - 1
        return self._skip_norm(hidden, down, "final_norm" if last else f"layers.{layer + 1}.attn_norm")

    def _attention(self, layer: int, qkv: str) -> str:
        config, output = self._config, f"attention.{layer}"
        inputs = [qkv, "", "", f"past_key.{layer}", f"past_value.{layer}"]
        inputs += ["seqlens_k", "total_sequence_length", "rope_cos", "rope_sin"]
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                [output, f"present_key.{layer}", f"present_value.{layer}"],
                domain="com.microsoft",
                num_heads=config.num_heads,
                kv_num_heads=config.num_kv_heads,
                do_rotary=1,
            )
        )
        return output

    def _skip_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """Return the norm of hidden + update, and that sum."""
        normed, total = f"{norm}.out", f"{norm}.in"
        self._nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [hidden, update, self._weight(norm)],
                [normed, "", "", total],
                domain="com.microsoft",
                epsilon=self._config.rms_norm_eps,
            )
        )
        return normed, total

    def _linear(self, name: str, x: str, parts: list[str], output: str = "") -> str:
        """Multiply by the matrices of `parts`, stacked along their outputs."""
        matrix = np.concatenate([self._tensor(part) for part in parts])
        if not self._quantized:
            return self._op("MatMul", [x, self._constant(f"{name}.weight", matrix.T)], output)
        packed = quantize_int8(matrix)
        values = self._constant(f"{name}.values", packed.values)
        return self._matmul_int8(
            x, values, self._constant(f"{name}.scales", packed.scales), matrix.shape, output
        )

    def _matmul_int8(self, x: str, values: str, scales: str, shape: tuple[int, ...], output: str) -> str:
        rows, columns = shape
        return self._op(
            "MatMulNBits", [x, values, scales], output, domain="com.microsoft", N=rows, K=columns,
            bits=8, block_size=BLOCK_SIZE, accuracy_level=_INT8_ACTIVATIONS,
        )  # fmt: skip

    def _embedding(self) -> str:
        """Look the ids up. A tied head reads the very same bytes."""
        matrix = self._tensor("embed")
        if not self._quantized:
            return self._op("Gather", [self._constant("embed.weight", matrix), "input_ids"])
        packed = quantize_int8(matrix)
        inputs = [self._constant("embed.rows", packed.values.reshape(matrix.shape)), "input_ids"]
        inputs.append(self._constant("embed.scales", packed.scales))
        return self._op(
            "GatherBlockQuantized", inputs, domain="com.microsoft",
            bits=8, block_size=BLOCK_SIZE, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _head(self, rows: str) -> None:
        config = self._config
        if not config.tied_embeddings:
            self._linear("head", rows, ["head"], "logits")
        elif not self._quantized:
            self._linear("head", rows, ["embed"], "logits")
        else:
            shape = (config.vocab_size, config.hidden_size)
            blocks = self._shared(
                "embed.blocks", "embed.rows", (shape[0], shape[1] // BLOCK_SIZE, BLOCK_SIZE)
            )
            self._matmul_int8(rows, blocks, "embed.scales", shape, "logits")

    def _rope_tables(self) -> None:
        """cos and sin [context + 1, head_dim / 2] of position / factor / theta^(2i / head_dim).

        The last position is for filler rows of a decode step whose slot is full; nobody reads their result.
        """
        config = self._config
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        positions = np.arange(config.context_length + 1) / config.rope_factor
        angles = np.outer(positions, config.rope_theta**-exponents)
        self._constant("rope_cos", np.cos(angles).astype(np.float32))
        self._constant("rope_sin", np.sin(angles).astype(np.float32))

    def _tensor(self, name: str) -> FloatArray:
        values, shape = self._source.tensor(name), tensor_shape(self._config, name)
        if values.shape != shape:
            raise ModelFormatError(f"The tensor {name} has the shape {values.shape} instead of {shape}.")
        if not np.isfinite(values).all():
            raise ModelFormatError(f"The tensor {name} is damaged: not all of its values are numbers.")
        return values

    def _weight(self, name: str) -> str:
        return self._constant(name, self._tensor(name))

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        small = values.nbytes < _INLINE_BYTES
        self._initializers.append(
            numpy_helper.from_array(values, name) if small else self._writer.add(name, values)
        )
        return name

    def _shared(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """Add an initializer of another shape over the bytes of an existing one."""
        original = next(tensor for tensor in self._initializers if tensor.name == of)
        view = TensorProto()
        view.CopyFrom(original)
        view.name = name
        del view.dims[:]
        view.dims.extend(shape)
        self._initializers.append(view)
        return name

    def _op(
        self, kind: str, inputs: list[str], output: str = "", *, domain: str = "", **attributes: object
    ) -> str:
        output = output or f"{kind}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output


def _inputs(config: DecoderConfig) -> Iterator[ValueInfoProto]:
    yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    yield helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"])
    yield helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [])
    yield helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["rows"])
    yield from _cache_values(config, "past")


def _outputs(config: DecoderConfig) -> Iterator[ValueInfoProto]:
    yield helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", config.vocab_size])
    yield from _cache_values(config, "present")


def _cache_values(config: DecoderConfig, prefix: str) -> Iterator[ValueInfoProto]:
    shape = ["batch", config.num_kv_heads, "max_len", config.head_dim]
    for layer in range(config.num_layers):
        for part in ("key", "value"):
            yield helper.make_tensor_value_info(f"{prefix}_{part}.{layer}", TensorProto.FLOAT, shape)
