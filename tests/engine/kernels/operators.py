"""Sessions of one operator each, ours or ONNX Runtime's, over made-up weights and caches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import kernels
from engine.graphs.graph_builder import CONTRIB, OURS

Array = npt.NDArray[np.float32]


def choices() -> list[str]:
    """Return the instructions that this machine has, as `LLAMACORD_KERNELS` names them."""
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for name in kernels.NAMES:
            patch.setenv(kernels.SWITCH, name)
            found += [name] * (kernels.library() is not None)
        return found


def choose(name: str, *, for_attention: bool = False) -> Iterator[None]:
    """Use some instructions for a while; skip where they have no attention and it is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.SWITCH, name)
        if for_attention and not kernels.has_attention():
            pytest.skip("There is no attention with these instructions.")
        yield


def session(graph: object, *, num_threads: int = 2) -> onnxruntime.InferenceSession:
    """Return a session of a graph, with our library where there is one."""
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), (CONTRIB, 1), (OURS, 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    library = kernels.library()
    assert library is not None
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass(frozen=True)
class Blocks:
    """A matrix [n, k] in blocks of 32, as a model folder stores it, and what it is in float64."""

    bits: int
    values: npt.NDArray[np.uint8]
    scales: Array
    offsets: Array | None

    @classmethod
    def random(
        cls, rng: np.random.Generator, n: int, k: int, bits: int, *, has_offsets: bool, is_half: bool = True
    ) -> Blocks:
        """Return a random one. is_half: scales are exact in half precision, as those of GGUF files."""
        num = k // 32
        kind = np.float16 if is_half else np.float32
        scales = (0.001 + rng.random((n, num)) * 0.01).astype(kind).astype(np.float32)
        middle = np.float32(8 if bits == 4 else 128)
        offsets = None
        if has_offsets:
            # A folder's offset is of value - 8; GGUF's, which is in half precision, of the value.
            offsets = rng.standard_normal((num, n)).astype(kind).astype(np.float32) * np.float32(0.125)
            offsets = offsets + middle * scales.T
        return cls(bits, rng.integers(0, 256, (n, num, 4 * bits), dtype=np.uint8), scales, offsets)

    @property
    def dense(self) -> npt.NDArray[np.float64]:
        """What the matrix is."""
        values = self.values
        if self.bits == 4:
            values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], 32)
        middle = 8 if self.bits == 4 else 128
        weights = (values.astype(np.float64) - middle) * self.scales[..., None]
        if self.offsets is not None:
            weights += self.offsets.T[..., None]
        return weights.reshape(len(values), -1)

    def save(self, path: Path) -> tuple[int, int, int]:
        """Write the matrix to a file; return where values, scales and offsets begin there."""
        parts: list[npt.NDArray[np.generic]] = [self.values, self.scales]
        parts += [] if self.offsets is None else [self.offsets]
        path.write_bytes(b"".join(part.tobytes() for part in parts))
        behind = self.values.nbytes + self.scales.nbytes
        return 0, self.values.nbytes, -1 if self.offsets is None else behind


