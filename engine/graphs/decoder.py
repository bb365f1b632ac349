"""Authors a converted model's decoder as an ONNX graph, when it is loaded: for the CPU or for a GPU.

    ids -> embedding -> layers x (norm, packed QKV, attention, output projection, norm, gated MLP) -> norm
        -> the rows whose logits are asked for -> head

The layers are described once. What differs by device are its attention and the type that it computes in, and
what stands around the layers: the CPU gives logits, a GPU a token for each sequence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from engine.describing.architecture import DecoderConfig
from engine.describing.footprint import kv_value_bytes
from engine.describing.layers import Activation, QueryKeyNorm
from engine.describing.manifest import Manifest
from engine.graphs.attention import Attention, OwnSlotAttention, PagedAttention, SlotAttention
from engine.graphs.graph_builder import CONTRIB, FLOAT, HALF, GraphBuilder, StoredWeights
from engine.graphs.plain_attention import PlainAttention
from engine.graphs.sampler_graph import SamplerGraph


def slot_graph(manifest: Manifest, max_tokens: int, own_products: Path | None = None) -> bytes:
    """Return the model's graph for the CPU, of sequences of up to `max_tokens`, which may be the context.

    own_products: the file of the weights, where our own operator is to multiply (engine/kernels).

    Inputs beside those of `SlotAttention`: `logit_rows` int64 [R], indices into the B*S rows. Output:
    `logits` [R, vocab].
    """
    config, graph = manifest.decoder, GraphBuilder()
    weights = StoredWeights(graph, manifest.tensors, FLOAT, own_products)
    if own_products is not None and OwnSlotAttention.takes(config):
        is_half = kv_value_bytes(config, manifest.precision) == 2
        attention: SlotAttention = OwnSlotAttention(graph, config, max_tokens, is_half=is_half)
    else:
        attention = SlotAttention(graph, config, max_tokens)
    # Rows [B * S, hidden] everywhere but in attention: a linear layer's sum is then part of its product.
    shape = graph.constant("row_shape", np.array([-1, config.hidden_size]))
    hidden = graph.op("Reshape", [weights.embedding("input_ids"), shape])
    _logits(graph, config, weights, _Layers(graph, config, weights, attention).add(hidden, "logit_rows"))
    rows = helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["rows"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", config.vocab_size])
    return graph.build("decoder", [*attention.inputs(), rows], [logits, *attention.outputs()])


def paged_graph(manifest: Manifest, max_tokens: int, block_size: int = 1, *, is_plain: bool = False) -> bytes:
    """Return the model's graph for a GPU, of sequences of up to `max_tokens` in blocks.

    `is_plain` writes attention in elementary operators. What its sampler takes and gives beside the inputs
    and outputs of `PagedAttention`: `sampler_graph.py`.
    """
    config, graph = manifest.decoder, GraphBuilder()
    weights = StoredWeights(graph, manifest.tensors, HALF)
    # Paged attention is told of whole blocks.
    whole = -(-max_tokens // block_size) * block_size
    attention = (PlainAttention if is_plain else PagedAttention)(graph, config, max_tokens, whole + 1)
    last = _last_tokens(graph)
    normed = _Layers(graph, config, weights, attention).add(weights.embedding("input_ids"), last)
    logits = _logits(graph, config, weights, normed)
    sampler = SamplerGraph(graph, config.vocab_size)
    sampler.add(logits, graph.op("Gather", ["input_ids", last], "newest_ids", axis=0))
    inputs = [*attention.inputs(), *sampler.inputs()]
    return graph.build("paged_decoder", inputs, [*sampler.outputs(), *attention.outputs()])


def _last_tokens(graph: GraphBuilder) -> str:
    """Return the index of each sequence's last token, int32 [B]."""
    one = graph.constant("one", np.array([1], np.int32))
    bounds = [graph.constant("from_1", np.array([1])), graph.constant("to_end", np.array([2**31 - 1]))]
    return graph.op("Sub", [graph.op("Slice", ["cumulative", *bounds]), one])


def _logits(graph: GraphBuilder, config: DecoderConfig, weights: StoredWeights, rows: str) -> str:
    """Compute `logits`, float32 [R, vocab], of normed rows [R, hidden]."""
    is_bare = config.logit_scale == 1 and not config.logit_softcap
    scores = weights.head(rows, "logits" if is_bare and weights.type == FLOAT else "")
    if weights.type != FLOAT:
        scores = graph.op("Cast", [scores], "logits" if is_bare else "", to=TensorProto.FLOAT)
    if config.logit_scale != 1:
        scale = graph.constant("logit_scale", np.array(config.logit_scale, np.float32))
        scores = graph.op("Mul", [scores, scale], "" if config.logit_softcap else "logits")
    if config.logit_softcap:
        cap = graph.constant("logit_softcap", np.array(config.logit_softcap, np.float32))
        scores = graph.op("Mul", [graph.op("Tanh", [graph.op("Div", [scores, cap])]), cap], "logits")
    return scores


