// ggml's search for IQ4_NL and IQ4_XS: 8 groups of 32 values side by side in lanes, so that each
// group's sums keep their order.
#pragma once

#include "encode/lanes8.hpp"
#include "encode/weighted.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kGroups = 8;

// 8 groups: values, their importance (or null), and 2 / n * (sum of squares of the block).
struct Iq4Groups {
    const float* x[kGroups];
    const float* importance[kGroups];
    float energy[kGroups];
};

// 8 columns of 8 rows, as 8 vectors.
HB_INLINE void transpose8(const float* const* rows, int column, F8* out) {
#if defined(HB_X86_BYTES)
    __m256 r[8], pairs[8], quads[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(rows[i] + column);
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        out[i].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        out[i + 4].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
#else
    for (int j = 0; j < 8; ++j) {
        for (int i = 0; i < 8; ++i) out[j].v[i] = rows[i][column + j];
    }
#endif
}

// Rows of a search tree over the codebook, from its upper end: index r means value 15 - r. A value
// in the middle of two belongs to the upper one; NaN gives 0, the uppermost.
struct Iq4Tree {
    F8 first, second_low, second_high, third, fourth, high, low;

    HB_INLINE Iq4Tree() {
        static const float kThird[8] = {79, 19, -28.5f, -93.5f, 79, 19, -28.5f, -93.5f};
        static const float kFourth[8] = {101, 61, 31.5f, 7, -16, -42, -74, -115.5f};
        static const float kHigh[8] = {113, 89, 69, 53, 38, 25, 13, 1};
        static const float kLow[8] = {-10, -22, -35, -49, -65, -83, -104, -127};
        first = all8(-4.5f), second_low = all8(-57.0f), second_high = all8(45.5f);
        third = load8(kThird), fourth = load8(kFourth), high = load8(kHigh), low = load8(kLow);
    }
    HB_INLINE I8 from_top(F8 step, M8* lower_half) const {
        const M8 under = step < first;
        I8 r = count(iall8(0), under);
        r = count(shift_left<1>(r), step < choose(under, second_low, second_high));
        r = count(shift_left<1>(r), step < look4(third, r));
        *lower_half = under;
        return count(shift_left<1>(r), step < look8(fourth, r));
    }
    HB_INLINE F8 value(F8 step) const {
        M8 under;
        const I8 r = from_top(step, &under);
        return choose(under, look8(low, r), look8(high, r));
    }
};

struct Iq4Columns {
    F8 x[kStep];
};

// What one value adds to the sums: all trials together cross at most one border between codebook
// values, since they scale it by 120..134 parts and borders are further apart.
struct Iq4Terms {
    F8 border;
    F8 below_qx, below_qq, above_qx, above_qq;
};

HB_INLINE void iq4_terms(const Iq4Tree& tree, F8 x, F8 w, F8 inner, F8 outer, Iq4Terms* out) {
    const F8 a = tree.value(inner * x), b = tree.value(outer * x);
    const F8 below = smaller(a, b), above = larger(a, b);
    out->border = (below + above) * all8(0.5f);
    const F8 weighted_below = w * below, weighted_above = w * above;
    out->below_qx = weighted_below * x;
    out->below_qq = weighted_below * below;
    out->above_qx = weighted_above * x;
    out->above_qq = weighted_above * above;
}

constexpr int kTrials = 15, kTrialsAtOnce = 3;

// Sums of w q x and w q q for kTrialsAtOnce scales.
HB_INLINE void iq4_trials(const Iq4Columns& c, const Iq4Terms* terms, const F8* inverse, F8* qx,
                          F8* qq) {
    for (int t = 0; t < kTrialsAtOnce; ++t) qx[t] = qq[t] = all8(0.0f);
    for (int j = 0; j < kStep; ++j) {
        const Iq4Terms& term = terms[j];
        for (int t = 0; t < kTrialsAtOnce; ++t) {
            const M8 under = inverse[t] * c.x[j] < term.border;
            qx[t] = qx[t] + choose(under, term.below_qx, term.above_qx);
            qq[t] = qq[t] + choose(under, term.below_qq, term.above_qq);
        }
    }
}

HB_INLINE F8 iq4_extreme(const Iq4Columns& c) {
    F8 largest = all8(0.0f), extreme = all8(0.0f);
    for (int j = 0; j < kStep; ++j) {
        const F8 size = magnitude(c.x[j]);
        extreme = choose(size > largest, c.x[j], extreme);
        largest = larger(largest, size);
    }
    return extreme;
}

// Weights: the square, or importance * sqrt(energy of the block + square).
static void iq4_weights(const Iq4Groups& g, const Iq4Columns& c, F8* w) {
    for (int j = 0; j < kStep; ++j) w[j] = c.x[j] * c.x[j];
    if (!g.importance[0]) return;
    const F8 energy = load8(g.energy);
    for (int j = 0; j < kStep; j += 8) {
        F8 q[8];
        transpose8(g.importance, j, q);
        for (int i = 0; i < 8; ++i) w[j + i] = q[i] * root8(energy + w[j + i]);
    }
}

// Sums for the one scale that puts the extreme value on the upper end, which no trial does.
HB_INLINE void iq4_first_sums(const Iq4Tree& tree, const Iq4Columns& c, const F8* w, F8 inverse,
                              F8* qx, F8* qq) {
    *qx = *qq = all8(0.0f);
    for (int j = 0; j < kStep; ++j) {
        const F8 q = tree.value(inverse * c.x[j]), weighted = w[j] * q;
        *qx = *qx + weighted * c.x[j];
        *qq = *qq + weighted * q;
    }
}

// Loads the columns and returns the best scale of each group; 0 for groups of zeros.
static F8 iq4_scales(const Iq4Groups& g, Iq4Columns* c) {
    const Iq4Tree tree;
    for (int j = 0; j < kStep; j += 8) transpose8(g.x, j, c->x + j);
    F8 w[kStep];
    iq4_weights(g, *c, w);
    const F8 extreme = iq4_extreme(*c), none = all8(0.0f);
    F8 first_qx, first_qq;
    const F8 first = all8(1.0f) / ((none - extreme) / all8(-127.0f));
    iq4_first_sums(tree, *c, w, first, &first_qx, &first_qq);
    F8 scale = choose(first_qq > none, first_qx / first_qq, none), best = scale * first_qx;
    F8 inverse[kTrials], qx[kTrials], qq[kTrials];
    for (int t = 0; t < kTrials; ++t) inverse[t] = all8(static_cast<float>(t - 134)) / extreme;
    Iq4Terms terms[kStep];
    for (int j = 0; j < kStep; ++j) {
        iq4_terms(tree, c->x[j], w[j], inverse[kTrials - 1], inverse[0], terms + j);
    }
    for (int t = 0; t < kTrials; t += kTrialsAtOnce) {
        iq4_trials(*c, terms, inverse + t, qx + t, qq + t);
    }
    for (int t = 0; t < kTrials; ++t) {
        const M8 better = (qq[t] > none) & (qx[t] * qx[t] > best * qq[t]);
        scale = choose(better, qx[t] / qq[t], scale);
        best = choose(better, scale * qx[t], best);
    }
    return choose(magnitude(extreme) < all8(1e-15f), none, scale);
}

// Indices of x / scale as 16 bytes for each group, 1 / scale given.
static void iq4_indices(const Iq4Columns& c, F8 inverse, int32_t (*words)[kGroups]) {
    const Iq4Tree tree;
    for (int k = 0; k < 4; ++k) {
        I8 word = iall8(0);
        for (int i = 3; i >= 0; --i) {
            M8 unused;
            const I8 low = tree.from_top(inverse * c.x[4 * k + i], &unused);
            const I8 high = tree.from_top(inverse * c.x[4 * k + i + 16], &unused);
            word = shift_left<8>(word) + low + shift_left<4>(high);
        }
        istore8(words[k], iall8(-1) - word);  // 15 - r in every nibble
    }
}

HB_INLINE void store_indices(const int32_t (*words)[kGroups], int group, uint8_t* qs) {
    const int32_t four[4] = {words[0][group], words[1][group], words[2][group], words[3][group]};
    std::memcpy(qs, four, sizeof four);
}

HB_INLINE F8 reciprocal_or_zero8(F8 v) {
    const F8 none = all8(0.0f);
    return choose(v == none, none, all8(1.0f) / v);
}

static void encode_iq4_nl(const float* x, const float* importance, int64_t rows, int64_t columns,
                          uint8_t* out) {
    using L = Layout_IQ4_NL;
    const int64_t per_row = columns / kStep, blocks = rows * per_row;
    for (int64_t b = 0; b < blocks; b += kGroups) {
        const int64_t count = blocks - b < kGroups ? blocks - b : kGroups;
        Iq4Groups g;
        for (int64_t i = 0; i < kGroups; ++i) {
            const int64_t at = b + (i < count ? i : count - 1);
            g.x[i] = x + at * kStep;
            g.importance[i] = importance ? importance + at % per_row * kStep : nullptr;
        }
        if (importance) {
            F8 column[8], squares = all8(0.0f);
            for (int j = 0; j < kStep; j += 8) {
                transpose8(g.x, j, column);
                for (int i = 0; i < 8; ++i) squares = squares + column[i] * column[i];
            }
            store8(g.energy, squares * all8(2.0f / kStep));
        }
        Iq4Columns c;
        const F8 scale = iq4_scales(g, &c);
        int32_t words[4][kGroups];
        iq4_indices(c, reciprocal_or_zero8(scale), words);
        float scales[kGroups];
        store8(scales, scale);
        for (int i = 0; i < count; ++i, out += L::kBytes) {
            store_half_at(out + L::kOffset_d, scales[i]);
            store_indices(words, i, out + L::kOffset_qs);
        }
    }
}

// Scales of 6 bits for the searched ones; returns what each group is divided by.
static F8 iq4_xs_scales(const float* scales, uint8_t* out) {
    using L = Layout_IQ4_XS;
    float extreme = 0.0f, largest = 0.0f, steps[kGroups];
    for (int i = 0; i < kGroups; ++i) {
        const float size = std::fabs(scales[i]);
        if (size > largest) largest = size, extreme = scales[i];
    }
    const float d = -extreme / 32.0f, inverse = reciprocal_or_zero(d);
    store_half_at(out + L::kOffset_d, d);
    uint32_t low = 0, high = 0;
    for (int i = 0; i < kGroups; ++i) {
        const int l = clamp_int(nearest_int(inverse * scales[i]), -32, 31);
        const auto stored = static_cast<uint32_t>(l + 32);
        steps[i] = d * static_cast<float>(l);
        low |= (stored & 15u) << (4 * i);
        high |= (stored >> 4) << (2 * i);
    }
    const auto short_high = static_cast<uint16_t>(high);
    std::memcpy(out + L::kOffset_scales_l, &low, 4);
    std::memcpy(out + L::kOffset_scales_h, &short_high, 2);
    return reciprocal_or_zero8(load8(steps));
}

// Sums of squares of up to 4 blocks of 256, each in order.
HB_INLINE void square_sums(const float* x, int64_t count, float* sums) {
    const float* p[4];
    for (int64_t i = 0; i < 4; ++i) p[i] = x + (i < count ? i : 0) * 256, sums[i] = 0.0f;
    for (int j = 0; j < 256; ++j) {
        for (int i = 0; i < 4; ++i) sums[i] += p[i][j] * p[i][j];
    }
}

static void encode_iq4_xs(const float* x, const float* importance, int64_t rows, int64_t columns,
                          uint8_t* out) {
    using L = Layout_IQ4_XS;
    const int64_t per_row = columns / 256, blocks = rows * per_row;
    float squares[4] = {};
    for (int64_t b = 0; b < blocks; ++b, out += L::kBytes) {
        if (importance && b % 4 == 0) square_sums(x + b * 256, blocks - b, squares);
        Iq4Groups g;
        for (int i = 0; i < kGroups; ++i) {
            g.x[i] = x + b * 256 + i * kStep;
            g.importance[i] = importance ? importance + b % per_row * 256 + i * kStep : nullptr;
            g.energy[i] = squares[b % 4] * (2.0f / 256);
        }
        Iq4Columns c;
        float scales[kGroups];
        store8(scales, iq4_scales(g, &c));
        int32_t words[4][kGroups];
        iq4_indices(c, iq4_xs_scales(scales, out), words);
        for (int i = 0; i < kGroups; ++i) store_indices(words, i, out + L::kOffset_qs + 16 * i);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
