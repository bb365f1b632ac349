"""`check`: each thing that can be wrong is named with what to do, and nothing is left behind."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import discord
import pytest

from bot.check import run_checks
from bot.model_check import Finding
from engine import kernels
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import PROCESS_BYTES
from engine.describing.manifest import (
    WEIGHTS_FILE,
    ChatSpec,
    Manifest,
    TokenizerSpec,
    describe_files,
    load_manifest,
)
from engine.machine import machine
from engine.machine.machine import Processor, Resources
from engine.opening import ConvertedFolder, open_folder
from engine.types import META_SYSTEM_PROMPT
from storage.database import Database
from storage.leases import Leases
from storage.shards import Shards
from tests.engine.fakes import fake_tensors
from tests.engine.tiny_adapters import BASE, base, make_adapter
from tests.engine.tiny_gguf import TinyGGUF
from tests.engine.tiny_model import exchange_two_tokens, make_tiny_model, tiny_tokenizer
from tests.postgres_server import PostgresServer


@pytest.fixture(autouse=True)
def nobody_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.advising.measuring.memory_bandwidth", lambda _threads: 40e9)


RELEASE = Path(__file__).parents[1] / "data/releases/tiny_FT_float32"
TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcDe.f-made_up_secret_part_that_is_not_real"


class Place:
    """A folder with everything in order, and the settings that point to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env_file = folder / ".env"
        self.model = folder / "model"
        self.environment = {
            "MODEL": str(self.model),
            "LLAMA_CACHE": str(folder / "cache"),
            "DATABASE": str(folder / "data" / "test.sqlite3"),
        }
        write_model(self.model)

    def check(self, **changes: str) -> dict[str, Finding]:
        """Return the findings by subject, the last one of each."""
        findings = list(run_checks({**self.environment, **changes}, self.env_file))
        return {finding.subject: finding for finding in findings}

    def problems(self, **changes: str) -> list[str]:
        return [f"{f.subject}: {f.sentence}" for f in self.check(**changes).values() if not f.is_good]


def write_model(folder: Path, chat_format: str | None = "chatml") -> None:
    """Write a folder that looks like a converted model to everything that does not load its weights."""
    folder.mkdir()
    decoder = DecoderConfig(1, 32, 64, 2, 1, 16, 384, 2048, 1e4, 1e-5, tied_embeddings=True)
    tensors, size = fake_tensors(decoder)
    (folder / WEIGHTS_FILE).write_bytes(bytes(size))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    Manifest(
        name="tiny",
        precision=Precision.FP32,
        decoder=decoder,
        tokenizer=TokenizerSpec("bpe", "tokenizer.json"),
        chat=ChatSpec(chat_format, META_SYSTEM_PROMPT if chat_format == "llama-2" else ""),
        bos_id=1,
        eos_id=2,
        source={},
        files=describe_files(folder, [WEIGHTS_FILE, "tokenizer.json"]),
        tensors=tensors,
    ).save(folder)


def say_size(monkeypatch: pytest.MonkeyPatch, folder: Path, num_bytes: int) -> None:
    """Let a model take so many bytes, and others as many as they do."""
    usual = ConvertedFolder.running_bytes.fget  # type: ignore[attr-defined]
    running = property(lambda model: num_bytes if model.folder == folder else usual(model))
    monkeypatch.setattr(ConvertedFolder, "running_bytes", running)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_everything_in_order_is_all_good_and_leaves_nothing_behind(place: Place) -> None:
    before = sorted(place.folder.rglob("*"))
    findings = place.check()
    assert list(findings) == [
        "Settings",
        "Token",
        "Model",
        "Provider",
        "Memory",
        "System prompt",
        "Precision",
        "Database",
        "Cache",
    ]
    assert [f for f in findings.values() if not f.is_good] == []
    assert sorted(place.folder.rglob("*")) == before
    assert "playground" in findings["Token"].sentence
    assert "tiny (fp32)" in findings["Model"].sentence


