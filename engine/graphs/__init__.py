"""Authors ONNX graphs, and loads them into ONNX Runtime."""
