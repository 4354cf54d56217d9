// IQ2_XXS, IQ2_XS and IQ2_S: octets of levels 1, 3, 5.
#pragma once

#include "encode/grid_blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

struct SearchIQ2 {
    using Cell = Octet;
    static constexpr int kGroup = 16, kTrials = 19, kFirst = -9;
    static constexpr float kTop = 5.0f, kStep = 0.1f;
    static constexpr bool kRefitAll = false;
};

HB_INLINE void store_nibbles(const int* codes, int count, uint8_t* out) {
    for (int i = 0; i < count; i += 2) {
        out[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
    }
}

struct SearchIQ2_XS : SearchIQ2 {
    using L = Layout_IQ2_XS;
    static constexpr float kVariance = 1.0f;
    static constexpr bool kEven = true;
    static HB_INLINE bool vanishes(float peak) { return peak < 1e-15f; }
    static HB_INLINE F8 plain_weight(float, F8 v) { return v * v; }  // ggml wants importance here

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        Found<Octet, 16> found;
        search_block<SearchIQ2_XS>(grid, x, importance, found);
        std::memset(out, 0, L::kBytes);
        if (!(found.largest > 0.0f)) return;
        const float d = found.largest / 31.0f;
        int codes[16];
        found.scale_codes(d, codes);
        store_half_at(out, d);
        for (int k = 0; k < 32; ++k) {
            const auto word = static_cast<uint16_t>(found.indices[k] | found.signs[k] << 9);
            std::memcpy(out + L::kOffset_qs + 2 * k, &word, 2);
        }
        store_nibbles(codes, 16, out + L::kOffset_scales);
    }
};

struct SearchIQ2_S : SearchIQ2 {
    using L = Layout_IQ2_S;
    static constexpr float kVariance = 2.0f;
    static constexpr bool kEven = false;
    static HB_INLINE bool vanishes(float peak) { return peak < 1e-8f; }
    static HB_INLINE F8 plain_weight(float variance, F8 v) {
        return all8(0.25f * variance) + v * v;
    }

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        Found<Octet, 16> found;
        search_block<SearchIQ2_S>(grid, x, importance, found);
        std::memset(out, 0, L::kBytes);
        for (int k = 0; k < 32; ++k) {
            uint8_t* high = out + L::kOffset_qh + k / 4;
            out[L::kOffset_qs + k] = static_cast<uint8_t>(found.indices[k] & 255);
            *high = static_cast<uint8_t>(*high | (found.indices[k] >> 8) << (2 * (k % 4)));
        }
        std::memcpy(out + L::kOffset_signs, found.signs, 32);
        if (!(found.largest > 0.0f)) return;
        const float d = found.largest / 31.0f;
        int codes[16];
        found.scale_codes(d, codes);
        store_half_at(out, d * 0.9875f);
        store_nibbles(codes, 16, out + L::kOffset_scales);
    }
};

