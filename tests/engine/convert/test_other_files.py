"""What is no model, or none to convert, is told by what it is and what to do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest

from engine.__main__ import main
from engine.convert.converter import open_source
from engine.errors import ModelFormatError
from tests.engine.tiny_adapters import base
from tests.engine.tiny_hf import TinyHuggingFace
from tests.engine.tiny_model import make_tiny_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def refusal(path: Path) -> str:
    with pytest.raises(ModelFormatError) as caught:
        open_source(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    return sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("llama-2-7b.ggmlv3.q4_0.bin", b"tjgg\x03\0\0\0" + bytes(100), "before August 2023 (GGML)"),
        ("old.bin", b"lmgg" + bytes(100), "before August 2023 (GGML)"),
        ("lora.bin", b"algg\x01\0\0\0" + bytes(100), "a LoRA adapter in llama.cpp's old format"),
        ("model.gguf", b"\n<!DOCTYPE html>\n<html><head>", "is a web page"),
        ("model.gguf", b"<HTML lang=en>", "is a web page"),
        (
            "model.gguf",
            b"Access to model meta-llama/Llama-2-7b is restricted.\n",
            '"Access to model meta-llama/',
        ),
        ("model.gguf", b"", "is empty"),
        ("model.gguf", b"\x8f\x11" * 600, "is not a GGUF file, nor anything else"),
        ("pytorch_model.bin", b"\x80\x02}q\0.", "a pickle that may run any code"),
        ("model.tar.gz", b"\x1f\x8b\x08\0", "is an archive: unpack it first"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}" + b"\xff" * 9, "name the folder, with its config.json"),
        ("config.json", b'{"model_type": "llama"}', "name the folder that it is in"),
        ("cut.gguf", b"GGUF\3\0\0\0\1", "it may be truncated. Get it again."),
        ("model.gguf.part", b"\xff" * 2000, "is a download that has not ended"),
        ("model.gguf", POINTER, 'is a Git LFS pointer, not the file itself. Run "git lfs pull"'),
    ],
)
def test_a_file_is_told_by_what_it_is(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_a_zip_of_torch_is_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    assert "a pickle that may run any code" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "architecture", "sentence"),
    [
        ("adapter", "llama", "is a LoRA adapter, not a model"),
        ("mmproj", "clip", "the part of a model that sees pictures"),
        ("model", "clip", "the part of a model that sees pictures"),
        ("imatrix", "llama", "statistics for quantising"),
    ],
)
def test_a_gguf_file_of_another_kind_is_told(
    kind: str, architecture: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert sentence in refusal(path)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "hidden"}}, "a method that is not known"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    ],
)
def test_quantised_weights_are_told_by_their_method(
    config: dict[str, Any], method: str, tmp_path: Path
) -> None:
    model = TinyHuggingFace()
    model.config |= config
    sentence = refusal(model.save(tmp_path / "model"))
    assert f"quantised already. They are of {method}," in sentence
    assert "a GGUF file" in sentence


@pytest.mark.parametrize(("name", "method"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")])
def test_quantised_weights_of_old_tools_are_told_by_the_file_beside(
    name: str, method: str, tmp_path: Path
) -> None:
    model = TinyHuggingFace()
    model.files[name] = b'{"bits": 4}'
    assert f"They are of {method}," in refusal(model.save(tmp_path / "model"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["consolidated.00.pth", "params.json"], "is Meta's own download"),
        (["consolidated.safetensors", "params.json"], "is in Mistral's own format"),
        (["b.Q4_0.gguf", "a.Q8_0.gguf"], "holds GGUF files: name one of them, such as"),
        (["pytorch_model.bin"], "holds pytorch_model.bin, a pickle"),
        (["onnx/decoder.onnx"], "holds ONNX files of another program (decoder.onnx)"),
        (["model.safetensors", "tokenizer.json"], "Get all files of the model, not just the weights"),
        (["tokenizer.model", "7B_FT/ONNX/Llama.onnx"], "is not a model, but holds one: name "),
        (["a/config.json", "b/b.gguf", "b/c.gguf"], "holds several models: name one of them, such as "),
        (["models--a--b/refs/main"], "is Hugging Face's cache: name one of its models"),
        ([], "it has no config.json and no ONNX/*.onnx"),
    ],
)
def test_a_folder_is_told_by_what_it_holds(files: list[str], sentence: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    assert sentence in refusal(folder)


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("hf:somebody/Tiny-GGUF:Q4_0", "python -m engine pull hf:somebody/Tiny-GGUF:Q4_0"),
        ("https://huggingface.co/somebody/Tiny", "python -m engine pull hf:OWNER/NAME"),
    ],
)
def test_what_is_not_here_is_fetched_with_another_command(
    address: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["convert", address, "out"], ["inspect", address]):
        assert main(words) == 1
        said = capsys.readouterr()
        assert said.err.strip().endswith(command)
        assert said.out == "", "no table of nothing"


def test_a_folder_with_pickles_alone_is_refused(tmp_path: Path) -> None:
    folder = TinyHuggingFace().save(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pytorch_model.bin, a pickle that may run any code" in refusal(folder)


def test_a_converted_model_is_not_converted_again(tmp_path: Path) -> None:
    assert refusal(make_tiny_model(tmp_path / "model")).endswith("is converted already: set MODEL to it.")


def cached(tmp_path: Path, *revisions: str, main: str | None) -> Path:
    """Return the folder of a model in a cache as Hugging Face's library lays it out."""
    top = tmp_path / "hub" / "models--somebody--Tiny-Llama"
    for revision in revisions:
        base().save(top / "snapshots" / revision)
    if main is not None:
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text(main)
    return top


@pytest.mark.parametrize(
    ("revisions", "main", "expected"),
    [(("aaa", "bbb"), "bbb", "bbb"), (("aaa",), None, "aaa"), (("aaa",), "gone", "aaa")],
)
def test_a_folder_of_hugging_faces_cache_leads_to_its_snapshot(
    revisions: tuple[str, ...], main: str | None, expected: str, tmp_path: Path
) -> None:
    top = cached(tmp_path, *revisions, main=main)
    for revision in revisions:
        config = json.loads((top / "snapshots" / revision / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 20000.0 if revision == expected else 10000.0
        (top / "snapshots" / revision / "config.json").write_text(json.dumps(config))
    for path in (top, top / "snapshots"):
        source = open_source(path)
        assert source.name == "Tiny-Llama"
        assert source.config.rope_theta == 20000.0


def test_of_several_snapshots_none_is_guessed(tmp_path: Path) -> None:
    sentence = refusal(cached(tmp_path, "aaa", "bbb", main=None))
    assert "name one of its snapshots (aaa, bbb)" in sentence
