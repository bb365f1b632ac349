"""Writes releases in the layout of Llama-2-Onnx, of any shape and with random weights, without torch.

The graph does what the published one does with fewer nodes: the rotation is a handful of them, where
torch.onnx writes dozens. Measured against it, that favours the release. Beside it lie the embeddings, as
torch.save writes them, and a tokenizer.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from engine.bench.random_model import MOST_REPEATED, PAGE, more_of

Array = npt.NDArray[np.generic]
_NUM_BYTES, _NUM_CONTROL = 256, 3


@dataclass(frozen=True, slots=True)
class ReleaseShape:
    """Dimensions of a release, its type, and how neighbours make pairs in its rotation."""

    num_layers: int = 2
    hidden_size: int = 64
    intermediate_size: int = 96
    num_heads: int = 4
    num_kv_heads: int = 4
    vocab_size: int = 300
    context_length: int = 128
    theta: float = 10000.0
    eps: float = 1e-5
    dtype: type[np.generic] = np.float32
    interleaved: bool = True
    repeats: bool = False
    """Whether matrices of one shape are cut from one file, each a page further in: written at once."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def write_release(folder: Path, shape: ReleaseShape, seed: int = 0) -> Path:
    """Write a release into the new folder `folder` with a tokenizer of made-up words; return it."""
    (folder / "ONNX").mkdir(parents=True)
    author = _Author(folder / "ONNX", shape, seed)
    (folder / "ONNX" / f"LlamaV2_{folder.name}.onnx").write_bytes(author.graph().SerializeToString())
    write_embeddings(folder / "embeddings.pth", author.matrix(shape.vocab_size, shape.hidden_size, 1.0))
    write_tokenizer(folder / "tokenizer.model", shape.vocab_size)
    return folder


