"""A text engine for Llama-architecture models on ONNX Runtime: convert, load, batch, sample, stream."""