@pytest.mark.parametrize("switch", ["", "off"])
def test_it_says_whose_operators_multiply(place: Place, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv(kernels.SWITCH, switch)
    said = f"Products: {kernels.describe()}."
    assert said in place.check(PROVIDER="cpu")["Provider"].sentence
    assert (said == "Products: ONNX Runtime's own (LLAMACORD_KERNELS=off).") == (switch == "off")


def test_room_for_kv_on_disk_is_told_and_must_be_there(place: Place) -> None:
    finding = place.check(KV_DISK_MB="64")["Cache"]
    assert finding.is_good
    assert "Up to 64.0 MiB may hold what doesn't fit in memory." in finding.sentence
    finding = place.check(KV_DISK_MB="10000000")["Cache"]
    assert not finding.is_good
    assert "up to 9766 GiB of KV may go there. Lower KV_DISK_MB." in finding.sentence


def test_bad_settings_are_all_named_and_end_the_check(place: Place) -> None:
    findings = place.check(TOP_K="x", TEMPERATURE="9")
    assert list(findings) == ["Settings"]
    assert not findings["Settings"].is_good
    assert "TOP_K=x" in findings["Settings"].sentence
    assert "TEMPERATURE=9" in findings["Settings"].sentence


def test_a_misspelt_key_is_a_problem(place: Place) -> None:
    place.env_file.write_text("THREAD=2\n", encoding="utf-8")
    assert any("did you mean THREADS?" in problem for problem in place.problems())


def test_a_token_is_judged_by_its_shape_and_never_shown(place: Place) -> None:
    token = place.check(DISCORD_TOKEN=TOKEN)["Token"]
    assert token.is_good
    assert "123456789012345678" in token.sentence
    assert "secret" not in token.sentence
    (problem,) = place.problems(DISCORD_TOKEN="secret.secret.secret")
    assert "three parts" in problem
    assert "secret" not in problem


def test_the_invite_link_has_exactly_the_permissions_that_are_used(place: Place) -> None:
    findings = place.check(DISCORD_TOKEN=TOKEN)
    link = re.search(r"https://\S+", findings["Invite"].sentence)
    assert link is not None
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(link[0]).query)
    assert query["client_id"] == ["123456789012345678"]
    assert set(query["scope"][0].split()) == {"bot", "applications.commands"}
    granted = {name for name, is_on in discord.Permissions(int(query["permissions"][0])) if is_on}
    assert granted == {
        "read_messages",  # as discord.py calls View Channels
        "send_messages",
        "send_messages_in_threads",
        "read_message_history",
        "attach_files",
    }
    assert "View Channels, " in findings["Invite"].sentence
    assert "leave all switches off" in findings["Intents"].sentence


def test_the_switch_that_is_needed_to_see_all_messages_is_named(place: Place) -> None:
    findings = place.check(DISCORD_TOKEN=TOKEN, MESSAGE_CONTENT_INTENT="on")
    assert "switch on Message Content" in findings["Intents"].sentence


def test_without_a_token_there_is_no_link(place: Place) -> None:
    assert not {"Invite", "Intents"} & set(place.check())


def test_a_changed_truncated_or_missing_model_file_is_found(place: Place) -> None:
    weights = place.model / "weights.bin"
    content = weights.read_bytes()
    weights.write_bytes(b"\1" + content[1:])
    assert "checksum" in place.problems()[0]
    weights.write_bytes(content[1:])
    assert f"{len(content) - 1} bytes" in place.problems()[0]
    weights.unlink()
    assert "missing" in place.problems()[0]
    assert "no model folder" in place.problems(MODEL=str(place.folder / "none"))[0]


def test_a_base_model_cannot_chat(place: Place) -> None:
    write_model(place.folder / "base", chat_format=None)
    assert "base model and can't chat" in place.problems(MODEL=str(place.folder / "base"))[0]


def test_a_chat_template_can_be_given(place: Place) -> None:
    base = make_tiny_model(place.folder / "base")
    replace(load_manifest(base), chat=ChatSpec(None)).save(base)
    assert "base model and can't chat" in place.problems(MODEL=str(base))[0]
    assert place.check(MODEL=str(base), CHAT_TEMPLATE="alpaca")["Model"].is_good
    assert "lacks '<|start_header_id|>'" in place.problems(MODEL=str(base), CHAT_TEMPLATE="llama-3")[0]
    assert "nor a file with a template" in place.problems(MODEL=str(base), CHAT_TEMPLATE="mine.jinja")[0]


def test_a_release_is_good_as_it_is_and_better_converted(place: Place) -> None:
    findings = list(run_checks({**place.environment, "MODEL": str(RELEASE)}, place.env_file))
    sentences = [finding.sentence for finding in findings if finding.subject == "Model"]
    assert "LlamaV2_tiny_FT_float32 (fp32)" in sentences[0]
    assert f"python -m engine convert {RELEASE} DESTINATION" in sentences[1]
    assert all(finding.is_good for finding in findings if finding.subject == "Model")


