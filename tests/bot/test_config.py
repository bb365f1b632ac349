"""The settings: defaults, precedence, every kind of bad value, and what is never shown."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from bot.config import load_settings
from bot.config_keys import CHAT_KEYS, KEYS, bot_id
from bot.parameters import PARAMETERS, ChatParameters, Guidance, GuidanceChoice
from engine.configuring.reading import ConfigError
from engine.types import RANGES

EXAMPLE = Path(__file__).parents[2] / ".env.example"
TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcDe.f-made_up_secret_part_that_is_not_real"


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def problems(env_file: Path, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(environment or {}, env_file)
    return str(caught.value)


def test_nothing_set_gives_the_defaults(env_file: Path) -> None:
    settings = load_settings({}, env_file)
    assert settings.discord_token is None
    assert settings.model is None
    assert settings.cache == platformdirs.user_cache_path("llamacord", appauthor=False)
    assert settings.database == Path("data/llamacord.sqlite3")
    assert settings.chat == ChatParameters()
    assert settings.log_level == logging.INFO
    assert (settings.max_concurrent, settings.max_queue, settings.playground_port) == (8, 64, 8323)


def test_the_environment_wins_over_the_file_and_an_empty_value_counts_as_none(env_file: Path) -> None:
    env_file.write_text("TOP_K=5\nTEMPERATURE=0.3\nTHREADS=\n", encoding="utf-8")
    settings = load_settings({"TOP_K": "7", "TEMPERATURE": " ", "PATH": "/bin"}, env_file)
    assert settings.chat.sampling.top_k == 7
    assert settings.chat.sampling.temperature == 0.3
    assert settings.threads == 0


def test_what_the_operator_chose_is_known_though_it_be_the_default(env_file: Path) -> None:
    env_file.write_text("TEMPERATURE=0.7\nTOP_P=\nTHREADS=2\n", encoding="utf-8")
    assert load_settings({"TOP_K": "40"}, env_file).chat.chosen == {"temperature", "top_k"}


def test_guidance_is_the_operators_choice(env_file: Path) -> None:
    assert load_settings({}, env_file).chat.guidance == Guidance(GuidanceChoice.AUTO, is_kept=True)
    changed = load_settings({"GUIDANCE": "Safe", "GUIDANCE_JOIN": "OFF"}, env_file)
    assert changed.chat.guidance == Guidance(GuidanceChoice.SAFE, is_kept=False)
    assert "must be on or off" in problems(env_file, {"GUIDANCE_JOIN": "maybe"})
    assert "must be auto, safe or none" in problems(env_file, {"GUIDANCE": "maybe"})


def test_the_file_may_have_quotes_comments_exports_a_byte_order_mark_and_dollars(env_file: Path) -> None:
    env_file.write_text(
        "# comment\nexport PRECISION=FP32\nSYSTEM_PROMPT='You cost ${TOP_K} $5.\nBe brief.'  # two lines\n",
        encoding="utf-8-sig",
    )
    settings = load_settings({}, env_file)
    assert settings.precision == "fp32"
    assert settings.chat.system_prompt == "You cost ${TOP_K} $5.\nBe brief."


def test_every_bad_value_is_named_at_once_with_key_value_origin_and_what_is_allowed(env_file: Path) -> None:
    env_file.write_text("TEMPERATURE=hot\nTOP_K=-1\nPRECISION=int3\nMAX_NEW_TOKENS=1.5\n", encoding="utf-8")
    report = problems(env_file, {"PLAYGROUND_PORT": "65536", "TOP_P": "nan", "CONTEXT_TOKENS": "255"})
    lines = report.splitlines()
    assert lines[0].startswith("7 things")
    assert len(lines) == 8
    assert f"TEMPERATURE=hot (from {env_file}) must be a number from 0 to 2." in report
    assert "TOP_K=-1" in report
    assert "PRECISION=int3" in report
    assert "must be auto, fp32, fp16, int8 or int4" in report
    assert "MAX_NEW_TOKENS=1.5" in report
    assert "PLAYGROUND_PORT=65536 (from environment) must be a whole number from 0 to 65535." in report
    assert "TOP_P=nan" in report
    assert "CONTEXT_TOKENS=255 (from environment) must be 0 or a whole number from 256" in report


def test_a_single_problem_is_a_single_sentence(env_file: Path) -> None:
    assert problems(env_file, {"THREADS": "many"}) == (
        "THREADS=many (from environment) must be a whole number from 0 to 256."
    )


@pytest.mark.parametrize("name", [key.name for key in KEYS if key.name not in {"SYSTEM_PROMPT"}])
def test_each_key_refuses_nonsense_and_control_characters_reach_no_terminal(
    name: str, env_file: Path
) -> None:
    report = problems(env_file, {name: "\0\x1b[31m nonsense"})
    assert name in report
    assert "\x1b" not in report
    assert "\0" not in report


def test_a_long_bad_value_is_cut(env_file: Path) -> None:
    assert len(problems(env_file, {"TOP_K": "9" * 5000})) < 200
    assert "4001" in problems(env_file, {"SYSTEM_PROMPT": "x" * 4001})


@pytest.mark.parametrize("written", ["sekret", "sekret.sekret.sekret", TOKEN + ".sekret", "sekret" + TOKEN])
def test_a_bad_token_is_reported_and_never_shown(written: str, env_file: Path) -> None:
    report = problems(env_file, {"DISCORD_TOKEN": written})
    assert "DISCORD_TOKEN=(hidden)" in report
    assert "three parts" in report
    assert "sekret" not in report


def test_a_good_token_is_taken_but_not_part_of_the_repr(env_file: Path) -> None:
    settings = load_settings({"DISCORD_TOKEN": f" {TOKEN}\n"}, env_file)
    assert settings.discord_token == TOKEN
    assert TOKEN not in repr(settings)
    assert bot_id(TOKEN) == 123456789012345678


def test_a_misspelt_key_of_the_file_gets_a_hint_and_a_foreign_one_does_not(env_file: Path) -> None:
    env_file.write_text("MAX_CONCURENT=2\nDISCORD_TOKN=x\nAWS_REGION=here\n", encoding="utf-8")
    settings = load_settings({"TEMPERATUR": "1"}, env_file)
    assert settings.hints == (
        f"MAX_CONCURENT in {env_file} is not a setting: did you mean MAX_CONCURRENT?",
        f"DISCORD_TOKN in {env_file} is not a setting: did you mean DISCORD_TOKEN?",
    )
    assert "did you mean" in problems(env_file, {"TOP_K": "x"})


def test_a_line_that_is_no_setting_is_named(env_file: Path) -> None:
    env_file.write_text("TOP_K=3\nSYSTEM_PROMPT='never closed\n", encoding="utf-8")
    assert f"Line 2 of {env_file}" in problems(env_file)


def test_a_file_that_cannot_be_read_is_one_sentence(env_file: Path) -> None:
    env_file.write_bytes(b"TOP_K=\xff\xfe3")
    assert "not UTF-8" in problems(env_file)
    env_file.unlink()
    env_file.mkdir()
    assert "cannot be read" in problems(env_file)


def test_a_path_may_begin_with_the_home_folder(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = load_settings({"LLAMA_CACHE": "~/models", "MODEL": "llama-2"}, env_file)
    assert settings.cache == Path("/home/somebody/models")
    assert settings.model == Path("llama-2")


def test_the_example_file_has_every_key_with_its_default_and_an_explanation_and_no_other() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    shown = {}
    for previous, line in zip(["", *lines], lines, strict=False):
        match = re.fullmatch(r"#([A-Z_]+)=(.*)", line)
        if match:
            shown[match[1]] = match[2]
            assert previous.startswith("# "), f"{match[1]} is not explained"
    assert shown == {key.name: key.default for key in KEYS}
    assert list(shown) == [key.name for key in KEYS]


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in ("seed", "thinking")])
def test_the_example_file_tells_the_range_of_each_parameter(name: str) -> None:
    allowed = PARAMETERS[name].allowed if name in PARAMETERS else RANGES[name]
    explanation = EXAMPLE.read_text(encoding="utf-8").partition(f"\n#{name.upper()}=")[0].splitlines()[-1]
    assert f"{_plain(allowed.low)} to {_plain(allowed.high)}" in explanation


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def test_the_example_file_changes_nothing_also_when_uncommented(env_file: Path) -> None:
    example = EXAMPLE.read_text(encoding="utf-8")
    env_file.write_text(re.sub(r"^#([A-Z_]+=)", r"\1", example, flags=re.MULTILINE), encoding="utf-8")
    settings = load_settings({}, env_file)
    assert settings.chat.chosen == {key.name.lower() for key in CHAT_KEYS if key.default}
    plain = replace(settings, chat=replace(settings.chat, chosen=frozenset()))
    assert plain == load_settings({}, env_file.with_name("none"))
