"""Runs the models of Microsoft's Llama-2-Onnx release as they are."""
