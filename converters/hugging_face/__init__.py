"""Hugging Face folders, safetensors files, pickled checkpoints and the hub."""
