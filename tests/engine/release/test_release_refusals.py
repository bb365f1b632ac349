"""Bad releases: each is one sentence that says what to do, from every command, and nothing is left behind."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.bench.release_author import state_dict_pickle, write_embeddings, write_tokenizer
from engine.cli import main
from engine.errors import ModelFormatError
from engine.machine import machine
from engine.release.files import read_embeddings
from tests.engine.release_tampering import scale_the_scores
from tests.engine.releases import KINDS, RELEASES, copy_release, graph_of, release, tamper

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 262144000\n"
MATRIX = "onnx__MatMul_1313"
VALUES = np.ones((350, 32), np.float32)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._path}",)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return its one sentence."""
    assert main(arguments) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("llamacord: ")
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def point_at(place: str) -> Callable[[Path], None]:
    """Return a change that has the graph take a tensor from `place`."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        tensor.external_data[0].value = place

    return lambda folder: tamper(folder, change)


def link_outside(folder: Path) -> None:
    (folder / "ONNX" / MATRIX).unlink()
    (folder / "ONNX" / MATRIX).symlink_to("/etc/hostname")


def rename_input(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "input_ids"

    tamper(folder, change)


def second_graph(folder: Path) -> None:
    (folder / "ONNX/other.onnx").write_bytes(b"")


def write(place: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / place).write_bytes(data))


def graph(data: bytes) -> Callable[[Path], None]:
    return lambda folder: void(graph_of(folder).write_bytes(data))


def remove(place: str) -> Callable[[Path], None]:
    return lambda folder: (folder / place).unlink()


def embeddings(pickled: bytes | None = None, values: np.ndarray = VALUES) -> Callable[[Path], None]:
    return lambda folder: write_embeddings(folder / "embeddings.pth", values, pickled)


def void(_: object) -> None:
    return


PULL = r'is a Git LFS pointer, not the file itself\. Run "git lfs pull"'
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "graph not pulled": (graph(POINTER), PULL),
    "tensor not pulled": (write(f"ONNX/{MATRIX}", POINTER), PULL),
    "embeddings not pulled": (write("embeddings.pth", POINTER), PULL),
    "tokenizer not pulled": (write("../tokenizer.model", POINTER), PULL),
    "tensor missing": (remove(f"ONNX/{MATRIX}"), rf"The file .*{MATRIX} is missing"),
    "embeddings missing": (remove("embeddings.pth"), r"embeddings\.pth is missing: it belongs into"),
    "tokenizer missing": (remove("../tokenizer.model"), r"tokenizer\.model is missing: it belongs into"),
    "tensor truncated": (write(f"ONNX/{MATRIX}", b"short"), rf"{MATRIX} is truncated: .* takes 4096 bytes"),
    "graph truncated": (graph(graph_of(release()).read_bytes()[:999]), "is truncated or no ONNX file"),
    "graph empty": (graph(b""), "is no released Llama-2-Onnx model: it does not take x"),
    "two graphs": (second_graph, "has several .onnx files"),
    "tensor above": (point_at("../secret"), "outside its folder. Do not use it"),
    "tensor above, deeper": (point_at("a/../../secret"), "outside its folder. Do not use it"),
    "tensor above, Windows": (point_at("..\\secret"), "outside its folder. Do not use it"),
    "tensor anywhere": (point_at("/etc/passwd"), "outside its folder. Do not use it"),
    "tensor on a drive": (point_at("C:/secret"), "outside its folder. Do not use it"),
    "tensor nowhere": (point_at(""), "outside its folder. Do not use it"),
    "tensor linked away": (link_outside, "outside its folder. Do not use it"),
    "another contract": (
        rename_input,
        "it does not take x, attn_mask, k_cache, v_cache, pos and give logits",
    ),
    "embeddings of another model": (
        embeddings(values=np.ones((350, 64), np.float32)),
        "another model's|instead of",
    ),
    "another vocabulary": (
        lambda folder: write_tokenizer(folder.parent / "tokenizer.model", 400),
        "has 400 tokens for 350 embeddings",
    ),
    "no tokenizer": (write("../tokenizer.model", b"none"), "is not a readable SentencePiece model"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_bad_release_is_refused_in_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    folder = copy_release(tmp_path)
    spoil(folder)
    before = names(tmp_path)
    for command in (
        ("convert", str(folder), str(tmp_path / "model")),
        ("complete", "--model", str(folder), "--prompt", "Hello"),
    ):
        assert re.search(message, refused(capfd, *command)), command
    assert names(tmp_path) == before


def test_too_little_memory_is_said_with_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1000)
    sentence = refused(capfd, "complete", "--model", str(release()), "--prompt", "Hello")
    assert "takes 0.0 GiB of memory and this machine has 0.0" in sentence


@pytest.mark.parametrize("kind", KINDS)
def test_what_memory_cannot_hold_is_imported_and_compared_all_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1000)
    assert main(["convert", str(release(kind)), str(tmp_path / "model"), "--precision", "fp32"]) == 0
    folder = copy_release(tmp_path, kind)
    tamper(folder, scale_the_scores)
    assert main(["convert", str(folder), str(tmp_path / "other"), "--precision", "fp32"]) == 1
    assert "other" not in names(tmp_path)


def malicious(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    trap = tmp_path / "trap"
    return {
        "a command": (pickle.dumps({"weight": Touch(trap)}), "not safe: reading it would call posix.system"),
        "an attribute": (pickle.dumps({"weight": getattr}, protocol=4), "not safe: .* builtins.getattr"),
        "an import": (b"cimportlib\nimport_module\n(S'os'\ntR.", "not safe: .* importlib.import_module"),
        "torch's own loader": (b"ctorch\nload\n(S'x'\ntR.", "not safe: .* torch.load"),
        "numpy": (b"cnumpy\nfromfile\n(S'x'\ntR.", "not safe: .* numpy.fromfile"),
        "another storage": (
            state_dict_pickle(VALUES).replace(b"FloatStorage", b"BFloat16Storage"),
            "stores BFloat16Storage; float16 and float32 are supported",
        ),
        "another key": (state_dict_pickle(VALUES, "weights"), "not a state dict with the one key `weight`"),
        "a list": (pickle.dumps([1, 2]), "not a state dict with the one key `weight`"),
        "a huge memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "is damaged"),
        "rubbish": (b"\xff\xfe\x00", "is damaged"),
        "nothing": (b"", "is damaged"),
        "a long list": (pickle.dumps(["x" * 80_000]), "describes more than one tensor"),
        "more than is stored": (
            state_dict_pickle(VALUES).replace((350).to_bytes(4, "little"), (351).to_bytes(4, "little")),
            "its table is larger than what is stored of it",
        ),
    }


@pytest.mark.parametrize("case", malicious(Path("/")))
def test_a_pickle_is_never_run(tmp_path: Path, case: str) -> None:
    pickled, message = malicious(tmp_path)[case]
    write_embeddings(tmp_path / "embeddings.pth", VALUES, pickled)
    with pytest.raises(ModelFormatError, match=message):
        read_embeddings(tmp_path / "embeddings.pth")
    assert names(tmp_path) == {"embeddings.pth"}


LEGACY = {
    "the old format": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(600), "old format of torch.save"),
    "a tar archive": (bytes(257) + b"ustar" + bytes(600), "is a tar archive"),
    "rubbish": (b"rubbish", "is truncated or no file of torch.save"),
    "nothing": (b"", "is truncated or no file of torch.save"),
}


@pytest.mark.parametrize(("data", "message"), LEGACY.values(), ids=LEGACY)
def test_other_formats_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "embeddings.pth").write_bytes(data)
    with pytest.raises(ModelFormatError, match=message):
        read_embeddings(tmp_path / "embeddings.pth")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    whole = (release() / "embeddings.pth").read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100):
        (tmp_path / "embeddings.pth").write_bytes(whole[:size])
        with pytest.raises(ModelFormatError, match="truncated"):
            read_embeddings(tmp_path / "embeddings.pth")


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_read_as_torch_wrote_them(kind: str) -> None:
    values = read_embeddings(release(kind) / "embeddings.pth")
    assert values.shape == (350, 32)
    assert values.dtype == kind
    # The first values of torch.manual_seed(20230718): see export_release.py.
    assert values[0, :3] == pytest.approx([-1.3578931, 0.43128845, -0.05791793], abs=1e-3)
    assert (RELEASES / "export_release.py").exists()


def test_attributes_of_a_state_dict_are_accepted(tmp_path: Path) -> None:
    """A module's state dict is an OrderedDict with `_metadata`, set after it was made."""
    plain = state_dict_pickle(VALUES)
    ordered = plain[:2] + b"ccollections\nOrderedDict\n)R" + plain[3:-1] + b"}X\x09\x00\x00\x00_metadata}sb."
    write_embeddings(tmp_path / "embeddings.pth", VALUES, ordered)
    assert np.array_equal(read_embeddings(tmp_path / "embeddings.pth"), VALUES)
