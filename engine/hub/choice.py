"""Which files of a repository are the model that is meant. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from engine.convert.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.convert.other_files import CONFIG_FILE, GET_ANOTHER_FORM
from engine.convert.safetensors import INDEX_FILE, SINGLE_FILE
from engine.errors import ModelFormatError
from engine.hub.address import HubAddress

_QUANT = re.compile(
    r"(?:^|[-._/ ])((?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP4(?:_[A-Z]+)*|B?F16|FP16|FP?32))"
    r"(?=[-._/ ]|$)",
    re.IGNORECASE,
)
"""How the names of GGUF files say in what form their weights are."""
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_BESIDE_MODELS = re.compile(r"mmproj|imatrix|(?:^|/)(?:ggml-)?vocab|(?:^|[-_./])lora[-_.]", re.IGNORECASE)
_USUAL = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q8_0")
"""Taken in this order where none is asked for: 4 bits are small, fast, and taken over as they are."""
_DESCRIPTIONS = frozenset(
    {
        *(CONFIG_FILE, "generation_config.json", "quantize_config.json", "quant_config.json", ADAPTER_CONFIG),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
        *("tekken.json", INDEX_FILE),
    }
)
"""Small files that say what a model is, and whether a LoRA adapter lies beside it."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of a model: those that describe it, those of its weights, and the one to open."""

    descriptions: tuple[str, ...]
    weights: tuple[str, ...]
    opened: str
    """A GGUF file, the first of its parts, or the configuration in a folder."""

    @property
    def is_folder(self) -> bool:
        return bool(self.descriptions)


def choose(address: HubAddress, names: Iterable[str], read: Callable[[str], bytes]) -> Choice:
    """Choose among a repository's files; `read` returns the contents of a small one.

    Raises `ModelFormatError` where there is nothing to choose, or it is not clear which.
    """
    there = sorted(names)
    models = _groups(
        name for name in there if name.lower().endswith(".gguf") and not _BESIDE_MODELS.search(name)
    )
    if address.selector or (models and CONFIG_FILE not in there):
        if not models:
            raise ModelFormatError(
                f"{address.repository} has no GGUF files. Leave :{address.selector} out, or take one "
                "whose name ends with GGUF."
            )
        parts = models[_gguf(address, models)]
        return Choice((), parts, parts[0])
    return _folder(address, there, read)


def adapter_files(address: HubAddress, names: Iterable[str]) -> Choice:
    """Return the files of a LoRA adapter. Raises `ModelFormatError` where there is none."""
    if not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= set(names):
        raise ModelFormatError(
            f"{address.repository} is not a LoRA adapter as peft saves it: it lacks {ADAPTER_CONFIG} or "
            f"{ADAPTER_WEIGHTS}."
        )
    return Choice((ADAPTER_CONFIG,), (ADAPTER_WEIGHTS,), ADAPTER_CONFIG)


def _groups(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the GGUF models by name, each with its parts in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_PART.sub("", name), []).append(name)
    return {model: tuple(sorted(parts)) for model, parts in found.items()}


def _gguf(address: HubAddress, models: Mapping[str, tuple[str, ...]]) -> str:
    """Return the model that is meant, by its name."""
    wanted, repository = address.selector, address.repository
    by_name = [model for model in models if wanted and _is_named(wanted, model, models[model])]
    labels = {model: _label(model) for model in models}
    if wanted:
        found = by_name or [model for model, label in labels.items() if _plain(label) == _plain(wanted)]
    elif len(models) == 1:
        found = list(models)
    else:
        usual = (kind for kind in _USUAL if kind in labels.values())
        kind = next(usual, None)
        found = [model for model, label in labels.items() if kind is not None and label == kind]
    if len(found) == 1:
        return _whole(repository, found[0], models[found[0]])
    if len(found) > 1:
        raise ModelFormatError(
            f"{repository} has several such files: name one of them, hf:{repository}:FILE ({_list(found)})."
        )
    kinds = _list(sorted({label or model for model, label in labels.items()}))
    asked = f"no {wanted}" if wanted else "none of the usual kinds"
    raise ModelFormatError(f"{repository} has {asked}. There are {kinds}: name one, hf:{repository}:KIND.")


def _whole(repository: str, model: str, parts: tuple[str, ...]) -> str:
    last = _PART.search(parts[-1])
    if last is not None and len(parts) != int(last[2]):
        raise ModelFormatError(
            f"{repository} lacks parts of {model}: there are {len(parts)} of {int(last[2])}."
        )
    return model


def _is_named(wanted: str, model: str, parts: tuple[str, ...]) -> bool:
    names = {model, *parts}
    names |= {name.rpartition("/")[2] for name in names}
    return wanted.lower() in {name.lower() for name in names}


def _label(model: str) -> str:
    """Return what a file's name says of its weights, the last such word in it: `Q4_K_M`, empty for none."""
    found = _QUANT.findall(model.removesuffix(".gguf"))
    return found[-1].upper() if found else ""


def _plain(label: str) -> str:
    """Return a label as all write it, without what separates its parts."""
    return re.sub(r"[^A-Z0-9]", "", label.upper()).replace("FP16", "F16").replace("FP32", "F32")


def _folder(address: HubAddress, there: list[str], read: Callable[[str], bytes]) -> Choice:
    repository = address.repository
    if CONFIG_FILE not in there:
        raise ModelFormatError(f"{repository} {_no_model(repository, there, read)}")
    if INDEX_FILE in there:
        weights = _indexed(repository, read(INDEX_FILE))
        missing = [name for name in weights if name not in there or "/" in name]
        if missing:
            raise ModelFormatError(f"{repository} lacks {missing[0]}, which its index names.")
    elif SINGLE_FILE in there:
        weights = (SINGLE_FILE,)
    else:
        weights = tuple(
            name for name in there if re.fullmatch(r"(?!consolidated|adapter_)[^/]+\.safetensors", name)
        )
    if not weights:
        pickles = [name for name in there if name.endswith(_PICKLES)]
        only = f", only {pickles[0]}, a pickle that may run any code when it is opened" if pickles else ""
        raise ModelFormatError(f"{repository} has no safetensors files{only}. {GET_ANOTHER_FORM}")
    return Choice(tuple(name for name in there if name in _DESCRIPTIONS), weights, CONFIG_FILE)


def _indexed(repository: str, index: bytes) -> tuple[str, ...]:
    try:
        return tuple(sorted({str(name) for name in json.loads(index)["weight_map"].values()}))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFormatError(f"{repository} has a damaged {INDEX_FILE}.") from error


def _no_model(repository: str, there: list[str], read: Callable[[str], bytes]) -> str:
    if ADAPTER_CONFIG in there:
        try:
            base = str(json.loads(read(ADAPTER_CONFIG)).get("base_model_name_or_path") or "")
        except (ValueError, AttributeError, RecursionError):
            base = ""
        model = base or "its model"
        return (
            f"is a LoRA adapter, not a model. It belongs to {model}: python -m engine pull "
            f"hf:{base or 'OWNER/NAME'} --adapter hf:{repository}"
        )
    return f"holds no model that can be converted: neither GGUF files nor {CONFIG_FILE}."


def _list(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