def test_what_is_not_converted_is_told_by_what_it_is(place: Place) -> None:
    """And a conversion is advised only where it would succeed."""
    model = base().save(place.folder / "mine")
    (problem,) = place.problems(MODEL=str(model))
    assert f"Convert the model first: python -m engine convert {model} models/mine" in problem
    adapter = make_adapter(("q_proj",), seed=1).save(place.folder / "lora")
    (problem,) = place.problems(MODEL=str(adapter))
    assert f"is a LoRA adapter, not a model. It belongs to {BASE}" in problem
    experts = place.folder / "experts"
    experts.mkdir()
    (experts / "config.json").write_text('{"model_type": "mixtral"}')
    (problem,) = place.problems(MODEL=str(experts))
    assert "a mixture of experts, which does not run here" in problem
    cut = place.folder / "cut.gguf"
    cut.write_bytes(TinyGGUF().save(place.folder / "whole.gguf").read_bytes()[:40_000])
    (problem,) = place.problems(MODEL=str(cut))
    assert "it may be truncated. Get it again." in problem
    assert "python -m engine models" in place.problems(MODEL="llama3")[0]


def test_the_default_model_that_is_not_there_yet_is_not_downloaded(place: Place) -> None:
    (problem,) = place.problems(MODEL="")
    assert "`run` downloads it" in problem
    assert not (place.folder / "cache").exists()


def test_more_threads_than_processors_is_a_problem(place: Place) -> None:
    assert "THREADS is 256" in place.problems(THREADS="256")[0]


def test_too_little_memory_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    say_size(monkeypatch, place.model, 10**15)
    memory = place.check()["Memory"]
    assert not memory.is_good
    assert "lower CONTEXT_TOKENS" in memory.sentence


@pytest.mark.parametrize(
    ("num_contexts", "said"),
    [
        (50, "Room for 8 answers of 2,048 tokens at once."),
        (3.5, "Room for 3 answers of 2,048 tokens at once, or for up to 8 shorter ones."),
        (1, "Room for 1 answer of 2,048 tokens at once, or for up to 8 shorter ones."),
    ],
)
def test_for_how_many_answers_there_is_memory_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, num_contexts: float, said: str
) -> None:
    model = open_folder(place.model)
    pages = 16 * model.page_tokens
    num_tokens = int(num_contexts * 2048 / 0.75) + pages
    free = PROCESS_BYTES + model.running_bytes + num_tokens * model.kv_bytes_per_token
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: free)
    assert said in place.check()["Memory"].sentence


