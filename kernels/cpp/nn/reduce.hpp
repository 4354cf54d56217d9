// Sums, maxima and normalization over an axis, and transposition of matrices.
#pragma once

#include <cmath>

#include "conv/lanes.hpp"
#include "nn/unary.hpp"

namespace halfbyte {
namespace HB_ISA {

// out[inner] = sum or maximum over the first axis of x [n, inner].
static void reduce(bool maximum, const float* x, int64_t n, int64_t inner, float* out) {
    if (inner == 1) {
        if (!maximum) {
            *out = row_sum(x, n, [](F v, F acc) { return add(v, acc); });
            return;
        }
        F top = set1(-INFINITY);
        int64_t i = 0;
        for (; i + W <= n; i += W) top = max_nan(load(x + i), top);
        float best = hmax(top);
        bool odd = false;
        float lanes[W];
        store(lanes, top);
        for (int l = 0; l < W; ++l) odd = odd || lanes[l] != lanes[l];
        for (; i < n; ++i) {
            odd = odd || x[i] != x[i];
            best = x[i] > best ? x[i] : best;
        }
        *out = odd ? NAN : best;
        return;
    }
    for (int64_t at = 0; at < inner; at += W) {
        const int64_t left = inner - at < W ? inner - at : W;
        F acc = load_n(x + at, left);
        for (int64_t i = 1; i < n; ++i) {
            const F v = left == W ? load(x + i * inner + at) : load_n(x + i * inner + at, left);
            acc = maximum ? max_nan(v, acc) : add(acc, v);
        }
        store_n(out + at, acc, left);
    }
}

// Softmax over the first axis of x [n, inner], for columns [from, to).
static void softmax_columns(const float* x, int64_t n, int64_t inner, int64_t from, int64_t to,
                            float* out) {
    for (int64_t at = from; at < to; at += W) {
        const int64_t left = to - at < W ? to - at : W;
        F top = load_n(x + at, left);
        for (int64_t i = 1; i < n; ++i) top = max_nan(load_n(x + i * inner + at, left), top);
        F total = zero();
        for (int64_t i = 0; i < n; ++i) {
            const F e = exp(sub(load_n(x + i * inner + at, left), top));
            store_n(out + i * inner + at, e, left);
            total = add(total, e);
        }
        for (int64_t i = 0; i < n; ++i) {
            float* to_row = out + i * inner + at;
            store_n(to_row, div(load_n(to_row, left), total), left);
        }
    }
}

// out = function((x - mean) / sqrt(variance + epsilon) * scale + shift) over n values.
static void normalize(const float* x, int64_t n, float scale, float shift, float epsilon,
                      const Finish& f, float* out) {
    const float total = row_sum(x, n, [](F v, F acc) { return add(v, acc); });
    const F mean = set1(total / static_cast<float>(n));
    map1(x, n, out, [&](F v) { return sub(v, mean); });
    const float squares = row_sum(out, n, [](F v, F acc) { return fma(v, v, acc); });
    const F factor = set1(scale / std::sqrt(squares / static_cast<float>(n) + epsilon));
    map1(out, n, out, [&](F v) { return mul(v, factor); });
    finish(f, out, shift, nullptr, n, out);
}

// out[c * out_stride + r] = x[r * x_stride + c], in blocks of W by W.
static void transpose(const float* x, int64_t rows, int64_t columns, int64_t x_stride,
                      int64_t out_stride, float* out) {
    for (int64_t r0 = 0; r0 < rows; r0 += W) {
        const int64_t height = rows - r0 < W ? rows - r0 : W;
        for (int64_t c0 = 0; c0 < columns; c0 += W) {
            const int64_t width = columns - c0 < W ? columns - c0 : W;
            const float* from = x + r0 * x_stride + c0;
            float* to = out + c0 * out_stride + r0;
            if (height < W || width < W) {
                for (int64_t c = 0; c < width; ++c) {
                    for (int64_t r = 0; r < height; ++r)
                        to[c * out_stride + r] = from[r * x_stride + c];
                }
                continue;
            }
            F block[W];
            for (int i = 0; i < W; ++i) block[i] = load(from + i * x_stride);
            transpose_lanes(block);
            for (int i = 0; i < W; ++i) store(to + i * out_stride, block[i]);
        }
    }
}

// out[o] = sum over t of weights[o, t] * x[indices[o, t]], for x [n, inner] and out [m, inner].
static void resample(const float* x, int64_t inner, const int64_t* indices, const float* weights,
                     int64_t m, int64_t taps, float* out) {
    for (int64_t o = 0; o < m; ++o, indices += taps, weights += taps, out += inner) {
        if (inner == 1) {
            float sum = weights[0] * x[indices[0]];
            for (int64_t t = 1; t < taps; ++t) sum += weights[t] * x[indices[t]];
            *out = sum;
        } else if (taps == 1) {
            const F w = set1(weights[0]);
            map1(x + indices[0] * inner, inner, out, [&](F v) { return mul(v, w); });
        } else {
            const F first = set1(weights[0]), second = set1(weights[1]);
            map2(x + indices[0] * inner, x + indices[1] * inner, inner, out,
                 [&](F a, F b) { return add(mul(a, first), mul(b, second)); });
            for (int64_t t = 2; t < taps; ++t) {
                const F w = set1(weights[t]);
                map2(out, x + indices[t] * inner, inner, out,
                     [&](F sum, F v) { return add(sum, mul(v, w)); });
            }
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
