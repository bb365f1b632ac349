"""Our own operators for ONNX Runtime."""
