"""Attention as nodes of a decoder's graph. There is a third way: `plain_attention.py`.

Each takes a layer's queries, keys and values, packed [rows, qkv] or each by itself, rotates them, writes keys
and values to the layer's cache, and gives what the rows attend to [rows, heads * head_dim]. Each says which
inputs of the graph it needs, and which caches it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from engine import kernels
from engine.describing.architecture import DecoderConfig
from engine.describing.layers import Rotation
from engine.graphs.graph_builder import CONTRIB, OURS, GraphBuilder
from engine.graphs.rotary import rotary_tables


class Attention(Protocol):
    """Attention over one kind of cache."""

    norms_heads: bool
    """Whether it norms each head of queries and keys itself."""

    def inputs(self) -> Iterator[ValueInfoProto]:
        """Give the graph's inputs, `input_ids` and the caches among them."""

    def outputs(self) -> Iterator[ValueInfoProto]:
        """Give the graph's outputs, the caches that were written."""

    def attend(self, layer: int, qkv: Sequence[str], norms: Sequence[str] = ()) -> str:
        """Add one layer's attention. qkv: one value or three. norms: of each head of queries and of keys."""


class SlotAttention:
    """GroupQueryAttention of the CPU over slots.

    Inputs: `input_ids` int64 [B, S]; `seqlens_k` int32 [B], each row's total length minus 1 (its positions
    follow from it); `total_sequence_length` int32, the longest; and per layer `past_key.{i}`,
    `past_value.{i}` [B, kv_heads, max_len, head_dim], updated in place when bound to the same memory as
    `present_key.{i}`, `present_value.{i}`.
    """

    norms_heads = False
    _cache_type = TensorProto.FLOAT

    def __init__(self, graph: GraphBuilder, config: DecoderConfig, max_tokens: int) -> None:
        self._graph = graph
        self._config = config
        # One position more: filler rows of a decode step whose slot is full have it; nobody reads it.
        self._rope = RopeTables(graph, config, max_tokens, max_tokens + 1, np.float32)
        # [B, S, width of queries, keys and values]: everywhere else the rows are [B * S, width].
        width = graph.constant("qkv_width", np.array([config.qkv_size]))
        self._batch = graph.op("Shape", ["input_ids"])
        self._shape = graph.op("Concat", [self._batch, width], "sequence_shape", axis=0)

    def inputs(self) -> Iterator[ValueInfoProto]:
        yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        yield helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"])
        yield helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [])
        yield from self._caches("past")

    def outputs(self) -> Iterator[ValueInfoProto]:
        yield from self._caches("present")

    def attend(self, layer: int, qkv: Sequence[str], norms: Sequence[str] = ()) -> str:  # noqa: ARG002
        config, output = self._config, f"attention.{layer}"
        if len(qkv) == 1:
            sequences = [self._graph.op("Reshape", [qkv[0], self._shape]), "", ""]
        else:
            sequences = [self._sequence(values) for values in qkv]
        inputs = [*sequences, f"past_key.{layer}", f"past_value.{layer}"]
        inputs += ["seqlens_k", "total_sequence_length", *self._rope.tables(layer)]
        self._graph.node(
            "GroupQueryAttention", inputs, [output, f"present_key.{layer}", f"present_value.{layer}"],
            domain=CONTRIB, **_attributes(config, layer),
        )  # fmt: skip
        shape = self._graph.constant("attention_shape", np.array([-1, config.num_heads * config.head_dim]))
        return self._graph.op("Reshape", [output, shape])

    def _sequence(self, values: str) -> str:
        """Return rows, or rows of heads, as [B, S, width]."""
        any_width = self._graph.constant("any_width", np.array([-1]))
        shape = self._graph.op("Concat", [self._batch, any_width], axis=0)
        return self._graph.op("Reshape", [values, shape])

    def _caches(self, prefix: str) -> Iterator[ValueInfoProto]:
        shape = ["batch", self._config.num_kv_heads, "max_len", self._config.head_dim]
        for layer in range(self._config.num_layers):
            for part in ("key", "value"):
                yield helper.make_tensor_value_info(f"{prefix}_{part}.{layer}", self._cache_type, shape)


class OwnSlotAttention(SlotAttention):
    """Attention over slots by our own operator (engine/kernels), which takes rows as they are.

    is_half: whether the cache is in half precision.
    """

    norms_heads = True

    def __init__(self, graph: GraphBuilder, config: DecoderConfig, max_tokens: int, *, is_half: bool) -> None:
        super().__init__(graph, config, max_tokens)
        self._cache_type = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT

    @staticmethod
    def takes(config: DecoderConfig) -> bool:
        """Tell whether there is the operator on this machine, and has heads of this size."""
        return kernels.attends(config.head_dim)

    def attend(self, layer: int, qkv: Sequence[str], norms: Sequence[str] = ()) -> str:
        config, output, own = self._config, f"attention.{layer}", self._config.layer(layer)
        inputs = [*qkv, *[""] * (3 - len(qkv)), f"past_key.{layer}", f"past_value.{layer}", "seqlens_k"]
        inputs += [*(self._rope.tables(layer) or ["", ""]), *(norms or ["", ""])]
        name = "SlotAttention" if self._cache_type == TensorProto.FLOAT else "HalfSlotAttention"
        self._graph.node(
            name, inputs, [output, f"present_key.{layer}", f"present_value.{layer}"],
            domain=OURS, num_heads=config.num_heads, kv_num_heads=config.num_kv_heads,
            head_dim=config.head_dim, local_window_size=own.window or 0,
            scale=float(config.attention_scale or config.head_dim**-0.5),
            softcap=float(config.attention_softcap or 0), qk_norm_epsilon=config.rms_norm_eps,
        )  # fmt: skip
        return output


