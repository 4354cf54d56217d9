"""Calibration: texts, layer runs, statistics."""
