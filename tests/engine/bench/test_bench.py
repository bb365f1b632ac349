"""`python -m engine bench`: figures beside floors, peers and goals."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from engine.__main__ import main
from engine.bench.driving import Driver, measure_engine
from engine.bench.figures import (
    SHAPES,
    Figures,
    Load,
    Plan,
    Stream,
    figures_from,
    figures_json,
    load_of,
    plan_from,
)
from engine.bench.random_model import write_random_model
from engine.bench.report import GOALS, Run, as_json, columns, draw, rows, sentences, verdicts
from engine.bench.stages import copy_bandwidth, run_loop
from engine.describing.architecture import LLAMA_2_SIZES, DecoderConfig, Precision
from engine.engine import Engine, EngineOptions
from engine.errors import ModelResourceError

SEVEN_B = LLAMA_2_SIZES["Llama 2 7B"]
SMALL = DecoderConfig(2, 128, 256, 4, 2, 32, 384, 1024, 1e4, 1e-5, tied_embeddings=False)
H100 = 3.03e12


def figures(name: str = "Llama", provider: str = "cuda", **totals: float) -> Figures:
    loads = tuple(Load(int(number[1:]), 0.05, total) for number, total in totals.items())
    return Figures(name, provider, loads, 1.0, 0.02, 30_000.0, 0.02, 150, 2**30, 2**33, 2**32)


def run(
    precision: Precision, measured: Figures, peers: tuple[Figures, ...] = (), bandwidth: float = H100
) -> Run:
    return Run("7b", SEVEN_B, precision, Plan("none"), measured, bandwidth, peers, ("No genai here.",))


def test_the_floor_is_what_memory_takes_for_weights_and_kv() -> None:
    measured = run(Precision.FP16, figures(n1=168.0, n64=5307.0))
    assert measured.floor_s(1) * 1e3 == pytest.approx(4.45, rel=0.02)
    assert measured.floor_s(64) * 1e3 == pytest.approx(10.1, rel=0.03)
    assert measured.share(1) == pytest.approx(4.45 / (1000 / 168), rel=0.02)
    assert measured.share(8) is None


def test_each_row_has_a_share_of_the_floor_and_of_each_peer() -> None:
    loop = figures("published loop, fp16", n1=7.0)
    genai = figures("onnxruntime-genai 0.18", n1=170.0, n8=1000.0)
    measured = run(Precision.FP16, figures(n1=168.0, n8=1175.0), (loop, genai))
    assert columns(measured)[-2:] == ("beside published loop", "beside onnxruntime-genai 0.18")
    one, eight = rows(measured)
    assert one[:4] == ["1", "50 ms", "168.0", "168"]
    assert one[-2:] == ["24.00x", "0.99x"]
    assert eight[-2:] == ["167.86x", "1.18x"], "the loop answers one after the other"
    told = " ".join(sentences(measured))
    assert "3030 GB/s" in told
    assert "30000 tokens/s" in told
    assert "computes 150 of them" in told
    assert "No genai here." in told


def test_goals_are_met_or_not_and_scale_with_the_gpu() -> None:
    loop = figures("published loop, fp16", n1=7.0)
    good = [
        run(Precision.FP16, figures(n1=170.0, n64=5200.0, n128=6500.0), (loop,)),
        run(Precision.INT4, figures(n1=320.0, n32=3700.0)),
    ]
    found = list(verdicts(good))
    assert len(found) == len(GOALS) + 2
    assert [verdict.goal.name for verdict in found if not verdict.is_met] == []
    slow = [dataclasses.replace(each, bandwidth=2 * H100) for each in good]
    failed = [verdict for verdict in verdicts(slow) if not verdict.is_met]
    assert len(failed) == 7, "twice the bandwidth is asked for twice the speed, but no second turn for less"
    assert all(verdict.cells()[-1] == "FAIL" for verdict in failed)
    missing = list(verdicts(good[:1]))
    assert [v.cells()[2] for v in missing if v.goal.precision is Precision.INT4] == ["not measured"] * 2


def test_a_window_counts_only_while_all_answer() -> None:
    first = Stream([0.0, 1.0, 2.0, 3.0, 4.0], 5, 0.1)
    second = Stream([1.5, 2.5, 3.5], 6, 0.2)  # two tokens a piece
    load = load_of([first, second], 0.15)
    assert load is not None
    assert load.tokens_per_s == pytest.approx((2 + 4) / 2.0)
    assert load_of([first, Stream([9.0], 1, 0.1)], 0.1) is None


def test_figures_and_plans_cross_processes_unchanged() -> None:
    measured, plan = figures(n1=1.0, n8=3.0), Plan("folder", (1, 8))
    assert figures_from(json.loads(json.dumps(figures_json(measured)))) == measured
    assert plan_from(json.loads(json.dumps(dataclasses.asdict(plan)))) == plan


def test_a_plot_is_a_picture_of_all_runs(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "speed.png"
    draw([run(Precision.FP16, figures(n1=168.0, n64=5307.0)), run(Precision.INT4, figures(n1=320.0))], path)
    with Image.open(path) as image:
        assert image.size == (900, 520)
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20) or []}
    assert {(0x1F, 0x6F, 0xEB), (0xD1, 0x48, 0x2F), (255, 255, 255)} <= colours
    with pytest.raises(ModelResourceError, match="nothing to draw"):
        draw([], path)


def test_json_has_floors_and_shares() -> None:
    made = json.loads(json.dumps(as_json([run(Precision.INT4, figures(n1=320.0))])))
    assert made[0]["shares"]["1"] == pytest.approx(made[0]["floors_s"]["1"] * 320.0)


def test_a_copy_is_measured_in_bytes_read_and_written() -> None:
    assert 1e8 < copy_bandwidth("cpu", 2**24, np.float32) < 1e12


def test_known_shapes_have_the_parameters_they_are_called_by() -> None:
    sizes = {name: config.num_parameters / 1e9 for name, config in SHAPES.items()}
    assert sizes == {
        "7b": pytest.approx(6.74, rel=0.01),
        "13b": pytest.approx(13.0, rel=0.01),
        "1.1b": pytest.approx(1.1, rel=0.01),
        "default": pytest.approx(0.135, rel=0.01),
        "llama-3.2-1b": pytest.approx(1.236, rel=0.001),
        "qwen2.5-0.5b": pytest.approx(0.494, rel=0.001),
        "qwen2.5-1.5b": pytest.approx(1.544, rel=0.001),
        "gemma-3-270m": pytest.approx(0.268, rel=0.001),
    }


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "gemma-3-270m"])
def test_the_published_loop_is_no_peer_of_other_families(name: str) -> None:
    with pytest.raises(ModelResourceError, match="models of Llama 2's kind alone"):
        run_loop(Plan("nowhere"), SHAPES[name])


def test_the_command_measures_a_model_and_a_peer_and_writes_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = write_random_model(tmp_path / "model", SMALL, Precision.INT8)
    written, drawn = tmp_path / "speed.json", tmp_path / "speed.png"
    places = ["--json", str(written), "--plot", str(drawn), "--model", str(folder)]
    how = [
        "--device",
        "cpu",
        "--threads",
        "1",
        "--conversations",
        "1,2",
        "--context",
        "60",
        "--tokens",
        "700",
    ]
    status = main(["bench", *places, *how, "--peer", "loop", "--peer", "genai"])
    captured = capsys.readouterr()
    printed = captured.out
    assert status == 0, captured.err
    assert "beside published loop" in printed
    assert "Not compared with genai: --peer genai needs --genai-model" in printed
    made = json.loads(written.read_text())[0]
    assert [load["conversations"] for load in made["figures"]["loads"]] == [1, 2]
    assert made["peers"][0]["loads"][0]["tokens_per_s"] > 0
    assert made["bandwidth"] > 1e8
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "nowhere"], "There is no model folder"),
        (["--synthetic", "default", "--context", "9000"], "exceed the model's 2048 tokens"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["bench", *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_random_model(tmp_path / "model", SMALL, Precision.INT8)
    written = tmp_path / "nowhere" / "speed.json"
    how = ["--device", "cpu", "--threads", "1", "--conversations", "1", "--context", "40", "--tokens", "8"]
    assert main(["bench", "--model", str(folder), *how, "--json", str(written)]) == 1
    assert f"{written} could not be used: No such file" in capsys.readouterr().err


def test_without_pillow_nothing_is_measured_for_a_plot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr("engine.commands.bench._measure_all", lambda _: pytest.fail("It was measured."))
    assert main(["bench", "--synthetic", "default", "--plot", "speed.png"]) == 1
    assert "pip install pillow" in capsys.readouterr().err


async def test_more_conversations_than_there_is_memory_for_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.machine.machine.free_memory_bytes", lambda: 2**20)
    folder = write_random_model(tmp_path / "model", SMALL, Precision.INT8)
    made = await measure_engine(Plan(str(folder), (1, 64), context=40, tokens=8, device="cpu", threads=1))
    assert [load.conversations for load in made.loads] == [1]


async def test_an_answer_ends_after_the_seconds_of_the_plan(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", SMALL, Precision.INT8)
    async with await Engine.open(folder, EngineOptions(num_threads=1, device="cpu")) as engine:
        driver = Driver(engine, SMALL.vocab_size, Plan(str(folder), tokens=900, seconds=0.05))
        stream = await driver.ask(driver.prompt(20), 900)
    assert 1 < stream.num_tokens < 900
    assert not stream.ended_early


async def test_a_second_turn_computes_only_what_is_new(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, context_length=2048)
    folder = write_random_model(tmp_path / "model", config, Precision.INT8)
    made = await measure_engine(Plan(str(folder), (1,), context=40, tokens=8, device="cpu", threads=1))
    assert made.second_turn_tokens is not None
    assert 50 <= made.second_turn_tokens <= 52
    assert made.provider == "cpu"
    assert made.resident_bytes is not None
    assert made.resident_bytes > 2**20


def test_without_genai_the_package_is_named() -> None:
    from engine.bench.peers import genai_library

    try:
        importlib.import_module("onnxruntime_genai")
    except ImportError:
        with pytest.raises(ModelResourceError, match="pip install onnxruntime-genai-cuda"):
            genai_library()
