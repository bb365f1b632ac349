"""What may import what, and that documentation, Makefile and settings agree with the code."""

from __future__ import annotations

import ast
import graphlib
import re
import shlex
import sys
import tomllib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bot.cli import VERSION, build_parser
from bot.config_keys import KEYS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PACKAGES = ("bot", "engine", "storage")

OWNERS: dict[str, set[str]] = {
    "aiohttp": {
        *(
            f"bot/on_discord/{name}.py"
            for name in ("answers/outboxes", "connection", "interactions", "traffic")
        ),
        *(f"bot/playground/{name}.py" for name in ("chromium", "live_page", "serve")),
        *("bot/operations/health.py", "engine/remote/http_wire.py"),
    },
    "aiosqlite": {"storage/sqlite.py"},
    "dotenv": {"engine/configuring/reading.py"},
    "jinja2": {"engine/text/chat_template.py"},
    "gguf": {"engine/convert/gguf_source.py", "engine/convert/gguf_files.py"},
    "huggingface_hub": {"engine/hub/faults.py", "engine/hub/hub.py"},
    "onnx": {
        *(f"engine/convert/{name}.py" for name in ("dataflow", "release_graph", "rope_probe")),
        *(f"engine/bench/{name}.py" for name in ("release_author", "stages")),
        *(f"engine/release/{name}.py" for name in ("contract", "model")),
        *(
            f"engine/graphs/{name}.py"
            for name in ("attention", "decoder", "graph_builder", "plain_attention", "sampler_graph")
        ),
    },
    "onnxruntime": {
        "engine/bench/stages.py",
        "engine/graphs/session.py",
        *(f"engine/{name}/model.py" for name in ("cpu", "gpu", "release")),
    },
    "PIL": {"bot/playground/film.py", "engine/bench/report.py"},
    "platformdirs": {"engine/configuring/keys.py"},
    "pylatexenc": {"bot/delivery/formulas.py"},
    "pypdf": {"bot/documents/extract.py"},
    "ray": {"engine/on_ray.py"},
    "regex": {
        "bot/delivery/dialect.py",
        "bot/delivery/render.py",
        "bot/safety/lists.py",
        "bot/safety/output_filter.py",
    },
    "sentencepiece": {
        "engine/text/tokenizer.py",
        "engine/convert/tokenizer_files.py",
        "engine/convert/gguf_tokenizer.py",
        "engine/bench/release_author.py",
    },
    "psycopg": {
        f"storage/postgres/{name}.py"
        for name in ("backend", "connection", "errors", "locks", "pool", "schema")
    },
    "prometheus_client": {"bot/operations/metrics.py", "engine/serving/metrics.py"},
    "simcord": {
        f"bot/playground/{name}.py" for name in ("live_page", "live_simcord", "serve", "simulated_discord")
    },
    "sqlite3": {f"storage/{name}.py" for name in ("errors", "migrations", "opening", "sqlite")},
    "starlette": {f"engine/serving/{name}.py" for name in ("app", "bodies", "exchange", "streaming")},
    "tokenizers": {"engine/text/tokenizer.py", "engine/convert/gguf_tokenizer.py"},
    "uvicorn": {"engine/serving/server.py"},
}
"""Libraries, and the only files that import them."""

IMPORT_NAMES = {
    "charset-normalizer": "charset_normalizer",
    "huggingface-hub": "huggingface_hub",
    "discord.py": "discord",
    "onnxruntime-gpu": "onnxruntime",
    "prometheus-client": "prometheus_client",
    "python-dotenv": "dotenv",
}
BESIDES = {"aiohttp", "simcord", "PIL", "psycopg", "ray", "starlette", "uvicorn"}
"""discord.py stands on aiohttp and raises its exceptions; the others are optional."""

WITHOUT_DISCORD = (
    "bot/conversation/", "bot/delivery/", "bot/documents/", "bot/safety/", "bot/servers/",
    "bot/config.py", "bot/config_keys.py", "bot/errors.py", "bot/models.py", "bot/privacy.py",
    "bot/terminal.py",
)  # fmt: skip
"""The bot's core: it works, and is tested, without Discord's library."""


