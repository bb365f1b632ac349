"""Authors the sampler that chooses the next tokens on the GPU, as `engine.runtime.sampling` does on the CPU.

The same order: repetition penalty, temperature, top-k, top-p, min-p, over the DEVICE_CANDIDATES most likely
tokens; and the same one uniform number for each token, drawn by the host, so that a seed chooses the same
token.

Inputs: `sampling` float32 [B, columns], the `DEVICE_ROW` of each sequence; `slots` int64 [B], its row in
`seen` bool [slots, vocab], the tokens that it has had, which gains its newest one and is bound to the same
memory as `seen_out`; `penalised` bool [vocab], tokens that count as had. Outputs: `next_ids` int64 [B];
`chosen` float32 [B, 3], for each sequence the same id, whether the candidates suffice to choose as the whole
row would, and the sum of all weights, which is no finite number where the logits are none; and `logits`
float32 [B, vocab] for the host to choose where they do not suffice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from engine.graphs.graph_builder import GraphBuilder
from engine.runtime.sampling import DEVICE_CANDIDATES, DEVICE_ROW

_GREEDY_BELOW = 1e-4


class SamplerGraph:
    """Adds the sampler's nodes to a graph whose rows are sequences."""

    def __init__(self, graph: GraphBuilder, vocab_size: int) -> None:
        self._graph = graph
        self._vocab_size = vocab_size
        self._num_candidates = min(DEVICE_CANDIDATES, vocab_size)

    def inputs(self) -> Iterator[ValueInfoProto]:
        """Return what it takes beside the decoder's outputs."""
        yield helper.make_tensor_value_info("sampling", TensorProto.FLOAT, ["sequences", len(DEVICE_ROW)])
        yield helper.make_tensor_value_info("slots", TensorProto.INT64, ["sequences"])
        yield helper.make_tensor_value_info("seen", TensorProto.BOOL, ["num_slots", self._vocab_size])
        yield helper.make_tensor_value_info("penalised", TensorProto.BOOL, [self._vocab_size])

    def outputs(self) -> Iterator[ValueInfoProto]:
        """Return what it gives, the logits included."""
        yield helper.make_tensor_value_info("next_ids", TensorProto.INT64, ["sequences"])
        yield helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["sequences", 3])
        yield helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["sequences", self._vocab_size])
        yield helper.make_tensor_value_info("seen_out", TensorProto.BOOL, ["num_slots", self._vocab_size])

    def add(self, logits: str, newest_ids: str) -> None:
        """Choose from `logits` [B, vocab] after the sequences' newest tokens, int64 [B]."""
        graph = self._graph
        graph.node("Split", ["sampling"], list(DEVICE_ROW), axis=1, num_outputs=len(DEVICE_ROW))
        lowered = self._penalise(logits, newest_ids)
        k = graph.constant("num_candidates", np.array([self._num_candidates]))
        graph.node("TopK", [lowered, k], ["top.values", "top.ids"], axis=1, largest=1, sorted=1)
        best = self._column("top.values", 0)
        least = graph.constant("least_temperature", np.array([[_GREEDY_BELOW]], np.float32))
        spread = graph.op("Max", ["temperature", least])
        weights = self._weights("top.values", best, spread)
        whole = graph.op("ReduceSum", [self._weights(lowered, best, spread), self._axis()], keepdims=1)
        greedy = graph.op("Less", ["temperature", least])
        kept, total = self._top_k(weights, whole)
        kept = self._top_p(kept, total)
        kept = self._where(graph.op("Less", [kept, "min_p"]), self._zero(), kept)
        place = self._where(greedy, graph.constant("first", np.array([[0]])), self._pick(kept))
        token = graph.op("GatherElements", ["top.ids", place], axis=1)
        graph.op("Reshape", [token, graph.constant("flat", np.array([-1]))], "next_ids")
        covered = graph.op("Or", [greedy, self._suffices(weights, whole)])
        columns = [graph.op("Cast", [value], to=TensorProto.FLOAT) for value in (token, covered)]
        graph.op("Concat", [*columns, whole], "chosen", axis=1)

    def _penalise(self, logits: str, newest_ids: str) -> str:
        """Mark the newest tokens as had; return the logits after the repetition penalty."""
        graph = self._graph
        last = graph.constant("last", np.array([-1]))
        columns = [graph.op("Unsqueeze", [ids, last]) for ids in ("slots", newest_ids)]
        places = graph.op("Concat", columns, axis=1)
        counts = graph.op("Gather", ["penalised", newest_ids], axis=0)
        graph.node("ScatterND", ["seen", places, counts], ["seen_out"])
        had = graph.op("Gather", ["seen_out", "slots"], axis=0)
        positive = graph.op("Greater", [logits, self._zero()])
        divided, multiplied = (graph.op(act, [logits, "repetition_penalty"]) for act in ("Div", "Mul"))
        smaller = self._where(positive, divided, multiplied)
        return self._where(had, smaller, logits)

    def _weights(self, values: str, best: str, spread: str) -> str:
        graph = self._graph
        return graph.op("Exp", [graph.op("Div", [graph.op("Sub", [values, best]), spread])])

    def _top_k(self, weights: str, whole: str) -> tuple[str, str]:
        """Return the weights with 0 beyond top-k, and what top-p counts as everything."""
        graph = self._graph
        ranks = np.arange(self._num_candidates, dtype=np.float32)[None]
        within = graph.op("Less", [graph.constant("ranks", ranks), "top_k"])
        off = graph.op("Equal", ["top_k", self._zero()])
        kept = self._where(graph.op("Or", [within, off]), weights, self._zero())
        return kept, self._where(off, whole, graph.op("ReduceSum", [kept, self._axis()], keepdims=1))

    def _top_p(self, weights: str, total: str) -> str:
        """Keep a token while the mass before it is below top-p: the one that crosses it stays."""
        graph = self._graph
        before = graph.op("CumSum", [weights, self._sum_axis()], exclusive=1)
        off = graph.op("GreaterOrEqual", ["top_p", self._one()])
        below = graph.op("Less", [before, graph.op("Mul", ["top_p", total])])
        return self._where(graph.op("Or", [off, below]), weights, self._zero())

    def _pick(self, weights: str) -> str:
        """Return the place [B, 1] where the uniform share of the weights' sum is reached."""
        graph = self._graph
        sums = graph.op("CumSum", [weights, self._sum_axis()])
        target = graph.op("Mul", ["uniform", self._column(sums, self._num_candidates - 1)])
        passed = graph.op("Cast", [graph.op("LessOrEqual", [sums, target])], to=TensorProto.INT64)
        counted = graph.op("ReduceSum", [passed, self._axis()], keepdims=1)
        kept = graph.op("Cast", [graph.op("Greater", [weights, self._zero()])], to=TensorProto.INT64)
        num_kept = graph.op("ReduceSum", [kept, self._axis()], keepdims=1)
        return graph.op("Min", [counted, graph.op("Sub", [num_kept, graph.constant("1", np.array([[1]]))])])

    def _suffices(self, weights: str, whole: str) -> str:
        """Return whether top-k, top-p or min-p cuts within the candidates."""
        graph = self._graph
        largest = graph.constant("largest_k", np.array([[self._num_candidates]], np.float32))
        off = graph.op("Equal", ["top_k", self._zero()])
        within = graph.op("LessOrEqual", ["top_k", largest])
        held = graph.op("ReduceSum", [weights, self._axis()], keepdims=1)
        mass = graph.op("And", [
            graph.op("Less", ["top_p", self._one()]),
            graph.op("GreaterOrEqual", [held, graph.op("Mul", ["top_p", whole])]),
        ])  # fmt: skip
        unlikely = graph.op("Less", [self._column(weights, self._num_candidates - 1), "min_p"])
        cut = graph.op("Or", [mass, unlikely])
        return graph.op("And", [within, graph.op("Or", [graph.op("Not", [off]), cut])])

    def _where(self, condition: str, yes: str, no: str) -> str:
        return self._graph.op("Where", [condition, yes, no])

    def _column(self, values: str, index: int) -> str:
        """Return one column [B, 1]."""
        start = self._graph.constant(f"column.{index}", np.array([index]))
        end = self._graph.constant(f"column.{index + 1}", np.array([index + 1]))
        return self._graph.op("Slice", [values, start, end, self._axis()])

    def _axis(self) -> str:
        return self._graph.constant("columns", np.array([1]))

    def _sum_axis(self) -> str:
        return self._graph.constant("sum_axis", np.array(1))

    def _zero(self) -> str:
        return self._graph.constant("zero", np.array([[0]], np.float32))

    def _one(self) -> str:
        return self._graph.constant("unit", np.array([[1]], np.float32))


def seen_graph() -> bytes:
    """Return the graph: `row` bool [1, vocab] takes row `slot` int64 [1, 1] of `seen` bool [slots, vocab].

    `seen_out` is bound to the memory of `seen`.
    """
    values = [
        helper.make_tensor_value_info("seen", TensorProto.BOOL, ["num_slots", "vocab"]),
        helper.make_tensor_value_info("slot", TensorProto.INT64, [1, 1]),
        helper.make_tensor_value_info("row", TensorProto.BOOL, [1, "vocab"]),
    ]
    output = helper.make_tensor_value_info("seen_out", TensorProto.BOOL, ["num_slots", "vocab"])
    node = helper.make_node("ScatterND", ["seen", "slot", "row"], ["seen_out"])
    graph = helper.make_graph([node], "seen", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
