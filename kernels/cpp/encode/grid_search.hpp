// Scales of groups of values whose codes must be points of a codebook. Every sum that decides bytes
// runs in ggml's order inside one lane; lanes are trial scales or points of the codebook.
#pragma once

#include "encode/lanes8.hpp"
#include "encode/neighbours.hpp"
#include "encode/weighted.hpp"

namespace halfbyte {
namespace HB_ISA {

// Points of 8 values on levels 1, 3, 5.
struct Octet {
    static constexpr int kValues = 8;
    static constexpr int kBits = 2;
    static constexpr int kTop = 2;
    static HB_INLINE F8 look(F8 row, I8 index) { return look4(row, index); }
    static HB_INLINE F8 levels() {
        alignas(32) static const float rows[8] = {1, 3, 5, 5, 1, 3, 5, 5};
        return load8(rows);
    }
};

// Points of 4 values on levels 1, 3, .. 15.
struct Quad {
    static constexpr int kValues = 4;
    static constexpr int kBits = 3;
    static constexpr int kTop = 7;
    static HB_INLINE F8 look(F8 row, I8 index) { return look8(row, index); }
    static HB_INLINE F8 levels() {
        alignas(32) static const float rows[8] = {1, 3, 5, 7, 9, 11, 13, 15};
        return load8(rows);
    }
};

// The grid that a kind's points are searched in.
struct Grid {
    const int32_t* entries;
    const uint16_t* points;
    const uint16_t* codebook;

    explicit Grid(const NeighbourTable& table)
        : entries(table.entries.data()),
          points(table.points.data()),
          codebook(table.codebook.data()) {}
    HB_INLINE bool has(uint32_t point) const { return entries[point] < 0; }
    HB_INLINE int index(uint32_t point) const { return -1 - entries[point]; }
    HB_INLINE uint32_t point(int index) const { return codebook[index]; }
};

// The packed point of a list with the least sum of w * (scaled level - x)^2, the first of equals.
template <class Cell>
HB_INLINE uint32_t nearest_point(const Grid& grid, int32_t entry, const float* x, const float* w,
                                 F8 scaled_levels) {
    F8 costs[Cell::kValues];
    for (int i = 0; i < Cell::kValues; ++i) {
        const F8 difference = scaled_levels - all8(x[i]);
        costs[i] = all8(w[i]) * difference * difference;
    }
    const uint16_t* list = grid.points + (entry >> 8) * 8;
    const int length = entry & 255;
    F8 best = all8(FLT_MAX);
    I8 place = iall8(0);
    for (int c = 0; c < length; ++c) {
        const I8 packed = load_words8(list + 8 * c);
        F8 sum = Cell::look(costs[0], packed);
        for (int i = 1; i < Cell::kValues; ++i) {
            sum = sum + Cell::look(costs[i], shift_right(packed, Cell::kBits * i));
        }
        const M8 nearer = sum < best;
        best = choose(nearer, sum, best);
        place = choose(nearer, iall8(c), place);
    }
    uint32_t equal = bits8(best == least8(best));
    int lane = equal ? lowest_bit(equal) : 0;
    int32_t places[8];
    istore8(places, place);
    int chosen = 8 * places[lane] + lane;
    for (equal &= equal - 1; equal; equal &= equal - 1) {
        lane = lowest_bit(equal);
        if (8 * places[lane] + lane < chosen) chosen = 8 * places[lane] + lane;
    }
    return list[chosen];
}

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

template <class CellType, int Size>
template <int Trials>
HB_INLINE void Group<CellType, Size>::scan(const Grid& grid, const float* tops, float reach) {
    constexpr int kRounds = (Trials + 7) / 8;
    F8 products[Size], squares[Size];  // by level: w x q and w q q
    for (int i = 0; i < Size; ++i) {
        products[i] = all8(w[i] * x[i]) * Cell::levels();
        squares[i] = all8(w[i]) * Cell::levels() * Cell::levels();
    }
    float best = 0.0f;
    for (int t = 0; t < kRounds; ++t) {
        const F8 inverse = load8(tops + 8 * t) / all8(reach);
        float scales[8];
        store8(scales, all8(1.0f) / inverse);
        const int lanes = Trials - 8 * t < 8 ? Trials - 8 * t : 8;
        int32_t packed[kCells][8];
        uint32_t off[8] = {};
        F8 sum_qx = all8(0.0f), sum_qq = all8(0.0f);
        for (int k = 0; k < kCells; ++k) {
            const float* xs = x + k * Cell::kValues;
            istore8(packed[k], packed_codes<Cell>(xs, inverse));
            for (int lane = 0; lane < lanes; ++lane) {
                const int32_t entry = grid.entries[packed[k][lane]];
                if (entry < 0) continue;
                off[lane] |= 1u << k;
                packed[k][lane] = static_cast<int32_t>(
                    nearest_point<Cell>(grid, entry, xs, root + k * Cell::kValues,
                                        all8(scales[lane]) * Cell::levels()));
            }
        }
        for (int k = 0; k < kCells; ++k) {
            const I8 codes = iload8(packed[k]);
            for (int i = 0; i < Cell::kValues; ++i) {
                const I8 code = shift_right(codes, Cell::kBits * i);
                sum_qx = sum_qx + Cell::look(products[k * Cell::kValues + i], code);
                sum_qq = sum_qq + Cell::look(squares[k * Cell::kValues + i], code);
            }
        }
        float qx[8], qq[8];
        store8(qx, sum_qx);
        store8(qq, sum_qq);
        for (int lane = 0; lane < lanes; ++lane) {
            if (qq[lane] > 0.0f && qx[lane] * qx[lane] > best * qq[lane]) {
                scale = qx[lane] / qq[lane];
                best = scale * qx[lane];
                rounded = off[lane];
                for (int k = 0; k < kCells; ++k) cells[k] = static_cast<uint32_t>(packed[k][lane]);
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
