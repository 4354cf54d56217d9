// Functions of lanes over contiguous float32; the last lanes are masked.
#pragma once

#include "nn/math.hpp"

namespace halfbyte {
namespace HB_ISA {

// out[i] = function(lanes of a, lanes of b)
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

// Sum of function(lanes) over a row, in lane order and one fixed tree.
template <class Function>
HB_INLINE float row_sum(const float* x, int64_t n, Function function) {
    F acc = zero();
    int64_t i = 0;
    for (; i + W <= n; i += W) acc = function(load(x + i), acc);
    if (i < n) acc = function(load_n(x + i, n - i), acc);
    return hsum(acc);
}

}  // namespace HB_ISA
}  // namespace halfbyte
