// Quantize, dequantize, sums and tables of bytes.
#pragma once

#include "int8/depthwise.hpp"

namespace halfbyte {
namespace HB_ISA {

static void quantize_bytes(const float* x, int64_t n, float scale, float zero, uint8_t flip,
                           uint8_t* out) {
    const F step = set1(scale);
    int64_t i = 0;
#if defined(HB_SATURATES)
    for (; i + 4 * W <= n; i += 4 * W) {
        I lanes[4];
        for (int k = 0; k < 4; ++k) lanes[k] = rounded(div(load(x + i + k * W), step), zero);
        store_packed(out + i, lanes, flip);
    }
#endif
    for (; i + W <= n; i += W) store_rounded(out + i, div(load(x + i), step), zero, flip);
    if (i == n) return;
    uint8_t bytes[W];
    store_rounded(bytes, div(load_n(x + i, n - i), step), zero, flip);
    std::memcpy(out + i, bytes, static_cast<size_t>(n - i));
}

HB_INLINE F byte_values(const uint8_t* x, uint8_t flip) {
    if (!flip) return to_float(widened(x));
    return add(to_float(cast_int8(widened(x))), set1(128.0f));
}

static void dequantize_bytes(const uint8_t* x, int64_t n, float scale, float zero, uint8_t flip,
                             float* out) {
    const F step = set1(scale), origin = set1(zero);
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, mul(sub(byte_values(x + i, flip), origin), step));
    if (i == n) return;
    uint8_t bytes[W] = {};
    std::memcpy(bytes, x + i, static_cast<size_t>(n - i));
    store_n(out + i, mul(sub(byte_values(bytes, flip), origin), step), n - i);
}

static void value_range(const float* x, int64_t n, float* low, float* high) {
    F least = zero(), most = zero();
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        least = min(least, load(x + i));
        most = max(most, load(x + i));
    }
    float bottom = hmin(least), top = hmax(most);
    for (; i < n; ++i) {
        bottom = x[i] < bottom ? x[i] : bottom;
        top = x[i] > top ? x[i] : top;
    }
    *low = bottom;
    *high = top;
}

HB_INLINE F byte_sum_of(const ByteAdd& job, const uint8_t* a, const uint8_t* b) {
    const F left = mul(sub(byte_values(a, job.flip_a), set1(job.zero_a)), set1(job.scale_a));
    const F right = mul(sub(byte_values(b, job.flip_b), set1(job.zero_b)), set1(job.scale_b));
    return div(clipped(add(left, right), job.finish), set1(job.unit));
}

static void add_bytes(const ByteAdd& given, const uint8_t* a, const uint8_t* b, int64_t n,
                      uint8_t* out) {
    // Of our own: stored bytes might change what is referred to.
    const ByteAdd job = given;
    const float zero = job.finish.zero;
    const uint8_t flip = job.finish.flip;
    int64_t i = 0;
#if defined(HB_SATURATES)
    for (; i + 4 * W <= n; i += 4 * W) {
        I lanes[4];
        for (int k = 0; k < 4; ++k)
            lanes[k] = rounded(byte_sum_of(job, a + i + k * W, b + i + k * W), zero);
        store_packed(out + i, lanes, flip);
    }
#endif
    for (; i + W <= n; i += W) store_rounded(out + i, byte_sum_of(job, a + i, b + i), zero, flip);
    if (i == n) return;
    uint8_t left[W] = {}, right[W] = {}, bytes[W];
    std::memcpy(left, a + i, static_cast<size_t>(n - i));
    std::memcpy(right, b + i, static_cast<size_t>(n - i));
    store_rounded(bytes, byte_sum_of(job, left, right), zero, flip);
    std::memcpy(out + i, bytes, static_cast<size_t>(n - i));
}

static void look_up_bytes(const uint8_t* table, const uint8_t* x, int64_t n, uint8_t* out) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint8_t found[4];
        for (int k = 0; k < 4; ++k) found[k] = table[x[i + k]];
        std::memcpy(out + i, found, 4);
    }
    for (; i < n; ++i) out[i] = table[x[i]];
}

}  // namespace HB_ISA
}  // namespace halfbyte
