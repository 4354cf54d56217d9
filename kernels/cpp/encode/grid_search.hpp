// Scales of groups of values whose codes must be points of a codebook. Every sum that decides bytes
// runs in ggml's order inside one lane; lanes are trial scales or points of the codebook.
#pragma once

#include "encode/near_points.hpp"
#include "encode/weighted.hpp"

namespace halfbyte {
namespace HB_ISA {

// ggml's code of (value / scale - 1) / 2 per lane of `inverse`, a cell's codes packed.
template <class Cell>
HB_INLINE I8 packed_codes(const float* x, F8 inverse) {
    // Adding 3 * 2^23 rounds to even integers: the mantissa is twice the rounded half.
    const F8 magic = all8(25165824.0f), one = all8(1.0f);
    const I8 mantissa = iall8(0x007FFFFF), low = iall8(0x00400000);
    const I8 high = iall8(0x00400000 + Cell::kTop);
    I8 packed = iall8(0);
    uint32_t bias = 0;
    for (int i = Cell::kValues - 1; i >= 0; --i) {
        const I8 raw = bits_of((inverse * all8(x[i]) - one) + magic) & mantissa;
        packed = shift_left<Cell::kBits>(packed) + smaller(larger(raw, low), high);
        bias = (bias << Cell::kBits) + 0x00400000u;
    }
    return packed - iall8(static_cast<int32_t>(bias));
}

template <class Cell>
HB_INLINE uint32_t packed_code(const float* x, float inverse) {
    uint32_t packed = 0;
    for (int i = 0; i < Cell::kValues; ++i) {
        const int code = clamp_int(nearest_int(0.5f * (inverse * x[i] - 1.0f)), 0, Cell::kTop);
        packed |= static_cast<uint32_t>(code) << (Cell::kBits * i);
    }
    return packed;
}

// Whether the low 8 bits hold an odd number of ones.
HB_INLINE bool is_odd(uint32_t bits) { return 0x6996u >> ((bits ^ bits >> 4) & 15u) & 1u; }

// A group of values that share a scale: magnitudes (a flipped sign makes one negative), weights,
// the roots of the weights; found: packed points, the scale, and which cells were rounded to a
// neighbour (bit per cell).
template <class CellType, int Size>
struct Group {
    using Cell = CellType;
    static constexpr int kSize = Size;
    static constexpr int kCells = Size / Cell::kValues;

    float x[Size], w[Size], root[Size];
    uint8_t signs[Size / 8];
    float peak;
    uint32_t cells[kCells];
    uint32_t rounded;
    float scale;

    // Values [Size] and their weights; Even: no octet may have an odd number of minus signs.
    template <bool Even>
    HB_INLINE void load(const float* values, const float* weights) {
        F8 top = all8(-FLT_MAX);
        for (int k = 0; k < Size / 8; ++k) {
            const F8 v = load8(values + 8 * k), weight = load8(weights + 8 * k);
            store8(w + 8 * k, weight);
            store8(root + 8 * k, root8(weight));
            uint32_t minus = bits8(all8(0.0f) <= v) ^ 255u;
            store8(x + 8 * k, magnitude(v));
            if (Even && is_odd(minus)) {
                const F8 cost = weight * v * v;
                const uint32_t least = bits8(cost == least8(cost));
                const int flip = least ? lowest_bit(least) : 0;
                x[8 * k + flip] = -x[8 * k + flip];
                minus ^= 1u << flip;
            }
            signs[k] = static_cast<uint8_t>(Even ? minus & 127u : minus);
            top = larger(top, load8(x + 8 * k));
        }
        peak = largest8(top);
    }

    // All points at level 0, none of them rounded.
    void reset(float new_scale) {
        for (uint32_t& cell : cells) cell = 0;
        rounded = 0;
        scale = new_scale;
    }

    HB_INLINE void settle(const Grid& grid, int k, uint32_t point, float scale_of_point) {
        const int at = k * Cell::kValues;
        if (!grid.has(point)) {
            point = nearest_point<Cell>(grid, grid.entries[point], x + at, root + at,
                                        all8(scale_of_point) * Cell::levels());
        }
        cells[k] = point;
    }

    // Tries inverse scales tops[t] / reach; keeps the first best, else leaves all as it is.
    template <int Trials>
    HB_INLINE void scan(const Grid& grid, const float* tops, float reach);

    // New points at the current scale for the cells of `which`, then the scale that fits them.
    HB_INLINE void refit(const Grid& grid, uint32_t which);

