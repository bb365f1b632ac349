"""Attention as nodes of a decoder's graph, in the three ways that there are.

Each takes a layer's packed queries, keys and values [rows, qkv], rotates them, writes keys and values to the
layer's cache, and gives what the rows attend to [rows, heads * head_dim]. Each says which inputs of the graph
it needs, and which caches it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from engine.describing.architecture import DecoderConfig
from engine.graphs.graph_builder import CONTRIB, GraphBuilder


class Attention(Protocol):
    """Attention over one kind of cache."""

    def inputs(self) -> Iterator[ValueInfoProto]:
        """Give the graph's inputs, `input_ids` and the caches among them."""

    def outputs(self) -> Iterator[ValueInfoProto]:
        """Give the graph's outputs, the caches that were written."""

    def attend(self, layer: int, qkv: str) -> str:
        """Add one layer's attention."""


class SlotAttention:
    """GroupQueryAttention of the CPU over slots.

    Inputs: `input_ids` int64 [B, S]; `seqlens_k` int32 [B], each row's total length minus 1 (its positions
    follow from it); `total_sequence_length` int32, the longest; and per layer `past_key.{i}`,
    `past_value.{i}` [B, kv_heads, max_len, head_dim], updated in place when bound to the same memory as
    `present_key.{i}`, `present_value.{i}`.
    """

    def __init__(self, graph: GraphBuilder, config: DecoderConfig, num_positions: int) -> None:
        self._graph = graph
        self._config = config
        self._tables = _rope_tables(graph, config, num_positions, np.float32)
        # [B, S, width of queries, keys and values]: everywhere else the rows are [B * S, width].
        width = graph.constant("qkv_width", np.array([config.qkv_size]))
        batch = graph.op("Shape", ["input_ids"])
        self._shape = graph.op("Concat", [batch, width], "sequence_shape", axis=0)

    def inputs(self) -> Iterator[ValueInfoProto]:
        yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        yield helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"])
        yield helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [])
        yield from self._caches("past")

    def outputs(self) -> Iterator[ValueInfoProto]:
        yield from self._caches("present")

    def attend(self, layer: int, qkv: str) -> str:
        config, output = self._config, f"attention.{layer}"
        sequences = self._graph.op("Reshape", [qkv, self._shape])
        inputs = [sequences, "", "", f"past_key.{layer}", f"past_value.{layer}"]
        inputs += ["seqlens_k", "total_sequence_length", *self._tables]
        self._graph.node(
            "GroupQueryAttention", inputs, [output, f"present_key.{layer}", f"present_value.{layer}"],
            domain=CONTRIB, num_heads=config.num_heads, kv_num_heads=config.num_kv_heads, do_rotary=1,
        )  # fmt: skip
        shape = self._graph.constant("attention_shape", np.array([-1, config.num_heads * config.head_dim]))
        return self._graph.op("Reshape", [output, shape])

    def _caches(self, prefix: str) -> Iterator[ValueInfoProto]:
        shape = ["batch", self._config.num_kv_heads, "max_len", self._config.head_dim]
        for layer in range(self._config.num_layers):
            for part in ("key", "value"):
                yield helper.make_tensor_value_info(f"{prefix}_{part}.{layer}", TensorProto.FLOAT, shape)


