"""The graph IR: tensors, encodings, graphs, models, operators and passes."""
