"""Writes what lies beside a release's graph: the embeddings as torch.save writes them, and a tokenizer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

Array = npt.NDArray[np.generic]
_NUM_BYTES, _NUM_CONTROL = 256, 3


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
