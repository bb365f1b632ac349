"""Authors a converted model's decoder as an ONNX graph, when it is loaded: for the CPU or for a GPU.

    ids -> embedding -> layers x (norm, packed QKV, attention, output projection, norm, SwiGLU) -> norm
        -> the rows whose logits are asked for -> head

The layers are described once. What differs by device are its attention and the type that it computes in, and
what stands around the layers: the CPU gives logits, a GPU a token for each sequence.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from engine.describing.architecture import DecoderConfig
from engine.describing.manifest import Manifest
from engine.graphs.attention import Attention, PagedAttention, PlainAttention, SlotAttention
from engine.graphs.graph_builder import CONTRIB, FLOAT, HALF, GraphBuilder, StoredWeights
from engine.graphs.sampler_graph import SamplerGraph


def slot_graph(manifest: Manifest, max_tokens: int) -> bytes:
    """Return the model's graph for the CPU, of sequences of up to `max_tokens`, which may be the context.

    Inputs beside those of `SlotAttention`: `logit_rows` int64 [R], indices into the B*S rows. Output:
    `logits` [R, vocab].
    """
    config, graph = manifest.decoder, GraphBuilder()
    weights = StoredWeights(graph, manifest.tensors, FLOAT)
    # One position more: filler rows of a decode step whose slot is full have it; nobody reads their result.
    attention = SlotAttention(graph, config, max_tokens + 1)
    # Rows [B * S, hidden] everywhere but in attention: a linear layer's sum is then part of its product.
    shape = graph.constant("row_shape", np.array([-1, config.hidden_size]))
    hidden = graph.op("Reshape", [weights.embedding("input_ids"), shape])
    normed = _Layers(graph, config, weights, attention).add(hidden)
    weights.head(graph.op("Gather", [normed, "logit_rows"], axis=0), "logits")
    rows = helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["rows"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", config.vocab_size])
    return graph.build("decoder", [*attention.inputs(), rows], [logits, *attention.outputs()])


def paged_graph(manifest: Manifest, max_tokens: int, *, is_plain: bool = False) -> bytes:
    """Return the model's graph for a GPU, of sequences of up to `max_tokens`, whole blocks.

    `is_plain` writes attention in elementary operators. What its sampler takes and gives beside the inputs
    and outputs of `PagedAttention`: `sampler_graph.py`.
    """
    config, graph = manifest.decoder, GraphBuilder()
    weights = StoredWeights(graph, manifest.tensors, HALF)
    attention = (PlainAttention if is_plain else PagedAttention)(graph, config, max_tokens + 1)
    normed = _Layers(graph, config, weights, attention).add(weights.embedding("input_ids"))
    last = _last_tokens(graph)
    scores = weights.head(graph.op("Gather", [normed, last], axis=0))
    logits = graph.op("Cast", [scores], "logits", to=TensorProto.FLOAT)
    sampler = SamplerGraph(graph, config.vocab_size)
    sampler.add(logits, graph.op("Gather", ["input_ids", last], "newest_ids", axis=0))
    inputs = [*attention.inputs(), *sampler.inputs()]
    return graph.build("paged_decoder", inputs, [*sampler.outputs(), *attention.outputs()])


def _last_tokens(graph: GraphBuilder) -> str:
    """Return the index of each sequence's last token, int32 [B]."""
    one = graph.constant("one", np.array([1], np.int32))
    bounds = [graph.constant("from_1", np.array([1])), graph.constant("to_end", np.array([2**31 - 1]))]
    return graph.op("Sub", [graph.op("Slice", ["cumulative", *bounds]), one])


class _Layers:
    """Adds the layers to a graph: rows [n, hidden] in, normed rows out."""

    def __init__(
        self, graph: GraphBuilder, config: DecoderConfig, weights: StoredWeights, attention: Attention
    ) -> None:
        self._graph = graph
        self._config = config
        self._weights = weights
        self._attention = attention

    def add(self, hidden: str) -> str:
        """Add all layers and the norm behind them."""
        normed = self._graph.op(
            "SimplifiedLayerNormalization",
            [hidden, self._weights.vector("layers.0.attn_norm")],
            epsilon=self._config.rms_norm_eps,
            axis=-1,
        )
        for layer in range(self._config.num_layers):
            normed, hidden = self._layer(layer, normed, hidden)
        return normed

    def _layer(self, layer: int, normed: str, hidden: str) -> tuple[str, str]:
        """Add one layer; return its output, normed for what follows, and as it is."""
        prefix, linear = f"layers.{layer}.", self._weights.linear
        attended = linear(f"{prefix}o", self._attention.attend(layer, linear(f"{prefix}qkv", normed)))
        normed, hidden = self._skip_norm(hidden, attended, f"{prefix}mlp_norm")
        gate, up = f"{prefix}gate.out", f"{prefix}up.out"
        self._graph.node("Split", [linear(f"{prefix}gate_up", normed)], [gate, up], axis=-1, num_outputs=2)
        # QuickGelu with alpha 1 is x * sigmoid(x): SiLU in one node.
        silu = self._graph.op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)
        down = linear(f"{prefix}down", self._graph.op("Mul", [silu, up]))
        last = layer == self._config.num_layers - 1
        return self._skip_norm(hidden, down, "final_norm" if last else f"layers.{layer + 1}.attn_norm")

    def _skip_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """Return the norm of hidden + update, and that sum."""
        normed, total = f"{norm}.out", f"{norm}.in"
        self._graph.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, update, self._weights.vector(norm)],
            [normed, "", "", total],
            domain=CONTRIB,
            epsilon=self._config.rms_norm_eps,
        )
        return normed, total