WALLS: dict[str, set[str]] = {
    "language": set(),
    "safety": {"errors", "language", "origin"},
    "servers": {"errors", "language", "origin", "parameters", "safety"},
    "conversation": {"errors", "language", "origin", "parameters", "safety", "servers", "tasks"},
    "delivery": {"tasks"},
    "fleet": {"tasks"},
    "documents": set(),
    "operations": {"conversation", "tasks"},
    "playground": {"tasks"},
    "on_discord": {
        *("config", "conversation", "delivery", "documents", "errors", "fleet", "language", "operations"),
        "origin",
        "parameters",
        *("privacy", "servers", "tasks"),
    },
}
"""The wings of the bot, and what of the bot each may import."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def sources() -> dict[str, Path]:
    """Return the files by the names of their modules."""
    return {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the full name of every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(name if name in sources() else node.module for name in names)
    return frozenset(found)


def top_level_imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def importers_of(library: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in sources().values() if library in top_level_imports(p)}


def plan(folder: str) -> dict[str, set[str]]:
    """Return the files and folders directly in a folder, and which of them each imports."""
    found: dict[str, set[str]] = {}
    for module, path in sources().items():
        if module.startswith(f"{folder}."):
            rooms = (
                name.split(".")[folder.count(".") + 1]
                for name in imports(path)
                if name.startswith(f"{folder}.")
            )
            me = module.split(".")[folder.count(".") + 1]
            found.setdefault(me, set()).update({*rooms} - {me})
    return found


FOLDERS = sorted({name.rpartition(".")[0] for name in sources() if "." in name})


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_lies_side_by_side_imports_each_other_in_no_circle(folder: str) -> None:
    graphlib.TopologicalSorter(plan(folder)).prepare()  # raises `CycleError`, which names them


@pytest.mark.parametrize("wing", WALLS)
def test_a_wing_of_the_bot_imports_only_what_lies_below_it(wing: str) -> None:
    found = plan("bot")
    assert {room for room in found if (ROOT / "bot" / room / "__init__.py").is_file()} == WALLS.keys()
    assert found[wing] <= WALLS[wing]


def test_the_waiting_room_knows_the_engine_by_its_face_only() -> None:
    assert plan("engine")["waiting"] == {"errors", "types"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("engine", {"bot", "storage", "discord", "aiosqlite"}),
        ("storage", {"bot", "engine", "discord", "onnxruntime"}),
    ],
)
def test_engine_and_storage_know_neither_each_other_nor_the_bot(package: str, forbidden: set[str]) -> None:
    for module, path in sources().items():
        assert module.split(".")[0] != package or not top_level_imports(path) & forbidden, path


def test_the_engines_face_is_known_to_no_wing_but_those_that_use_it() -> None:
    face = {"engine", "opening", "__main__"}
    found = plan("engine")
    wings = {room for room in found if (ROOT / "engine" / room / "__init__.py").is_file()}
    using = {room for room in wings if found[room] & face}
    assert using <= {"advising", "bench", "commands", "configuring"}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_the_files_that_own_it(library: str) -> None:
    assert importers_of(library) == OWNERS[library]


def test_the_bots_core_does_not_know_discords_library() -> None:
    names = {str(path.relative_to(ROOT)) for path in sources().values()}
    core = {name for name in names if name.startswith(WITHOUT_DISCORD)}
    assert len(core) > 15
    assert not core & importers_of("discord")


def test_the_package_imports_nothing_but_what_it_declares() -> None:
    declared = {IMPORT_NAMES.get(name, name) for name in _declared()} | BESIDES
    for path in sources().values():
        assert not top_level_imports(path) - declared - set(PACKAGES) - sys.stdlib_module_names, path


def test_only_the_composition_root_builds_the_engine_and_opens_the_database() -> None:
    assert {path.name for path in (ROOT / "bot").glob("*.py") if "engine.engine" in imports(path)} <= {
        "app.py",
        "model_check.py",
        "models.py",
    }


def test_every_file_says_what_it_is() -> None:
    for path in sources().values():
        assert ast.get_docstring(parsed(path)), path


def test_the_readme_names_only_settings_that_exist() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)=", README.read_text(encoding="utf-8")))
    assert "DISCORD_TOKEN" in named
    assert named <= {key.name for key in KEYS} | {"PYTHON", "ARGS"}


def test_the_commands_of_the_readme_exist() -> None:
    readme = README.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", readme, re.MULTILINE))
    assert {"run", "test"} <= named <= targets
    for command in re.findall(
        r"(?:^|`)(?:\.venv/bin/)?(?:python3? -m bot|llamacord) ([^`\n#]+)", readme, re.MULTILINE
    ):
        options = build_parser().parse_args(shlex.split(command))
        assert callable(options.act), command


def test_the_makefile_starts_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"python -m bot (\w+)", makefile)
    assert set(commands) == {"run", "chat", "check"}
    for command in commands:
        assert callable(build_parser().parse_args([command]).act)


def test_the_version_is_written_the_same_twice() -> None:
    assert _project()["version"] == VERSION


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-servers.lock"])
def test_the_lock_names_no_machine_and_pins_every_package_with_hashes(name: str) -> None:
    lock = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"^-|://|file:|/opt/|/home/|/tmp/", lock, re.MULTILINE)
    assert not re.search(r"^(torch|transformers|triton)==", lock, re.MULTILINE)
    pinned = re.split(r"^(?=[a-z])", lock, flags=re.MULTILINE)[1:]
    assert len(pinned) > 20
    for package in pinned:
        assert re.match(r"[a-z0-9.-]+==\S+", package), package[:80]
        assert "--hash=sha256:" in package, package[:80]


def test_the_lock_has_everything_that_is_declared() -> None:
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    pinned = {name.replace("-", "_") for name in re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE)}
    extras = _project()["optional-dependencies"]
    names = {
        *_declared(),
        *(_name(entry) for group in ("playground", "postgres", "serve", "dev") for entry in extras[group]),
    }
    assert {name.lower().replace("-", "_").replace(".", "_") for name in names} <= pinned


def test_the_development_lock_has_the_same_versions_as_the_runtime_lock() -> None:
    pins = [
        set(re.findall(r"^[a-z0-9.-]+==[^\\\n;]+\b", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    ]
    assert pins[0] <= pins[1]


def _project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


def _declared() -> set[str]:
    """Return the names of the packages that are needed at run time."""
    return {_name(requirement) for requirement in _project()["dependencies"]}


def _name(requirement: str) -> str:
    """Return the name of the package that a requirement is for."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return match[0]


