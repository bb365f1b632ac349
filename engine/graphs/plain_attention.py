"""Attention over blocks in elementary operators: runs anywhere, and tells what the operators must give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from engine.describing.architecture import DecoderConfig
from engine.describing.layers import Rotation
from engine.graphs.attention import PagedAttention
from engine.graphs.graph_builder import GraphBuilder


class PlainAttention(PagedAttention):
    """The same by elementary operators, for devices whose library has no paged attention.

    Each token gathers the KV of its whole sequence, so that memory grows with tokens times context: run a few
    tokens at once. Where it runs, it is also what paged attention is compared with.
    """

    norms_heads = False

    def __init__(
        self, graph: GraphBuilder, config: DecoderConfig, max_tokens: int, num_positions: int
    ) -> None:
        super().__init__(graph, config, max_tokens, num_positions)
        self._turns: dict[Rotation, list[str]] = {Rotation.NONE: []}
        self._masks: dict[int, str] = {}
        self._find_places()

    def attend(self, layer: int, qkv: Sequence[str], norms: Sequence[str] = ()) -> str:  # noqa: ARG002
        config, op = self._config, self._graph.op
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = qkv
        if len(qkv) == 1:
            parts = [f"{part}.{layer}" for part in "qkv"]
            self._graph.node("Split", [qkv[0], self._ints("parts", queries, keys, keys)], parts, axis=1)
        query = self._rotate(self._heads(parts[0], config.num_heads), layer)
        key = self._rotate(self._heads(parts[1], config.num_kv_heads), layer)
        stored_keys = self._store(f"key_cache{{}}.{layer}", key)
        stored_values = self._store(f"value_cache{{}}.{layer}", self._heads(parts[2], config.num_kv_heads))
        # Queries [T, kv_heads, group, d] against keys [T, kv_heads, d, length].
        group = config.num_heads // config.num_kv_heads
        grouped = op(
            "Reshape", [query, self._ints("groups", -1, config.num_kv_heads, group, config.head_dim)]
        )
        across = op("Transpose", [self._history(stored_keys)], perm=[0, 2, 3, 1])
        scores = op("Cast", [op("MatMul", [grouped, across])], to=TensorProto.FLOAT)
        scaled = op("Mul", [scores, self._float("scale", config.score_scale)])
        if config.attention_softcap:
            cap = self._float("softcap", config.attention_softcap)
            scaled = op("Mul", [op("Tanh", [op("Div", [scaled, cap])]), cap])
        masked = op("Where", [self._hidden(config.layer(layer).window), self._float("never", -1e30), scaled])
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
        self._position, self._others = position, op("Range", [zero, length, one])
        self._of_token = op("Unsqueeze", [position, last])
        self._hidden(0)
        self._turn(self._config.layer(0).rotation)

    def _hidden(self, window: int) -> str:
        """Return what a token does not see [T, 1, 1, length]: what is later, or before its window."""
        if window not in self._masks:
            op = self._graph.op
            unseen = op("Greater", [self._others, self._of_token])
            if window:
                first = op("Sub", [self._of_token, self._int(f"window.{window}", window)])
                unseen = op("Or", [unseen, op("LessOrEqual", [self._others, first])])
            self._masks[window] = op("Unsqueeze", [unseen, self._ints("middle", 1, 2)])
        return self._masks[window]

    def _turn(self, rotation: Rotation) -> list[str]:
        """Return cos and sin [T, 1, rotated / 2] of each token's position."""
        if rotation not in self._turns:
            op, tables = self._graph.op, self._rope.of(rotation)
            self._turns[rotation] = [
                op("Unsqueeze", [op("Gather", [table, self._position]), self._ints("heads", 1)])
                for table in tables
            ]
        return self._turns[rotation]

    def _heads(self, rows: str, num_heads: int) -> str:
        shape = self._ints(f"heads.{num_heads}", -1, num_heads, self._config.head_dim)
        return self._graph.op("Reshape", [rows, shape])

    def _rotate(self, heads: str, layer: int) -> str:
        """Rotate the pairs (i, i + r/2) of the first r values of [T, heads, d] by each token's position."""
        config, op, turn = self._config, self._graph.op, self._turn(self._config.layer(layer).rotation)
        if not turn:
            return heads
        cos, sin = turn
        parts = [f"{heads}.first", f"{heads}.second"]
        if config.rope_size in (0, config.head_dim):
            self._graph.node("Split", [heads], parts, axis=-1, num_outputs=2)
        else:
            half = config.rope_size // 2
            sizes = self._ints("halves", half, half, config.head_dim - config.rope_size)
            parts.append(f"{heads}.rest")
            self._graph.node("Split", [heads, sizes], parts, axis=-1)
        first, second, *rest = parts
        left = op("Sub", [op("Mul", [first, cos]), op("Mul", [second, sin])])
        right = op("Add", [op("Mul", [second, cos]), op("Mul", [first, sin])])
        return op("Concat", [left, right, *rest], axis=-1)

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
