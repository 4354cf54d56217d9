"""Calibration: what a model's linear layers see on a text."""
