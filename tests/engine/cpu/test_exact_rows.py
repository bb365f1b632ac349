"""Where our own operators compute, a token's logits are the same bits however the run was put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import kernels
from engine.cpu.model import CpuModel, ModelOptions, rows_are_exact
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.runtime.sampling import FloatArray
from tests.engine.kernels.operators import choices
from tests.engine.tiny_model import VOCAB_SIZE, make_tiny_model

pytestmark = pytest.mark.skipif(not kernels.has_attention(), reason="There are no operators of ours here.")

LENGTH = 150
NUM_SLOTS = 6
IDS = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB_SIZE, LENGTH)]


@pytest.fixture(scope="module", params=[Precision.INT4, Precision.INT8])
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CpuModel, FloatArray]:
    """Return a model, and the logits after each of IDS, computed one by one."""
    folder = make_tiny_model(tmp_path_factory.mktemp("exact") / "model", request.param)
    manifest = load_manifest(folder)
    assert rows_are_exact(manifest)
    model = CpuModel(folder, manifest, ModelOptions(2, NUM_SLOTS, 256))
    return model, np.stack([model.decode(0, [token], [at])[0].copy() for at, token in enumerate(IDS)])


def test_without_them_nothing_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(make_tiny_model(tmp_path / "model", Precision.INT4))
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert not rows_are_exact(manifest)


@pytest.mark.parametrize("name", choices())
@pytest.mark.parametrize(("kv_bytes", "rounding"), [(4, 2e-3), (2, 5e-2)])
def test_other_instructions_compute_the_same_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kv_bytes: int, rounding: float
) -> None:
    if kv_bytes == 4:
        for module in ("engine.cpu.model", "engine.graphs.decoder"):
            monkeypatch.setattr(f"{module}.kv_value_bytes", lambda *_: kv_bytes)
    folder = make_tiny_model(tmp_path / "model", Precision.INT4)
    manifest, logits = load_manifest(folder), []
    for choice in (name, "off"):
        monkeypatch.setenv(kernels.SWITCH, choice)
        assert rows_are_exact(manifest) == (choice != "off" and kernels.has_attention())
        model = CpuModel(folder, manifest, ModelOptions(2, NUM_SLOTS, 256))
        model.prefill(1, IDS[:40], 0)
        read = model.prefill(2, IDS[:40], 0).copy()
        together = model.decode(1, [IDS[40], IDS[40]], [40, 40]).copy()
        logits.append(np.stack([read, *together, *model.decode_several(2, IDS[41:50], 41)]))
    ours, theirs = logits
    assert np.abs(ours - theirs).max() < rounding * np.abs(theirs).max()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_chunks_neighbours_and_drafts_change_no_bit(
    models: tuple[CpuModel, FloatArray], data: st.DataObject
) -> None:
    model, alone = models
    slot = data.draw(st.integers(0, NUM_SLOTS - 1), "slot")
    at = 0
    while at < LENGTH:
        kind = data.draw(st.sampled_from(["chunk", "beside others", "draft"]), "kind")
        if kind == "beside others":
            first = data.draw(st.integers(0, slot), "first slot")
            end = data.draw(st.integers(slot + 1, NUM_SLOTS), "end")
            lengths = [data.draw(st.integers(0, 200), "length") for _ in range(first, end)]
            lengths[slot - first] = at
            ids = [data.draw(st.integers(0, VOCAB_SIZE - 1), "neighbour") for _ in range(first, end)]
            ids[slot - first] = IDS[at]
            logits = model.decode(first, ids, lengths)[slot - first][None]
            at += 1
            assert np.array_equal(logits[0], alone[at - 1])
            continue
        num = min(data.draw(st.integers(1, 70 if kind == "chunk" else 16), "tokens"), LENGTH - at)
        if kind == "chunk":
            assert np.array_equal(model.prefill(slot, IDS[at : at + num], at), alone[at + num - 1])
        else:
            assert np.array_equal(model.decode_several(slot, IDS[at : at + num], at), alone[at : at + num])
        at += num
