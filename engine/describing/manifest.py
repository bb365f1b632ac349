"""The manifest of a converted model folder: what is in it, and the proof that it is whole.

A folder is `manifest.json`, `weights.bin` and the tokenizer's file. The manifest describes the decoder and
each of its tensors: the graphs are made of that when the model is loaded. It is written last, so a folder
with a manifest is complete. Loading checks the size of every file and the checksum of small ones;
`verify_files` with `full=True` reads everything. Nothing in a manifest is trusted: a folder may come from
anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from engine.describing.architecture import DecoderConfig, Precision, decoder_tensors
from engine.describing.stored import StoredTensor
from engine.errors import ModelFormatError
from engine.files import from_json
from engine.types import RANGES

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.bin"
FORMAT_VERSION = 3
_NEWEST_VERSION = 4
"""Of decoders that have what version 3 did not know of."""

_REMEDY = "Remove the folder and convert the model again; the default model converts itself again."
_HASHED_AT_LOAD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Which tokenizer reads the text. `kind` is "bpe" (byte-level), "bpe-metaspace" or "sentencepiece".

    lstrip, rstrip: control tokens that swallow the white space on their left or right. spaced_inside: whether
    SentencePiece puts a space before a text behind a control token too, as Llama 2 has it.
    """

    kind: str
    file: str
    special_ids: Mapping[str, int] = field(default_factory=dict)
    lstrip: tuple[str, ...] = ()
    rstrip: tuple[str, ...] = ()
    spaced_inside: bool = True


@dataclass(frozen=True, slots=True)
class ChatSpec:
    """How dialogs become prompts: "chatml", "llama-2" or "jinja"; None for a base model.

    `template` is the Jinja source of the format "jinja", written by whoever made the model: not trusted.
    `reasoning` are the two marks around what the model thinks, where it does; `thinking_switch` is the
    template's variable that has it answer at once when it is false. `tokens` are the template's variables for
    tokens, such as `bos_token`; without any, they are the manifest's own.
    """

    format: str | None
    default_system_prompt: str = ""
    template: str = ""
    reasoning: tuple[str, ...] = ()
    thinking_switch: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)


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
    tensors: Mapping[str, StoredTensor]
    """The decoder's tensors by name, as they lie in `weights.bin`."""
    stop_ids: tuple[int, ...] = ()
    """What ends the model's turn beside `eos_id` and what the chat format names."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """How the model's authors would have it sampled, by the names of `SamplingParams`."""
    reference: Reference | None = None
    """For models that run on a GPU too; None also where the CPU had no memory to compute it."""
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, at once: whoever reads it meanwhile reads a whole one."""
        described = asdict(self)
        described["decoder"] = _decoder_json(self.decoder)
        if self.decoder.beyond_llama_2:
            described["format_version"] = _NEWEST_VERSION
        text = json.dumps(described, indent=1, ensure_ascii=False)
        partial = folder / f".{MANIFEST_FILE}.{os.getpid()}"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(folder / MANIFEST_FILE)


def _decoder_json(config: DecoderConfig) -> dict[str, object]:
    """Describe a decoder as version 3 does; what that did not know of is said only where there is any."""
    optional = {entry.name for entry in fields(config) if entry.default is not MISSING} - {"rope_factor"}
    unsaid = optional - config.beyond_llama_2
    return {name: value for name, value in asdict(config).items() if name not in unsaid}


def load_manifest(folder: Path) -> Manifest:
    """Read and validate a folder's manifest. Raises `ModelFormatError`."""
    path = folder / MANIFEST_FILE
    try:
        if folder.is_file():
            raise ModelFormatError(
                f"{folder} is a file, not a converted model. {_convert(folder, folder.stem)}"
            )
        if not folder.is_dir():
            raise ModelFormatError(
                f"There is no model folder at {folder}. Check MODEL. To see models that can be downloaded: "
                "python -m engine models"
            )
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFormatError(
            f"{folder} is not a converted model: it has no {MANIFEST_FILE}. {_convert(folder, folder.name)}"
        ) from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not valid JSON ({error}). {_REMEDY}") from error
    _check_version(folder, raw)
    try:
        manifest: Manifest = from_json(Manifest, raw, "the manifest")
        _check(manifest)
    except KeyError as error:
        raise ModelFormatError(f"{path} is damaged (it lacks {error}). {_REMEDY}") from error
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"{path} is damaged ({error}). {_REMEDY}") from error
    return manifest


