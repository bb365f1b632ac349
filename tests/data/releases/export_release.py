"""Makes the tiny Llama-2-Onnx releases beside this file, as Microsoft's were made: traced by torch.onnx.

    python tests/data/releases/export_release.py    # needs torch, onnx and sentencepiece

The weights are random and the same at every run. Like the published models, the graph takes embeddings, a
mask, the caches and a position, and gives the last position's logits and the new positions' keys and
values; every tensor above 1 KiB lies in a file of its own, and matrices have lost their names.
"""

# mypy: disable-error-code="misc,no-untyped-def,no-any-return"

from __future__ import annotations

import io
import math
import shutil
import warnings
from pathlib import Path

import onnx
import sentencepiece
import torch
from torch import nn

HERE = Path(__file__).parent
HIDDEN, INNER, NUM_LAYERS, NUM_HEADS, CONTEXT, THETA, EPS = 32, 64, 2, 2, 128, 10000.0, 1e-5
HEAD_DIM = HIDDEN // NUM_HEADS
EXTERNAL_ABOVE_BYTES = 1024
OPSET = 16
SENTENCES = (
    "The user asks the assistant a question and the system answers it in a few words.",
    "[INST] <<SYS>> You are a helpful, respectful and honest assistant. <</SYS>> Hello! [/INST]",
    "What is the lightest element? The lightest element is hydrogen.",
)


class RootMeanSquareNorm(nn.Module):
    """Normalises in float32, whatever the weights are stored as."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return (wide * scale).type_as(x) * self.weight


class Rotary(nn.Module):
    """Rotates neighbouring pairs of each head in place, with tables for all positions."""

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pos: torch.Tensor
    ) -> torch.Tensor:
        end = pos + x.shape[1]
        cos, sin = cos[:, pos:end], sin[:, pos:end]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = x.clone()
        turned[..., 0::2] = even * cos - odd * sin
        turned[..., 1::2] = even * sin + odd * cos
        return turned


class Attention(nn.Module):
    """Multi-head attention over what is cached and what is new."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4)
        )
        self.rotary = Rotary()

    def forward(self, x, mask, cos, sin, k_cache, v_cache, pos):
        batch, length, _ = x.shape
        query, key, value = (
            part(x).reshape(batch, length, NUM_HEADS, HEAD_DIM) for part in (self.query, self.key, self.value)
        )
        query, key = self.rotary(query, cos, sin, pos), self.rotary(key, cos, sin, pos)
        keys, values = torch.cat((k_cache, key), dim=1), torch.cat((v_cache, value), dim=1)
        scores = torch.matmul(query.permute(0, 2, 1, 3), keys.permute(0, 2, 3, 1)) / math.sqrt(HEAD_DIM)
        scores = scores + mask[pos : pos + length, : pos + length]
        weights = torch.softmax(scores.float(), dim=-1).type_as(x)
        attended = torch.matmul(weights, values.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        return self.output(attended.reshape(batch, length, HIDDEN)), key, value


class Projection(nn.Module):
    """The gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(x)
        return self.down(gate * torch.sigmoid(gate) * self.up(x))


class Block(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.attention = RootMeanSquareNorm(), Attention()
        self.proj_norm, self.proj = RootMeanSquareNorm(), Projection()

    def forward(self, x, mask, cos, sin, k_cache, v_cache, pos):
        update, key, value = self.attention(self.attn_norm(x), mask, cos, sin, k_cache, v_cache, pos)
        x = x + update
        return x + self.proj(self.proj_norm(x)), key, value


class Transformer(nn.Module):
    """All layers and the rotary tables."""

    def __init__(self) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(Block() for _ in range(NUM_LAYERS))
        frequencies = THETA ** -(torch.arange(0, HEAD_DIM, 2).double() / HEAD_DIM)
        angles = torch.outer(torch.arange(CONTEXT).double(), frequencies)[None, :, None]
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def forward(self, x, mask, k_cache, v_cache, pos):
        keys, values = [], []
        for index, block in enumerate(self.block_list):
            x, key, value = block(x, mask, self.cos, self.sin, k_cache[:, index], v_cache[:, index], pos)
            keys.append(key)
            values.append(value)
        return x, torch.stack(keys, dim=1), torch.stack(values, dim=1)


class Llama(nn.Module):
    """The whole model, from embeddings to the last position's logits."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.transformer, self.norm = Transformer(), RootMeanSquareNorm()
        self.output = nn.Linear(HIDDEN, vocab_size, bias=False)

    def forward(self, x, attn_mask, k_cache, v_cache, pos):
        x, k_out, v_out = self.transformer(x, attn_mask, k_cache, v_cache, pos)
        return self.output(self.norm(x[:, -1, :])), k_out, v_out


def main() -> None:
    """Write the tokenizer and both releases."""
    vocab_size = write_tokenizer(HERE / "tokenizer.model")
    for dtype in (torch.float32, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        export(vocab_size, dtype, HERE / f"tiny_FT_{kind}", f"LlamaV2_tiny_FT_{kind}.onnx")


def write_tokenizer(path: Path) -> int:
    """Train a tokenizer with Llama 2's settings; return how many tokens it has."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size())


def export(vocab_size: int, dtype: torch.dtype, folder: Path, name: str) -> None:
    """Trace a model of random weights into a release folder."""
    torch.manual_seed(20230718)
    model = Llama(vocab_size).eval()
    embedding = torch.randn(vocab_size, HIDDEN)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / math.sqrt(parameter.shape[1]))
    model.to(dtype)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "ONNX").mkdir(parents=True)
    torch.save({"weight": embedding.to(dtype)}, folder / "embeddings.pth")
    num_past, length = 3, 5
    cache = torch.randn(1, NUM_LAYERS, num_past, NUM_HEADS, HEAD_DIM, dtype=dtype)
    mask = (-10000.0 * torch.triu(torch.ones(CONTEXT, CONTEXT), diagonal=1)).to(dtype)
    inputs = (torch.randn(1, length, HIDDEN, dtype=dtype), mask, cache, cache.clone(), torch.tensor(num_past))
    traced = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            inputs,
            traced,
            dynamo=False,
            opset_version=OPSET,
            input_names=["x", "attn_mask", "k_cache", "v_cache", "pos"],
            output_names=["logits", "k_out", "v_out"],
            dynamic_axes={"x": {1: "seq_len"}, "k_cache": {2: "past"}, "v_cache": {2: "past"}},
        )
    graph = onnx.load_from_string(traced.getvalue())
    for node in graph.graph.node:
        node.ClearField("doc_string")
    for tensor in graph.graph.initializer:
        if len(tensor.raw_data) > EXTERNAL_ABOVE_BYTES:
            location = tensor.name.replace("::", "__")
            onnx.external_data_helper.set_external_data(tensor, location)
            (folder / "ONNX" / location).write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
    (folder / "ONNX" / name).write_bytes(graph.SerializeToString())


if __name__ == "__main__":
    main()
