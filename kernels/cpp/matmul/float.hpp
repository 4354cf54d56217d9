// y = x W^T in float32 over exactly decoded weights.
#pragma once

#include "matmul/tile.hpp"
#include "unpack/rows.hpp"

namespace halfbyte {
namespace HB_ISA {

// One row of x (padded with zeros to kStep): four weight rows at a time, decoded in registers.
template <class Reader>
static void float_gemv(const WeightView& w, int64_t row0, int64_t row1, const float* x, float* y) {
    constexpr int N = kTileColumns;
    const int64_t steps = w.columns / kStep, rest = w.columns % kStep;
    // Bytes of N rows per step; the hardware follows long float32 rows well enough by itself.
    const bool help = steps > 0 && w.kind != Kind::float32;
    const int64_t ahead = help ? N * w.row_bytes / steps : 0;
    for (int64_t r = row0; r < row1; r += N) {
        const int64_t last = row1 - 1;
        const Reader readers[N] = {Reader(w, r), Reader(w, r + 1 < last ? r + 1 : last),
                                   Reader(w, r + 2 < last ? r + 2 : last),
                                   Reader(w, r + 3 < last ? r + 3 : last)};
        F acc[N] = {zero(), zero(), zero(), zero()};
        const uint8_t* next = w.data + (r + 2 * N) * w.row_bytes;
        for (int64_t s = 0; s < steps; ++s, next += ahead) {
            for (int64_t line = 0; line < ahead; line += 64) prefetch(next + line);
            for (int j = 0; j < N; ++j) {
                F values[kStep / W];
                readers[j].step(s, values);
                for (int i = 0; i < kStep / W; ++i) {
                    acc[j] = fma(load(x + s * kStep + i * W), values[i], acc[j]);
                }
            }
        }
        if (rest) {
            for (int j = 0; j < N; ++j) {
                float values[kStep] = {};
                readers[j].tail(steps, rest, values);
                for (int i = 0; i < kStep / W; ++i) {
                    acc[j] = fma(load(x + steps * kStep + i * W), load(values + i * W), acc[j]);
                }
            }
        }
        float sums[N];
        reduce4(acc, sums);
        for (int64_t j = 0; j < N && r + j < row1; ++j) y[j + r - row0] = sums[j];
    }
}

// Rows m0..m1 of x against weight rows row0..row1, through a panel decoded once.
template <class Reader>
static void float_gemm(const WeightView& w, int64_t row0, int64_t row1, const float* x,
                       int64_t padded, int64_t m0, int64_t m1, float* y, int64_t stride) {
    const int64_t rows = row1 - row0, held = round_up(rows, kTileColumns);
    float* panel = static_cast<float*>(thread_scratch(Scratch::panel, 4 * held * padded));
    decode_rows<Reader>(w, row0, row1, panel, padded, padded);
    for (int64_t r = rows; r < held; ++r) {
        std::memcpy(panel + r * padded, panel, static_cast<size_t>(4 * padded));
    }
    for (int64_t m = m0; m < m1; m += kTileRows) {
        const int64_t count = m1 - m < kTileRows ? m1 - m : kTileRows;
        for (int64_t r = 0; r < rows; r += kTileColumns) {
            float sums[kTileRows][kTileColumns];
            dot_rows(count, x + m * padded, padded, panel + r * padded, padded, padded, sums);
            const int64_t width = rows - r < kTileColumns ? rows - r : kTileColumns;
            for (int64_t i = 0; i < count; ++i) {
                for (int64_t j = 0; j < width; ++j) y[(m - m0 + i) * stride + r + j] = sums[i][j];
            }
        }
    }
}

static void float_linear(const LinearJob& job, const WeightView& w, int64_t row0, int64_t row1,
                         int64_t m0, int64_t m1, float* y, int64_t stride) {
    with_reader(w, [&](auto tag) {
        using Reader = typename decltype(tag)::type;
        if (m1 - m0 == 1) {
            float_gemv<Reader>(w, row0, row1, job.packed + m0 * job.padded, y);
        } else {
            float_gemm<Reader>(w, row0, row1, job.packed, job.padded, m0, m1, y, stride);
        }
    });
}

}  // namespace HB_ISA
}  // namespace halfbyte
