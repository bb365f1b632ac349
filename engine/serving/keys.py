"""Who may use the server, and how much: keys, known by their hashes, with a rate and a number at once.

No clock of its own, no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.serving.errors import ApiError

MIN_CHARACTERS = 16
"""Of a key that is written out: anything shorter can be guessed."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LIMIT = re.compile(r"(per_minute|at_once)=([1-9][0-9]{0,5})")
_FORM = "NAME:KEY or NAME:sha256:HASH, then per_minute=N and at_once=N if you like, with commas between keys"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. per_minute: requests; at_once: running and waiting ones; 0 is any number."""

    name: str
    sha256: bytes
    per_minute: int = 0
    at_once: int = 0


ANYBODY = ApiKey("anybody", b"")
"""Who asks where there are no keys."""


def is_private(host: str) -> bool:
    """Tell whether only this machine reaches a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_keys(written: str) -> tuple[ApiKey, ...]:
    """Return the keys in a text such as `bot:sk-1234567890abcdef at_once=8, guest:sha256:… per_minute=10`.

    Raises `ValueError` that says what is allowed, and shows no key.
    """
    keys = tuple(_parse_key(entry.split()) for entry in written.split(",") if entry.strip())
    if not keys:
        raise ValueError(f"must be {_FORM}")
    for values in ([key.name for key in keys], [key.sha256 for key in keys]):
        if len({*values}) < len(keys):
            raise ValueError("has the same name or the same key twice")
    return keys


def _parse_key(words: list[str]) -> ApiKey:
    name, _, secret = words[0].partition(":")
    limits = [_LIMIT.fullmatch(word) for word in words[1:]]
    if not _NAME.fullmatch(name) or not secret or not all(limits):
        raise ValueError(f"must be {_FORM}")
    hashed = _HASH.fullmatch(secret)
    if hashed is None and len(secret) < MIN_CHARACTERS:
        raise ValueError(f"has a key with fewer than {MIN_CHARACTERS} characters, which could be guessed")
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(secret.encode()).digest()
    return ApiKey(name, digest, **{match[1]: int(match[2]) for match in limits if match})


@dataclass(slots=True)
class _Use:
    """What a key has left. `allowance` refills to a minute's requests at `at_s`, seconds of any clock."""

    allowance: float
    at_s: float = -math.inf
    num_at_once: int = 0


class KeyRing:
    """Knows the keys, and counts what each of them does."""

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys
        self._uses = {key.name: _Use(float(key.per_minute)) for key in (keys or (ANYBODY,))}

    def find(self, authorization: str | None) -> ApiKey:
        """Return the key in an `Authorization` header, a character for each byte of it. Raises `ApiError`.

        Takes as long for a wrong key as for a right one.
        """
        if not self._keys:
            return ANYBODY
        scheme, _, secret = (authorization or "").partition(" ")
        given = hashlib.sha256(secret.strip().encode("latin-1", "replace")).digest()
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, given)]
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(401, "Send your key: Authorization: Bearer KEY.", code="invalid_api_key")
        if not found:
            raise ApiError(401, "This key is not known here.", code="invalid_api_key")
        return found[0]

    @contextmanager
    def using(self, key: ApiKey, now_s: float) -> Iterator[None]:
        """Count one request of a key until the end of the `with`. Raises `ApiError` where it is one too many.

        now_s: seconds of any clock that only goes forward.
        """
        use = self._uses[key.name]
        if key.at_once and use.num_at_once >= key.at_once:
            raise _too_many(f"This key may have {key.at_once} requests running or waiting at once.", 1)
        if key.per_minute:
            refilled = use.allowance + max(now_s - use.at_s, 0.0) * key.per_minute / 60
            use.allowance, use.at_s = min(refilled, float(key.per_minute)), now_s
            if use.allowance < 1:
                wait_s = math.ceil((1 - use.allowance) * 60 / key.per_minute)
                raise _too_many(f"This key may send {key.per_minute} requests a minute.", wait_s)
            use.allowance -= 1
        use.num_at_once += 1
        try:
            yield
        finally:
            use.num_at_once -= 1

    def num_at_once(self) -> dict[str, int]:
        """Return how many requests of each key run or wait now."""
        return {name: use.num_at_once for name, use in self._uses.items()}


def _too_many(why: str, wait_s: int) -> ApiError:
    return ApiError(429, f"{why} Try again later.", code="rate_limit_exceeded", retry_after_s=wait_s)
