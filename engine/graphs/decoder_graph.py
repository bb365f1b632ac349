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
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from engine.convert.source import ModelSource
from engine.describing.architecture import DecoderConfig, Precision
from engine.graphs.graph_builder import CONTRIB, ExternalDataWriter, GraphBuilder
from engine.graphs.linear import Weights


class DecoderGraph:
    """Builds one decoder; weights go to `writer` as they are read from `source`."""

    def __init__(
        self,
        source: ModelSource,
        precision: Precision,
        writer: ExternalDataWriter,
        weights: type[Weights] = Weights,
    ) -> None:
        self._config = source.config
        self._graph = GraphBuilder(writer)
        self._weights = weights(source, precision, self._graph)

    def build(self, on_layer: Callable[[int], None] = lambda _: None) -> ModelProto:
        """Return the model; `on_layer` is told the number of layers done."""
        config, graph = self._config, self._graph
        self._rope_tables()
        # Rows [B * S, hidden] everywhere but in attention: a linear layer's sum is then part of its product.
        shape = graph.constant("row_shape", np.array([-1, config.hidden_size]))
        hidden = graph.op("Reshape", [self._weights.embedding("input_ids"), shape])
        self._sequence_shape()
        normed = graph.op(
            "SimplifiedLayerNormalization",
            [hidden, self._weights.norm("layers.0.attn_norm")],
            epsilon=config.rms_norm_eps,
            axis=-1,
        )
        for layer in range(config.num_layers):
            normed, hidden = self._layer(layer, normed, hidden)
            on_layer(layer + 1)
        self._weights.head(graph.op("Gather", [normed, "logit_rows"], axis=0))
        return graph.build("decoder", list(_inputs(config)), list(_outputs(config)))

    def _layer(self, layer: int, normed: str, hidden: str) -> tuple[str, str]:
        """Add one layer; return its normed and its plain output."""
        prefix, linear = f"layers.{layer}.", self._weights.linear
        attention = self._attention(layer, linear(f"{prefix}qkv", normed, [f"{prefix}{p}" for p in "qkv"]))
        attended = linear(f"{prefix}o", attention, [f"{prefix}o"])
        normed, hidden = self._skip_norm(hidden, attended, f"{prefix}mlp_norm")
        both = linear(f"{prefix}gate_up", normed, [f"{prefix}gate", f"{prefix}up"])
        gate, up = f"{prefix}gate.out", f"{prefix}up.out"
        self._graph.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one node.
        silu = self._graph.op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)
        down = linear(f"{prefix}down", self._graph.op("Mul", [silu, up]), [f"{prefix}down"])
        last = layer == self._config.num_layers - 1
        return self._skip_norm(hidden, down, "final_norm" if last else f"layers.{layer + 1}.attn_norm")

    def _attention(self, layer: int, qkv: str) -> str:
        config, output = self._config, f"attention.{layer}"
        sequences = self._graph.op("Reshape", [qkv, "sequence_shape"])
        inputs = [sequences, "", "", f"past_key.{layer}", f"past_value.{layer}"]
        inputs += ["seqlens_k", "total_sequence_length", "rope_cos", "rope_sin"]
        self._graph.node(
            "GroupQueryAttention",
            inputs,
            [output, f"present_key.{layer}", f"present_value.{layer}"],
            domain=CONTRIB,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            do_rotary=1,
        )
        shape = self._graph.constant("attention_shape", np.array([-1, config.num_heads * config.head_dim]))
        return self._graph.op("Reshape", [output, shape])

    def _sequence_shape(self) -> None:
        """Compute [B, S, width of packed queries, keys and values], which attention needs."""
        width = self._graph.constant("qkv_width", np.array([self._config.qkv_size]))
        batch = self._graph.op("Shape", ["input_ids"])
        self._graph.op("Concat", [batch, width], "sequence_shape", axis=0)

    def _skip_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """Return the norm of hidden + update, and that sum."""
        normed, total = f"{norm}.out", f"{norm}.in"
        self._graph.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, update, self._weights.norm(norm)],
            [normed, "", "", total],
            domain=CONTRIB,
            epsilon=self._config.rms_norm_eps,
        )
        return normed, total

    def _rope_tables(self) -> None:
        """cos and sin [context + 1, head_dim / 2] of position / factor / theta^(2i / head_dim).

        The last position is for filler rows of a decode step whose slot is full; nobody reads their result.
        """
        config = self._config
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        positions = np.arange(config.context_length + 1) / config.rope_factor
        angles = np.outer(positions, config.rope_theta**-exponents)
        self._graph.constant("rope_cos", np.cos(angles).astype(np.float32))
        self._graph.constant("rope_sin", np.sin(angles).astype(np.float32))


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
