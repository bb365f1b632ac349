"""Recognises the weights of a released Llama-2-Onnx graph by what they do in it, never by their names.

Goes back from the logits along the residual stream. A layer is recognised from its end to its beginning: the
sum with the down projection, gate and up before it, their norm, the sum with the output projection, the
attention before it, its norm. Whatever does not look like that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from engine.convert.dataflow import PICKING, Dataflow, Linear
from engine.errors import ModelFormatError

PARTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Norm:
    """A root mean square norm of `source`."""

    weight: TensorProto
    eps: float
    source: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's matrices by part, its norms, and the value that holds its new keys' product."""

    linears: dict[str, Linear]
    attn_norm: Norm
    mlp_norm: Norm
    keys: str
    """The keys of new positions as they are cached, after their rotation."""


@dataclass(frozen=True, slots=True)
class ReleaseGraph:
    """What was recognised."""

    layers: list[Layer]
    final_norm: Norm
    head: Linear

    @property
    def eps(self) -> float:
        return self.final_norm.eps


def recognise(flow: Dataflow, num_layers: int) -> ReleaseGraph:
    """Find all weights. Raises `ModelFormatError` where the graph is no Llama."""
    head = flow.linear("logits", PICKING)
    if head is None:
        raise _unlike("its logits are no product with a matrix")
    final_norm = _norm(flow, flow.origin(head.source, PICKING), "the last norm")
    layers: list[Layer] = []
    stream = flow.origin(final_norm.source, PICKING)
    for layer in reversed(range(num_layers)):
        found, stream = _layer(flow, stream, f"layer {layer}")
        layers.insert(0, found)
    if flow.origin(stream) != "x":
        raise _unlike(f"its {num_layers} layers do not begin at its input x")
    graph = ReleaseGraph(layers, final_norm, head)
    _check_alike(flow, graph)
    return graph


def _layer(flow: Dataflow, end: str, where: str) -> tuple[Layer, str]:
    """Recognise the layer whose output is `end`; return it and its input."""
    middle, down = _residual(flow, end, where)
    gate, up = _gate_and_up(flow, down, where)
    mlp_norm = _norm(flow, gate.source, f"the second norm of {where}")
    start, output = _residual(flow, middle, where)
    query, keys, value, new_keys = _attention(flow, output, where)
    attn_norm = _norm(flow, query.source, f"the first norm of {where}")
    same_source = {query.source, keys.source, value.source} == {query.source} and gate.source == up.source
    if not same_source or mlp_norm.source != middle or attn_norm.source != start:
        raise _unlike(f"the norms of {where} are not where Llama has them")
    matrices = (query, keys, value, output, gate, up, down)
    return Layer(dict(zip(PARTS, matrices, strict=True)), attn_norm, mlp_norm, new_keys), start


def _residual(flow: Dataflow, name: str, where: str) -> tuple[str, Linear]:
    """Split a sum into the residual stream and the product that is added to it."""
    total = flow.operation(name, "Add")
    operands = list(total.input) if total is not None else []
    products = [flow.linear(operand) for operand in operands]
    for index, product in enumerate(products):
        if product is not None and products[1 - index] is None:
            return flow.origin(operands[1 - index]), product
    raise _unlike(f"{where} adds no product to its input")


def _gate_and_up(flow: Dataflow, down: Linear, where: str) -> tuple[Linear, Linear]:
    """Recognise gate * sigmoid(gate) * up."""
    gates: list[Linear] = []
    plain: list[Linear] = []
    for factor in flow.factors(down.source):
        node = flow.node(factor)
        sigmoid = node is not None and node.op_type == "Sigmoid"
        product = flow.linear(node.input[0] if node is not None and sigmoid else factor)
        if product is None:
            raise _unlike(f"the feed-forward part of {where} is no product of gate, sigmoid(gate) and up")
        (gates if sigmoid else plain).append(product)
    ups = [product for product in plain if product not in gates]
    if len(gates) != 1 or len(plain) != 2 or len(ups) != 1:
        raise _unlike(f"the feed-forward part of {where} is no product of gate, sigmoid(gate) and up")
    return gates[0], ups[0]


def _attention(flow: Dataflow, output: Linear, where: str) -> tuple[Linear, Linear, Linear, str]:
    """Recognise the projections behind softmax(query keys) values, and the rotated new keys."""
    mixed = flow.operation(output.source, "MatMul")
    softmax = flow.operation(mixed.input[0], "Softmax") if mixed is not None else None
    scores = _scores(flow, softmax) if softmax is not None else None
    if mixed is None or scores is None:
        raise _unlike(f"{where} has no attention before its output projection")
    sides = {"k_cache" in set(flow.upstream(side)): side for side in scores.input}
    if len(sides) != 2 or "v_cache" not in set(flow.upstream(mixed.input[1])):
        raise _unlike(f"the attention of {where} does not use the caches as the released models do")
    projections = [_only_linear(flow, name, where) for name in (sides[False], sides[True], mixed.input[1])]
    query, keys, value = projections
    return query, keys, value, _new_keys(flow, sides[True], where)


