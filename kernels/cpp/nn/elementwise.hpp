// Activations and sums over contiguous float32.
#pragma once

#include "nn/map.hpp"

namespace halfbyte {
namespace HB_ISA {

static void add_values(const float* a, const float* b, int64_t n, float* out) {
    map2(a, b, n, out, [](F x, F y) { return add(x, y); });
}

static void mul_values(const float* a, const float* b, int64_t n, float* out) {
    map2(a, b, n, out, [](F x, F y) { return mul(x, y); });
}

static void silu(const float* x, int64_t n, float* out) {
    map1(x, n, out, [](F v) { return silu_lanes(v); });
}

static void swiglu(const float* gate, const float* up, int64_t n, float* out) {
    map2(gate, up, n, out, [](F g, F u) { return mul(silu_lanes(g), u); });
}

static void gelu_erf(const float* x, int64_t n, float* out) {
    map1(x, n, out, [](F v) {
        const F half = mul(v, set1(0.5f));
        return mul(half, add(set1(1.0f), erf(mul(v, set1(0.70710678f)))));
    });
}

static void gelu_tanh(const float* x, int64_t n, float* out) {
    map1(x, n, out, [](F v) {
        const F cubic = fma(mul(mul(v, v), v), set1(0.044715f), v);
        const F half = mul(v, set1(0.5f));
        return mul(half, add(set1(1.0f), tanh(mul(cubic, set1(0.79788456f)))));
    });
}

}  // namespace HB_ISA
}  // namespace halfbyte
