"""Quantization: plans, algorithms, calibration."""
