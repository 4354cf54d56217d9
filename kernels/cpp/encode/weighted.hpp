// The kinds of 32 values with an importance per column: W blocks in lanes.
#pragma once

#include "encode/blocks.hpp"
#include "encode/search_minimum.hpp"
#include "encode/search_symmetric.hpp"

namespace halfbyte {
namespace HB_ISA {

struct StepLanes {
    alignas(64) float x[2 * kStep * W];  // two sets of W blocks
    alignas(64) float w[2 * kStep * W];
    alignas(64) uint32_t words[kStep / 4 * W];
    uint8_t codes[W][kStep];
    uint16_t scales[W], minimums[W];
};

// Mean square of each row, a row in each lane: [W].
HB_INLINE void mean_squares(const float* const* rows, int64_t columns, float* scratch, float* out) {
    F sum = zero();
    for (int64_t c = 0; c < columns; c += kStep) {
        const float* at[W];
        for (int lane = 0; lane < W; ++lane) at[lane] = rows[lane] + c;
        load_lanes(at, kStep, scratch);
        for (int i = 0; i < kStep; ++i) {
            const F v = load(scratch + i * W);
            sum = add(sum, mul(v, v));
        }
    }
    store(out, div(sum, set1(static_cast<float>(columns))));
}

template <class Code>
HB_INLINE void store_codes(StepLanes& lanes, const float* x, const Code& code) {
    for (int i = 0; i < kStep; i += 4) {
        F codes[4];
        for (int k = 0; k < 4; ++k) codes[k] = code(load(x + (i + k) * W));
        istore(lanes.words + i / 4 * W, pack_codes(codes));
    }
    store_words(lanes.words, kStep / 4, lanes.codes[0], kStep);
}

template <class Block>
HB_INLINE void write_blocks(const StepLanes& lanes, int64_t count, uint8_t* out) {
    using L = typename Block::L;
    for (int64_t lane = 0; lane < count && lane < W; ++lane, out += Block::kBytes) {
        std::memcpy(out, lanes.scales + lane, 2);
        uint8_t* high = nullptr;
        if constexpr (Block::kHasMinimum) std::memcpy(out + L::kOffset_m, lanes.minimums + lane, 2);
        if constexpr (Block::kBits == 5) high = out + L::kOffset_qh;
        pack_nibbles(lanes.codes[lane], out + L::kOffset_qs, high);
    }
}

// The first `count` of 2 W blocks.
template <class Block>
HB_INLINE void encode_lanes(StepLanes& lanes, int64_t count, uint8_t* out) {
    constexpr int kSet = kStep * W;
    if constexpr (Block::kHasMinimum) {
        constexpr int kTop = (1 << Block::kBits) - 1;
        MinimumFit fits[2];
        minimum_search<kStep, kTop, false, 2>(lanes.x, lanes.w, kWeightedTrials, fits);
        for (int set = 0; set < 2; ++set) {
            const MinimumFit& fit = fits[set];
            store_half(lanes.scales, fit.scale);
            store_half(lanes.minimums, fit.low);
            store_codes(lanes, lanes.x + set * kSet,
                        [&](F v) { return fit.code(v, set1(static_cast<float>(kTop))); });
            write_blocks<Block>(lanes, count - set * W, out + set * W * Block::kBytes);
        }
    } else {
        constexpr float kHalf = static_cast<float>(1 << (Block::kBits - 1));
        for (int set = 0; set < 2; ++set) {
            const float* x = lanes.x + set * kSet;
            const SymmetricFit fit = symmetric_search<kStep>(x, lanes.w + set * kSet, kHalf);
            store_half(lanes.scales, fit.scale);
            store_codes(lanes, x, [&](F v) { return fit.code(v, set1(kHalf)); });
            write_blocks<Block>(lanes, count - set * W, out + set * W * Block::kBytes);
        }
    }
}

// Blocks of up to W rows; missing lanes of the last round repeat the last block.
template <class Block>
static void encode_weighted_rows(StepLanes& lanes, const float* x, const float* importance,
                                 int64_t rows, int64_t columns, uint8_t* out) {
    alignas(64) float energy[W];
    const float* first_values[W];
    for (int lane = 0; lane < W; ++lane) {
        first_values[lane] = x + (lane < rows ? lane : rows - 1) * columns;
    }
    mean_squares(first_values, columns, lanes.x, energy);
    const int64_t per_row = columns / kStep, blocks = rows * per_row;
    for (int64_t first = 0; first < blocks; first += 2 * W) {
        for (int set = 0; set < 2; ++set) {
            const float *values[W], *weights[W];
            alignas(64) float energies[W];
            for (int lane = 0; lane < W; ++lane) {
                const int64_t wanted = first + set * W + lane;
                const int64_t at = wanted < blocks ? wanted : blocks - 1;
                values[lane] = x + at * kStep;
                weights[lane] = importance + at % per_row * kStep;
                energies[lane] = energy[at / per_row];
            }
            float *to = lanes.x + set * kStep * W, *w = lanes.w + set * kStep * W;
            load_lanes(values, kStep, to);
            load_lanes(weights, kStep, w);
            spread_energy(to, load(energies), kStep, w);
        }
        encode_lanes<Block>(lanes, blocks - first, out + first * Block::kBytes);
    }
}

template <class Block>
static void encode_kind(const float* x, const float* importance, int64_t rows, int64_t columns,
                        uint8_t* out) {
    if (!importance) return encode_blocks<Block>(x, rows * columns / kStep, out);
    StepLanes lanes;
    const int64_t row_bytes = columns / kStep * Block::kBytes;
    for (int64_t row = 0; row < rows; row += W) {
        const int64_t count = rows - row < W ? rows - row : W;
        encode_weighted_rows<Block>(lanes, x + row * columns, importance, count, columns,
                                    out + row * row_bytes);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
