"""The weights of a decoder as nodes of its graph, in the precision that was asked for.

Linear layers and embedding, with whatever their blocks need; the tied head reads the embedding's bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized, quantize, stack
from engine.convert.source import FloatArray, ModelSource, tensor_shape
from engine.describing.architecture import DecoderConfig, Precision
from engine.errors import ModelFormatError
from engine.graphs.graph_builder import CONTRIB, GraphBuilder

_INT8_ACTIVATIONS = 4
"""MatMulNBits accuracy level: activations as int8. Without it 8-bit weights are 100 times slower."""
_MIN_BITS = {Precision.INT8: 8, Precision.INT4: 4}
_OUTER_BITS = 8
"""Of embedding and head, which bear 4 bits badly and are small beside the layers."""


class Weights:
    """Reads a source's tensors, checks them and adds them to a graph."""

    def __init__(self, source: ModelSource, precision: Precision, graph: GraphBuilder) -> None:
        self._source = source
        self._config: DecoderConfig = source.config
        self._precision = precision
        self._bits = _MIN_BITS.get(precision)
        self._graph = graph

    def norm(self, name: str) -> str:
        """Add the weights of a norm, which are float32 always, and return their name."""
        return self._graph.constant(name, self._tensor(name))

    def linear(self, name: str, x: str, parts: list[str]) -> str:
        """Multiply rows x [n, k] by the matrices of `parts`, stacked along their outputs."""
        if self._bits is None:
            return self._dense(name, x, parts)
        return self._block_linear(name, x, self.stacked(parts, self._bits))

    def stacked(self, parts: list[str], bits: int) -> BlockQuantized:
        """Return the matrices of `parts`, one below the other, in blocks of `bits` at least."""
        return stack([self._packed(part, bits) for part in parts])

    def joined(self, name: str, parts: list[str]) -> npt.NDArray[np.generic]:
        """Return the matrices of `parts`, one below the other, as numbers of the graph's precision."""
        kind = np.float16 if self._precision is Precision.FP16 else np.float32
        matrix = np.concatenate([self._tensor(part).astype(kind, copy=False) for part in parts])
        if not np.isfinite(matrix).all():
            raise ModelFormatError(f"Weights of {name} are too large for {self._precision}. Use fp32.")
        return matrix

    def embedding(self, ids: str) -> str:
        """Look ids up."""
        if self._bits is None:
            return self._widened(self._graph.op("Gather", [self._dense_constant("embed", ["embed"]), ids]))
        packed = self.stacked(["embed"], _OUTER_BITS)
        if packed.offsets is not None:  # which the look-up does not know
            packed = quantize(self._tensor("embed"), _OUTER_BITS)
        inputs = [self._graph.constant("embed.rows", packed.values.reshape(packed.shape)), ids]
        inputs.append(self._graph.constant("embed.scales", packed.scales))
        return self._graph.op(
            "GatherBlockQuantized", inputs, domain=CONTRIB,
            bits=_OUTER_BITS, block_size=BLOCK_SIZE, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def head(self, rows: str) -> None:
        """Compute the graph's output `logits` [R, vocab] of rows [R, hidden]."""
        tied = self._config.tied_embeddings
        if self._bits is None and tied:
            weight = self._widened(self._dense_constant("embed", ["embed"]))
            self._graph.op("Gemm", [rows, weight], "logits", transB=1)
        elif self._bits is None:
            self._dense("head", rows, ["head"], "logits")
        elif not tied:
            packed = self.stacked(["head"], _OUTER_BITS)
            self._block_linear("head", rows, packed, "logits")
        else:
            vocab, hidden = shape = (self._config.vocab_size, self._config.hidden_size)
            blocks = self._graph.view("embed.blocks", "embed.rows", (vocab, hidden // BLOCK_SIZE, BLOCK_SIZE))
            self._blocks(rows, blocks, "embed.scales", _OUTER_BITS, shape, "logits")

    def _dense(self, name: str, x: str, parts: list[str], output: str = "") -> str:
        weight = self._widened(self._dense_constant(name, parts, transposed=True))
        return self._graph.op("MatMul", [x, weight], output)

    def _dense_constant(self, name: str, parts: list[str], *, transposed: bool = False) -> str:
        """Add matrices, stacked, or return the name of those that were added before."""
        matrix = self.joined(name, parts)
        return self._graph.constant(f"{name}.weight", matrix.T if transposed else matrix)

    def _widened(self, value: str) -> str:
        """Turn half precision into float32; of a constant ONNX Runtime does so once, when it loads."""
        return value if self._precision is Precision.FP32 else self._graph.op("Cast", [value], to=1)

    def _block_linear(self, name: str, x: str, packed: BlockQuantized, output: str = "") -> str:
        """Multiply rows by a matrix in blocks."""
        graph = self._graph
        values = graph.constant(f"{name}.values", packed.values)
        scales = graph.constant(f"{name}.scales", packed.scales)
        if packed.offsets is None:
            return self._blocks(x, values, scales, packed.bits, packed.shape, output)
        product = self._blocks(x, values, scales, packed.bits, packed.shape)
        # Each offset counts once for every input of its block: times their sum.
        num_blocks = packed.offsets.shape[1]
        shape = graph.constant(f"blocks.{num_blocks}", np.array([-1, num_blocks, BLOCK_SIZE]))
        blocks = graph.op("Reshape", [x, shape])
        sums = graph.op("ReduceSum", [blocks, graph.constant("last_axis", np.array([-1]))], keepdims=0)
        offsets = graph.constant(f"{name}.offsets", packed.offsets.T)
        return graph.op("Gemm", [sums, offsets, product], output)

    def _blocks(
        self, x: str, values: str, scales: str, bits: int, shape: tuple[int, int], output: str = ""
    ) -> str:
        rows, columns = shape
        return self._graph.op(
            "MatMulNBits", [x, values, scales], output, domain=CONTRIB, N=rows, K=columns,
            bits=bits, block_size=BLOCK_SIZE, accuracy_level=_INT8_ACTIVATIONS,
        )  # fmt: skip

    def _packed(self, name: str, bits: int) -> BlockQuantized:
        """Return the source's own blocks, in `bits` at least, or its weights rounded to `bits`."""
        blocks = self._source.blocks(name)
        if blocks is None:
            return quantize(self._tensor(name), bits)
        self._check_shape(name, blocks.shape)
        if not blocks.is_finite:
            raise _damaged(name)
        return blocks.widened() if bits == 8 else blocks

    def _tensor(self, name: str) -> FloatArray:
        values = self._source.tensor(name)
        self._check_shape(name, values.shape)
        if not np.isfinite(values).all():
            raise _damaged(name)
        return values

    def _check_shape(self, name: str, found: tuple[int, ...]) -> None:
        shape = tensor_shape(self._config, name)
        if found != shape:
            raise ModelFormatError(f"The tensor {name} has the shape {found} instead of {shape}.")


def _damaged(name: str) -> ModelFormatError:
    return ModelFormatError(f"The tensor {name} is damaged: not all of its values are numbers.")
