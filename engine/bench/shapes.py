"""The dimensions of known models, for measuring without their weights. Values only."""

from __future__ import annotations

from engine.architecture import LLAMA_2_SIZES, DecoderConfig

SHAPES = {
    "7b": LLAMA_2_SIZES["Llama 2 7B"],
    "13b": LLAMA_2_SIZES["Llama 2 13B"],
    "1.1b": DecoderConfig(22, 2048, 5632, 32, 4, 64, 32000, 2048, 1e4, 1e-5, tied_embeddings=False),
    "default": DecoderConfig(30, 576, 1536, 9, 3, 64, 49152, 2048, 1e5, 1e-5, tied_embeddings=True),
}
"""Llama 2 7B and 13B, TinyLlama 1.1B, SmolLM2 135M."""
