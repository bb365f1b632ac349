"""What the documentation names exists: commands, settings, slash commands, files that it links to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bot import cli as bot_cli
from bot.config_keys import KEYS
from engine import __main__ as engine_cli
from engine.kernels import SWITCH
from engine.types import PRESETS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = ROOT / "bot" / "on_discord"
_NO_SETTINGS = {"HF_HOME", SWITCH}
"""Variables of the environment."""
_FENCE = re.compile(r"^```(?:sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def commands(text: str) -> list[str]:
    """Return every command line, from blocks of shell and from `code` in a sentence."""
    lines = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for line in (*lines, *_INLINE.findall(prose))]


def slash_commands() -> set[str]:
    """Return the names of all slash commands, `group name` for those of a group."""
    names: set[str] = set()
    sources = [path.read_text(encoding="utf-8") for path in COMMANDS.rglob("*.py")]
    for source in (part for text in sources for part in re.split(r"^(?=class |def )", text, flags=re.M)):
        own = re.findall(r'command\(\s*name="([a-z-]+)"', source)
        group = re.search(r'super\(\).__init__\(\s*name="([a-z-]+)"', source)
        names |= {f"{group[1]} {name}" for name in own} | {group[1]} if group else set(own)
    return names


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_can_be_called(path: Path) -> None:
    parsers = {"bot": bot_cli.build_parser, "engine": engine_cli.build_parser}
    for line in commands(path.read_text(encoding="utf-8")):
        for package, build in parsers.items():
            found = re.match(rf"(?:\.venv/bin/)?python -m {package}(?: (.*))?$", line)
            if found and found[1]:
                assert callable(build().parse_args(shlex.split(found[1], comments=True)).act), line
        bench = re.match(r"python -m benchmarks\.(\w+)", line)
        assert bench is None or (ROOT / "benchmarks" / f"{bench[1]}.py").exists(), line


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_settings_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"['`]([A-Z]+(?:_[A-Z]+)+)[`=]", text)) | set(re.findall(r"['`]([A-Z_]+)=", text))
    assert named <= {key.name for key in KEYS} | _NO_SETTINGS


def test_values_of_settings_are_allowed() -> None:
    keys = {key.name: key for key in KEYS}
    for path in DOCS:
        for name, value in re.findall(r"`([A-Z_]+)=([^`]+)`", path.read_text(encoding="utf-8")):
            if name not in _NO_SETTINGS:
                keys[name].parse(value)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_slash_commands_and_presets_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    known = slash_commands()
    assert {"reset", "system set"} <= known
    for named in re.findall(r"`/([a-z][a-z -]*?)`", text):
        assert named in known, f"/{named} in {path.name}"
    for preset in re.findall(r"preset `(\w+)`", text):
        assert preset in PRESETS


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_documents_of_models_responsibility_and_questions_are_there_and_linked() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("models.md", "faq.md", "responsible-use.md"):
        assert ROOT / "docs" / name in DOCS
        assert f"docs/{name}" in readme


_NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_the_features_name_exists() -> None:
    named = _NAMED_TEST.findall((ROOT / "docs" / "features.md").read_text(encoding="utf-8"))
    assert named
    for file, name in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), f"{file}::{name}"


def test_every_feature_names_its_proof_or_says_not_yet() -> None:
    lines = (ROOT / "docs" / "features.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and "Proof |" not in line]
    assert [row.split("|")[1].strip() for row in rows if row[2].isdigit()] == [str(n) for n in range(1, 25)]
    for row in rows:
        proof = row.split("|")[-2]
        assert _NAMED_TEST.search(proof) or "not yet" in proof, row


def test_every_picture_of_the_documentation_is_shown_and_small() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*DOCS, ROOT / "README.md")]
    for picture in (ROOT / "docs").glob("*.png"):
        assert any(picture.name in text for text in texts), picture.name
        assert picture.stat().st_size < 200_000, picture.name


def test_every_slash_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        name for name in sorted(slash_commands()) if f"`/{name}`" not in readme and f"`/{name} " not in readme
    ] == []


def test_every_wing_is_in_the_architecture_and_the_files_it_names_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = ("bot", "engine", "storage")
    files = [path.relative_to(ROOT).as_posix() for name in packages for path in (ROOT / name).rglob("*.py")]
    for named in set(re.findall(r"`([a-z_/]+\.py)`", text)) - {"tests/test_architecture.py"}:
        assert any(f"/{file}".endswith(f"/{named}") for file in files), named
    wings = {file.rpartition("/")[0] for file in files if file.endswith("/__init__.py")}
    assert {wing for wing in wings if f"`{wing}`" not in text} <= {"bot", "engine"}
