"""The service and the container: what they name exists, and systemd takes the unit as it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bot.cli import build_parser
from bot.config_keys import KEYS

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "deploy" / "llamacord.service"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
KEY_NAMES = {key.name for key in KEYS}


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With the program where it stands in the test, for nothing is installed in /opt."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "python"
    program.touch(mode=0o755)
    unit = tmp_path / "llamacord.service"
    unit.write_text(
        UNIT.read_text(encoding="utf-8").replace("/opt/llamacord/.venv/bin/python", str(program)),
        encoding="utf-8",
    )
    found = subprocess.run(  # noqa: S603 - our own unit
        ["systemd-analyze", "verify", "--man=no", str(unit)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr.strip()) == (0, "")


def settings_of_unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_a_command_that_exists_with_settings_that_exist() -> None:
    unit = settings_of_unit()
    command = unit["ExecStart"][0].partition("-m bot ")[2]
    assert callable(build_parser().parse_args(command.split()).act)
    named = {assignment.partition("=")[0] for assignment in unit["Environment"]}
    assert named <= KEY_NAMES | {"PYTHONPATH", "PYTHONUNBUFFERED"}


def test_the_unit_waits_longer_than_answers_get_to_end() -> None:
    grace_s = next(int(key.default) for key in KEYS if key.name == "SHUTDOWN_GRACE")
    assert int(settings_of_unit()["TimeoutStopSec"][0]) >= grace_s + 30


def instructions() -> list[tuple[str, str]]:
    """Return the container file's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def all_of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_what_is_copied_into_the_container_exists() -> None:
    for copy in all_of("COPY"):
        if not copy.startswith("--from="):
            *sources, _target = copy.split()
            assert all((ROOT / source).exists() for source in sources), copy


def test_everything_that_is_needed_is_copied() -> None:
    copied = {source for copy in all_of("COPY") for source in copy.split()[:-1]}
    assert copied >= {
        "bot",
        "engine",
        "storage",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
    }


def test_the_container_is_built_as_it_should_be() -> None:
    """The rules that linters of such files have."""
    assert {name for name, _ in instructions()} <= {
        *("FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "STOPSIGNAL"),
        *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }
    assert all(re.search(r":[\w.-]+-[\w.-]+( AS \w+)?$", image) for image in all_of("FROM")), "pin the image"
    assert all("--no-cache-dir" in run for run in all_of("RUN") if "pip install" in run)
    assert all(path.startswith("/") for path in all_of("WORKDIR"))
    assert all_of("USER")[-1] not in ("0", "root")
    assert not any("sudo" in run for run in all_of("RUN"))
    assert any("--require-hashes" in run for run in all_of("RUN"))
    assert all_of("STOPSIGNAL") == ["SIGTERM"]
    for name in ("ENTRYPOINT", "CMD"):
        assert len(all_of(name)) == 1
        json.loads(all_of(name)[0])


def test_the_container_starts_the_program_with_settings_that_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (program,) = json.loads(all_of("ENTRYPOINT")[0])
    assert f'{program} = "bot.cli:main"' in project
    assert callable(build_parser().parse_args(json.loads(all_of("CMD")[0])).act)
    environment = dict(pair.split("=", 1) for pair in all_of("ENV")[0].split())
    assert set(environment) <= KEY_NAMES | {"PATH", "PYTHONUNBUFFERED"}
    assert f":{environment['METRICS_PORT']}/healthz" in all_of("HEALTHCHECK")[0]
    assert environment["DATABASE"].startswith(all_of("VOLUME")[0])
