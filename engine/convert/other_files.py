"""Tells what a file or folder is that holds no model to convert, and what to do about it. Only looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.convert.adapters import ADAPTER_CONFIG, base_model, is_adapter
from engine.convert.gguf_header import MAGIC, IncompleteError, read_header
from engine.describing.manifest import MANIFEST_FILE
from engine.errors import ModelFormatError
from engine.files import read_optional_json

CONFIG_FILE = "config.json"
_LOOK = 2**22
"""Bytes at the beginning of a file; what a GGUF file says of itself is among the first."""
_SHOWN_CHARACTERS = 80
GET_ANOTHER_FORM = "Get the model as a GGUF file (such as Q4_K_M) or as a folder in the safetensors format."

_FIRST_BYTES: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"lmgg", b"fmgg", b"tjgg"),
        "is in llama.cpp's format of before August 2023 (GGML), which is no longer read. Get it as GGUF.",
    ),
    ((b"algg",), f"is a LoRA adapter in llama.cpp's old format. {GET_ANOTHER_FORM}"),
    (
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        f"is a PyTorch file, a pickle that may run any code, or a ZIP archive. {GET_ANOTHER_FORM}",
    ),
    (
        (b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"Rar!", b"\x28\xb5\x2f\xfd"),
        "is an archive: unpack it first.",
    ),
    ((b"\x89HDF",), f"is a file of Keras or TensorFlow. {GET_ANOTHER_FORM}"),
)
_GGUF_KINDS = {
    "adapter": "is a LoRA adapter, not a model. Name the adapter's folder, as peft saved it, with --adapter.",
    "mmproj": "is the part of a model that sees pictures (mmproj), not the model. Use the other GGUF file.",
    "imatrix": "holds statistics for quantising (imatrix), not a model. Use the other GGUF file.",
}
_ENDINGS = {
    ".safetensors": "is one file of a folder: name the folder, with its config.json and tokenizer.",
    ".json": "describes a model: name the folder that it is in.",
    ".incomplete": "is a download that has not ended. Run it again.",
    ".part": "is a download that has not ended. Run it again.",
    ".crdownload": "is a download that has not ended. Run it again.",
}
_METHODS = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "bitnet": "BitNet",
    "compressed-tensors": "compressed-tensors",
    "exl2": "ExLlama",
    "exl3": "ExLlama",
    "fbgemm_fp8": "fp8",
    "fp8": "fp8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "torchao": "torchao",
}


def followed(path: Path) -> Path:
    """Return where a model lies if `path` is the folder of one in Hugging Face's cache, else `path`.

    There a model has a folder `models--owner--name` with its revisions, of which `main` counts.
    Raises `ModelFormatError` where nothing is there, or several are and none is the one.
    """
    top = path.parent if path.name == "snapshots" else path
    if not (top / "snapshots").is_dir() or (top / CONFIG_FILE).exists():
        return path
    there = sorted(folder for folder in (top / "snapshots").iterdir() if folder.is_dir())
    try:
        main = top / "snapshots" / (top / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        main = top
    if main in there or len(there) == 1:
        return main if main in there else there[0]
    names = ", ".join(folder.name[:12] for folder in there) or "none"
    raise ModelFormatError(f"{top} is a folder of Hugging Face's cache; name one of its snapshots ({names}).")


def refuse_other_file(path: Path) -> None:
    """Raise `ModelFormatError` with what `path` is, unless it looks like a GGUF file."""
    try:
        with path.open("rb") as file:
            content = file.read(_LOOK)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    reason = _file(path, content)
    if reason:
        raise ModelFormatError(f"{path} {reason}")


def refuse_other_folder(folder: Path, *, with_adapter: bool = False) -> None:
    """Raise `ModelFormatError` with what `folder` is, unless it looks like a Hugging Face folder of weights.

    with_adapter: it is known that an adapter lies there too.
    """
    reason = _folder(folder, with_adapter)
    if reason:
        raise ModelFormatError(f"{folder} {reason}")


def _file(path: Path, content: bytes) -> str:
    if content.startswith(MAGIC):
        try:
            return _GGUF_KINDS.get(read_header(content).kind, "")
        except (IncompleteError, ValueError):
            return ""  # whoever reads it for good says more
    if not content:
        return "is empty: the download failed or has not begun. Run it again."
    for beginnings, reason in _FIRST_BYTES:
        if content.startswith(beginnings):
            return reason
    if content.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return (
            "is a web page, not a model: it was saved from a page's address. On Hugging Face the address of "
            "a file has /resolve/ in it, that of its page /blob/."
        )
    if path.suffix.lower() in _ENDINGS:
        return _ENDINGS[path.suffix.lower()]
    if len(content) < 1000 and content.isascii():
        words = " ".join(content.decode("ascii").split())
        shown = words if len(words) <= _SHOWN_CHARACTERS else f"{words[: _SHOWN_CHARACTERS - 1]}…"
        return f'is a text, not a model: "{shown}". The download failed.'
    return f"is not a GGUF file, nor anything else that can be converted. {GET_ANOTHER_FORM}"


def _folder(folder: Path, with_adapter: bool) -> str:
    if (folder / MANIFEST_FILE).exists():
        return "is converted already: set MODEL to it."
    if not (folder / CONFIG_FILE).exists():
        return next((reason for check in _CHECKS if (reason := check(folder))), "")
    if is_adapter(folder) and not with_adapter:
        return (
            f"also holds a LoRA adapter ({ADAPTER_CONFIG}). Merge it with --adapter {folder}, or move it "
            "elsewhere to convert the model without it."
        )
    return _quantised(folder)


def _quantised(folder: Path) -> str:
    config = read_optional_json(folder / CONFIG_FILE)
    method = quantisation(config)
    for name, known in (("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")):
        if not method and (folder / name).exists():
            method = known
    return f"has weights that are quantised already. {another_form(method)}" if method else ""


def quantisation(config: Mapping[str, Any]) -> str:
    """Return the name of the method by which the weights of a configuration are quantised, empty for none."""
    described = config.get("quantization_config")
    if isinstance(described, dict) and described:
        return _METHODS.get(str(described.get("quant_method", "")).lower(), "a method that is not known")
    return "MLX" if isinstance(config.get("quantization"), dict) else ""


def another_form(method: str) -> str:
    """Say what to get in the place of weights that are quantised by `method`."""
    return (
        f"They are of {method}, for other programs. Get the original in float16 or bfloat16, or a GGUF file, "
        "whose 4 bits are taken over as they are."
    )


def _adapter(folder: Path) -> str:
    if not is_adapter(folder):
        return ""
    base = base_model(read_optional_json(folder / ADAPTER_CONFIG))
    model = f"{base}: get that model, and convert it" if base else "another model: convert that"
    return f"is a LoRA adapter, not a model. It belongs to {model} with --adapter {folder}."


def _metas_own(folder: Path) -> str:
    if not (folder / "params.json").exists():
        return ""
    if (folder / "consolidated.safetensors").exists():
        return f"is in Mistral's own format, without {CONFIG_FILE}. {GET_ANOTHER_FORM}"
    return f"is Meta's own download, made of pickles. {GET_ANOTHER_FORM} Its name ends with hf or GGUF."


def _ggufs(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.gguf"))
    return f"holds GGUF files: name one of them, such as {folder / names[0]}." if names else ""


def _pickles(folder: Path) -> str:
    names = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
    return (
        f"holds {names[0]}, a pickle that may run any code when it is opened. {GET_ANOTHER_FORM}"
        if names
        else ""
    )


def _of_onnx(folder: Path) -> str:
    found = next((path for kind in ("*.onnx", "*/*.onnx") for path in folder.glob(kind)), None)
    return f"holds ONNX files of another program ({found.name}). {GET_ANOTHER_FORM}" if found else ""


def _cache(folder: Path) -> str:
    models = sorted(path.name for path in folder.glob("models--*"))
    return f"is Hugging Face's cache: name one of its models, such as {folder / models[0]}." if models else ""


def _one_below(folder: Path) -> str:
    """Look for models a folder deeper, as those who clone or unpack a release have them."""
    graphs = (path.parent.parent for path in folder.glob("*/ONNX/*.onnx"))
    others = (path.parent for kind in (CONFIG_FILE, "*.gguf") for path in folder.glob(f"*/{kind}"))
    found = sorted({*graphs, *others})
    if len(found) > 1:
        return f"holds several models: name one of them, such as {found[0]}."
    return f"is not a model, but holds one: name {found[0]}." if found else ""


def _nothing(folder: Path) -> str:
    if any(folder.glob("*.safetensors")):
        return f"is not a model: it has no {CONFIG_FILE}. Get all files of the model, not just the weights."
    return f"is not a model: it has no {CONFIG_FILE} and no ONNX/*.onnx."


_CHECKS: tuple[Callable[[Path], str], ...] = (
    _adapter,
    _metas_own,
    _ggufs,
    _pickles,
    _cache,
    _one_below,
    _of_onnx,
    _nothing,
)
