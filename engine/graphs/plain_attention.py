"""Rewrites paged attention into elementary operators, for devices whose library does not have it.

Each token gathers the KV of its whole sequence, so that memory grows with tokens times context: run a few
tokens at once. Where it runs, it is also what paged attention is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engine.describing.architecture import DecoderConfig

_ATTENTION = "PagedAttention"


def plain_graph(path: Path, config: DecoderConfig) -> bytes:
    """Return the paged decoder at `path`, rewritten, its weights where they were."""
    model = onnx.load(str(path), load_external_data=False)
    return bytes(with_plain_attention(model, config).SerializeToString())


def with_plain_attention(model: ModelProto, config: DecoderConfig) -> ModelProto:
    """Return the paged decoder `model` of these dimensions with elementary operators in attention's place."""
    rewriter = _Rewriter(config)
    nodes = list(rewriter.shared())
    for node in model.graph.node:
        nodes += rewriter.attention(node) if node.op_type == _ATTENTION else [node]
    changed = ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(rewriter.constants())
    return changed


class _Rewriter:
    """Makes the nodes that stand for paged attention; names begin with "plain."."""

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config
        self._nodes: list[NodeProto] = []
        self._prefix = "plain."
        self._constants: dict[str, TensorProto] = {}

    def constants(self) -> Iterator[TensorProto]:
        """Return what the nodes take of constants."""
        yield from self._constants.values()

    def shared(self) -> list[NodeProto]:
        """Compute what all layers share: each token's sequence and position, and where its KV is written."""
        self._nodes, self._prefix = [], "plain."
        begins = self._op("Cast", ["cumulative"], to=TensorProto.INT64)
        past = self._op("Cast", ["past"], to=TensorProto.INT64)
        table = self._op("Cast", ["block_table"], to=TensorProto.INT64)
        num_tokens = self._op("Squeeze", [self._op("Shape", ["input_ids"])])
        tokens = self._op("Range", [self._int("zero", 0), num_tokens, self._int("one", 1)])
        ends = self._op("Slice", [begins, self._int("from_1", [1]), self._int("to_end", [2**62])])
        column = self._op("Unsqueeze", [tokens, self._int("last", [-1])])
        over = self._op("Cast", [self._op("LessOrEqual", [ends, column])], to=TensorProto.INT64)
        sequence = self._op("ReduceSum", [over, self._int("last", [-1])], keepdims=0)
        begin = self._op("Gather", [begins, sequence])
        offset = self._op("Sub", [tokens, begin])
        position = self._op("Add", [self._op("Gather", [past, sequence]), offset], "position")
        shape = self._op("Shape", ["key_cache.0"])
        block_size = self._op("Gather", [shape, self._int("one", 1)], "block_size")
        self._op("Gather", [table, sequence], "blocks")
        whole = self._op("Unsqueeze", [self._op("Div", [position, block_size]), self._int("last", [-1])])
        block = self._op("GatherElements", ["plain.blocks", whole], axis=1)
        inside = self._op("Unsqueeze", [self._op("Mod", [position, block_size]), self._int("last", [-1])])
        self._op("Concat", [block, inside], "places", axis=1)
        width = self._op("Gather", [self._op("Shape", ["block_table"]), self._int("one", 1)])
        length = self._op("Mul", [width, block_size])
        self._op("Unsqueeze", [length, self._int("first", [0])], "length")
        keys = self._op("Range", [self._int("zero", 0), length, self._int("one", 1)])
        last = self._op("Unsqueeze", [position, self._int("last", [-1])])
        hidden = self._op("Greater", [keys, last])
        self._op("Unsqueeze", [hidden, self._int("middle", [1, 2])], "hidden")
        for table_name in ("rope_cos", "rope_sin"):
            rows = self._op("Gather", [table_name, position])
            self._op("Unsqueeze", [rows, self._int("heads", [1])], table_name)
        return self._nodes

    def attention(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that compute what `node` does."""
        config = self._config
        self._nodes, self._prefix = [], f"plain.{node.output[0]}."
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = [f"{self._prefix}{part}" for part in "qkv"]
        sizes = self._int("parts", [queries, keys, keys])
        self._nodes.append(helper.make_node("Split", [node.input[0], sizes], parts, axis=1))
        query = self._rotate(self._heads(parts[0], config.num_heads))
        key = self._rotate(self._heads(parts[1], config.num_kv_heads))
        value = self._heads(parts[2], config.num_kv_heads)
        stored_keys = self._store(node.input[3], key, node.output[1])
        stored_values = self._store(node.input[4], value, node.output[2])
        # Queries [T, kv_heads, group, d] against keys [T, kv_heads, d, length].
        group = [-1, config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim]
        grouped = self._op("Reshape", [query, self._int("groups", group)])
        across = self._op("Transpose", [self._history(stored_keys)], perm=[0, 2, 3, 1])
        scores = self._op("Cast", [self._op("MatMul", [grouped, across])], to=TensorProto.FLOAT)
        scale = self._float("scale", config.head_dim**-0.5)
        scaled = self._op("Mul", [scores, scale])
        masked = self._op("Where", ["plain.hidden", self._float("never", -1e30), scaled])
        shares = self._op("Cast", [self._op("Softmax", [masked], axis=-1)], to=TensorProto.FLOAT16)
        values = self._op("Transpose", [self._history(stored_values)], perm=[0, 2, 1, 3])
        attended = self._op("MatMul", [shares, values])
        flat = self._int("rows", [-1, queries])
        self._nodes.append(helper.make_node("Reshape", [attended, flat], [node.output[0]]))
        return self._nodes

    def _heads(self, rows: str, num_heads: int) -> str:
        shape = self._int(f"heads.{num_heads}", [-1, num_heads, self._config.head_dim])
        return self._op("Reshape", [rows, shape])

    def _rotate(self, heads: str) -> str:
        """Rotate the pairs (i, i + d/2) of [T, heads, d] by each token's position."""
        first, second = f"{heads}.first", f"{heads}.second"
        self._nodes.append(helper.make_node("Split", [heads], [first, second], axis=-1, num_outputs=2))
        cos, sin = "plain.rope_cos", "plain.rope_sin"
        left = self._op("Sub", [self._op("Mul", [first, cos]), self._op("Mul", [second, sin])])
        right = self._op("Add", [self._op("Mul", [second, cos]), self._op("Mul", [first, sin])])
        return self._op("Concat", [left, right], axis=-1)

    def _store(self, cache: str, values: str, output: str) -> str:
        self._nodes.append(helper.make_node("ScatterND", [cache, "plain.places", values], [output]))
        return output

    def _history(self, cache: str) -> str:
        """Return each token's sequence in a cache, [T, length, kv_heads, head_dim]."""
        blocks = self._op("Gather", [cache, "plain.blocks"])
        outer, inner = self._int("outer", [-1]), self._int("inner", list(self._cache_row))
        shape = self._op("Concat", [outer, "plain.length", inner], axis=0)
        return self._op("Reshape", [blocks, shape])

    @property
    def _cache_row(self) -> tuple[int, int]:
        return self._config.num_kv_heads, self._config.head_dim

    def _op(self, kind: str, inputs: list[str], name: str = "", **attributes: object) -> str:
        output = f"{self._prefix}{name or len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _int(self, name: str, values: int | list[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _float(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        full = f"plain.constant.{name}"
        self._constants.setdefault(full, numpy_helper.from_array(values, full))
        return full
