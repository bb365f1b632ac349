"""How people name a model at Hugging Face, and where it lies once it is here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from engine.describing.architecture import Precision
from engine.describing.manifest import FORMAT_VERSION

_PREFIX = re.compile(r"(?:hf:(?://)?|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)")
_ADDRESS = re.compile(
    r"(?P<repository>[\w.-]{1,96}/[\w.-]{1,96}?)"
    r"(?:/(?:blob|resolve|tree)/(?P<branch>[\w.-]+)(?:/(?P<file>[^:@?#]+))?(?:\?[^:@]*)?)?"
    r"(?::(?P<selector>[^:@?#]+))?(?:@(?P<revision>[\w./-]+))?/?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository, as OWNER/NAME; which of its GGUF files, by quantisation or name; and which revision."""

    repository: str
    selector: str = ""
    revision: str = ""

    @staticmethod
    def is_one(written: str) -> bool:
        """Tell whether a text names something at Hugging Face rather than a path."""
        return _PREFIX.match(written) is not None

    @classmethod
    def parse(cls, written: str) -> HubAddress:
        """Read `hf:OWNER/NAME[:QUANT or FILE][@REVISION]`, or a page's address. Raises `ValueError`."""
        prefix = _PREFIX.match(written)
        match = _ADDRESS.fullmatch(written[prefix.end() :]) if prefix else None
        if match is None or ".." in match["repository"]:
            raise ValueError(
                "must be hf:OWNER/NAME, for example hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M"
            )
        revision = match["revision"] or match["branch"] or ""
        selector = match["selector"] or match["file"] or ""
        return cls(match["repository"], selector, "" if revision == "main" else revision)

    def __str__(self) -> str:
        return "".join(
            (
                f"hf:{self.repository}",
                f":{self.selector}" if self.selector else "",
                f"@{self.revision}" if self.revision else "",
            )
        )

    @property
    def folder_name(self) -> str:
        """Return a name for a folder, another one for each address."""
        written = str(self).removeprefix("hf:").lower()
        plain = re.sub(
            r"[^a-z0-9._-]+", "-", written.replace("/", "--", 1).replace(":", "--").replace("@", "--")
        )
        if re.fullmatch(r"[a-z0-9._-]+/[a-z0-9._-]+(:[a-z0-9._-]+)?", written) and len(plain) <= 120:
            return plain
        return f"{plain[:100]}-{hashlib.sha256(written.encode()).hexdigest()[:8]}"


def converted_folder(
    cache: Path, address: HubAddress, precision: Precision, version: int = FORMAT_VERSION
) -> Path:
    """Return where a model from there lies once it is converted."""
    return cache / "models" / f"{address.folder_name}-{precision}-v{version}"


def pulled_folder(cache: Path, address: HubAddress, precision: Precision | None) -> Path | None:
    """Return the folder of a model that was pulled before; of any precision where none is given."""
    for one in Precision if precision is None else (precision,):
        folder = converted_folder(cache, address, one)
        if folder.exists():
            return folder
    return None
