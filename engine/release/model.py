"""Runs a released Llama-2-Onnx graph as it is, with its KV cache on the device. Imports `onnxruntime`.

The graph takes the whole cache and gives the new positions' part of it. Both stay where the graph runs: the
parts are joined by a graph of our own, two Concat nodes, on the same device. The mask is uploaded once.
Satisfies `engine.runtime.runner.SlotModel` with one slot: one sequence at a time, whose beginning is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import helper

from engine.errors import ModelFormatError, ModelResourceError
from engine.graphs.session import open_session
from engine.machine import machine
from engine.release.contract import Contract, load_graph, read_contract
from engine.release.files import ReleaseFiles, read_embeddings
from engine.runtime.sampling import FloatArray

_MASKED = -10000.0
_CACHES = {"k_cache": "k_out", "v_cache": "v_out"}


class ReleaseModel:
    """One loaded release with the KV of one sequence."""

    def __init__(
        self, files: ReleaseFiles, num_threads: int, device: str = "cpu", *, lean: bool = False
    ) -> None:
        """Load the graph on `device`, "cpu" or "cuda"; `lean` runs slowly what memory cannot hold.

        Raises `ModelFormatError` or `ModelResourceError`.
        """
        self.contract = describe_release(files)
        if not lean:
            _check_memory(files)
        # The small graph first: without the device it fails at once.
        self._join = _open_join(self.contract, num_threads, device)
        self._embeddings = read_embeddings(files.embeddings)
        if self._embeddings.shape[1] != self.contract.hidden_size:
            raise ModelFormatError(
                f"{files.embeddings} has rows of {self._embeddings.shape[1]} values, the graph takes "
                f"{self.contract.hidden_size}. It is another model's."
            )
        self._device = device
        self._session = open_session(files.graph, num_threads, device, lean=lean)
        self._mask = self._upload(_causal_mask(self.contract))
        self._cache: dict[str, onnxruntime.OrtValue] = {}
        self.num_held = 0
        self.kv = _OneSlot(self)

    @property
    def vocab_size(self) -> int:
        return len(self._embeddings)

    def prefill(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        """Compute `ids` after the first `num_past` tokens; return the last one's logits [vocab]."""
        if not ids or slot or not 0 <= num_past <= self.num_held:
            raise ValueError(f"Cannot compute {len(ids)} tokens after {num_past} of {self.num_held}.")
        if num_past + len(ids) > self.contract.context_length:
            raise ValueError(f"{num_past + len(ids)} tokens are more than {self.contract.context_length}.")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise ValueError("A token id is outside the vocabulary.")
        self.rewind(num_past)
        rows = self._embeddings[np.asarray(ids)][None].astype(self.contract.dtype)
        binding = self._session.io_binding()
        binding.bind_cpu_input("x", rows)
        binding.bind_cpu_input("pos", np.array(num_past, np.int64))
        binding.bind_ortvalue_input("attn_mask", self._mask)
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in _CACHES.values():
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        logits, *new = binding.get_outputs()
        self._append(new, len(ids))
        return np.asarray(logits.numpy().reshape(-1), np.float32)

    def decode(self, first_slot: int, ids: Sequence[int], lengths: Sequence[int]) -> FloatArray:
        """Compute one id after the first `lengths[0]` tokens; return logits [1, vocab]."""
        if len(ids) != 1 or len(lengths) != 1:
            raise ValueError(f"Cannot decode {len(ids)} sequences at once.")
        return self.prefill(first_slot, ids, lengths[0])[None]

    def _append(self, new: list[onnxruntime.OrtValue], num_new: int) -> None:
        """Join the new positions to the cache, on the device."""
        if self.num_held:
            binding = self._join.io_binding()
            for (past, part), value in zip(_CACHES.items(), new, strict=True):
                binding.bind_ortvalue_input(past, self._cache[past])
                binding.bind_ortvalue_input(part, value)
            for past in _CACHES:
                binding.bind_output(f"{past}.joined", self._device)
            self._join.run_with_iobinding(binding)
            new = binding.get_outputs()
        self._cache = dict(zip(_CACHES, new, strict=True))
        self.num_held += num_new

    def rewind(self, num_tokens: int) -> None:
        """Keep the first tokens' KV only. Copies through the host, once a turn of a conversation."""
        if num_tokens == self.num_held and self._cache:
            return
        self.num_held = num_tokens
        if num_tokens:
            for name, value in self._cache.items():
                self._cache[name] = self._upload(np.ascontiguousarray(value.numpy()[:, :, :num_tokens]))
        else:
            empty = np.zeros(self.contract.cache_shape(0), self.contract.dtype)
            self._cache = {name: self._upload(empty) for name in _CACHES}

    def _upload(self, values: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(values, self._device, 0)


class _OneSlot:
    """The memory of a cache with one slot, between whose slots nothing can move."""

    page_tokens = 1

    def __init__(self, model: ReleaseModel) -> None:
        self._model = model

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        raise ValueError(f"Cannot copy {num_tokens} tokens from slot {source} to {target}: there is one.")

    def swap(self, first: int, second: int, num_first: int, num_second: int) -> None:
        raise ValueError(
            f"Cannot swap {num_first} and {num_second} tokens of {first} and {second}: one slot."
        )

    def give_back(self, slot: int, num_kept: int = 0) -> None:
        if not slot and not num_kept:  # else the next run leaves no more than it needs
            self._model.rewind(0)


def describe_release(files: ReleaseFiles) -> Contract:
    """Check the graph and the files of its tensors, and return its sizes. Raises `ModelFormatError`."""
    return read_contract(load_graph(files.graph), files.graph)


def _check_memory(files: ReleaseFiles) -> None:
    needed, there = files.num_bytes, machine.memory_bytes()
    if needed > there:
        raise ModelResourceError(
            f"{files.name} takes {needed / 2**30:.1f} GiB of memory and this machine has "
            f"{there / 2**30:.1f}. Convert it to 8 or 4 bits: `python -m engine convert`."
        )


def _causal_mask(contract: Contract) -> np.ndarray:
    """[context, context]: 0 up to the diagonal, -10000 above it."""
    size = contract.context_length
    return np.triu(np.full((size, size), _MASKED, contract.dtype), 1)


def _open_join(contract: Contract, num_threads: int, device: str) -> onnxruntime.InferenceSession:
    """Return the graph that appends new positions to the cache."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(contract.dtype))

    def value(name: str) -> object:
        shape = [1, contract.num_layers, None, contract.num_heads, contract.head_dim]
        return helper.make_tensor_value_info(name, kind, shape)

    names = [(past, part, f"{past}.joined") for past, part in _CACHES.items()]
    nodes = [helper.make_node("Concat", [past, part], [joined], axis=2) for past, part, joined in names]
    inputs = [value(name) for past, part, _ in names for name in (past, part)]
    graph = helper.make_graph(nodes, "join", inputs, [value(joined) for *_, joined in names])
    opset = [helper.make_opsetid("", 16)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="llamacord")
    return open_session(model.SerializeToString(), num_threads, device)
