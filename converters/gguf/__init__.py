"""GGUF: container, names, metadata, profile."""
