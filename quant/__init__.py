"""Quantization: which encoding each weight gets, and by which algorithm."""