class _Author:
    """Writes one graph, node by node; matrices go to files in `folder`."""

    def __init__(self, folder: Path, shape: ReleaseShape, seed: int) -> None:
        self._folder = folder
        self._shape = shape
        self._random = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._stored: list[TensorProto] = []
        self._used: Counter[str] = Counter()
        self._kind = helper.np_dtype_to_tensor_dtype(np.dtype(shape.dtype))

    def matrix(self, rows: int, columns: int, spread: float) -> Array:
        """Return a random matrix of the release's type."""
        values = self._random.standard_normal((rows, columns), np.float32) * np.float32(spread)
        return values.astype(self._shape.dtype)

    def graph(self) -> ModelProto:
        """Return the whole model."""
        shape = self._shape
        self._constants()
        stream, keys, values = "x", [], []
        for layer in range(shape.num_layers):
            stream, key, value = self._layer(layer, stream)
            keys.append(self._op("Unsqueeze", [key, "one"]))
            values.append(self._op("Unsqueeze", [value, "one"]))
        self._op("Concat", keys, "k_out", axis=1)
        self._op("Concat", values, "v_out", axis=1)
        last = self._op("Gather", [stream, self._store("last", np.array(-1))], axis=1)
        self._linear(self._norm(last), shape.hidden_size, shape.vocab_size, "logits")
        size, cache = shape.context_length, [1, shape.num_layers, None, shape.num_kv_heads, shape.head_dim]
        inputs = {
            "x": [1, None, shape.hidden_size],
            "attn_mask": [size, size],
            "k_cache": cache,
            "v_cache": cache,
        }
        outputs = {"logits": [1, shape.vocab_size], "k_out": cache, "v_out": cache}
        graph = helper.make_graph(
            self._nodes,
            "release",
            [
                *(helper.make_tensor_value_info(name, self._kind, dims) for name, dims in inputs.items()),
                helper.make_tensor_value_info("pos", TensorProto.INT64, []),
            ],
            [helper.make_tensor_value_info(name, self._kind, dims) for name, dims in outputs.items()],
            self._stored,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)

    def _constants(self) -> None:
        shape = self._shape
        self._store("one", np.array([1]))
        self._store("two", np.array(2.0, np.float32))
        self._store("eps", np.array(shape.eps, np.float32))
        self._store("unit", np.array(1.0, np.float32))
        self._store("scale", np.array(shape.head_dim**0.5, shape.dtype))
        frequencies = shape.theta ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = np.outer(np.arange(shape.context_length), frequencies)[None, :, None]
        self._store("cos", np.cos(angles).astype(shape.dtype))
        self._store("sin", np.sin(angles).astype(shape.dtype))
        length = self._op("Gather", [self._op("Shape", ["x"]), self._store("second", np.array([1]))])
        start = self._op("Unsqueeze", ["pos", self._store("front", np.array([0]))])
        end = self._op("Add", [start, length])
        self._op("Slice", ["cos", start, end, "one"], "cos.now")
        self._op("Slice", ["sin", start, end, "one"], "sin.now")
        rows = self._op("Slice", ["attn_mask", start, end, "front"])
        self._op("Slice", [rows, "front", end, "one"], "mask.now")

    def _layer(self, layer: int, stream: str) -> tuple[str, str, str]:
        """Add a layer; return its output, its new keys and its new values."""
        shape = self._shape
        hidden, inner, queries = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
        normed = self._norm(stream)
        query = self._rotate(self._heads(self._linear(normed, hidden, queries), shape.num_heads))
        width = shape.num_kv_heads * shape.head_dim
        key = self._rotate(self._heads(self._linear(normed, hidden, width), shape.num_kv_heads))
        value = self._heads(self._linear(normed, hidden, width), shape.num_kv_heads)
        attended = self._attend(layer, query, key, value)
        stream = self._op("Add", [stream, self._linear(attended, queries, hidden)])
        normed = self._norm(stream)
        gate = self._linear(normed, hidden, inner)
        silu = self._op("Mul", [gate, self._op("Sigmoid", [gate])])
        product = self._op("Mul", [silu, self._linear(normed, hidden, inner)])
        return self._op("Add", [stream, self._linear(product, inner, hidden)]), key, value

    def _attend(self, layer: int, query: str, key: str, value: str) -> str:
        shape = self._shape
        index = self._store(f"layer.{layer}", np.array(layer))
        groups = shape.num_heads // shape.num_kv_heads
        sides = []
        for new, cache, order in ((key, "k_cache", [0, 2, 3, 1]), (value, "v_cache", [0, 2, 1, 3])):
            whole = self._op("Concat", [self._op("Gather", [cache, index], axis=1), new], axis=1)
            if groups > 1:
                wide = self._op(
                    "Concat",
                    [self._op("Unsqueeze", [whole, self._store_once("three", [3])])] * groups,
                    axis=3,
                )
                whole = self._op("Reshape", [wide, self._split(shape.num_heads)])
            sides.append(self._op("Transpose", [whole], perm=order))
        first = self._op("Transpose", [query], perm=[0, 2, 1, 3])
        scores = self._op("Div", [self._op("MatMul", [first, sides[0]]), "scale"])
        weights = self._op("Softmax", [self._op("Add", [scores, "mask.now"])], axis=-1)
        mixed = self._op("Transpose", [self._op("MatMul", [weights, sides[1]])], perm=[0, 2, 1, 3])
        return self._op("Reshape", [mixed, self._store_once("flat", [0, 0, -1])])

    def _norm(self, x: str) -> str:
        shape = self._shape
        narrow = shape.dtype is np.float16
        wide = self._op("Cast", [x], to=TensorProto.FLOAT) if narrow else x
        mean = self._op("ReduceMean", [self._op("Pow", [wide, "two"])], axes=[-1], keepdims=1)
        root = self._op("Sqrt", [self._op("Add", [mean, "eps"])])
        scaled = self._op("Mul", [wide, self._op("Div", ["unit", root])])
        scaled = self._op("Cast", [scaled], to=self._kind) if narrow else scaled
        values = (1.0 + 0.2 * self._random.standard_normal(shape.hidden_size)).astype(shape.dtype)
        return self._op("Mul", [scaled, self._store(f"norm.{len(self._stored)}", values)])

    def _rotate(self, heads: str) -> str:
        """Turn pairs of [1, tokens, heads, dim]: neighbours, or the halves of a head."""
        shape = self._shape
        if shape.interleaved:
            by_pair = self._op(
                "Reshape", [heads, self._store_once("pairs", [0, 0, 0, shape.head_dim // 2, 2])]
            )
            first, second = (
                self._op("Gather", [by_pair, self._store_once(f"at{i}", i)], axis=-1) for i in (0, 1)
            )
        else:
            first, second = f"{heads}.first", f"{heads}.second"
            self._nodes.append(helper.make_node("Split", [heads], [first, second], axis=-1))
        real = self._op("Sub", [self._op("Mul", [first, "cos.now"]), self._op("Mul", [second, "sin.now"])])
        other = self._op("Add", [self._op("Mul", [first, "sin.now"]), self._op("Mul", [second, "cos.now"])])
        if not shape.interleaved:
            return self._op("Concat", [real, other], axis=-1)
        behind = self._store_once("behind", [-1])
        pairs = self._op("Concat", [self._op("Unsqueeze", [part, behind]) for part in (real, other)], axis=-1)
        return self._op("Reshape", [pairs, self._store_once("joined", [0, 0, 0, -1])])

    def _heads(self, rows: str, num_heads: int) -> str:
        return self._op("Reshape", [rows, self._split(num_heads)])

    def _split(self, num_heads: int) -> str:
        return self._store_once(f"heads.{num_heads}", [0, 0, num_heads, self._shape.head_dim])

    def _linear(self, x: str, rows: int, columns: int, output: str = "") -> str:
        name = f"onnx::MatMul_{1000 + len(self._stored)}"
        location = f"MatMul_{rows}x{columns}" if self._shape.repeats else name.replace("::", "__")
        if location not in self._used:
            values = self.matrix(rows, columns, 1.0 / rows**0.5)
            more = more_of(values) if self._shape.repeats else b""
            (self._folder / location).write_bytes(values.tobytes() + more)
        tensor = TensorProto(
            name=name, dims=(rows, columns), data_type=self._kind, data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=location)
        if self._shape.repeats:
            offset = self._used[location] % MOST_REPEATED * PAGE
            length = rows * columns * np.dtype(self._shape.dtype).itemsize
            tensor.external_data.add(key="offset", value=str(offset))
            tensor.external_data.add(key="length", value=str(length))
        self._used[location] += 1
        self._stored.append(tensor)
        return self._op("MatMul", [x, name], output)

    def _store(self, name: str, values: Array) -> str:
        self._stored.append(numpy_helper.from_array(values, name))
        return name

    def _store_once(self, name: str, values: int | Sequence[int]) -> str:
        return name if any(t.name == name for t in self._stored) else self._store(name, np.array(values))

    def _op(self, kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"{kind}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def write_embeddings(path: Path, values: Array, pickled: bytes | None = None) -> None:
    """Write what torch.save writes for {"weight": values}, or with another pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embeddings/data.pkl", state_dict_pickle(values) if pickled is None else pickled)
        archive.writestr("embeddings/byteorder", "little")
        archive.writestr("embeddings/data/0", values.tobytes())
        archive.writestr("embeddings/version", "3\n")


def state_dict_pickle(values: Array, key: str = "weight") -> bytes:
    """Return the pickle of a state dict with one tensor, opcode by opcode."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def whole(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")

    rows, columns = values.shape
    storage = b"HalfStorage" if values.dtype == np.float16 else b"FloatStorage"
    location = (text("storage"), b"ctorch\n" + storage + b"\n", text("0"), text("cpu"), whole(values.size))
    return b"".join([
        b"\x80\x02}", text(key), b"ctorch._utils\n_rebuild_tensor_v2\n((", *location, b"tQ",
        whole(0), whole(rows), whole(columns), b"\x86", whole(columns), whole(1), b"\x86",
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ])  # fmt: skip


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """Write a SentencePiece model with Llama's control and byte tokens, the others made-up words."""
    model = sentencepiece_model.ModelProto()
    kinds = sentencepiece_model.ModelProto.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0, type=kind)
    for byte in range(_NUM_BYTES):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=kinds.BYTE)
    for index in range(vocab_size - _NUM_BYTES - _NUM_CONTROL):
        model.pieces.add(piece=f"\u2581w{index}", score=-float(index), type=kinds.NORMAL)
    model.trainer_spec.model_type = sentencepiece_model.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = vocab_size
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path.write_bytes(model.SerializeToString())
