"""The lock can be installed, from wheels alone, on every system and Python that the README names.

Needs no network: `tests/data/wheels.txt` has the index's wheels of the locked packages, by their hashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

from benchmarks.record_wheels import HASH_CHARACTERS, WHEELS_FILE

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_GLIBC = 36
"""Debian 12's; Ubuntu 24.04 has a newer one."""


@dataclass(frozen=True)
class System:
    """A system as markers call it, and the platforms whose wheels run there."""

    sys_platform: str
    platform_machine: str
    platforms: tuple[str, ...]

    def environment(self, python: str) -> dict[str, str]:
        system = {"linux": "Linux", "win32": "Windows", "darwin": "Darwin"}[self.sys_platform]
        return {
            "implementation_name": "cpython",
            "os_name": "nt" if self.sys_platform == "win32" else "posix",
            "platform_machine": self.platform_machine,
            "platform_python_implementation": "CPython",
            "platform_system": system,
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": self.sys_platform,
        }

    def tags(self, python: str) -> set[Tag]:
        major, minor = map(int, python.split("."))
        version, platforms = (major, minor), list(self.platforms)
        made = set(compatible_tags(version, f"cp{major}{minor}", platforms))
        return made | set(cpython_tags(version, platforms=platforms))


def _linux(machine: str) -> System:
    numbered = tuple(f"manylinux_2_{minor}_{machine}" for minor in range(17, _GLIBC + 1))
    return System("linux", machine, (*numbered, f"manylinux2014_{machine}"))


SYSTEMS = {
    "linux-x86_64": _linux("x86_64"),
    "linux-aarch64": _linux("aarch64"),
    "windows-x86_64": System("win32", "AMD64", ("win_amd64",)),
    "macos-arm64": System("darwin", "arm64", tuple(mac_platforms((14, 0), "arm64"))),
}


@dataclass(frozen=True)
class Locked:
    name: str
    version: str
    marker: Marker | None
    hashes: frozenset[str]

    def is_for(self, environment: Mapping[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(dict(environment))


@cache
def locked(file: str) -> tuple[Locked, ...]:
    """Return the packages of a lock."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = []
    for block in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"([a-z0-9.-]+)==(\S+)(?: ; ([^\\\n]+))?", block)
        assert head is not None, block[:80]
        hashes = re.findall(rf"sha256:([0-9a-f]{{{HASH_CHARACTERS}}})", block)
        marker = Marker(head[3].strip()) if head[3] else None
        found.append(Locked(canonicalize_name(head[1]), head[2], marker, frozenset(hashes)))
    return tuple(found)


@cache
def wheels() -> dict[tuple[str, str], list[tuple[str, frozenset[Tag]]]]:
    """Return hash and tags of all recorded wheels, by name and version."""
    found: dict[tuple[str, str], list[tuple[str, frozenset[Tag]]]] = {}
    for line in WHEELS_FILE.read_text(encoding="ascii").splitlines():
        digest, file = line.split()
        name, version, _, tags = parse_wheel_filename(file)
        found.setdefault((name, str(version)), []).append((digest, tags))
    return found


@pytest.mark.parametrize("file", ["requirements.lock", "requirements-dev.lock"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_package_has_a_wheel_on_every_system(system: str, python: str, file: str) -> None:
    environment, tags = SYSTEMS[system].environment(python), SYSTEMS[system].tags(python)
    needed = [package for package in locked(file) if package.is_for(environment)]
    assert len(needed) > 40
    assert len({package.name for package in needed}) == len(needed), "one version of each"
    without = [
        package.name
        for package in needed
        if not any(
            digest in package.hashes and tags & of_wheel
            for digest, of_wheel in wheels().get((package.name, package.version), [])
        )
    ]
    assert not without


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("linux-x86_64", "onnxruntime-gpu"),
        ("windows-x86_64", "onnxruntime-gpu"),
        ("linux-aarch64", "onnxruntime"),
        ("macos-arm64", "onnxruntime"),
    ],
)
def test_there_is_one_onnx_runtime_with_a_gpu_where_it_has_wheels(
    system: str, name: str, python: str
) -> None:
    environment = SYSTEMS[system].environment(python)
    there = [package for package in locked("requirements.lock") if package.is_for(environment)]
    assert [one.name for one in there if one.name.startswith("onnxruntime")] == [name]


def test_both_onnx_runtimes_are_of_the_same_version() -> None:
    versions = {one.version for one in locked("requirements.lock") if one.name.startswith("onnxruntime")}
    assert len(versions) == 1