class PagedAttention:
    """PagedAttention of a GPU over blocks, in half precision.

    The T tokens of a run belong to B sequences, one after the other: one token of each that decodes, a chunk
    of each whose prompt is read. Inputs: `input_ids` int64 [T]; `cumulative` int32 [B + 1], where each
    sequence begins; `past` int32 [B], tokens that each holds already; `block_table` int32 [B, W], its blocks
    in order; `attention_metadata` int32 [3] on the CPU, bounds of what is new, of the longest sequence, and
    0; and per layer `key_cache.{i}`, `value_cache.{i}` [blocks, block size, kv_heads, head_dim], bound to the
    same memory as `key_cache_out.{i}`, `value_cache_out.{i}`.
    """

    def __init__(self, graph: GraphBuilder, config: DecoderConfig, num_positions: int) -> None:
        self._graph = graph
        self._config = config
        self._tables = _rope_tables(graph, config, num_positions, np.float16)

    def inputs(self) -> Iterator[ValueInfoProto]:
        yield helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"])
        yield helper.make_tensor_value_info("cumulative", TensorProto.INT32, ["sequences + 1"])
        yield helper.make_tensor_value_info("past", TensorProto.INT32, ["sequences"])
        yield helper.make_tensor_value_info("block_table", TensorProto.INT32, ["sequences", "table_width"])
        yield helper.make_tensor_value_info("attention_metadata", TensorProto.INT32, [3])
        yield from self._caches("")

    def outputs(self) -> Iterator[ValueInfoProto]:
        yield from self._caches("_out")

    def attend(self, layer: int, qkv: str) -> str:
        output = f"attention.{layer}"
        inputs = [qkv, "", "", f"key_cache.{layer}", f"value_cache.{layer}"]
        inputs += ["cumulative", "past", "block_table", *self._tables]
        inputs += ["", "", "", "", "", "", "attention_metadata"]
        self._graph.node(
            "PagedAttention", inputs, [output, f"key_cache_out.{layer}", f"value_cache_out.{layer}"],
            domain=CONTRIB, num_heads=self._config.num_heads, kv_num_heads=self._config.num_kv_heads,
            do_rotary=1,
        )  # fmt: skip
        return output

    def _caches(self, suffix: str) -> Iterator[ValueInfoProto]:
        shape = ["num_blocks", "block_size", self._config.num_kv_heads, self._config.head_dim]
        for layer in range(self._config.num_layers):
            for part in ("key", "value"):
                name = f"{part}_cache{suffix}.{layer}"
                yield helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)


