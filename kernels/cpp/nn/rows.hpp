// Normalisation, softmax and rotary embedding, row by row.
#pragma once

#include <cmath>

#include "nn/elementwise.hpp"

namespace halfbyte {
namespace HB_ISA {

static void rms_norm(const float* x, const float* weight, float epsilon, int64_t rows, int64_t n,
                     float* out) {
    for (int64_t r = 0; r < rows; ++r, x += n, out += n) {
        const float squares = row_sum(x, n, [](F v, F acc) { return fma(v, v, acc); });
        const float mean = squares / static_cast<float>(n);
        const F factor = set1(1.0f / std::sqrt(mean + epsilon));
        map2(x, weight, n, out, [&](F v, F w) { return mul(mul(v, factor), w); });
    }
}

static void layer_norm(const float* x, const float* weight, const float* bias, float epsilon,
                       int64_t rows, int64_t n, float* out) {
    for (int64_t r = 0; r < rows; ++r, x += n, out += n) {
        const float total = row_sum(x, n, [](F v, F acc) { return add(v, acc); });
        const F mean = set1(total / static_cast<float>(n));
        map1(x, n, out, [&](F v) { return sub(v, mean); });
        const float squares = row_sum(out, n, [](F v, F acc) { return fma(v, v, acc); });
        const float variance = squares / static_cast<float>(n);
        const F factor = set1(1.0f / std::sqrt(variance + epsilon));
        map2(out, weight, n, out, [&](F v, F w) { return mul(mul(v, factor), w); });
        if (bias) add_values(out, bias, n, out);
    }
}

static void softmax(const float* x, int64_t rows, int64_t n, float* out) {
    for (int64_t r = 0; r < rows; ++r, x += n, out += n) {
        float largest = x[0];
        int64_t i = 0;
        if (n >= W) {
            F lanes = load(x);
            for (i = W; i + W <= n; i += W) lanes = max(lanes, load(x + i));
            largest = hmax(lanes);
        }
        for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
        const F top = set1(largest);
        map1(x, n, out, [&](F v) { return exp(sub(v, top)); });
        const F total = set1(row_sum(out, n, [](F v, F acc) { return add(v, acc); }));
        map1(out, n, out, [&](F v) { return div(v, total); });
    }
}

// Rotate the first 2 * half values of each head of one token; the rest is copied. x may be out.
static void rope(const float* x, const float* cosine, const float* sine, int64_t heads, int64_t d,
                 int64_t half, bool interleaved, float* out) {
    for (int64_t h = 0; h < heads; ++h, x += d, out += d) {
        if (interleaved) {
            for (int64_t i = 0; i < half; ++i) {
                const float a = x[2 * i], b = x[2 * i + 1];
                out[2 * i] = a * cosine[i] - b * sine[i];
                out[2 * i + 1] = a * sine[i] + b * cosine[i];
            }
        } else {
            int64_t i = 0;
            for (; i + W <= half; i += W) {
                const F a = load(x + i), b = load(x + half + i);
                const F c = load(cosine + i), s = load(sine + i);
                store(out + i, sub(mul(a, c), mul(b, s)));
                store(out + half + i, add(mul(a, s), mul(b, c)));
            }
            for (; i < half; ++i) {
                const float a = x[i], b = x[half + i];
                out[i] = a * cosine[i] - b * sine[i];
                out[half + i] = a * sine[i] + b * cosine[i];
            }
        }
        if (x != out && 2 * half < d) {
            std::memcpy(out + 2 * half, x + 2 * half, static_cast<size_t>(4 * (d - 2 * half)));
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
