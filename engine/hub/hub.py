"""Hugging Face's hub over its library `huggingface_hub`.

Looks at repositories, reads pieces of files, and fetches files whole into the library's own cache: what
is there already is used, what broke off continues where it ended, also in the next process, and a file
counts only once its checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import huggingface_hub
from huggingface_hub import constants, utils
from huggingface_hub.file_download import http_get, repo_folder_name

from engine.errors import ModelDownloadError, ModelResourceError
from engine.hub.address import HubAddress
from engine.hub.faults import Faults

_TIMEOUT_S = 30.0
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_SMALL_BYTES = 100 * 2**20
"""A file that is read at once; tokenizers of large vocabularies have 35 MB."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. digest: SHA-256 of a large one, Git's own SHA-1 of a small one."""

    name: str
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Repository:
    """What is in a repository at one revision, which `commit` names for good."""

    name: str
    commit: str
    files: Mapping[str, HubFile]


class Hub:
    """endpoint, token, cache: instead of the library's own, from the environment or a login."""

    def __init__(
        self, endpoint: str | None = None, token: str | None = None, cache: Path | None = None
    ) -> None:
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token
        self.cache = cache or Path(constants.HF_HUB_CACHE)
        self._faults = Faults(self._endpoint, token, self.cache)
        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()

    def look(self, address: HubAddress) -> Repository:
        """Return what a repository holds. Raises `ModelDownloadError`."""
        with self._faults.told(address):
            api = huggingface_hub.HfApi(self._endpoint, self._token)
            found = api.model_info(
                address.repository, revision=address.revision or None, files_metadata=True, timeout=_TIMEOUT_S
            )
        files = {
            one.rfilename: HubFile(
                one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else one.blob_id or ""
            )
            for one in found.siblings or ()
        }
        digests = (found.sha or "", *(file.digest for file in files.values()))
        if not all(_DIGEST.fullmatch(digest) for digest in digests):
            raise ModelDownloadError(
                f"{self._faults.host} does not name the checksums of {address.repository}."
            )
        return Repository(found.id, found.sha, files)

    def read(self, repository: Repository, name: str, num_bytes: int | None = None, start: int = 0) -> bytes:
        """Return a piece of a file, or all of a small one. Raises `ModelDownloadError`."""
        file = repository.files[name]
        length = min(file.num_bytes - start, num_bytes if num_bytes is not None else _MAX_SMALL_BYTES)
        there = self._there(repository, file)
        if there is not None:
            with there.open("rb") as opened:
                opened.seek(start)
                return opened.read(length)
        if length <= 0:
            return b""
        headers = {
            **self._headers(),
            "Range": f"bytes={start}-{start + length - 1}",
            "Accept-Encoding": "identity",
        }
        content = io.BytesIO()
        with (
            self._faults.told(HubAddress(repository.name), f"the beginning of {name}"),
            utils.get_session().stream(
                "GET", self._url(repository, name), headers=headers, timeout=_TIMEOUT_S
            ) as response,
        ):
            utils.hf_raise_for_status(response)
            skipped = start if response.status_code == 200 else 0  # it does not know of ranges
            for piece in response.iter_bytes(2**20):
                content.write(piece)
                if content.tell() >= skipped + length:
                    break
        return content.getvalue()[skipped : skipped + length]

    def missing_bytes(self, repository: Repository, name: str) -> int:
        """Return how much of a file is still to be fetched."""
        file = repository.files[name]
        if self._there(repository, file) is not None:
            return 0
        partial = self._partial(repository, file)
        return file.num_bytes - (partial.stat().st_size if partial.exists() else 0)

    def fetch(self, repository: Repository, name: str, on_bytes: Callable[[int], None]) -> Path:
        """Return where a file lies in the cache, fetched where it is not there yet.

        `on_bytes` is told how many more bytes are there, those of before at first. Raises
        `ModelDownloadError`, or `ModelResourceError` where the disk is full or may not be written.
        """
        file = repository.files[name]
        there = self._there(repository, file)
        if there is not None:
            on_bytes(file.num_bytes)
            return there
        try:
            blob = self._blob(repository, file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(repository, file):
                if blob.exists():
                    on_bytes(file.num_bytes)
                else:
                    self._download(repository, file, on_bytes)
            with self._faults.told(HubAddress(repository.name), name):
                return Path(
                    huggingface_hub.hf_hub_download(
                        repository.name,
                        name,
                        revision=repository.commit,
                        endpoint=self._endpoint,
                        token=self._token,
                        cache_dir=self.cache,
                        etag_timeout=_TIMEOUT_S,
                    )
                )
        except OSError as error:
            raise ModelResourceError(
                f"Hugging Face's cache {self.cache} cannot be used: {error.strerror or error}. "
                "Set HF_HOME to another folder."
            ) from error

    def _download(self, repository: Repository, file: HubFile, on_bytes: Callable[[int], None]) -> None:
        """Fetch what is missing of a file, compare its checksum, and give it its place."""
        partial = self._partial(repository, file)
        with partial.open("ab") as opened:
            if opened.tell() > file.num_bytes:
                opened.truncate(0)
            start = opened.tell()
            on_bytes(start)
            counted = cast("BinaryIO", _Counted(opened, on_bytes))
            with self._faults.told(HubAddress(repository.name), file.name, partial, file.num_bytes):
                try:
                    http_get(
                        self._url(repository, file.name),
                        counted,
                        resume_size=start,
                        headers=self._headers(),
                        expected_size=file.num_bytes,
                    )
                finally:
                    opened.flush()  # so that what is told of a break is what is there
        if not _is_right(partial, file):
            partial.unlink()
            raise ModelDownloadError(
                f"{file.name} came damaged: its checksum is not the one that {self._faults.host} names. It "
                "has been removed; run this again. If that doesn't help, try another HF_ENDPOINT."
            )
        partial.replace(self._blob(repository, file))

    def _there(self, repository: Repository, file: HubFile) -> Path | None:
        found = huggingface_hub.try_to_load_from_cache(
            repository.name, file.name, cache_dir=self.cache, revision=repository.commit
        )
        return (
            Path(found) if isinstance(found, str) and Path(found).stat().st_size == file.num_bytes else None
        )

    def _folder(self, repository: Repository) -> str:
        return str(repo_folder_name(repo_id=repository.name, repo_type="model"))

    def _blob(self, repository: Repository, file: HubFile) -> Path:
        """Return where the library keeps the contents of a file."""
        return self.cache / self._folder(repository) / "blobs" / file.digest

    def _partial(self, repository: Repository, file: HubFile) -> Path:
        blob = self._blob(repository, file)
        return blob.with_name(f"{blob.name}.llamacord.incomplete")

    def _lock(self, repository: Repository, file: HubFile) -> contextlib.AbstractContextManager[object]:
        """Keep others, also those that use the library, from fetching the same file meanwhile."""
        path = self.cache / ".locks" / self._folder(repository) / f"{file.digest}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: contextlib.AbstractContextManager[object] = utils.WeakFileLock(path)
        return lock

    def _url(self, repository: Repository, name: str) -> str:
        return str(
            huggingface_hub.hf_hub_url(
                repository.name, name, revision=repository.commit, endpoint=self._endpoint
            )
        )

    def _headers(self) -> dict[str, str]:
        return dict(utils.build_hf_headers(token=self._token, library_name="llamacord"))


class _Counted:
    """A file that tells how much is written to it."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def write(self, content: bytes) -> int:
        self._on_bytes(len(content))
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def truncate(self) -> int:
        """Forget what is behind the place where the file is: the server began anew."""
        before = self._file.seek(0, io.SEEK_END)
        self._on_bytes(-before)
        return self._file.truncate(0)


def _is_right(path: Path, file: HubFile) -> bool:
    """Compare a file with its digest: SHA-256 or, as Git has it, SHA-1 over its size and contents."""
    if len(file.digest) == 64:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.digest
    git = hashlib.sha1(f"blob {file.num_bytes}\0".encode(), usedforsecurity=False)
    git.update(path.read_bytes())
    return git.hexdigest() == file.digest