class PlainAttention(PagedAttention):
    """The same by elementary operators, for devices whose library has no paged attention.

    Each token gathers the KV of its whole sequence, so that memory grows with tokens times context: run a few
    tokens at once. Where it runs, it is also what paged attention is compared with.
    """

    def __init__(self, graph: GraphBuilder, config: DecoderConfig, num_positions: int) -> None:
        super().__init__(graph, config, num_positions)
        self._find_places()

    def attend(self, layer: int, qkv: str) -> str:
        config, op = self._config, self._graph.op
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = [f"{part}.{layer}" for part in "qkv"]
        self._graph.node("Split", [qkv, self._ints("parts", queries, keys, keys)], parts, axis=1)
        query = self._rotate(self._heads(parts[0], config.num_heads))
        key = self._rotate(self._heads(parts[1], config.num_kv_heads))
        stored_keys = self._store(f"key_cache{{}}.{layer}", key)
        stored_values = self._store(f"value_cache{{}}.{layer}", self._heads(parts[2], config.num_kv_heads))
        # Queries [T, kv_heads, group, d] against keys [T, kv_heads, d, length].
        group = config.num_heads // config.num_kv_heads
        grouped = op(
            "Reshape", [query, self._ints("groups", -1, config.num_kv_heads, group, config.head_dim)]
        )
        across = op("Transpose", [self._history(stored_keys)], perm=[0, 2, 3, 1])
        scores = op("Cast", [op("MatMul", [grouped, across])], to=TensorProto.FLOAT)
        scaled = op("Mul", [scores, self._float("scale", config.head_dim**-0.5)])
        masked = op("Where", [self._hidden, self._float("never", -1e30), scaled])
        shares = op("Cast", [op("Softmax", [masked], axis=-1)], to=TensorProto.FLOAT16)
        values = op("Transpose", [self._history(stored_values)], perm=[0, 2, 1, 3])
        return op("Reshape", [op("MatMul", [shares, values]), self._ints("rows", -1, queries)])

    def _find_places(self) -> None:
        """Compute what all layers share: each token's sequence and position, and where its KV is written."""
        op, ints = self._graph.op, self._ints
        zero, one = self._int("zero", 0), self._int("one", 1)
        first, last = ints("first", 0), ints("last", -1)
        begins, past, table = (
            op("Cast", [name], to=TensorProto.INT64) for name in ("cumulative", "past", "block_table")
        )
        tokens = op("Range", [zero, op("Squeeze", [op("Shape", ["input_ids"])]), one])
        ends = op("Slice", [begins, ints("from_1", 1), ints("to_end", 2**62)])
        over = op("LessOrEqual", [ends, op("Unsqueeze", [tokens, last])])
        sequence = op("ReduceSum", [op("Cast", [over], to=TensorProto.INT64), last], keepdims=0)
        num_before = op("Sub", [tokens, op("Gather", [begins, sequence])])
        position = op("Add", [op("Gather", [past, sequence]), num_before])
        block_size = op("Gather", [op("Shape", ["key_cache.0"]), one])
        self._blocks = op("Gather", [table, sequence])
        whole = op("Unsqueeze", [op("Div", [position, block_size]), last])
        block = op("GatherElements", [self._blocks, whole], axis=1)
        inside = op("Unsqueeze", [op("Mod", [position, block_size]), last])
        self._places = op("Concat", [block, inside], axis=1)
        length = op("Mul", [op("Gather", [op("Shape", ["block_table"]), one]), block_size])
        self._length = op("Unsqueeze", [length, first])
        later = op("Greater", [op("Range", [zero, length, one]), op("Unsqueeze", [position, last])])
        self._hidden = op("Unsqueeze", [later, ints("middle", 1, 2)])
        self._cos, self._sin = (
            op("Unsqueeze", [op("Gather", [table, position]), ints("heads", 1)]) for table in self._tables
        )

    def _heads(self, rows: str, num_heads: int) -> str:
        shape = self._ints(f"heads.{num_heads}", -1, num_heads, self._config.head_dim)
        return self._graph.op("Reshape", [rows, shape])

    def _rotate(self, heads: str) -> str:
        """Rotate the pairs (i, i + d/2) of [T, heads, d] by each token's position."""
        op, first, second = self._graph.op, f"{heads}.first", f"{heads}.second"
        self._graph.node("Split", [heads], [first, second], axis=-1, num_outputs=2)
        left = op("Sub", [op("Mul", [first, self._cos]), op("Mul", [second, self._sin])])
        right = op("Add", [op("Mul", [second, self._cos]), op("Mul", [first, self._sin])])
        return op("Concat", [left, right], axis=-1)

    def _store(self, cache: str, values: str) -> str:
        return self._graph.op("ScatterND", [cache.format(""), self._places, values], cache.format("_out"))

    def _history(self, cache: str) -> str:
        """Return each token's sequence in a cache, [T, length, kv_heads, head_dim]."""
        op, config = self._graph.op, self._config
        inner = self._ints("inner", config.num_kv_heads, config.head_dim)
        shape = op("Concat", [self._ints("outer", -1), self._length, inner], axis=0)
        return op("Reshape", [op("Gather", [cache, self._blocks]), shape])

    def _int(self, name: str, value: int) -> str:
        return self._graph.constant(f"plain.{name}", np.array(value, np.int64))

    def _ints(self, name: str, *values: int) -> str:
        return self._graph.constant(f"plain.{name}", np.array(values, np.int64))

    def _float(self, name: str, value: float) -> str:
        return self._graph.constant(f"plain.{name}", np.array(value, np.float32))


def _rope_tables(
    graph: GraphBuilder, config: DecoderConfig, num_positions: int, kind: type[np.generic]
) -> list[str]:
    """Add cos and sin [positions, head_dim / 2] of position / factor / theta^(2i / head_dim)."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    angles = np.outer(np.arange(num_positions) / config.rope_factor, config.rope_theta**-exponents)
    tables = {"rope_cos": np.cos(angles), "rope_sin": np.sin(angles)}
    return [graph.constant(name, table.astype(np.float32).astype(kind)) for name, table in tables.items()]