class _Layers:
    """Adds the layers to a graph: rows [n, hidden] in, those normed out whose logits are asked for.

    Behind the attention of the last layer nobody needs the others: of a prompt's chunk all but one.

    What the layers add to grows beyond half precision where what they add is normed behind the product: the
    sum is kept in single precision then.
    """

    def __init__(
        self, graph: GraphBuilder, config: DecoderConfig, weights: StoredWeights, attention: Attention
    ) -> None:
        self._graph = graph
        self._config = config
        self._weights = weights
        self._attention = attention
        self._sum_type = FLOAT if config.norms.has_after else weights.type

    def add(self, hidden: str, wanted: str) -> str:
        """Add all layers and the norm behind them. wanted: indices [R] of the rows to return."""
        hidden = self._widened(hidden)
        hidden = self._scaled(hidden, "embedding_scale", self._config.embedding_scale)
        normed = hidden
        if self._config.norms.has_before:
            normed = self._norm(hidden, "layers.0.attn_norm", self._sum_type)
        for layer in range(self._config.num_layers):
            attended = self._attend(
                layer, self._weights.linear(f"layers.{layer}.qkv", self._narrowed(normed))
            )
            if layer == self._config.num_layers - 1:
                attended, hidden = (
                    self._graph.op("Gather", [rows, wanted], axis=0) for rows in (attended, hidden)
                )
            normed, hidden = self._rest(layer, attended, hidden)
        return self._narrowed(normed)

    def _rest(self, layer: int, attended: str, hidden: str) -> tuple[str, str]:
        """Add a layer behind its attention; return its output, normed for what follows, and as it is."""
        prefix, linear = f"layers.{layer}.", self._weights.linear
        update = linear(f"{prefix}o", attended)
        normed, hidden = self._join(hidden, update, f"{prefix}attn_post_norm", f"{prefix}mlp_norm")
        down = linear(f"{prefix}down", self._gated(prefix, self._narrowed(normed)))
        last = layer == self._config.num_layers - 1
        following = "final_norm" if last else f"layers.{layer + 1}.attn_norm"
        return self._join(hidden, down, f"{prefix}mlp_post_norm", following)

    def _attend(self, layer: int, qkv: str) -> str:
        """Add one layer's attention, with the norms of queries and keys."""
        config, prefix = self._config, f"layers.{layer}."
        if config.query_key_norm is QueryKeyNorm.NONE:
            return self._attention.attend(layer, [qkv])
        by_head = config.query_key_norm is QueryKeyNorm.HEAD
        if by_head and self._attention.norms_heads:
            norms = [self._weights.vector(f"{prefix}{part}_norm") for part in "qk"]
            return self._attention.attend(layer, [qkv], norms)
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        sizes = np.array([count * config.head_dim for count in heads.values()])
        parts = {part: f"{prefix}{part}.out" for part in heads}
        self._graph.node("Split", [qkv, self._graph.constant("qkv_sizes", sizes)], [*parts.values()], axis=-1)
        for part in "qk":
            if by_head:
                shape = self._graph.constant(f"{part}_heads", np.array([-1, heads[part], config.head_dim]))
                parts[part] = self._graph.op("Reshape", [parts[part], shape])
            parts[part] = self._norm(parts[part], f"{prefix}{part}_norm", self._weights.type)
        return self._attention.attend(layer, [*parts.values()])

    def _gated(self, prefix: str, normed: str) -> str:
        """Add the first half of the gated MLP: act(gate) * up."""
        product = self._weights.gated(f"{prefix}gate_up", normed, self._config.activation)
        if product is not None:
            return product
        gate, up = f"{prefix}gate.out", f"{prefix}up.out"
        gates = self._weights.linear(f"{prefix}gate_up", normed)
        self._graph.node("Split", [gates], [gate, up], axis=-1, num_outputs=2)
        return self._graph.op("Mul", [self._activated(gate), up])

    def _activated(self, gate: str) -> str:
        if self._config.activation is Activation.GELU_TANH:
            return self._graph.op("FastGelu", [gate], domain=CONTRIB)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one node.
        return self._graph.op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)

    def _join(self, hidden: str, update: str, after: str, following: str) -> tuple[str, str]:
        """Add an update, normed by `after` where there is one; return the sum normed by `following`, and it.

        A layer without a norm before it gets the sum itself.
        """
        update = self._widened(update)
        if self._config.norms.has_after:
            update = self._norm(update, after, self._sum_type)
        update = self._scaled(update, "residual_scale", self._config.residual_scale)
        if self._config.norms.has_before or following == "final_norm":
            return self._skip_norm(hidden, update, following)
        total = self._graph.op("Add", [hidden, update])
        return total, total

    def _norm(self, rows: str, name: str, kind: str) -> str:
        return self._graph.op(
            "SimplifiedLayerNormalization",
            [rows, self._weights.vector(name, kind)],
            epsilon=self._config.rms_norm_eps,
            axis=-1,
        )

    def _skip_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """Return the norm of hidden + update, and that sum."""
        normed, total = f"{norm}.out", f"{norm}.in"
        self._graph.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, update, self._weights.vector(norm, self._sum_type)],
            [normed, "", "", total],
            domain=CONTRIB,
            epsilon=self._config.rms_norm_eps,
        )
        return normed, total

    def _scaled(self, rows: str, name: str, factor: float) -> str:
        if factor == 1:
            return rows
        return self._graph.op("Mul", [rows, self._graph.constant(name, np.array(factor, self._sum_type))])

    def _widened(self, rows: str) -> str:
        """Return rows in the type of the sum that layers add to."""
        return self._graph.cast(rows, self._weights.type, self._sum_type)

    def _narrowed(self, rows: str) -> str:
        """Return rows in the type that products are made in."""
        return self._graph.cast(rows, self._sum_type, self._weights.type)