// The scales of 8 groups of 32 on codes 0..4, a group per lane: x and w are [value][group]. Codes
// are bytes to ggml: a flipped sign's -1 is 255 in the sums that read stored codes.
static void positive_scales(const float (*x)[8], const float (*w)[8], float* scales) {
    const F8 top = all8(4.0f);
    const I8 itop = iall8(4), byte = iall8(255);
    F8 peak = all8(0.0f);
    for (int i = 0; i < 32; ++i) peak = larger(peak, load8(x[i]));
    F8 inverse = top / peak, best = all8(0.0f);
    const F8 first = all8(1.0f) / inverse;
    for (int i = 0; i < 32; ++i) {
        const F8 code = to_float8(nearest8(inverse * load8(x[i])) & byte);
        const F8 difference = load8(x[i]) - first * code;
        best = best + load8(w[i]) * difference * difference;
    }
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        const F8 trial = all8(0.1f * static_cast<float>(step) + 4.0f) / peak;
        const F8 unit = all8(1.0f) / trial;
        F8 error = all8(0.0f);
        for (int i = 0; i < 32; ++i) {
            const F8 v = load8(x[i]);
            const F8 difference = v - unit * to_float8(smaller(nearest8(trial * v), itop));
            error = error + load8(w[i]) * difference * difference;
        }
        const M8 less_error = error < best;
        best = choose(less_error, error, best);
        inverse = choose(less_error, trial, inverse);
    }
    int32_t codes[32][8];
    F8 sum_lx = all8(0.0f), sum_ll = all8(0.0f);
    for (int i = 0; i < 32; ++i) {
        const F8 v = load8(x[i]), weight = load8(w[i]);
        const I8 code = smaller(nearest8(inverse * v), itop);
        const F8 l = to_float8(code);
        istore8(codes[i], code & byte);
        sum_lx = sum_lx + weight * v * l;
        sum_ll = sum_ll + weight * l * l;
    }
    // A lane in which a sweep changes nothing stays as it is in further sweeps.
    for (int sweep = 0; sweep < 5; ++sweep) {
        uint32_t changed = 0;
        for (int i = 0; i < 32; ++i) {
            const F8 v = load8(x[i]), weight = load8(w[i]);
            const I8 code = iload8(codes[i]);
            const F8 l = to_float8(code);
            const F8 lx = sum_lx - weight * v * l, ll = sum_ll - weight * l * l;
            const I8 wanted = smaller(nearest8(v * ll / lx), itop);
            const F8 other = to_float8(wanted);
            const F8 new_lx = lx + weight * v * other, new_ll = ll + weight * other * other;
            const M8 better = new_lx * new_lx * sum_ll > sum_lx * sum_lx * new_ll;
            const M8 take = (lx > all8(0.0f)) & (ll > all8(0.0f)) & differs(wanted, code) & better;
            sum_lx = choose(take, new_lx, sum_lx);
            sum_ll = choose(take, new_ll, sum_ll);
            istore8(codes[i], choose(take, wanted & byte, code));
            changed |= bits8(take);
        }
        if (!changed) break;
    }
    store8(scales, choose(sum_ll > all8(0.0f), sum_lx / sum_ll, all8(0.0f)));
}

struct SearchIQ2_XXS {
    using L = Layout_IQ2_XXS;
    static constexpr float kVariance = 1.0f;
    static HB_INLINE F8 plain_weight(float, F8 v) { return v * v; }  // ggml wants importance here

    static void search(const Grid& grid, const float* x, const float* importance,
                       Found<Octet, 32>& found) {
        constexpr Tops<13> tops(5.0f, -6, 0.1f);
        float w[kBlock], scales[8], by_value[32][8], weights[32][8];
        block_weights<SearchIQ2_XXS>(x, importance, w);
        Group<Octet, 32> groups[8];
        for (int g = 0; g < 8; ++g) {
            groups[g].load<true>(x + 32 * g, w + 32 * g);
            for (int i = 0; i < 32; ++i) {
                by_value[i][g] = groups[g].x[i];
                weights[i][g] = groups[g].w[i];
            }
        }
        positive_scales(by_value, weights, scales);
        for (int g = 0; g < 8; ++g) {
            const float reach = scales[g] * 3.0f;
            if (groups[g].peak < 1e-15f || reach <= 0.0f) {
                found.take(grid, g, nullptr);
                continue;
            }
            groups[g].reset(scales[g]);
            groups[g].scan<13>(grid, tops.values, reach);
            if (groups[g].scale > 0.0f) groups[g].refit(grid, 15);
            groups[g].make_positive(127);
            found.take(grid, g, &groups[g]);
        }
    }

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        Found<Octet, 32> found;
        search(grid, x, importance, found);
        std::memset(out, 0, L::kBytes);
        if (!(found.largest > 0.0f)) return;
        const float d = found.largest / 31.0f;
        int codes[8];
        found.scale_codes(d, codes);
        store_half_at(out, d);
        for (int g = 0; g < 8; ++g) {
            uint8_t* group = out + L::kOffset_qs + 8 * g;
            uint32_t word = static_cast<uint32_t>(codes[g]) << 28;
            for (int k = 0; k < 4; ++k) {
                group[k] = static_cast<uint8_t>(found.indices[4 * g + k]);
                word |= uint32_t{found.signs[4 * g + k]} << (7 * k);
            }
            std::memcpy(group + 4, &word, 4);
        }
    }
};

}  // namespace HB_ISA
}  // namespace halfbyte
