"""Subgraph builders that architectures share."""
