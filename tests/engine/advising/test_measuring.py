"""What is measured of a model's shape."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from engine.advising.advice import Load
from engine.advising.measuring import measure_shape, measured_layers
from engine.bench.figures import SHAPES
from engine.describing.architecture import DecoderConfig, Precision
from engine.files import from_json
from tests.engine.family_sources import folder_source


@pytest.mark.parametrize("name", ["mistral", "gemma-3", "phi-4-mini", "smollm3", "olmo-3", "qwen2"])
def test_models_whose_layers_differ_are_measured(name: str) -> None:
    config = folder_source(name).config
    speed = measure_shape(config, Precision.INT8, num_threads=1, load=Load(2, 64))
    assert min(speed.single, speed.together, speed.prefill) > 0


def test_of_a_large_model_some_layers_are_measured() -> None:
    large = SHAPES["gemma-3-270m"]
    assert 0 < measured_layers(large) <= large.num_layers
    assert large.shortened(7).layers == large.layers[:7]
    assert SHAPES["7b"].shortened(3).layers == ()


@pytest.mark.parametrize("name", SHAPES)
def test_a_description_passes_to_another_process_as_json(name: str) -> None:
    assert from_json(DecoderConfig, json.loads(json.dumps(asdict(SHAPES[name]))), "it") == SHAPES[name]
