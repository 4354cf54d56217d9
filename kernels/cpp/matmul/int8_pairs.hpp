// y = x W^T as int8.hpp has it, for types with a scale per 16 values: these are whole numbers and
// join the integer sum of 32 values, which stays below 2^24 and so is exact as float32.
#pragma once

#include "matmul/int8_tiles.hpp"
#include "matmul/pair_codes.hpp"

namespace halfbyte {
namespace HB_ISA {

template <class Codes>
HB_INLINE I without_zero(I dots, I scales, I sums) {
    if constexpr (Codes::kZero == 0) return dots;
    return isub(dots, shift_left<Codes::kZeroBits>(pair_dot(scales, sums)));
}

template <class Codes>
static void pair_gemv(const WeightView& w, int64_t row0, int64_t row1, const LinearJob& job,
                      int64_t m, float* y) {
    const int64_t blocks = w.columns / kStep, supers = blocks / kStepsPerBlock;
    const int8_t* x = job.codes + m * job.padded;
    const float* scales = job.code_scales + m * blocks;
    const int32_t* sums = job.code_pairs + m * blocks;
    auto* memory = static_cast<int32_t*>(thread_scratch(Scratch::panel, 8 * W * (blocks + supers)));
    auto* floats = reinterpret_cast<float*>(memory + 2 * W * blocks);
    const PairScales table{memory, memory + W * blocks, floats, floats + W * supers};
    const int64_t ahead = W * w.row_bytes / blocks;
    for (int64_t r = row0; r < row1; r += W) {
        Codes rows[W];
        for (int i = 0; i < W; ++i) rows[i] = Codes(w, r + i < row1 ? r + i : row1 - 1);
        gather_pairs(rows, supers, table);
        const uint8_t* next = w.data + (r + W) * w.row_bytes;
        F acc = zero();
        for (int64_t b = 0; b < blocks; ++b, next += ahead) {
            for (int64_t line = 0; line < ahead; line += 64) prefetch(next + line);
            const int64_t s = b / kStepsPerBlock;
            const int32_t* pairs = table.scales + b * W;
            const I dots = scaled_row_dots(rows, b, x + b * kStep, pairs), sum = iset1(sums[b]);
            const F step = set1(scales[b]);
            acc = fma(to_float(without_zero<Codes>(dots, iload(pairs), sum)),
                      mul(load(table.d + s * W), step), acc);
            if constexpr (Codes::kHasMinimum) {
                acc = fma(to_float(pair_dot(iload(table.minima + b * W), sum)),
                          mul(load(table.minimum_d + s * W), step), acc);
            }
        }
        store_n(y + r - row0, acc, row1 - r < W ? row1 - r : W);
    }
}

// The groups of W rows of a panel, one after the other; codes are as in IntPanel.
struct PairPanel {
    uint8_t* codes;
    PairScales scales;
};

HB_INLINE PairScales scales_of_group(const PairPanel& panel, int64_t group, int64_t blocks) {
    const int64_t at = group * blocks * W, super = at / kStepsPerBlock;
    return {panel.scales.scales + at, panel.scales.minima + at, panel.scales.d + super,
            panel.scales.minimum_d + super};
}

template <class Codes>
static void pack_pairs(const WeightView& w, int64_t row0, int64_t row1, const PairPanel& panel) {
    const int64_t blocks = w.columns / kStep, groups = (row1 - row0 + W - 1) / W;
    for (int64_t g = 0; g < groups; ++g) {
        Codes rows[W];
        for (int i = 0; i < W; ++i) {
            const int64_t row = row0 + g * W + i;
            rows[i] = Codes(w, row < row1 ? row : row1 - 1);
        }
        gather_pairs(rows, blocks / kStepsPerBlock, scales_of_group(panel, g, blocks));
        for (int64_t b = 0; b < blocks; ++b) {
            interleave_codes(rows, b, panel.codes + (g * blocks + b) * kStep * W);
        }
    }
}

template <class Codes, int MR, int NV>
static void pair_tile(const LinearJob& job, int64_t m, const PairPanel& panel, int64_t group,
                      int64_t blocks, float* y, int64_t stride, int64_t width) {
    const int8_t* x = job.codes + m * job.padded;
    const float* scales = job.code_scales + m * blocks;
    const int32_t* sums = job.code_pairs + m * blocks;
    const PairScales table = scales_of_group(panel, group, blocks);
    F acc[MR][NV];
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) acc[i][n] = zero();
    }
    for (int64_t b = 0; b < blocks; ++b) {
        I dots[MR][NV], pairs[NV];
        for (int n = 0; n < NV; ++n) pairs[n] = iload(table.scales + (n * blocks + b) * W);
        for (int i = 0; i < MR; ++i) {
            for (int n = 0; n < NV; ++n) {
                dots[i][n] = without_zero<Codes>(izero(), pairs[n], iset1(sums[i * blocks + b]));
            }
        }
        for (int half = 0; half < 2; ++half) {
            I scale[NV];
            for (int n = 0; n < NV; ++n)
                scale[n] = half ? last_scales(pairs[n]) : first_scales(pairs[n]);
            for (int s = 4 * half; s < 4 * half + 4; ++s) {
                I wv[NV];
                for (int n = 0; n < NV; ++n) {
                    const int64_t at = (group + n) * blocks + b;
                    wv[n] = iload(panel.codes + (at * kBlockWords + s) * 4 * W);
                }
                for (int i = 0; i < MR; ++i) {
                    const I xv = broadcast4(x + i * job.padded + b * kStep + 4 * s);
                    for (int n = 0; n < NV; ++n)
                        dots[i][n] = dot4_scaled(dots[i][n], wv[n], xv, scale[n]);
                }
            }
        }
        for (int n = 0; n < NV; ++n) {
            const int64_t at = (n * blocks + b) / kStepsPerBlock * W;
            const F d = load(table.d + at);
            for (int i = 0; i < MR; ++i) {
                const F step = set1(scales[i * blocks + b]);
                acc[i][n] = fma(to_float(dots[i][n]), mul(d, step), acc[i][n]);
                if constexpr (Codes::kHasMinimum) {
                    const I minima = iload(table.minima + (n * blocks + b) * W);
                    acc[i][n] = fma(to_float(pair_dot(minima, iset1(sums[i * blocks + b]))),
                                    mul(load(table.minimum_d + at), step), acc[i][n]);
                }
            }
        }
    }
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) {
            const int64_t count = width - n * W < W ? width - n * W : W;
            if (count > 0) store_n(y + i * stride + n * W, acc[i][n], count);
        }
    }
}

