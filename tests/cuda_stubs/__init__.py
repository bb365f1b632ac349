"""A GPU that computes nothing: CUDA's libraries as stubs, over which ONNX Runtime's own code runs."""
