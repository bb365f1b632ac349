"""`inspect`: every kind of model explained, everything wrong with one a sentence and exit code 1."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import __main__ as cli
from engine import kernels
from engine.advising.advice import Load, advise
from engine.advising.inspection import inspect
from engine.convert.converter import convert, open_source
from engine.convert.gguf_source import GGUFSource
from engine.describing.architecture import Precision
from engine.describing.footprint import Kept, bit_shares, disk_bytes, weight_bytes
from engine.describing.manifest import MANIFEST_FILE, WEIGHTS_FILE, describe_files, load_manifest
from engine.machine import machine
from engine.machine.cgroups import Limits
from engine.machine.machine import resources
from tests.engine import chat_templates
from tests.engine.tiny_gguf import QuantType, TinyGGUF
from tests.engine.tiny_hf import TinyHuggingFace
from tests.engine.tiny_model import exchange_two_tokens, make_tiny_model, tiny_config

RELEASES = Path(__file__).parents[2] / "data" / "releases"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return TinyGGUF(quant_type=QuantType.Q8_0).save(tmp_path / "tiny.gguf")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = cli.main(["inspect", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_converted_model_is_explained(folder: Path) -> None:
    found = inspect(folder, verify=True)
    assert (found.kind, found.problems, found.notes) == ("converted model", [], [])
    assert found.num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert found.description is not None
    assert (found.description.name, found.description.precision) == ("tiny", "fp32")
    assert (found.description.num_tokens, found.description.chat.format) == (384, "chatml")
    assert sum(group.num_bytes for group in found.description.tensors) > 4 * 384 * 64


def test_a_gguf_file_is_explained(gguf_file: Path) -> None:
    found = inspect(gguf_file, verify=True)
    assert (found.kind, found.problems) == ("GGUF file, not converted yet", [])
    assert found.description is not None
    kinds = {group.kind: group.count for group in found.description.tensors}
    assert kinds == {"Q8_0": 22, "F32": 7}
    assert found.description.tokenizer is not None
    assert found.description.tokenizer.kind == "bpe"
    assert found.description.origin["license"] == "mit"


def test_a_hugging_face_folder_is_explained(tmp_path: Path) -> None:
    found = inspect(TinyHuggingFace().save(tmp_path / "hf"), verify=True)
    assert (found.kind, found.problems) == ("Hugging Face folder, not converted yet", [])
    assert found.description is not None
    assert sum(group.count for group in found.description.tensors) == 29
    assert found.description.num_tokens == 384


@pytest.mark.parametrize("kind", [QuantType.Q4_0, QuantType.Q4_1])
def test_a_file_of_4_bits_is_known_before_and_after_it_is_converted(tmp_path: Path, kind: int) -> None:
    file = TinyGGUF(quant_type=kind).save(tmp_path / "tiny.gguf")
    folder = tmp_path / "model"
    convert(GGUFSource(file), folder, Precision.INT4)
    for path in (file, folder):
        description = inspect(path).description
        assert description is not None
        assert description.blocks.has_4_bits
        held = description.blocks.held
        assert held["layers.0.qkv"] == Kept(4, kind == QuantType.Q4_1)
        written = (folder / WEIGHTS_FILE).stat().st_size
        assert disk_bytes(description.config, Precision.INT4, held) - 4096 <= written
        assert written <= disk_bytes(description.config, Precision.INT4, held)


@pytest.mark.parametrize(("kind", "precision"), [(QuantType.Q4_0, "int4"), (QuantType.Q8_0, "int8")])
def test_a_file_keeps_its_bits_where_nobody_says_how_many(tmp_path: Path, kind: int, precision: str) -> None:
    file = TinyGGUF(quant_type=kind).save(tmp_path / "tiny.gguf")
    assert cli.main(["convert", str(file), str(tmp_path / "model")]) == 0
    assert load_manifest(tmp_path / "model").precision == precision


MIXTURES: dict[str, tuple[int, dict[str, int]]] = {
    "of 4 bits": (QuantType.Q4_0, {"token_embd.weight": QuantType.Q8_0, "output.weight": QuantType.Q8_0}),
    "of 4 and 5 bits": (
        QuantType.Q4_1,
        {
            "blk.0.attn_v.weight": QuantType.Q5_1,
            "blk.1.ffn_down.weight": QuantType.Q8_0,
            "blk.2.ffn_up.weight": QuantType.Q5_0,
            "output.weight": QuantType.Q4_1,
            "token_embd.weight": QuantType.Q5_1,
        },
    ),
    "of 5 bits": (QuantType.Q5_1, {"blk.0.ffn_down.weight": QuantType.F16}),
    "of numbers": (QuantType.F16, {}),
}


@pytest.mark.parametrize(("quant_type", "kinds"), MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_how_large_it_becomes_is_known_before(
    tmp_path: Path, quant_type: int, kinds: dict[str, int], tied: bool
) -> None:
    path = TinyGGUF(tiny_config(tied=tied), quant_type, kinds).save(tmp_path / "tiny.gguf")
    description = inspect(path).description
    assert description is not None
    advice = advise(description.config, resources(), Load(1, 512), {}, description.blocks)
    for precision in Precision:
        folder = tmp_path / precision
        convert(GGUFSource(path), folder, precision)
        there = sum(one.stat().st_size for one in folder.iterdir() if one.name != MANIFEST_FILE)
        option = advice.option(precision)
        assert option.disk_bytes == pytest.approx(there, rel=0.01, abs=4096)  # the last page is not filled
        after = inspect(folder).description
        assert after is not None
        if precision in ("int8", "int4"):
            assert option.bits == bit_shares(after.config, precision, after.blocks.held)
            assert weight_bytes(after.config, precision, after.blocks.held) == sum(
                group.num_bytes for group in after.tensors
            )


def test_a_file_of_more_bits_is_said_to_stay_so(tmp_path: Path) -> None:
    description = inspect(TinyGGUF(quant_type=QuantType.Q5_1).save(tmp_path / "tiny.gguf")).description
    assert description is not None
    advice = advise(description.config, resources(), Load(1, 512), {}, description.blocks)
    assert advice.option(Precision.INT4).bits == {8: 1.0}
    assert "even in int4, 100% of them get 8" in advice.sentences[-1]


def test_a_released_model_is_explained() -> None:
    found = inspect(RELEASES / "tiny_FT_float16", verify=True)
    assert (found.kind, found.problems) == ("released Llama-2-Onnx model, not converted yet", [])
    assert "runs as it is" in found.notes[0]
    assert found.description is not None
    assert found.description.tokenizer is not None
    assert (found.description.tokenizer.kind, found.description.chat.format) == ("sentencepiece", "llama-2")


def test_a_released_model_that_lacks_a_tensors_file_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "tiny_FT_float32"
    shutil.copytree(RELEASES / "tiny_FT_float32", folder)
    shutil.copy(RELEASES / "tokenizer.model", tmp_path)
    missing = next(path for path in sorted((folder / "ONNX").iterdir()) if path.suffix != ".onnx")
    missing.unlink()
    (problem,) = inspect(folder).problems
    assert missing.name in problem
    assert "missing" in problem


@pytest.mark.parametrize("name", ["model.gguf", "release/ONNX/model.onnx"])
def test_what_git_left_in_the_place_of_a_file_is_recognised(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    for path in (file, tmp_path / "release/embeddings.pth", tmp_path / "tokenizer.model"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    (problem,) = inspect(tmp_path / name.split("/")[0]).problems
    assert "git lfs pull" in problem


def test_a_shard_that_is_missing_is_told(tmp_path: Path) -> None:
    folder = TinyHuggingFace().save(tmp_path / "hf")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (problem,) = inspect(folder).problems
    assert "safetensors" in problem


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _add_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["model"]["vocab"]["one more"] = 384
    path.write_text(json.dumps(raw), encoding="utf-8")
    manifest = load_manifest(folder)
    files = {**manifest.files, **describe_files(folder, [path.name])}
    dataclasses.replace(manifest, files=files).save(folder)


SPOILT_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (lambda f: _truncate(f / WEIGHTS_FILE), "truncated or changed"),
    "weights missing": (lambda f: (f / WEIGHTS_FILE).unlink(), "is missing from the model folder"),
    "a bit of the tokenizer": (lambda f: _flip(f / "tokenizer.json"), "does not match its checksum"),
    "no JSON": (lambda f: (f / MANIFEST_FILE).write_text("{"), "is not valid JSON"),
    "unknown chat format": (
        lambda f: _edit(f / MANIFEST_FILE, '"chatml"', '"wild"'),
        "no chat format called",
    ),
    "fewer tokens than its embedding": (
        lambda f: _edit(f / MANIFEST_FILE, '"vocab_size": 384', '"vocab_size": 380'),
        "what it says of the tensor embed does not fit the decoder",
    ),
    "another model's tokenizer": (
        _add_token,
        "tokenizer knows 385 tokens and the model only 384",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT_FOLDERS.values(), ids=SPOILT_FOLDERS)
def test_what_is_wrong_with_a_folder_is_told(
    folder: Path, spoil: Callable[[Path], object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    status, report = run_json(capsys, str(folder))
    assert status == 1
    assert sentence in report["problems"][0]
    assert report["kind"] == "converted model"


def test_only_verify_reads_large_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.describing.manifest._HASHED_AT_LOAD_BYTES", 0)
    _flip(folder / WEIGHTS_FILE)
    assert inspect(folder).problems == []
    (problem,) = inspect(folder, verify=True).problems
    assert "checksum" in problem


def test_a_truncated_gguf_file_is_told(gguf_file: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:-2000])
    (problem,) = inspect(gguf_file).problems
    assert "truncated" in problem


def test_missing_and_misshapen_tensors_are_told(tmp_path: Path) -> None:
    spoilt = TinyGGUF()
    del spoilt.tensors["blk.1.ffn_up.weight"], spoilt.tensors["blk.2.ffn_up.weight"]
    spoilt.tensors["output_norm.weight"] = np.ones(32, np.float32)
    problems = inspect(spoilt.save(tmp_path / "tiny.gguf")).problems
    assert problems == [
        "There is no tensor layers.1.up and 1 more. Get the files again.",
        "The tensor final_norm has the shape (32,), not (64,). Get the files again.",
    ]


def test_weights_that_are_no_numbers_are_found_by_verify(tmp_path: Path) -> None:
    spoilt = TinyGGUF()
    spoilt.tensors["blk.1.ffn_up.weight"][3, 4] = np.nan
    file = spoilt.save(tmp_path / "tiny.gguf")
    assert inspect(file).problems == []
    shares: list[float] = []
    (problem,) = inspect(file, verify=True, on_progress=shares.append).problems
    assert "layers.1.up holds values that aren't numbers" in problem
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


def test_unsupported_rope_scaling_is_named(tmp_path: Path) -> None:
    spoilt = TinyGGUF()
    spoilt.fields["llama.rope.scaling.type"] = "unheard of"
    (problem,) = inspect(spoilt.save(tmp_path / "tiny.gguf")).problems
    assert "unheard of" in problem


@pytest.mark.parametrize("name", ["nothing", "empty folder", "text"])
def test_what_is_no_model_is_one_sentence(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "text").write_text("not a model")
    status, report = run_json(capsys, str(tmp_path / name))
    assert status == 1
    assert len(report["problems"]) == 1
    assert report["model"] is None


def test_a_base_model_is_usable_but_cannot_chat(tmp_path: Path) -> None:
    base = TinyGGUF()
    del base.fields["tokenizer.chat_template"]
    found = inspect(base.save(tmp_path / "tiny.gguf"))
    assert found.problems == []
    assert "can't chat" in found.notes[0]


def test_a_model_that_does_not_fit_the_memory_cannot_be_used(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_limits", lambda: Limits(2**20, 2**20))
    status, report = run_json(capsys, str(folder))
    assert status == 1
    assert "of memory, but there are only 1.0 MiB" in report["problems"][0]
    assert report["recommended"] is None


def test_the_figures_follow_the_load(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run_json(capsys, str(folder), "--context", "128", "--conversations", "3")
    assert status == 0
    assert report["load"] == {"num_conversations": 3, "num_tokens": 128}
    per_token = 2 * 3 * 2 * 16 * 4
    assert {option["kv_bytes"] for option in report["options"]} == {3 * 128 * per_token}
    assert report["model"]["num_parameters"] > 0


@pytest.mark.parametrize("option", ["--context", "--conversations"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_senseless_load_is_refused(
    folder: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(folder), option, value])
    assert option in capsys.readouterr().err


def test_a_person_gets_tables(gguf_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(gguf_file)]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "3 layers",
        "4 heads of 16 over 2",
        "chatml",
        "You are a tiny model.",
        "int8 ←",
        "Nothing",
    ):
        assert expected in shown


def test_names_from_a_file_command_neither_terminal_nor_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = TinyGGUF()
    odd.fields["general.name"] = "[red]\x1b[31mname[/nonsense]"
    odd.fields["general.architecture"] = "llama"
    assert cli.main(["inspect", str(odd.save(tmp_path / "[bold]odd[x].gguf"))]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[31mname[/nonsense]" in shown
    assert "[bold]odd" in shown


def test_it_says_whose_operators_multiply(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert run_json(capsys, str(folder))[1]["machine"]["products"] == kernels.describe()
    assert cli.main(["inspect", str(folder)]) == 0
    assert "ONNX Runtime's own (LLAMACORD_KERNELS=off)" in capsys.readouterr().out


def test_measuring_gives_a_speed_for_each_precision_and_for_the_model(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.advising.measuring._BANDWIDTH_BYTES", 2**20)
    status, report = run_json(capsys, str(folder), "--measure", "--conversations", "2", "--context", "256")
    assert status == 0
    assert report["machine"]["bandwidth_bytes_per_s"] > 0
    speeds = {o["precision"]: o["speed"] for o in report["options"] if o["precision"] != "fp16"}
    for speed in (*speeds.values(), report["measured"]):
        assert min(speed["single"], speed["together"], speed["prefill"]) > 0
    assert report["recommended"] in speeds
    assert "tokens/s for 2 conversations together" in report["advice"][0]
    assert "with Llama 2 7B and" in report["advice"][-1]


def test_the_catalogue_has_every_tensor(gguf_file: Path) -> None:
    source = GGUFSource(gguf_file)
    for name, stored in source.catalogue().items():
        assert stored.shape == source.tensor(name).shape


def test_how_it_thinks_and_is_sampled_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TinyHuggingFace()
    model.files["chat_template.jinja"] = chat_templates.QWEN_3.encode()
    model.files["generation_config.json"] = b'{"temperature": 0.6, "top_k": 20}'
    path = model.save(tmp_path / "source")
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "between <think> and </think>, until enable_thinking is false" in shown
    assert "temperature 0.6, top_k 20" in shown
    convert(open_source(path), tmp_path / "model", Precision.INT8)
    assert cli.main(["inspect", str(tmp_path / "model")]) == 0
    assert "until enable_thinking is false" in capsys.readouterr().out


def test_whether_a_model_can_draft_for_another_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, draft = make_tiny_model(tmp_path / "model"), make_tiny_model(tmp_path / "draft", seed=1)
    assert cli.main(["inspect", str(folder), "--draft", str(draft)]) == 0
    assert f"tiny can draft for it: DRAFT_MODEL={draft} takes" in capsys.readouterr().out.replace("\n", "")
    assert cli.main(["inspect", str(folder), "--draft", str(exchange_two_tokens(draft))]) == 1
    assert "has another tokenizer than" in capsys.readouterr().out