class PagedAttention:
    """PagedAttention of a GPU over blocks, in half precision.

    The T tokens of a run belong to B sequences, one after the other: one token of each that decodes, a chunk
    of each whose prompt is read. Inputs: `input_ids` int64 [T]; `cumulative` int32 [B + 1], where each
    sequence begins; `past` int32 [B], tokens that each holds already; `block_table` int32 [B, W], its blocks
    in order; `attention_metadata` int32 [3] on the CPU, bounds of what is new, of the longest sequence, and
    0; and per layer `key_cache.{i}`, `value_cache.{i}` [blocks, block size, kv_heads, head_dim], bound to the
    same memory as `key_cache_out.{i}`, `value_cache_out.{i}`.
    """

    norms_heads = True

    def __init__(
        self, graph: GraphBuilder, config: DecoderConfig, max_tokens: int, num_positions: int
    ) -> None:
        self._graph = graph
        self._config = config
        self._rope = RopeTables(graph, config, max_tokens, num_positions, np.float16)

    def inputs(self) -> Iterator[ValueInfoProto]:
        yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"])
        yield helper.make_tensor_value_info("cumulative", TensorProto.INT32, ["sequences + 1"])
        yield helper.make_tensor_value_info("past", TensorProto.INT32, ["sequences"])
        yield helper.make_tensor_value_info("block_table", TensorProto.INT32, ["sequences", "table_width"])
        yield helper.make_tensor_value_info("attention_metadata", TensorProto.INT32, [3])
        yield from self._caches("")

    def outputs(self) -> Iterator[ValueInfoProto]:
        yield from self._caches("_out")

    def attend(self, layer: int, qkv: Sequence[str], norms: Sequence[str] = ()) -> str:
        output = f"attention.{layer}"
        inputs = [*qkv, *[""] * (3 - len(qkv)), f"key_cache.{layer}", f"value_cache.{layer}"]
        inputs += ["cumulative", "past", "block_table", *(self._rope.tables(layer) or ["", ""])]
        inputs += ["", "", *(norms or ["", ""]), "", "", "attention_metadata"]
        attributes = _attributes(self._config, layer)
        if norms:
            attributes["qk_norm_epsilon"] = self._config.rms_norm_eps
        self._graph.node(
            "PagedAttention", inputs, [output, f"key_cache_out.{layer}", f"value_cache_out.{layer}"],
            domain=CONTRIB, **attributes,
        )  # fmt: skip
        return output

    def _caches(self, suffix: str) -> Iterator[ValueInfoProto]:
        shape = ["num_blocks", "block_size", self._config.num_kv_heads, self._config.head_dim]
        for layer in range(self._config.num_layers):
            for part in ("key", "value"):
                name = f"{part}_cache{suffix}.{layer}"
                yield helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)


class RopeTables:
    """The tables of cos and sin that layers rotate by, each made once it is asked for."""

    def __init__(
        self,
        graph: GraphBuilder,
        config: DecoderConfig,
        max_tokens: int,
        num_positions: int,
        kind: type[np.generic],
    ) -> None:
        self._graph, self._config, self._kind = graph, config, kind
        self._max_tokens, self._num_positions = max_tokens, num_positions
        self._made: dict[Rotation, list[str]] = {Rotation.NONE: []}
        self.of(config.layer(0).rotation)

    def tables(self, layer: int) -> list[str]:
        """Return cos and sin of a layer; nothing where it rotates nothing."""
        return self.of(self._config.layer(layer).rotation)

    def of(self, rotation: Rotation) -> list[str]:
        """Return cos and sin of a kind of layers."""
        if rotation not in self._made:
            local = "local_" if rotation is Rotation.LOCAL else ""
            made = rotary_tables(self._config, rotation, self._max_tokens, self._num_positions)
            self._made[rotation] = [
                self._graph.constant(f"{local}rope_{name}", table.astype(self._kind))
                for name, table in zip(("cos", "sin"), made, strict=True)
            ]
        return self._made[rotation]


def _attributes(config: DecoderConfig, layer: int) -> dict[str, object]:
    """Return what both operators are told of a layer."""
    own = config.layer(layer)
    attributes: dict[str, object] = {
        "num_heads": config.num_heads,
        "kv_num_heads": config.num_kv_heads,
        "do_rotary": int(own.rotation is not Rotation.NONE),
    }
    if own.window:
        attributes["local_window_size"] = own.window
    if config.attention_scale:
        attributes["scale"] = config.attention_scale
    if config.attention_softcap:
        attributes["softcap"] = config.attention_softcap
    return attributes