    // A negative scale becomes positive with all signs flipped.
    HB_INLINE void make_positive(uint8_t mask) {
        if (!(scale < 0.0f)) return;
        scale = -scale;
        for (uint8_t& s : signs) s = static_cast<uint8_t>(~s & mask);
    }
};

// Bit i is set where codes i and i + 1 of a cell's trials differ, and for the last trial.
template <int Trials>
HB_INLINE uint32_t last_of_runs(const int32_t* packed) {
    uint32_t ends = 0;
    for (int t = 0; t < Trials; t += 8) {
        ends |= bits8(differs(iload8(packed + t), iload8(packed + t + 1))) << t;
    }
    const uint32_t last = 1u << (Trials - 1);
    return (ends & (last - 1u)) | last;
}

template <class CellType, int Size>
template <int Trials>
HB_INLINE void Group<CellType, Size>::scan(const Grid& grid, const float* tops, float reach) {
    constexpr int kRounds = (Trials + 7) / 8;
    float scales[8 * kRounds];
    int32_t packed[kCells][8 * kRounds + 8];
    for (int t = 0; t < 8 * kRounds; t += 8) {
        const F8 inverse = load8(tops + t) / all8(reach);
        store8(scales + t, all8(1.0f) / inverse);
        for (int k = 0; k < kCells; ++k) {
            istore8(packed[k] + t, packed_codes<Cell>(x + k * Cell::kValues, inverse));
        }
    }
    F8 products[Size], squares[Size];  // by level: w x q and w q q
    for (int i = 0; i < Size; ++i) {
        products[i] = all8(w[i] * x[i]) * Cell::levels();
        squares[i] = all8(w[i]) * Cell::levels() * Cell::levels();
    }
    uint32_t off[kCells] = {};  // trials whose codes are no point, by bit
    for (int k = 0; k < kCells; ++k) {
        uint32_t ends = last_of_runs<Trials>(packed[k]);
        for (int from = 0; from < Trials; ends &= ends - 1) {
            const int to = lowest_bit(ends) + 1;
            const int32_t entry = grid.entries[packed[k][from]];
            if (entry >= 0) {
                off[k] |= (2u << (to - 1)) - (1u << from);
                nearest_of_run<Cell>(grid, entry, x + k * Cell::kValues, root + k * Cell::kValues,
                                     scales + from, to - from, packed[k] + from);
            }
            from = to;
        }
    }
    float best = 0.0f;
    for (int t = 0; t < 8 * kRounds; t += 8) {
        F8 sum_qx = all8(0.0f), sum_qq = all8(0.0f);
        for (int k = 0; k < kCells; ++k) {
            const I8 codes = iload8(packed[k] + t);
            for (int i = 0; i < Cell::kValues; ++i) {
                const I8 code = shift_right(codes, Cell::kBits * i);
                sum_qx = sum_qx + Cell::look(products[k * Cell::kValues + i], code);
                sum_qq = sum_qq + Cell::look(squares[k * Cell::kValues + i], code);
            }
        }
        if (!bits8(sum_qx * sum_qx > all8(best) * sum_qq)) continue;
        float qx[8], qq[8];
        store8(qx, sum_qx);
        store8(qq, sum_qq);
        for (int lane = 0; lane < 8 && t + lane < Trials; ++lane) {
            if (qq[lane] > 0.0f && qx[lane] * qx[lane] > best * qq[lane]) {
                scale = qx[lane] / qq[lane];
                best = scale * qx[lane];
                rounded = 0;
                for (int k = 0; k < kCells; ++k) {
                    cells[k] = static_cast<uint32_t>(packed[k][t + lane]);
                    rounded |= (off[k] >> (t + lane) & 1u) << k;
                }
            }
        }
    }
}

template <class CellType, int Size>
HB_INLINE void Group<CellType, Size>::refit(const Grid& grid, uint32_t which) {
    const float inverse = 1.0f / scale;
    for (int k = 0; k < kCells; ++k) {
        if (!(which >> k & 1u)) continue;
        settle(grid, k, packed_code<Cell>(x + k * Cell::kValues, inverse), scale);
    }
    float qx = 0.0f, qq = 0.0f;
    for (int k = 0; k < kCells; ++k) {
        uint32_t codes = cells[k];
        for (int i = 0; i < Cell::kValues; ++i, codes >>= Cell::kBits) {
            const int at = k * Cell::kValues + i;
            const auto q = static_cast<float>(2 * (codes & ((1u << Cell::kBits) - 1u)) + 1);
            qx += w[at] * x[at] * q;
            qq += w[at] * q * q;
        }
    }
    if (qq > 0.0f) scale = qx / qq;
}

// Numerators of the trial scales, filled up to whole vectors: middle + (first + i) * step.
template <int Trials>
struct Tops {
    float values[(Trials + 7) / 8 * 8];

    constexpr Tops(float middle, int first, float step) : values() {
        for (int i = 0; i < (Trials + 7) / 8 * 8; ++i) {
            values[i] = i < Trials ? middle + static_cast<float>(first + i) * step : middle;
        }
    }
};

// Sum of squares of a block in ggml's order.
HB_INLINE float block_squares(const float* x) {
    float sum = 0.0f;
    for (int i = 0; i < 256; ++i) sum += x[i] * x[i];
    return sum;
}

HB_INLINE int scale_code(float inverse, float scale, int top) {
    return clamp_int(nearest_int(0.5f * (inverse * scale - 1.0f)), 0, top);
}

}  // namespace HB_ISA
}  // namespace halfbyte