def _convert(path: Path, name: str) -> str:
    return f"Convert the model first: python -m engine convert {path} models/{name}"


def _check_version(folder: Path, raw: object) -> None:
    described = raw if isinstance(raw, dict) else {}
    version = described.get("format_version")
    if version in (FORMAT_VERSION, _NEWEST_VERSION):
        return
    if not isinstance(version, int) or version > _NEWEST_VERSION:
        what = "has a format that this version of the program can't read: a newer one may have converted it."
        raise ModelFormatError(f"{folder} {what} Update the program, or convert the model again.")
    source, precision = described.get("source"), described.get("precision")
    names = source if isinstance(source, dict) else {}
    origin = names.get("file", names.get("folder", "SOURCE"))
    command = f"python -m engine convert {origin} {folder} --precision {precision}"
    raise ModelFormatError(
        f"An older version of this program converted {folder}. Remove that folder and make it again from the "
        f"model's own files: {command}"
    )


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` where the manifest's parts do not fit each other."""
    tokenizer, vocab_size = manifest.tokenizer, manifest.decoder.vocab_size
    for name in (*manifest.files, tokenizer.file):
        if name != Path(name).name or name in ("", ".."):
            raise ValueError(f"{name!r} is not a plain file name")
    missing = {WEIGHTS_FILE, tokenizer.file} - manifest.files.keys()
    if missing:
        raise ValueError(f"it does not describe {', '.join(sorted(missing))}")
    for token in (manifest.bos_id, manifest.eos_id, *manifest.stop_ids, *tokenizer.special_ids.values()):
        if not 0 <= token < vocab_size:
            raise ValueError(f"the control token {token!r} is outside the vocabulary")
    for name, value in manifest.sampling.items():
        if name not in RANGES or not RANGES[name].low <= value <= RANGES[name].high:
            raise ValueError(f"it advises to sample with {name} {value}")
    if len(manifest.chat.reasoning) not in (0, 2) or not all(manifest.chat.reasoning):
        raise ValueError("the marks around what the model thinks are not two")
    _check_tensors(manifest)
    if manifest.reference is not None:
        _check_reference(manifest.reference, vocab_size)


def _check_tensors(manifest: Manifest) -> None:
    expected = {tensor.name: tensor for tensor in decoder_tensors(manifest.decoder)}
    different = sorted(manifest.tensors.keys() ^ expected.keys())
    if different:
        raise ValueError(f"the decoder has no tensor {different[0]}, or the file has none")
    size = manifest.files[WEIGHTS_FILE].size
    for name, tensor in expected.items():
        stored = manifest.tensors[name]
        if not stored.is_a(tensor) or stored.end > size:
            raise ValueError(f"what it says of the tensor {name} does not fit the decoder")


def _check_reference(reference: Reference, vocab_size: int) -> None:
    ids, likeliest, said = reference.ids, reference.likeliest, reference.log_probabilities
    if not all(0 <= token < vocab_size for row in (ids, *likeliest) for token in row):
        raise ValueError("the reference has a token outside the vocabulary")
    if not all(math.isfinite(value) for row in said for value in row):
        raise ValueError("the reference has a log-probability that is no number")
    if not 0 < len(likeliest) <= len(ids) or [*map(len, likeliest)] != [*map(len, said)] or not all(said):
        raise ValueError("the reference's parts do not fit each other")


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
