"""The manifest of a converted model folder: what is in it, and the proof that it is whole.

A folder is `manifest.json`, `decoder.onnx`, `weights.bin` and the tokenizer's file. The manifest is
written last, so a folder with a manifest is complete. Loading checks the size of every file and the
checksum of small ones; `verify_files` with `full=True` reads everything. Nothing in a manifest is
trusted: a folder may come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from engine.describing.architecture import DecoderConfig, Precision
from engine.errors import ModelFormatError

MANIFEST_FILE = "manifest.json"
DECODER_FILE = "decoder.onnx"
WEIGHTS_FILE = "weights.bin"
CUDA_DECODER_FILE = "decoder.cuda.onnx"
CUDA_WEIGHTS_FILE = "weights.cuda.bin"
FORMAT_VERSION = 2

_REMEDY = "Remove the folder and convert the model anew; the default model is made anew by itself."
_HASHED_AT_LOAD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Which tokenizer reads the text. `kind` is "bpe" (byte-level), "bpe-metaspace" or "sentencepiece"."""

    kind: str
    file: str
    special_ids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatSpec:
    """How dialogs become prompts: "chatml", "llama-2" or "jinja"; None for a base model.

    `template` is the Jinja source of the format "jinja", written by whoever made the model: not trusted.
    """

    format: str | None
    default_system_prompt: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the CPU says of some tokens:

    after each of the last `ids` the likeliest next ones, and how likely.
    """

    ids: tuple[int, ...]
    likeliest: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that loading needs to know of a converted model."""

    name: str
    precision: Precision
    decoder: DecoderConfig
    tokenizer: TokenizerSpec
    chat: ChatSpec
    bos_id: int
    eos_id: int
    source: Mapping[str, str]
    files: Mapping[str, FileEntry]
    stop_ids: tuple[int, ...] = ()
    """What ends the model's turn beside `eos_id` and what the chat format names."""
    reference: Reference | None = None
    """For models that run on a GPU too; None also where the CPU had no memory to compute it."""
    format_version: int = FORMAT_VERSION

    @property
    def runs_on_gpu(self) -> bool:
        """Whether the folder holds a graph for a GPU."""
        return CUDA_DECODER_FILE in self.files

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Read and validate a folder's manifest. Raises `ModelFormatError`."""
    path = folder / MANIFEST_FILE
    try:
        if not folder.is_dir():
            raise ModelFormatError(f"There is no model folder at {folder}. Check MODEL.")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFormatError(
            f"{folder} is not a converted model: it has no {MANIFEST_FILE}. Convert the model first."
        ) from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not valid JSON ({error}). {_REMEDY}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ModelFormatError(f"{path} has format version {version!r}, not {FORMAT_VERSION}. {_REMEDY}")
    try:
        return _parse(raw)
    except KeyError as error:
        raise ModelFormatError(f"{path} is damaged (it lacks {error}). {_REMEDY}") from error
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"{path} is damaged ({error}). {_REMEDY}") from error


def _parse(raw: dict[str, Any]) -> Manifest:
    """Raises `KeyError`, `TypeError` or `ValueError` with the reason, and `ModelFormatError`."""
    decoder = DecoderConfig(**_checked(DecoderConfig, raw["decoder"]))
    tokenizer = TokenizerSpec(**_checked(TokenizerSpec, raw["tokenizer"]))
    described = _object("files", raw["files"])
    files = {name: FileEntry(**_checked(FileEntry, entry)) for name, entry in described.items()}
    for name in (*files, tokenizer.file):
        if name != Path(name).name or name in ("", ".."):
            raise ValueError(f"{name!r} is not a plain file name")
    missing = {DECODER_FILE, WEIGHTS_FILE, tokenizer.file} - files.keys()
    if missing:
        raise ValueError(f"it does not describe {', '.join(sorted(missing))}")
    for token in (raw["bos_id"], raw["eos_id"], *raw["stop_ids"], *tokenizer.special_ids.values()):
        if type(token) is not int or not 0 <= token < decoder.vocab_size:
            raise ValueError(f"the control token {token!r} is outside the vocabulary")
    return Manifest(
        name=str(raw["name"]),
        precision=Precision(raw["precision"]),
        decoder=decoder,
        tokenizer=tokenizer,
        chat=ChatSpec(**_checked(ChatSpec, raw["chat"])),
        bos_id=raw["bos_id"],
        eos_id=raw["eos_id"],
        stop_ids=tuple(raw["stop_ids"]),
        source={key: str(value) for key, value in _object("source", raw["source"]).items()},
        files=files,
        reference=_reference(raw.get("reference"), decoder.vocab_size),
    )


def _reference(raw: object, vocab_size: int) -> Reference | None:
    if raw is None:
        return None
    values = _object("reference", raw)
    ids, likeliest = tuple(values["ids"]), tuple(map(tuple, values["likeliest"]))
    said = tuple(map(tuple, values["log_probabilities"]))
    tokens = [*ids, *(token for row in likeliest for token in row)]
    if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
        raise ValueError("the reference has a token outside the vocabulary")
    if not all(isinstance(value, float) and math.isfinite(value) for row in said for value in row):
        raise ValueError("the reference has a log-probability that is no number")
    if not 0 < len(likeliest) <= len(ids) or [*map(len, likeliest)] != [*map(len, said)] or not all(said):
        raise ValueError("the reference's parts do not fit each other")
    return Reference(ids, likeliest, said)


def _checked(kind: type, raw: object) -> dict[str, Any]:
    """Return `raw` if it has exactly the fields of the dataclass `kind`, each of its type."""
    values = _object(kind.__name__, raw)
    types = get_type_hints(kind)
    different = values.keys() ^ types.keys()
    if different:
        raise ValueError(f"missing or unknown: {', '.join(sorted(different))}")
    for name, expected in types.items():
        if not _is_a(values[name], expected):
            raise TypeError(f"{name} must not be {values[name]!r}")
    return values


def _object(name: str, raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError(f"{name} is not an object")
    return raw


def _is_a(value: object, expected: Any) -> bool:
    if isinstance(value, bool):
        return expected is bool
    if expected is float:
        return isinstance(value, (int, float))
    return isinstance(value, Mapping if get_origin(expected) is Mapping else expected)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path, names: list[str]) -> dict[str, FileEntry]:
    """Measure the named files of `folder` for a manifest."""
    return {name: FileEntry((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}


def verify_files(folder: Path, manifest: Manifest, *, full: bool = False) -> None:
    """Compare the folder's files with the manifest; `full` hashes the large ones too.

    Raises `ModelFormatError` naming the first file that is missing, truncated or changed.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.size:
                raise ModelFormatError(
                    f"{path} has {size} bytes instead of {entry.size}: truncated or changed. {_REMEDY}"
                )
            if (full or size <= _HASHED_AT_LOAD_BYTES) and sha256_of(path) != entry.sha256:
                raise ModelFormatError(f"{path} does not match its checksum: it was changed. {_REMEDY}")
        except FileNotFoundError:
            raise ModelFormatError(f"{path} is missing from the model folder. {_REMEDY}") from None
        except OSError as error:
            raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