LET_THROUGH = {
    "discord.player": "'audioop' is deprecated and slated for removal in Python 3.13",
    "discord.utils": "'count' is passed as positional argument",
    "aiosqlite.core": "Binding 1 ('?1') is a named parameter, but you supplied a sequence",
}
"""The only warnings that are no errors in tests, by the module that they come from."""


def test_only_known_warnings_of_libraries_are_let_through_and_none_of_our_own() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    filters = options["ini_options"]["filterwarnings"]
    assert filters[0] == "error"
    assert len(filters) == 1 + len(LET_THROUGH)
    for library, words in LET_THROUGH.items():
        _warn(words, library)
        for module in (*PACKAGES, *(f"{package}.anything" for package in PACKAGES), f"{library}_of_ours"):
            with pytest.raises(DeprecationWarning):
                _warn(words, module)
        with pytest.raises(DeprecationWarning):
            _warn("Something else", library)
    with pytest.raises(DeprecationWarning):
        _warn("Binding 1 (':name') is a named parameter, but you supplied a sequence", "aiosqlite.core")


def _warn(words: str, module: str) -> None:
    warnings.warn_explicit(words, DeprecationWarning, f"{module}.py", 1, module=module)


def test_every_file_beside_the_code_is_shipped() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {
        path
        for package, patterns in described["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    beside = {
        path
        for package in ("bot", "engine", "storage")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert beside <= shipped
