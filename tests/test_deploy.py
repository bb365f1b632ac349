"""What runs Llamacord: what it names exists, and the programs that read it take it as it is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from bot.cli import build_parser
from bot.config_keys import KEYS
from bot.operations.health import Vitals, watch
from bot.operations.metrics import Metrics as BotMetrics
from engine.__main__ import build_parser as engine_parser
from engine.configuring.keys import ENGINE_KEYS
from engine.serving.keys import is_private
from engine.serving.service import Service, ServingSettings
from engine.types import Health
from tests.engine.serving.served import ServedScripts
from tests.fakes import ScriptedEngine

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "llamacord.service"
ENGINE_UNIT = DEPLOY / "llamacord-engine@.service"
CONTAINERFILE = DEPLOY / "Containerfile"
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
KEY_NAMES = {key.name for key in KEYS}


@pytest.mark.parametrize(("unit", "instance"), [(UNIT, ""), (ENGINE_UNIT, "8324")])
def test_systemd_takes_the_unit(unit: Path, instance: str, tmp_path: Path) -> None:
    """With the program where it stands in the test, for nothing is installed in /opt."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "python"
    program.touch(mode=0o755)
    written = tmp_path / unit.name.replace("@", f"@{instance}")
    written.write_text(
        unit.read_text(encoding="utf-8").replace("/opt/llamacord/.venv/bin/python", str(program)),
        encoding="utf-8",
    )
    found = subprocess.run(  # noqa: S603 - our own unit
        ["systemd-analyze", "verify", "--man=no", str(written)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr.strip()) == (0, "")


def settings_of(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_a_command_that_exists_with_settings_that_exist() -> None:
    unit = settings_of(UNIT)
    command = unit["ExecStart"][0].partition("-m bot ")[2]
    assert callable(build_parser().parse_args(command.split()).act)
    named = {assignment.partition("=")[0] for assignment in unit["Environment"]}
    assert named <= KEY_NAMES | {"PYTHONPATH", "PYTHONUNBUFFERED"}


def test_the_unit_waits_longer_than_answers_get_to_end() -> None:
    grace_s = next(int(key.default) for key in KEYS if key.name == "SHUTDOWN_GRACE")
    assert int(settings_of(UNIT)["TimeoutStopSec"][0]) >= grace_s + 30


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
        *("HEALTHCHECK", "ENTRYPOINT", "CMD", "ARG"),
    }
    assert all(re.search(r":[\w.-]+-[\w.-]+( AS \w+)?$", image) for image in all_of("FROM")), "pin the image"
    assert all("--no-cache-dir" in run for run in all_of("RUN") if "pip install" in run)
    assert all(path.startswith("/") for path in all_of("WORKDIR"))
    assert all_of("USER")[-1] not in ("0", "root")
    assert not any("sudo" in run for run in all_of("RUN"))
    assert any("--require-hashes" in run for run in all_of("RUN"))
    lock = dict(argument.split("=", 1) for argument in all_of("ARG"))["LOCK"]
    assert lock in all_of("COPY")[0].split()
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


def test_the_engine_unit_starts_a_server_and_waits_longer_than_answers_get_to_end() -> None:
    unit = settings_of(ENGINE_UNIT)
    command = unit["ExecStart"][0].partition("-m engine ")[2].replace("%i", "8324")
    assert callable(engine_parser().parse_args(command.split()).act)
    environment = dict(assignment.split("=", 1) for assignment in unit["Environment"])
    assert set(environment) <= set(ENGINE_KEYS) | {"PYTHONPATH", "PYTHONUNBUFFERED"}
    assert int(unit["TimeoutStopSec"][0]) >= int(environment["SHUTDOWN_GRACE"]) + 30


async def scraped() -> set[str]:
    """Return the names of all figures of a bot and of an engine."""
    chat = SimpleNamespace(num_running=0, num_waiting=0, num_unshown=0, engine=ScriptedEngine())
    vitals = Vitals(Health.READY, True, 0, 0)
    bot = SimpleNamespace(chat=chat, metrics=BotMetrics(), latency=0.1, vitals=lambda: vitals)
    watch(bot)
    served = Service(ServedScripts(), ServingSettings())
    figures = bot.metrics.exposition() + served.metrics.exposition()
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", figures.decode(), re.MULTILINE):
        names |= {f"{name}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


async def test_every_figure_that_the_dashboard_asks_for_is_in_a_scrape() -> None:
    asked = {name for query in QUERIES for name in re.findall(r"llamacord_\w+", query)}
    assert len(asked) > 20
    assert asked - await scraped() == set()


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    """As rules, which promtool parses; a panel without a range of its own would show nothing."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(QUERIES)
    ]
    written = tmp_path / "rules.yml"
    written.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    for what, path in (("rules", written), ("config", DEPLOY / "prometheus.yml")):
        checked = subprocess.run(  # noqa: S603 - our own files
            ["promtool", "check", what, str(path)],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr


def test_the_panels_of_the_dashboard_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        assert panel["type"] == "row" or panel["description"]
        taken |= cells


def manifests() -> dict[str, dict[str, Any]]:
    """Return what is in the manifest, by kind and name."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}


def test_kubernetes_takes_the_manifest() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for name, manifest in manifests().items():
        validate.validate(manifest, validate.latest_version(), strict=True)
        assert "namespace" not in manifest["metadata"], name


@pytest.mark.parametrize(("name", "keys"), [("engine", set(ENGINE_KEYS)), ("bot", KEY_NAMES)])
def test_the_manifest_sets_what_exists_and_gives_answers_their_time(name: str, keys: set[str]) -> None:
    everything = manifests()
    assert f"Service/{name}" in everything
    pod = everything[f"StatefulSet/{name}"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert set(values) <= keys
    grace_s = int(values.get("SHUTDOWN_GRACE", 20))
    assert pod["terminationGracePeriodSeconds"] >= grace_s + 30


def test_the_bots_of_the_manifest_ask_all_its_engines_and_share_all_shards() -> None:
    everything = manifests()
    engine, bot = (everything[f"StatefulSet/{name}"]["spec"] for name in ("engine", "bot"))
    values = {entry["name"]: entry["value"] for entry in bot["template"]["spec"]["containers"][0]["env"]}
    port = everything["Service/engine"]["spec"]["ports"][0]["port"]
    addresses = [f"http://engine-{number}.engine:{port}" for number in range(engine["replicas"])]
    assert values["ENGINE"].split(",") == addresses
    size, _, count = values["SHARDS"].partition(" of ")
    assert int(size) * bot["replicas"] == int(count)


def ray_environment() -> dict[str, str]:
    """Return deploy/ray.env as a shell reads it."""
    lines = (DEPLOY / "ray.env").read_text(encoding="utf-8")
    return dict(word.split("=", 1) for word in shlex.split(lines, comments=True))


def test_ray_lets_answers_end_and_starts_replicas_with_settings_that_exist() -> None:
    config = yaml.safe_load((DEPLOY / "ray.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    (deployment,) = application["deployments"]
    assert re.search(rf"^{name} = .*\({deployment['name']}\)+\.bind\(\)", source, re.MULTILINE)
    assert re.search(rf"^class {deployment['name']}:", source, re.MULTILINE)
    values = application["runtime_env"]["env_vars"]
    assert set(values) <= set(ENGINE_KEYS)
    assert not is_private(values["ENGINE_HOST"]), "others reach it: its figures want a key"
    assert int(values["THREADS"]) == deployment["ray_actor_options"]["num_cpus"]
    at_once = int(values["MAX_CONCURRENT"])
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == at_once
    assert deployment["max_ongoing_requests"] > at_once + int(values["MAX_QUEUE"])
    hard_stop_s = int(ray_environment()["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])
    assert hard_stop_s >= deployment["graceful_shutdown_timeout_s"] >= 600


def test_ray_is_told_who_may_command_it_where_sessions_stay_and_to_tell_nobody() -> None:
    environment = ray_environment()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    balance, kind = environment["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].splitlines()
    assert balance == "hdr(x-session-id)"
    assert kind.strip().startswith("hash-type consistent")


def test_rays_schema_takes_the_file() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    schema.ServeDeploySchema.model_validate(yaml.safe_load((DEPLOY / "ray.yaml").read_text(encoding="utf-8")))


def rolled(tmp_path: Path, statuses: dict[int, list[str]]) -> tuple[int, list[str]]:
    """Run the update over ports that say one status after the other; return its exit status and restarts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for port, said in statuses.items():
        (tmp_path / str(port)).write_text("\n".join(said) + "\n")
    programs = {
        "curl": f"for last; do :; done; port=${{last##*:}}; file={tmp_path}/${{port%/health}}\n"
        'head -n 1 "$file"; [ "$(wc -l < "$file")" = 1 ] || sed -i 1d "$file"',
        "sleep": "exit 0",
        "restart": f'echo "$1" >> {tmp_path}/restarts',
    }
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(  # noqa: S603 - our own script
        [str(DEPLOY / "rolling-update.sh"), *map(str, statuses)],
        env={"PATH": f"{tools}:/usr/bin:/bin", "RESTART": "restart engine@", "PATIENCE_S": "5"},
        capture_output=True,
        check=False,
    )
    restarts = tmp_path / "restarts"
    return done.returncode, restarts.read_text().split() if restarts.exists() else []


def test_an_update_restarts_one_engine_after_the_other(tmp_path: Path) -> None:
    statuses = {8324: ["200", "000", "503", "200"], 8325: ["200", "503", "200"]}
    assert rolled(tmp_path, statuses) == (0, ["engine@8324", "engine@8325"])


def test_an_update_stops_at_an_engine_that_does_not_come_back(tmp_path: Path) -> None:
    assert rolled(tmp_path, {8324: ["200", "000"], 8325: ["200"]}) == (1, ["engine@8324"])


def test_an_update_does_not_begin_while_an_engine_is_away(tmp_path: Path) -> None:
    assert rolled(tmp_path, {8324: ["200"], 8325: ["503"]}) == (1, [])
