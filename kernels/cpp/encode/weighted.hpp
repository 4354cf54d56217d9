// ggml's searches with an importance per column. Sums are sequential float32: their order decides
// bytes, so nothing here is spread over lanes.
#pragma once

#include <cmath>

#include "encode/blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

// Nearest integer, halves to even, for |v| < 2^22.
HB_INLINE int nearest_int(float v) {
    const uint32_t bits = float_to_bits(v + 12582912.0f);
    return static_cast<int>(bits & 0x007FFFFFu) - 0x00400000;
}

HB_INLINE int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

struct SymmetricFit {
    float sum_wxl, sum_wll;
};

HB_INLINE SymmetricFit symmetric_trial(const float* x, const float* w, float inverse, int half,
                                       int* codes) {
    SymmetricFit fit{0.0f, 0.0f};
    for (int i = 0; i < kStep; ++i) {
        codes[i] = clamp_int(nearest_int(inverse * x[i]), -half, half - 1);
        const float l = static_cast<float>(codes[i]);
        fit.sum_wxl += w[i] * x[i] * l;
        fit.sum_wll += w[i] * l * l;
    }
    return fit;
}

// Signed codes of [-half, half) stored with `half` added; returns the scale.
static float symmetric_search(const float* x, const float* w, int half, uint8_t* codes) {
    float magnitude = 0.0f, peak = 0.0f;
    for (int i = 0; i < kStep; ++i) {
        if (magnitude < std::fabs(x[i])) magnitude = std::fabs(x[i]), peak = x[i];
    }
    if (magnitude < 1e-15f) {
        std::memset(codes, 0, kStep);
        return 0.0f;
    }
    int best_codes[kStep], trial[kStep];
    SymmetricFit fit = symmetric_trial(x, w, -static_cast<float>(half) / peak, half, best_codes);
    float scale = fit.sum_wll != 0.0f ? fit.sum_wxl / fit.sum_wll : 0.0f;
    float best = scale * fit.sum_wxl;
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) continue;
        const float top = static_cast<float>(half) + 0.1f * static_cast<float>(step);
        fit = symmetric_trial(x, w, -top / peak, half, trial);
        if (fit.sum_wll > 0.0f && fit.sum_wxl * fit.sum_wxl > best * fit.sum_wll) {
            std::memcpy(best_codes, trial, sizeof trial);
            scale = fit.sum_wxl / fit.sum_wll;
            best = scale * fit.sum_wxl;
        }
    }
    for (int i = 0; i < kStep; ++i) codes[i] = static_cast<uint8_t>(best_codes[i] + half);
    return scale;
}

// Squared error of codes 0..top on the grid scale * code + low.
HB_INLINE float asymmetric_error(const float* x, const float* w, const uint8_t* codes, float scale,
                                 float low) {
    float error = 0.0f;
    for (int i = 0; i < kStep; ++i) {
        float difference = scale * static_cast<float>(codes[i]) + low - x[i];
        difference = difference * difference;
        error += w[i] * difference;
    }
    return error;
}

struct AsymmetricSums {
    float l, ll, xl;
};

HB_INLINE AsymmetricSums asymmetric_trial(const float* x, const float* w, float inverse, float low,
                                          int top, uint8_t* codes) {
    AsymmetricSums sums{0.0f, 0.0f, 0.0f};
    for (int i = 0; i < kStep; ++i) {
        codes[i] = static_cast<uint8_t>(clamp_int(nearest_int(inverse * (x[i] - low)), 0, top));
        const float l = static_cast<float>(codes[i]);
        sums.l += w[i] * l;
        sums.ll += w[i] * l * l;
        sums.xl += w[i] * l * x[i];
    }
    return sums;
}

// Scale and minimum (<= 0) together; returns the scale, *minimum the stored minimum.
static float asymmetric_search(const float* x, const float* w, int top, uint8_t* codes,
                               float* minimum) {
    float low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < kStep; ++i) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (low > 0.0f) low = 0.0f;
    if (high <= low) {
        std::memset(codes, 0, kStep);
        *minimum = low;
        return 0.0f;
    }
    uint8_t trial[kStep];
    float inverse = static_cast<float>(top) / (high - low), scale = 1.0f / inverse;
    asymmetric_trial(x, w, inverse, low, top, codes);
    float best = asymmetric_error(x, w, codes, scale, low);
    for (int step = 0; step <= 36; ++step) {
        inverse =
            (-0.9f + 0.05f * static_cast<float>(step) + static_cast<float>(top)) / (high - low);
        const AsymmetricSums s = asymmetric_trial(x, w, inverse, low, top, trial);
        const float determinant = sum_w * s.ll - s.l * s.l;
        if (!(determinant > 0.0f)) continue;
        float new_scale = (sum_w * s.xl - sum_x * s.l) / determinant;
        float new_low = (s.ll * sum_x - s.l * s.xl) / determinant;
        if (new_low > 0.0f) new_low = 0.0f, new_scale = s.xl / s.ll;
        const float error = asymmetric_error(x, w, trial, new_scale, new_low);
        if (error < best) {
            std::memcpy(codes, trial, sizeof trial);
            best = error, scale = new_scale;
            low = new_low;  // the next trials start from the fitted minimum
        }
    }
    *minimum = low;
    return scale;
}

template <class Block>
static void weighted_block(const float* x, const float* w, uint8_t* out) {
    using L = typename Block::L;
    uint8_t codes[kStep];
    uint8_t* high = nullptr;
    if constexpr (Block::kBits == 5) high = out + L::kOffset_qh;
    if constexpr (Block::kHasMinimum) {
        float minimum;
        store_half_at(out, asymmetric_search(x, w, (1 << Block::kBits) - 1, codes, &minimum));
        store_half_at(out + L::kOffset_m, minimum);
    } else {
        store_half_at(out, symmetric_search(x, w, 1 << (Block::kBits - 1), codes));
    }
    pack_nibbles(codes, out + L::kOffset_qs, high);
}

// Weight of a value: importance * sqrt(mean square of the whole row + its own square).
template <class Block>
static void encode_weighted(const float* x, const float* importance, int64_t rows, int64_t columns,
                            uint8_t* out) {
    for (int64_t r = 0; r < rows; ++r) {
        float squares = 0.0f;
        for (int64_t i = 0; i < columns; ++i) squares += x[i] * x[i];
        const float variance = squares / static_cast<float>(columns);
        for (int64_t b = 0; b < columns / kStep; ++b, x += kStep, out += Block::kBytes) {
            float w[kStep];
            for (int i = 0; i < kStep; ++i) {
                w[i] = importance[b * kStep + i] * std::sqrt(variance + x[i] * x[i]);
            }
            weighted_block<Block>(x, w, out);
        }
    }
}

template <class Block>
static void encode_kind(const float* x, const float* importance, int64_t rows, int64_t columns,
                        uint8_t* out) {
    if (importance) return encode_weighted<Block>(x, importance, rows, columns, out);
    encode_blocks<Block>(x, rows * columns / kStep, out);
}

}  // namespace HB_ISA
}  // namespace halfbyte