def _scores(flow: Dataflow, softmax: NodeProto) -> NodeProto | None:
    """Return the product of queries and keys, the first one behind the softmax."""
    for name in flow.upstream(softmax.input[0]):
        node = flow.node(name)
        if node is not None and node.op_type == "MatMul":
            return node if name not in flow.linears else None
    return None


def _only_linear(flow: Dataflow, name: str, where: str) -> Linear:
    found = {value for value in flow.upstream(name) if value in flow.linears}
    if len(found) != 1:
        raise _unlike(f"the attention of {where} does not take queries, keys and values from one matrix each")
    return flow.linears[found.pop()]


def _new_keys(flow: Dataflow, name: str, where: str) -> str:
    """Return what is appended to the cached keys."""
    for value in flow.upstream(name):
        node = flow.node(value)
        if node is not None and node.op_type == "Concat" and len(node.input) == 2:
            old = [i for i, part in enumerate(node.input) if flow.origin(part, PICKING) == "k_cache"]
            if len(old) == 1:
                return str(node.input[1 - old[0]])
    raise _unlike(f"{where} does not append its keys to the cache")


def _norm(flow: Dataflow, name: str, where: str) -> Norm:
    """Recognise weight * x / sqrt(mean(x * x) + eps), in whatever way it is written."""
    node = flow.operation(name, "Mul")
    for weight, scaled in _both_ways(node):
        vector = flow.stored.get(flow.origin(weight))
        if vector is not None and len(vector.dims) == 1:
            for source, root in _divided(flow, scaled):
                eps = _eps(flow, root, source)
                if eps is not None:
                    return Norm(vector, eps, source)
    raise _unlike(f"{where} is no root mean square norm")


def _divided(flow: Dataflow, name: str) -> list[tuple[str, str]]:
    """Return what may be x and the square root in x / root or x * (1 / root)."""
    quotient = flow.operation(name, "Div")
    if quotient is not None:
        return [(flow.origin(quotient.input[0]), quotient.input[1])]
    found = []
    for source, inverse in _both_ways(flow.operation(name, "Mul")):
        one = flow.operation(inverse, "Div")
        reciprocal = flow.operation(inverse, "Reciprocal")
        if one is not None and flow.scalar(one.input[0]) == 1.0:
            found.append((flow.origin(source), one.input[1]))
        elif reciprocal is not None:
            found.append((flow.origin(source), reciprocal.input[0]))
    return found


def _eps(flow: Dataflow, root: str, source: str) -> float | None:
    """Return eps of sqrt(mean(source * source) + eps), None if `root` is anything else."""
    square_root = flow.operation(root, "Sqrt")
    total = flow.operation(square_root.input[0], "Add") if square_root is not None else None
    for constant, mean in _both_ways(total):
        eps, average = flow.scalar(constant), flow.operation(mean, "ReduceMean")
        if eps is not None and average is not None and _is_square(flow, average.input[0], source):
            return eps
    return None


def _is_square(flow: Dataflow, name: str, source: str) -> bool:
    power, product = flow.operation(name, "Pow"), flow.operation(name, "Mul")
    if power is not None:
        return flow.scalar(power.input[1]) == 2.0 and flow.origin(power.input[0]) == source
    return product is not None and {flow.origin(operand) for operand in product.input} == {source}


def _both_ways(node: NodeProto | None) -> list[tuple[str, str]]:
    """Return the two operands of a node in both orders; nothing for no node."""
    return [] if node is None else [(node.input[0], node.input[1]), (node.input[1], node.input[0])]


def _check_alike(flow: Dataflow, graph: ReleaseGraph) -> None:
    """Refuse layers that differ in more than their weights: an export writes them all alike.

    That shows exchanged weights, such as gate and up, which make a whole model, but not the one released.
    """
    norms = [norm for layer in graph.layers for norm in (layer.attn_norm, layer.mlp_norm)]
    if {norm.eps for norm in norms} - {graph.eps}:
        raise ModelFormatError("The norms of the graph differ in their epsilon: the file was changed.")
    expected = _order(flow, graph.layers[0])
    for index, layer in enumerate(graph.layers):
        if _order(flow, layer) != expected:
            raise ModelFormatError(
                f"Layer {index} of the graph is not put together like the others: weights were exchanged. "
                "Fetch the file again."
            )


def _order(flow: Dataflow, layer: Layer) -> tuple[object, ...]:
    """Return in which order the parts are computed and stored, and their shapes."""
    linears = layer.linears
    computed = sorted(PARTS, key=lambda part: linears[part].position)
    stored = sorted(PARTS, key=lambda part: flow.order.get(linears[part].weight.name, -1))
    shapes = [(linears[part].shape, linears[part].transposed) for part in PARTS]
    return (*computed, *stored, *shapes)


def _unlike(reason: str) -> ModelFormatError:
    return ModelFormatError(f"The graph is not one that can be converted: {reason}.")
