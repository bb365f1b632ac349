"""Finds out how a released graph rotates keys, by running that part of it on vectors of its own choice.

An export writes the rotation as dozens of nodes, in whichever way its authors computed it. Rather than read
them, the part from the product with the key matrix to the new keys is cut out and measured: which values
of a head make a pair, and by how much each pair turns from one position to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engine.convert.dataflow import Dataflow
from engine.convert.release_graph import Layer, ReleaseGraph
from engine.errors import ModelFormatError
from engine.graphs.session import open_session
from engine.release.contract import Contract, read_tensor

_NUM_POSITIONS = 512
_TOLERANCE = 0.01
"""Of cosines and sines; those of a graph in float16 are off by 0.0005, a wrong rotation by 1."""
_DIGITS = 3
"""theta is a round number: what is measured is rounded to this many digits if that fits as well."""
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Whether pairs are neighbours or lie half a head apart, and the theta of their frequencies."""

    interleaved: bool
    theta: float


class KeyProbe:
    """The part of a graph that rotates one layer's keys, ready to run."""

    def __init__(
        self, model: ModelProto, flow: Dataflow, layer: Layer, contract: Contract, path: Path
    ) -> None:
        self._contract = contract
        self._product = layer.linears["k"].output
        self._flow = flow
        nodes, self._inputs, stored = _cut(flow, layer.keys, self._product)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(contract.dtype))
        values = [self._describe(name, kind) for name in self._inputs]
        output = helper.make_tensor_value_info(layer.keys, kind, None)
        tensors = [numpy_helper.from_array(read_tensor(flow.stored[name], path), name) for name in stored]
        graph = helper.make_graph(nodes, "keys", values, [output], tensors)
        cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        self._session = open_session(cut.SerializeToString(), 1)

    def run(self, head: FloatArray, position: int, num_tokens: int) -> FloatArray:
        """Rotate the same head [dim] at `num_tokens` positions; return [num_tokens, heads, dim]."""
        contract = self._contract
        feeds: dict[str, npt.NDArray[np.generic]] = {}
        for name in self._inputs:
            if name == "pos":
                feeds[name] = np.array(position, np.int64)
            elif name in ("k_cache", "v_cache"):
                feeds[name] = np.zeros(contract.cache_shape(position), contract.dtype)
            elif name == "attn_mask":
                feeds[name] = np.zeros([contract.context_length] * 2, contract.dtype)
            else:
                feeds[name] = np.zeros((1, num_tokens, self._width(name)), contract.dtype)
        feeds[self._product][:] = np.tile(head, contract.num_heads)
        (rotated,) = self._session.run(None, feeds)
        return np.asarray(rotated, np.float64).reshape(num_tokens, contract.num_heads, contract.head_dim)

    def _width(self, name: str) -> int:
        linear = self._flow.linears.get(name)
        return self._contract.hidden_size if linear is None else linear.shape[1]

    def _describe(self, name: str, kind: int) -> object:
        return helper.make_tensor_value_info(name, TensorProto.INT64 if name == "pos" else kind, None)