template <class Codes>
static void pair_gemm(const WeightView& w, int64_t row0, int64_t row1, const LinearJob& job,
                      int64_t m0, int64_t m1, float* y, int64_t stride) {
    const int64_t rows = row1 - row0, blocks = w.columns / kStep;
    const int64_t held = round_up(rows, W * kIntVectors);
    const int64_t values = held * w.columns, pairs = held * blocks, supers = pairs / kStepsPerBlock;
    auto* memory =
        static_cast<uint8_t*>(thread_scratch(Scratch::panel, values + 8 * (pairs + supers)));
    auto* words = reinterpret_cast<int32_t*>(memory + values);
    auto* floats = reinterpret_cast<float*>(words + 2 * pairs);
    const PairPanel panel{memory, {words, words + pairs, floats, floats + supers}};
    pack_pairs<Codes>(w, row0, row1, panel);
    sweep_tiles(rows, m0, m1, [&](auto count, int64_t r, int64_t m) {
        pair_tile<Codes, decltype(count)::value, kIntVectors>(
            job, m, panel, r / W, blocks, y + r + (m - m0) * stride, stride, rows - r);
    });
}

template <class Codes>
static void pair_linear(const LinearJob& job, const WeightView& w, int64_t row0, int64_t row1,
                        int64_t m0, int64_t m1, float* y, int64_t stride) {
    if (m1 - m0 == 1) {
        pair_gemv<Codes>(w, row0, row1, job, m0, y);
    } else {
        pair_gemm<Codes>(w, row0, row1, job, m0, m1, y, stride);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
