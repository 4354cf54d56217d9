"""Measure how far a model is from its reference, and judge it."""
