"""Figures that compare a candidate model with a reference."""

from __future__ import annotations

# name: (module, what a gate on it bounds: "max" or "min")
METRICS: dict[str, tuple[str, str]] = {
    "mean_kl": ("halfbyte.verification.metrics.kl_divergence", "max"),
    "median_kl": ("halfbyte.verification.metrics.kl_divergence", "max"),
    "p99_kl": ("halfbyte.verification.metrics.kl_divergence", "max"),
    "max_kl": ("halfbyte.verification.metrics.kl_divergence", "max"),
    "top1_agreement": ("halfbyte.verification.metrics.agreement", "min"),
    "ppl_increase": ("halfbyte.verification.metrics.perplexity", "max"),
    "rms_probability_change": ("halfbyte.verification.metrics.probability_change", "max"),
    "cosine": ("halfbyte.verification.metrics.output_error", "min"),
    "max_abs_error": ("halfbyte.verification.metrics.output_error", "max"),
    "max_rel_error": ("halfbyte.verification.metrics.output_error", "max"),
}