def test_the_moderation_models_weights_and_kv_count(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def needed_bytes(**changes: str) -> float:
        sentence = place.check(**changes)["Memory"].sentence
        found = re.search(r"need up to ([\d.]+) (MiB|GiB)", sentence)
        assert found is not None, sentence
        assert ("moderation model" in sentence) == ("MODERATION_MODEL" in changes)
        return float(found[1]) * {"MiB": 2**20, "GiB": 2**30}[found[2]]

    guard = place.folder / "guard"
    write_model(guard, None)
    alone = needed_bytes()
    with_kv = needed_bytes(MODERATION_MODEL=str(guard))
    say_size(monkeypatch, guard, 2**29 + open_folder(guard).running_bytes)
    assert with_kv > alone
    assert needed_bytes(MODERATION_MODEL=str(guard)) >= with_kv + 2**29


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for another program's locks only for a moment."""
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect_at_once(path: Path, *, timeout: float, **options: Any) -> sqlite3.Connection:
        return connect(path, timeout=timeout / 20, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_at_once)


def test_a_busy_database_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(place.environment["DATABASE"])
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        impatient(monkeypatch)
        (problem,) = place.problems()
        assert problem.startswith("Database")
        assert "Another program" in problem
    finally:
        other.close()


def test_a_file_that_is_no_database_is_found(place: Place) -> None:
    path = Path(place.environment["DATABASE"])
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    (problem,) = place.problems()
    assert problem.startswith("Database")
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize(("key", "subject"), [("DATABASE", "Database"), ("LLAMA_CACHE", "Cache")])
def test_a_place_that_cannot_be_written_is_found(place: Place, key: str, subject: str) -> None:
    obstacle = place.folder / "file"
    obstacle.touch()
    (problem,) = place.problems(**{key: str(obstacle / "below" / "it")})
    assert problem.startswith(subject)
    assert key in problem


@pytest.mark.parametrize(
    ("chat_format", "changes", "preset"),
    [
        ("chatml", {}, "none"),
        ("chatml", {"GUIDANCE": "safe"}, "safe"),
        ("llama-2", {}, "safe"),
        ("llama-2", {"SYSTEM_PROMPT": "Rhyme."}, "safe"),
        ("llama-2", {"SYSTEM_PROMPT": "Rhyme.", "GUIDANCE_JOIN": "off"}, "none"),
        ("llama-2", {"GUIDANCE": "none"}, "none"),
    ],
)
def test_the_guidance_in_force_is_told(
    place: Place, chat_format: str, changes: dict[str, str], preset: str
) -> None:
    write_model(place.folder / "chat", chat_format)
    finding = place.check(MODEL=str(place.folder / "chat"), **changes)["System prompt"]
    assert finding.is_good
    assert finding.sentence.startswith(f"guidance {preset}; the system prompt takes ")


def test_a_system_prompt_that_leaves_no_room_is_a_problem(place: Place) -> None:
    (problem,) = place.problems(GUIDANCE="safe", CONTEXT_TOKENS="256")
    assert problem.startswith("System prompt: guidance safe")
    assert "GUIDANCE=none" in problem


def test_on_request_the_models_speed_is_measured(place: Place) -> None:
    folder = make_tiny_model(place.folder / "real")
    environment = {**place.environment, "MODEL": str(folder), "MAX_CONCURRENT": "2"}
    findings = {f.subject: f for f in run_checks(environment, place.env_file, measure=True)}
    assert findings["Speed"].is_good
    assert "in total for 2 at once" in findings["Speed"].sentence
    assert "Speed" not in place.check(MODEL=str(folder))


def test_a_model_that_cannot_answer_is_told_where_it_is_measured(place: Place) -> None:
    findings = {f.subject: f for f in run_checks(place.environment, place.env_file, measure=True)}
    assert not findings["Speed"].is_good
    assert "lacks" in findings["Speed"].sentence


def test_a_draft_model_must_have_the_same_tokenizer_and_be_small(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Drafts" not in place.check()
    draft = place.folder / "draft"
    write_model(draft, None)
    (problem,) = place.problems(DRAFT_MODEL=str(draft))
    assert "takes 100% of the memory" in problem
    assert (
        "the draft model and the conversations need" in place.check(DRAFT_MODEL=str(draft))["Memory"].sentence
    )
    monkeypatch.setattr("bot.model_check._LARGEST_DRAFT", 1.0)
    found = place.check(DRAFT_MODEL=str(draft))["Drafts"]
    assert found.is_good
    assert "while a single answer without a seed is written" in found.sentence
    exchange_two_tokens(draft)
    (problem,) = place.problems(DRAFT_MODEL=str(draft))
    assert problem.startswith("Drafts: ")
    assert "has another tokenizer than" in problem
    (problem,) = place.problems(DRAFT_MODEL=str(place.folder / "nothing"))
    assert problem.startswith("Drafts: ")


def test_a_moderation_model_is_looked_at_as_a_whole(place: Place) -> None:
    assert "Moderation" not in place.check()
    write_model(place.folder / "guard", None)
    found = place.check(MODERATION_MODEL=str(place.folder / "guard"))["Moderation"]
    assert found.is_good
    assert "is complete" in found.sentence
    (place.folder / "guard" / WEIGHTS_FILE).write_bytes(b"")
    (problem,) = place.problems(MODERATION_MODEL=str(place.folder / "guard"))
    assert problem.startswith("Moderation: ")
    assert "Change MODERATION_MODEL." in problem


def test_without_a_model_of_ones_own_it_names_one_that_suits_this_machine(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "resources", lambda: Resources(2**35, 12 * 2**30, 8, Processor("any")))
    finding = place.check(MODEL="", PROVIDER="cpu")["Better model"]
    assert finding.is_good
    assert finding.sentence.startswith("Llama 3.1 8B suits this machine (about ")
    assert "set MODEL=hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M." in finding.sentence
    assert "Better model" not in place.check()
    monkeypatch.setattr(machine, "resources", lambda: Resources(2**35, 2**28, 8, Processor("any")))
    finding = place.check(MODEL="", PROVIDER="cpu")["Better model"]
    assert finding.sentence == "none fits into the free memory here."


@pytest.mark.parametrize("shards", ["0-3/4", "4 of 4"])
def test_all_shards_of_a_bot_fit_a_database_in_a_file(place: Place, shards: str) -> None:
    assert place.check(SHARDS=shards)["Shards"] == Finding(True, "Shards", "all 4, in this process.")


def test_some_shards_of_a_bot_need_a_server(place: Place) -> None:
    (problem,) = place.problems(SHARDS="0-3/16")
    assert problem.startswith("Shards: A database in a file belongs to one process")
    assert "SHARDS=0-15/16" in problem


def test_shards_that_others_have_are_told(place: Place, postgres: PostgresServer) -> None:
    with postgres.lent() as address:

        async def take() -> None:
            async with await Database.open(address) as database:
                await Leases(database).take(Shards(0, 7, 16), "somebody")

        asyncio.run(take())
        said = {
            shards: place.check(SHARDS=shards, DATABASE=address.url)["Shards"]
            for shards in ("8-15/16", "7-8/16", "8 of 16", "16 of 16", "2 of 4")
        }
        assert [one.is_good for one in said.values()] == [True, False, True, True, False]
        assert "other processes have 8 of 16 now" in said["8 of 16"].sentence
        assert "stand by" in said["16 of 16"].sentence
        assert "use 16 shards in all" in said["2 of 4"].sentence
