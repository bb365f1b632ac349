"""A model in several GGUF files is one, whichever of them is named; a missing one is told by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.convert.converter import open_source
from engine.convert.gguf_source import GGUFSource
from engine.describing.architecture import source_shapes
from engine.errors import ModelFormatError
from tests.engine.tiny_gguf import QuantType, TinyGGUF


def split(folder: Path, num_parts: int = 3, **changed: int) -> list[Path]:
    """Write the tiny model in parts, as llama.cpp's gguf-split does: all is described in the first."""
    folder.mkdir()
    file = TinyGGUF()
    names = list(file.tensors)
    paths = []
    for number in range(num_parts):
        path = folder / f"tiny-{number + 1:05}-of-{num_parts:05}.gguf"
        part = TinyGGUF()
        part.tensors = {name: file.tensors[name] for name in names[number::num_parts]}
        if number:
            part.fields = {"general.architecture": "llama"}
        part.fields |= {"split.no": number, "split.count": num_parts, "split.tensors.count": len(names)}
        part.fields |= changed
        paths.append(part.save(path))
    return paths


@pytest.mark.parametrize("named", range(3))
def test_whichever_part_is_named_the_model_is_whole(tmp_path: Path, named: int) -> None:
    source = open_source(split(tmp_path / "parts")[named])
    whole = GGUFSource(TinyGGUF().save(tmp_path / "whole.gguf"))
    assert (source.config, source.name, source.chat) == (whole.config, whole.name, whole.chat)
    for name in source_shapes(whole.config):
        np.testing.assert_array_equal(source.tensor(name), whole.tensor(name))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = split(tmp_path / "parts")
    paths[1].unlink()
    said = rf"^The model is in 3 files, of which {paths[1].name} is missing from .*\. Get all of them\.$"
    with pytest.raises(ModelFormatError, match=said):
        open_source(paths[2])
    paths[0].unlink()
    with pytest.raises(ModelFormatError, match=f"of which {paths[0].name}, {paths[1].name} are missing"):
        open_source(paths[2])


def test_many_missing_parts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "tiny-00007-of-00009.gguf"
    TinyGGUF().save(path)
    with pytest.raises(ModelFormatError, match=r"00001-of.*00003-of-00009\.gguf and 5 more are missing"):
        open_source(path)


def test_parts_of_different_models_are_told(tmp_path: Path) -> None:
    paths = split(tmp_path / "parts")
    shutil.copy(paths[1], paths[2])
    with pytest.raises(ModelFormatError, match=rf"{paths[2].name} is not part 3 of this model"):
        open_source(paths[0])
    others = split(tmp_path / "others", **{"split.tensors.count": 999})
    with pytest.raises(ModelFormatError, match=r"have 29 tensors, not 999"):
        open_source(others[0])


def test_a_renamed_part_is_told(tmp_path: Path) -> None:
    path = split(tmp_path / "parts")[1].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFormatError, match=r"one of 3 files .* its name, NAME-00002-of-00003\.gguf"):
        open_source(path)
    whole = TinyGGUF().save(tmp_path / "tiny-00004-of-00002.gguf")
    with pytest.raises(ModelFormatError, match="is no part of 2: the file was renamed"):
        open_source(whole)


def test_a_tensor_that_two_parts_have_is_told(tmp_path: Path) -> None:
    paths = split(tmp_path / "parts", 2)
    twice = TinyGGUF()
    twice.fields = {"general.architecture": "llama", "split.no": 1, "split.count": 2}
    twice.save(paths[1])
    with pytest.raises(ModelFormatError, match="which another part has too"):
        open_source(paths[0])


def test_a_model_in_one_part_of_one_is_read(tmp_path: Path) -> None:
    path = TinyGGUF(quant_type=QuantType.Q8_0).save(tmp_path / "tiny-00001-of-00001.gguf")
    assert GGUFSource(path).config.num_layers == TinyGGUF().config.num_layers
