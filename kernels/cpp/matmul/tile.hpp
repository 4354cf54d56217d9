// Dot products with the vector lanes along k: one accumulator per output and one summing tree, so
// an output's bits depend neither on the tile it fell into nor on the batch.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

#if defined(HB_AVX512)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kTileColumns = 4;

// out[i * ldo + j] = dot(x + i * ldx, w + j * ldw) over k values, j < 4.
template <int MR>
HB_INLINE void dot_tile(const float* x, int64_t ldx, const float* w, int64_t ldw, int64_t k,
                        float (*out)[kTileColumns]) {
    F acc[MR][kTileColumns];
    for (int i = 0; i < MR; ++i) {
        for (int j = 0; j < kTileColumns; ++j) acc[i][j] = zero();
    }
    int64_t at = 0;
    for (; at + W <= k; at += W) {
        F wv[kTileColumns];
        for (int j = 0; j < kTileColumns; ++j) wv[j] = load(w + j * ldw + at);
        for (int i = 0; i < MR; ++i) {
            const F xv = load(x + i * ldx + at);
            for (int j = 0; j < kTileColumns; ++j) acc[i][j] = fma(xv, wv[j], acc[i][j]);
        }
    }
    if (at < k) {
        F wv[kTileColumns];
        for (int j = 0; j < kTileColumns; ++j) wv[j] = load_n(w + j * ldw + at, k - at);
        for (int i = 0; i < MR; ++i) {
            const F xv = load_n(x + i * ldx + at, k - at);
            for (int j = 0; j < kTileColumns; ++j) acc[i][j] = fma(xv, wv[j], acc[i][j]);
        }
    }
    for (int i = 0; i < MR; ++i) reduce4(acc[i], out[i]);
}

// Independent fused multiply-adds on registers only; returns the operations done.
static double fma_loop(int64_t rounds) {
    constexpr int kChains = 12;
    F acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = set1(static_cast<float>(i));
    const F factor = set1(0.999999f), term = set1(1e-6f);
    for (int64_t r = 0; r < rounds; ++r) {
        for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], factor, term);
    }
    float total = 0.0f;
    for (int i = 0; i < kChains; ++i) total += hsum(acc[i]);
    const double operations = 2.0 * W * kChains * static_cast<double>(rounds);
    return total == total ? operations : 0.0;
}

// dot_tile for 1 <= rows <= kTileRows.
static void dot_rows(int64_t rows, const float* x, int64_t ldx, const float* w, int64_t ldw,
                     int64_t k, float (*out)[kTileColumns]) {
    switch (rows) {
        case 1:
            return dot_tile<1>(x, ldx, w, ldw, k, out);
        case 2:
            return dot_tile<2>(x, ldx, w, ldw, k, out);
        case 3:
            return dot_tile<3>(x, ldx, w, ldw, k, out);
#if defined(HB_AVX512)
        case 4:
            return dot_tile<4>(x, ldx, w, ldw, k, out);
        case 5:
            return dot_tile<5>(x, ldx, w, ldw, k, out);
        default:
            return dot_tile<6>(x, ldx, w, ldw, k, out);
#else
        default:
            return;
#endif
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