def measure_rotation(
    model: ModelProto, flow: Dataflow, graph: ReleaseGraph, contract: Contract, path: Path
) -> Rotation:
    """Return how all layers rotate their keys. Raises `ModelFormatError` where it is not Llama's way."""
    probes = [KeyProbe(model, flow, layer, contract, path) for layer in graph.layers]
    try:
        rotation = _measure(probes[0], contract)
        for index, probe in enumerate(probes):
            for position in (0, contract.context_length // 2):
                if _error(probe, rotation, contract, position, 8) > _TOLERANCE:
                    raise ModelFormatError(
                        f"Layer {index} of the graph rotates its keys differently from the first one: "
                        "the file was changed."
                    )
    except ModelFormatError:
        raise
    except Exception as error:  # whatever ONNX Runtime raises
        raise ModelFormatError("The graph's rotary embedding could not be measured.") from error
    return rotation


def _measure(probe: KeyProbe, contract: Contract) -> Rotation:
    interleaved = _is_interleaved(probe, contract.head_dim)
    num_tokens = min(_NUM_POSITIONS, contract.context_length)
    cos, sin = _turns(probe, interleaved, contract, 0, num_tokens)
    angles = np.unwrap(np.arctan2(sin, cos), axis=0)
    positions = np.arange(num_tokens)
    frequencies = np.maximum((positions @ angles) / (positions @ positions), 1e-12)
    exponents = -np.arange(0, contract.head_dim, 2) / contract.head_dim
    # The faster half turns by enough to be measured exactly; theta is the slope of its logarithms.
    fast = slice(1, max(2, len(exponents) // 2))
    logs = np.log(frequencies[fast])
    theta = float(np.exp((exponents[fast] @ logs) / (exponents[fast] @ exponents[fast])))
    for candidate in (float(f"{theta:.{_DIGITS}g}"), theta):
        rotation = Rotation(interleaved, candidate)
        last = contract.context_length - num_tokens
        if max(_error(probe, rotation, contract, start, num_tokens) for start in (0, last)) <= _TOLERANCE:
            return rotation
    raise ModelFormatError(
        "The graph scales its rotary embedding, or has another one than Llama: it cannot be converted."
    )


def _is_interleaved(probe: KeyProbe, dim: int) -> bool:
    """Tell from the first value of a head where its partner is."""
    first = np.zeros(dim)
    first[0] = 1.0
    turned = np.abs(probe.run(first, 1, 1)[0, 0])
    partners = np.flatnonzero(turned[1:] > _TOLERANCE) + 1
    if list(partners) not in ([1], [dim // 2]):
        raise ModelFormatError("The graph does not rotate its keys before it caches them.")
    return list(partners) == [1] and dim > 2


def _turns(
    probe: KeyProbe, interleaved: bool, contract: Contract, start: int, num_tokens: int
) -> tuple[FloatArray, FloatArray]:
    """Return cosines and sines [num_tokens, pairs] of the turns from position `start` on."""
    dim = contract.head_dim
    first = np.arange(0, dim, 2) if interleaved else np.arange(dim // 2)
    second = first + (1 if interleaved else dim // 2)
    head = np.zeros(dim)
    head[first] = 1.0
    turned = probe.run(head, start, num_tokens)
    if np.abs(turned - turned[:, :1]).max() > _TOLERANCE:
        raise ModelFormatError("The graph rotates its heads differently: it cannot be converted.")
    return turned[:, 0, first], turned[:, 0, second]


def _error(probe: KeyProbe, rotation: Rotation, contract: Contract, start: int, num_tokens: int) -> float:
    """Return how far off the rotation is at worst."""
    num_tokens = min(num_tokens, contract.context_length - start)
    cos, sin = _turns(probe, rotation.interleaved, contract, start, num_tokens)
    exponents = np.arange(0, contract.head_dim, 2) / contract.head_dim
    angles = np.outer(np.arange(start, start + num_tokens), rotation.theta**-exponents)
    return float(max(np.abs(np.cos(angles) - cos).max(), np.abs(np.sin(angles) - sin).max()))


def _cut(flow: Dataflow, output: str, product: str) -> tuple[list[NodeProto], list[str], list[str]]:
    """Return the nodes that compute `output`, in order, the values they begin at, and the stored ones.

    They begin at products with matrices: those are replaced by zeros, or by what is probed.
    """
    nodes: dict[int, NodeProto] = {}
    inputs, stored = {product}, set()
    for name in flow.upstream(output, shapes=True):
        node = flow.node(name)
        if name in flow.stored:
            stored.add(name)
        elif node is None or name in flow.linears:
            inputs.add(name)
        else:
            nodes[flow.positions[name]] = node
    return [nodes[position] for position in sorted(nodes)], sorted(inputs), sorted(stored)
