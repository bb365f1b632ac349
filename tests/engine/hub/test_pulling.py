"""The way from an address to a model, against a server that speaks as the hub does, faults included."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from engine.convert.converter import convert, open_source
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.errors import ModelDownloadError, ModelError, ModelFormatError, ModelResourceError
from engine.hub import pulling
from engine.hub.address import HubAddress, pulled_folder
from engine.hub.hub import Hub
from engine.machine import machine
from tests.engine.hub.fake_hub import COMMIT, FakeHub, serving, sha256
from tests.engine.tiny_adapters import base, make_adapter
from tests.engine.tiny_gguf import TinyGGUF
from tests.engine.tiny_hf import TinyHuggingFace

GGUF = "somebody/Tiny-GGUF"
FOLDER = "somebody/Tiny"
Q8 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeHub]:
    files = tmp_path / "served"
    (files / "gguf").mkdir(parents=True)
    TinyGGUF(quant_type=Q8).save(files / "gguf" / "tiny-Q8_0.gguf")
    model = TinyHuggingFace(num_shards=2)
    model.files["chat_template.jinja"] = b"{% for m in messages %}{{ m.content }}{% endfor %}"
    model.save(files / "folder")
    hub = FakeHub()
    hub.add(GGUF, files / "gguf")
    hub.add(FOLDER, files / "folder")
    with serving(hub):
        yield hub


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _s: None))
    monkeypatch.setattr(
        "huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _s: None, time=time.time)
    )
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@dataclasses.dataclass
class Puller:
    """Somebody who pulls into an empty cache, and notes what is shown meanwhile."""

    server: FakeHub
    place: Path
    token: str | None = None
    stages: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.place / "cache"

    @property
    def hub(self) -> Hub:
        return Hub(self.server.endpoint, self.token, self.place / "hub")

    def pull(self, written: str, precision: Precision | None = None) -> Path:
        return pulling.ensure_pulled(
            self.cache, HubAddress.parse(written), precision, self.hub, self.on_progress
        )

    def on_progress(self, stage: str, share: float) -> None:
        self.stages.setdefault(stage, []).append(share)

    def refusal(self, written: str, kind: type[ModelError] = ModelDownloadError) -> str:
        with pytest.raises(kind) as caught:
            self.pull(written)
        return str(caught.value)


@pytest.fixture
def puller(server: FakeHub, tmp_path: Path) -> Puller:
    return Puller(server, tmp_path / "here")


def large_requests(server: FakeHub) -> list[str]:
    """Return the ranges in which large files were asked for, an empty one for a whole file."""
    return [asked.range for asked in server.asked if asked.is_large and asked.method == "GET"]


def test_a_gguf_file_is_fetched_once_and_converted_once(puller: Puller, tmp_path: Path) -> None:
    folder = puller.pull(f"hf:{GGUF}:q8_0")
    manifest = load_manifest(folder)
    assert manifest.precision is Precision.INT8
    assert manifest.source["repository"] == GGUF
    assert manifest.source["revision"] == COMMIT
    convert(open_source(tmp_path / "served" / "gguf" / "tiny-Q8_0.gguf"), tmp_path / "own", Precision.INT8)
    assert manifest.files == load_manifest(tmp_path / "own").files
    downloads = next(shares for stage, shares in puller.stages.items() if stage.startswith("Downloading"))
    assert downloads == sorted(downloads)
    assert downloads[-1] == 1.0
    assert "Converting the model" in puller.stages
    asked = len(puller.server.asked)
    assert puller.pull(f"hf:{GGUF}:q8_0") == folder  # without a network
    assert len(puller.server.asked) == asked


def test_a_folder_is_fetched_by_its_index(puller: Puller, tmp_path: Path) -> None:
    puller.server.repositories[FOLDER]["pytorch_model.bin"] = b"\x80\x02" * 10_000
    folder = puller.pull(f"https://huggingface.co/{FOLDER}")
    convert(open_source(tmp_path / "served" / "folder"), tmp_path / "own", Precision.INT8)
    assert load_manifest(folder).files == load_manifest(tmp_path / "own").files
    assert not any("pytorch_model.bin" in asked.path for asked in puller.server.asked)


def test_what_lies_in_the_librarys_cache_is_not_fetched_again(puller: Puller) -> None:
    puller.pull(f"hf:{GGUF}")
    shutil.rmtree(puller.cache)
    before = len(large_requests(puller.server))
    puller.pull(f"hf:{GGUF}")
    assert len(large_requests(puller.server)) == before
    top = puller.place / "hub" / f"models--{GGUF.replace('/', '--')}"
    assert open_source(top / "snapshots" / COMMIT / "tiny-Q8_0.gguf").config.num_layers == 3


def test_another_precision_makes_another_folder_and_auto_takes_what_is_there(puller: Puller) -> None:
    small = puller.pull(f"hf:{GGUF}", Precision.INT4)
    assert load_manifest(small).precision is Precision.INT4
    assert pulled_folder(puller.cache, HubAddress(GGUF), None) == small
    assert puller.pull(f"hf:{GGUF}") == small
    assert puller.pull(f"hf:{GGUF}", Precision.INT8) != small


def test_a_cut_connection_is_taken_up_where_it_broke(puller: Puller) -> None:
    content = puller.server.repositories[GGUF]["tiny-Q8_0.gguf"]
    puller.server.faults.cut_after = [
        len(content),
        30_000,
        20_000,
    ]  # the first answer is the look at the header
    puller.pull(f"hf:{GGUF}")
    assert large_requests(puller.server)[1:] == ["", "bytes=30000-", "bytes=50000-"]


def test_a_download_that_gave_up_goes_on_in_the_next_start(puller: Puller) -> None:
    content = puller.server.repositories[GGUF]["tiny-Q8_0.gguf"]
    puller.server.faults.cut_after = [len(content), 40_000, 0, 0, 0, 0, 0]
    sentence = puller.refusal(f"hf:{GGUF}")
    assert sentence.startswith("The connection broke at 39.1 KiB of ")
    assert sentence.endswith("in tiny-Q8_0.gguf. Run this again, and it continues from there.")
    assert puller.server.faults.cut_after == []
    puller.server.asked.clear()
    puller.pull(f"hf:{GGUF}")
    assert large_requests(puller.server)[-1] == "bytes=40000-"


def test_a_download_that_was_interrupted_goes_on_in_the_next_start(puller: Puller) -> None:
    def stop(stage: str, share: float) -> None:
        if stage.startswith("Downloading") and share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pulling.ensure_pulled(puller.cache, HubAddress(GGUF), None, puller.hub, stop)
    puller.server.asked.clear()
    puller.pull(f"hf:{GGUF}")
    assert re.fullmatch(r"bytes=\d{5}-", large_requests(puller.server)[-1])


def test_a_library_that_is_told_to_stay_offline_fetches_nothing(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in puller.refusal(f"hf:{GGUF}")


def test_a_server_that_does_not_know_ranges_begins_anew_and_the_file_is_right(puller: Puller) -> None:
    content = puller.server.repositories[GGUF]["tiny-Q8_0.gguf"]
    puller.server.faults.ignores_ranges = True
    puller.server.faults.cut_after = [len(content), 40_000]
    puller.pull(f"hf:{GGUF}")
    blob = puller.place / "hub" / f"models--{GGUF.replace('/', '--')}" / "blobs" / sha256(content)
    assert blob.read_bytes() == content


def test_a_wrong_checksum_is_never_converted(puller: Puller) -> None:
    puller.server.faults.damages = True
    assert "came damaged: its checksum is not the one" in puller.refusal(f"hf:{GGUF}")
    assert not list((puller.place / "hub").rglob("*.incomplete"))
    assert not (puller.cache / "models").exists()
    puller.server.faults.damages = False
    puller.pull(f"hf:{GGUF}")


def test_too_many_requests_for_a_moment_are_waited_for(puller: Puller) -> None:
    puller.hub.look(HubAddress(GGUF))
    puller.server.asked.clear()
    found = pulling.find(puller.hub, HubAddress(GGUF), None, puller.place.parent, puller.place.parent)
    puller.server.faults.rate_limited = 2
    assert pulling.fetch(puller.hub, found, puller.on_progress).config.num_layers == 3


@pytest.mark.parametrize(
    ("status", "headers", "sentences"),
    [
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            ["does not accept the token"],
        ),
        (403, {}, ["refuses access to somebody/Tiny-GGUF (403)", "/settings/tokens"]),
        (404, {}, ["(404)", "Check the spelling"]),
        (429, {"Retry-After": "37"}, ["too many requests from here (429)", "in 37 seconds", "HF_TOKEN"]),
        (429, {}, ["in a few minutes"]),
        (503, {}, ["an error of its own (503)", "Try again later"]),
    ],
)
def test_each_answer_of_the_hub_becomes_a_sentence(
    status: int, headers: dict[str, str], sentences: list[str], puller: Puller
) -> None:
    puller.server.faults.status, puller.server.faults.headers = status, headers
    told = puller.refusal(f"hf:{GGUF}")
    assert all(sentence in told for sentence in sentences), told


def test_what_does_not_exist_is_said(puller: Puller) -> None:
    missing = puller.refusal("hf:nobody/Nothing")
    assert "There is no model nobody/Nothing at 127.0.0.1" in missing
    assert "needs HF_TOKEN" in missing
    assert f"{GGUF} has no revision v9." in puller.refusal(f"hf:{GGUF}@v9")


def test_a_gated_model_names_the_page_where_one_accepts(puller: Puller) -> None:
    puller.server.gated[GGUF] = "hf_right"
    puller.server.tokens |= {"hf_right", "hf_other"}
    page = f"{puller.server.endpoint}/{GGUF}"
    told = puller.refusal(f"hf:{GGUF}")
    assert f"is gated: log in at {page} and accept its conditions" in told
    assert "set HF_TOKEN" in told
    puller.token = "hf_other"
    assert f"no access. Accept its conditions at {page} with that account" in puller.refusal(f"hf:{GGUF}")
    puller.token = "hf_unknown"
    assert "does not accept the token" in puller.refusal(f"hf:{GGUF}")
    puller.token = "hf_right"
    puller.pull(f"hf:{GGUF}")
    tokens = {asked.is_large: asked.token for asked in puller.server.asked}
    assert tokens == {False: "hf_right", True: ""}  # which the servers of large files never see


def test_without_a_network_the_sentence_says_so(tmp_path: Path) -> None:
    with serving(FakeHub()) as gone:
        pass
    told = Puller(gone, tmp_path).refusal(f"hf:{GGUF}")
    assert "cannot be reached" in told
    assert "HTTPS_PROXY" in told


def only_a_look(server: FakeHub) -> bool:
    """Tell whether of large files no more than beginnings were asked for."""
    return all(asked.startswith("bytes=0-") for asked in large_requests(server))


def test_another_architecture_is_refused_before_the_download(puller: Puller) -> None:
    model = TinyGGUF(quant_type=Q8)
    model.fields["general.architecture"] = "mamba"
    puller.place.mkdir()
    place = model.save(puller.place / "m-Q8_0.gguf")
    puller.server.add("somebody/Mamba-GGUF", place)
    told = puller.refusal("hf:somebody/Mamba-GGUF", ModelFormatError)
    assert told.startswith("somebody/Mamba-GGUF cannot run here:")
    assert "mamba" in told
    assert str(puller.place) not in told
    assert only_a_look(puller.server)


def test_quantised_weights_are_refused_before_the_download(puller: Puller) -> None:
    model = TinyHuggingFace()
    model.config["quantization_config"] = {"quant_method": "awq"}
    puller.server.add("somebody/Tiny-AWQ", model.save(puller.place / "awq"))
    assert "They are of AWQ" in puller.refusal("hf:somebody/Tiny-AWQ", ModelFormatError)
    assert only_a_look(puller.server)


def test_an_adapter_beside_a_model_is_refused_before_the_download(puller: Puller) -> None:
    puller.server.repositories[FOLDER]["adapter_config.json"] = b"{}"
    assert "also holds a LoRA adapter" in puller.refusal(f"hf:{FOLDER}", ModelFormatError)
    assert only_a_look(puller.server)


def test_a_template_that_cannot_be_used_is_refused_before_the_download(puller: Puller) -> None:
    puller.server.repositories[FOLDER]["chat_template.jinja"] = b"{{ messages[0].content }}"
    told = puller.refusal(f"hf:{FOLDER}", ModelFormatError)
    assert told.startswith(f"{FOLDER} cannot run here: The model's chat template")
    assert only_a_look(puller.server)


def test_a_base_model_is_no_bot(puller: Puller) -> None:
    del puller.server.repositories[FOLDER]["chat_template.jinja"]
    assert "is a base model" in puller.refusal(f"hf:{FOLDER}", ModelFormatError)
    assert only_a_look(puller.server)


def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))


def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 100 * 2**20)


def busy_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 90 * 2**20)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (small_disk, "to download, "),
        (small_memory, "needs .* of memory, but there are only 100 MiB"),
        (busy_memory, "90.0 MiB of memory are free, and converting it needs"),
    ],
)
def test_what_has_no_room_here_is_refused_before_the_download(
    make: Callable[[pytest.MonkeyPatch], None], sentence: str, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller.hub.look(HubAddress(GGUF))
    make(monkeypatch)
    assert re.search(sentence, puller.refusal(f"hf:{GGUF}", ModelResourceError))
    assert only_a_look(puller.server)


def test_a_header_that_is_longer_than_the_first_look_is_read_to_its_end(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.hub.skeleton._FIRST_LOOK", 256)
    puller.pull(f"hf:{GGUF}")
    looks = [asked for asked in large_requests(puller.server) if asked.endswith(tuple("0123456789"))]
    assert looks[0] == "bytes=0-255"
    assert looks[1] == "bytes=256-1023"
    assert len(looks) > 2
    puller.pull(f"hf:{FOLDER}")


def test_an_adapter_from_the_hub_is_merged(puller: Puller, tmp_path: Path) -> None:
    folder = base().save(tmp_path / "base")
    puller.server.add("somebody/Base", folder)
    adapter = make_adapter(("q_proj",), seed=1).save(tmp_path / "lora")
    puller.server.add("somebody/Lora", adapter)
    place = pulling.fetch_adapter(puller.hub, HubAddress("somebody/Lora"), puller.on_progress)
    found = pulling.find(puller.hub, HubAddress("somebody/Base"), None, tmp_path, tmp_path, [place])
    merged = pulling.fetch(puller.hub, found, puller.on_progress, [place]).tensor("layers.0.q")
    np.testing.assert_array_equal(merged, open_source(folder, [adapter]).tensor("layers.0.q"))


def test_an_adapter_that_does_not_fit_is_refused_before_the_download(puller: Puller, tmp_path: Path) -> None:
    adapter = make_adapter(("layers.2.self_attn.q_proj",), seed=1)
    adapter.tensors = {name.replace("layers.2", "layers.9"): v for name, v in adapter.tensors.items()}
    with pytest.raises(ModelFormatError, match="which this model does not have"):
        pulling.find(
            puller.hub, HubAddress(FOLDER), None, tmp_path, tmp_path, [adapter.save(tmp_path / "lora")]
        )
    assert only_a_look(puller.server)


def test_a_connection_that_breaks_while_a_model_is_looked_at_is_said(puller: Puller) -> None:
    puller.server.faults.cut_after = [100]
    assert "The connection broke, in the beginning of tiny-Q8_0.gguf." in puller.refusal(f"hf:{GGUF}")


def test_nothing_is_left_of_a_look(puller: Puller) -> None:
    puller.refusal("hf:nobody/Nothing")
    puller.server.repositories[FOLDER]["adapter_config.json"] = b"{}"
    puller.refusal(f"hf:{FOLDER}", ModelFormatError)
    assert list(puller.cache.iterdir()) == []
