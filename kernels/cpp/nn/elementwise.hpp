// Activations and sums over contiguous float32.
#pragma once

#include "nn/math.hpp"

namespace halfbyte {
namespace HB_ISA {

// out[i] = function(lanes of a, lanes of b); the last lanes are masked.
template <class Function>
HB_INLINE void map2(const float* a, const float* b, int64_t n, float* out, Function function) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, function(load(a + i), load(b + i)));
    if (i < n) store_n(out + i, function(load_n(a + i, n - i), load_n(b + i, n - i)), n - i);
}

template <class Function>
HB_INLINE void map1(const float* a, int64_t n, float* out, Function function) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, function(load(a + i)));
    if (i < n) store_n(out + i, function(load_n(a + i, n - i)), n - i);
}

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