def our_product(
    matrix: Blocks, path: Path, *, gated: int = 0, **changes: object
) -> onnxruntime.InferenceSession:
    """Return a session of `BlockLinear`, x to y."""
    n, k = matrix.scales.shape[0], matrix.scales.shape[1] * 32
    values, scales, offsets = matrix.save(path)
    attributes: dict[str, object] = {
        "file": str(path), "n": n, "k": k, "bits": matrix.bits, "values": values, "scales": scales,
        "offsets": offsets, "gated": gated, **changes,
    }  # fmt: skip
    node = helper.make_node("BlockLinear", ["x"], ["y"], domain=OURS, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", None])
    return session(helper.make_graph([node], "product", [x], [y]))


def their_product(matrix: Blocks) -> onnxruntime.InferenceSession:
    """Return a session of `MatMulNBits`, which knows no offsets."""
    node = helper.make_node(
        "MatMulNBits", ["x", "values", "scales"], ["y"], domain=CONTRIB, N=len(matrix.scales),
        K=matrix.scales.shape[1] * 32, bits=matrix.bits, block_size=32, accuracy_level=4,
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", None])
    constants = [
        numpy_helper.from_array(matrix.values, "values"), numpy_helper.from_array(matrix.scales, "scales")
    ]  # fmt: skip
    return session(helper.make_graph([node], "product", [x], [y], constants))


@dataclass(frozen=True)
class Heads:
    """What one attention is like."""

    num: int
    num_kv: int
    dim: int
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.0
    rotary_dim: int = 0
    """0: all of a head."""
    is_normed: bool = False
    is_packed: bool = True

    @property
    def width(self) -> int:
        """Numbers of one token's queries, keys and values."""
        return (self.num + 2 * self.num_kv) * self.dim


class SlotCache:
    """One attention over slots of a cache of its own."""

    def __init__(
        self, heads: Heads, *, num_slots: int, max_len: int, is_ours: bool = True, is_half: bool = False
    ) -> None:
        self.heads = heads
        self.keys = np.zeros(
            (num_slots, heads.num_kv, max_len, heads.dim), np.float16 if is_half else np.float32
        )
        self.values = np.zeros_like(self.keys)
        self._is_ours = is_ours
        self._session = session(self._graph(max_len))

    def run(self, rows: Array, totals: list[int], first_slot: int = 0, *, in_place: bool = True) -> Array:
        """Attend with rows [batch * length, width]; `totals` are the lengths of the sequences with them."""
        heads, batch = self.heads, len(totals)
        binding = self._session.io_binding()
        keys = self.keys[first_slot : first_slot + batch]
        values = self.values[first_slot : first_slot + batch]
        out = np.empty((len(rows), heads.num * heads.dim), np.float32)
        sizes = np.cumsum([heads.num * heads.dim, heads.num_kv * heads.dim])
        parts = (
            [rows] if heads.is_packed else [np.ascontiguousarray(x) for x in np.split(rows, sizes, axis=1)]
        )
        feeds: dict[str, npt.NDArray[np.generic]] = dict(zip("qkv", parts, strict=False))
        feeds |= {"past_key": keys, "past_value": values, "totals": np.array(totals, np.int32) - 1}
        if not self._is_ours:
            feeds["shape"] = np.array([batch, len(rows) // batch, rows.shape[1]])
            feeds["longest"] = np.array(max(totals), np.int32)
        for name, value in feeds.items():
            binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        elsewhere = np.empty_like(keys)
        for name, value in (("out", out), ("key", keys if in_place else elsewhere), ("value", values)):
            binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self._session.run_with_iobinding(binding)
        return out

    def _graph(self, max_len: int) -> object:
        heads = self.heads
        floats, is_half = TensorProto.FLOAT, self.keys.dtype == np.float16
        cached = TensorProto.FLOAT16 if is_half else floats
        cache = ["batch", heads.num_kv, "max_len", heads.dim]
        half = (heads.rotary_dim or heads.dim) // 2
        angles = np.arange(max_len)[:, None] / 10000 ** (np.arange(half) / half)[None]
        constants = [
            numpy_helper.from_array(np.cos(angles).astype(np.float32), "cos"),
            numpy_helper.from_array(np.sin(angles).astype(np.float32), "sin"),
        ]
        value = helper.make_tensor_value_info
        inputs = [value(name, floats, ["rows", None]) for name in ("q" if heads.is_packed else "qkv")]
        inputs += [value("past_key", cached, cache), value("past_value", cached, cache)]
        inputs += [value("totals", TensorProto.INT32, ["batch"])]
        outputs = [value("out", floats, ["rows", heads.num * heads.dim])]
        outputs += [value("key", cached, cache), value("value", cached, cache)]
        sequences = ["q", "", ""] if heads.is_packed else ["q", "k", "v"]
        scale = heads.scale or heads.dim**-0.5
        if self._is_ours:
            norms = ["q_norm", "k_norm"] if heads.is_normed else []
            constants += [numpy_helper.from_array(norm_of(name, heads.dim), name) for name in norms]
            node = helper.make_node(
                "HalfSlotAttention" if is_half else "SlotAttention",
                [*sequences, "past_key", "past_value", "totals", "cos", "sin", *norms],
                ["out", "key", "value"], domain=OURS, num_heads=heads.num, kv_num_heads=heads.num_kv,
                head_dim=heads.dim, local_window_size=heads.window, scale=scale, softcap=heads.softcap,
                qk_norm_epsilon=1e-6,
            )  # fmt: skip
            return helper.make_graph([node], "attention", inputs, outputs, constants)
        attributes = {"num_heads": heads.num, "kv_num_heads": heads.num_kv, "do_rotary": 1, "scale": scale}
        attributes |= {"local_window_size": heads.window} if heads.window else {}
        attributes |= {"softcap": heads.softcap} if heads.softcap else {}
        inputs += [value("shape", TensorProto.INT64, [3]), value("longest", TensorProto.INT32, [])]
        constants.append(numpy_helper.from_array(np.array([-1, heads.num * heads.dim]), "out_shape"))
        nodes = [
            helper.make_node("Reshape", ["q", "shape"], ["sequences"]),
            helper.make_node(
                "GroupQueryAttention",
                ["sequences", "", "", "past_key", "past_value", "totals", "longest", "cos", "sin"],
                ["attended", "key", "value"], domain=CONTRIB, **attributes,
            ),
            helper.make_node("Reshape", ["attended", "out_shape"], ["out"]),
        ]  # fmt: skip
        return helper.make_graph(nodes, "attention", inputs, outputs, constants)


def norm_of(name: str, dim: int) -> Array:
    """Return made-up weights of a norm."""
    rng = np.random.default_rng([len(name), ord(name[0])])
    return (1 + 0.2 * rng.standard_normal(dim)).astype(np.float32)
