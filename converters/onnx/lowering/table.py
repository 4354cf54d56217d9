"""Which module of this folder lowers which operator."""

from __future__ import annotations

LOWERINGS: dict[str, str] = {
    "halfbyte.Linear": "linear",
    "halfbyte.SwiGLU": "swiglu",
    "halfbyte.CachedAttention": "cached_attention",
    "SwiGLU": "swiglu",
    "Gather": "gather",
    "Shape": "shape",
    "Gelu": "gelu",
    "Swish": "swish",
    "LayerNormalization": "layer_normalization",
    "RMSNormalization": "rms_normalization",
    "RotaryEmbedding": "rotary_embedding",
}
