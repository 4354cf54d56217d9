"""Language models as ONNX graphs with a cache of keys and values, and back."""
