// IQ1_S and IQ1_M: octets of -1, 0, 1, shifted.
#pragma once

#include "encode/grid_blocks.hpp"
#include "encode/ternary_split.hpp"

namespace halfbyte {
namespace HB_ISA {

// A group's points and scale; Splits: how its halves are shifted.
template <class Splits>
struct TernaryGroup {
    static constexpr int kSize = Splits::kSize;
    static constexpr int kOctets = kSize / 8;

    int indices[kOctets] = {};
    bool up[kOctets];
    float scale = 0.0f;
    int choice = 0;

    HB_INLINE void search(const Grid& grid, const float* x, const float* w, float eps) {
        F8 peak = magnitude(load8(x));
        for (int i = 8; i < kSize; i += 8) peak = larger(peak, magnitude(load8(x + i)));
        if (largest8(peak) < eps) return;
        int order[kSize];
        ascending<kSize>(x, order);
        Splits splits(x, w, order);
        const Split best = best_split(splits);
        if (best.choice < 0) return;
        uint8_t codes[kSize];
        for (int j = 0; j < kSize; ++j) {
            codes[order[j]] = static_cast<uint8_t>((j >= best.first) + (j >= best.second));
        }
        scale = best.scale;
        choice = best.choice;
        uint32_t mirror = 0;
        if (scale < 0.0f) {
            mirror = 0xAAAAu;
            scale = -scale;
            choice = Splits::kChoices - 1 - choice;
        }
        uint32_t points[kOctets];
        bool rounded = false;
        for (int k = 0; k < kOctets; ++k) {
            up[k] = !(Splits::kChoices == 2 ? choice : (k == 0 ? choice >> 1 : choice & 1));
            uint32_t point = 0;
            for (int i = 0; i < 8; ++i) point |= uint32_t{codes[8 * k + i]} << (2 * i);
            if (mirror) point = mirror - point;
            if (!grid.has(point)) {
                rounded = true;
                point = nearest_point<Octet>(grid, grid.entries[point], x + 8 * k, w + 8 * k,
                                             all8(scale) * load8(shifted_levels(up[k])));
            }
            points[k] = point;
            indices[k] = grid.index(point);
        }
        if (rounded) refit(points, x, w);
    }

    HB_INLINE void refit(const uint32_t* points, const float* x, const float* w) {
        float qx = 0.0f, qq = 0.0f;
        for (int i = 0; i < kSize; ++i) {
            const float q = shifted_levels(up[i / 8])[points[i / 8] >> (2 * (i % 8)) & 3u];
            qx += w[i] * q * x[i];
            qq += w[i] * q * q;
        }
        if (qx > 0.0f && qq > 0.0f) scale = qx / qq;
    }
};

struct SearchIQ1 {
    static constexpr float kVariance = 2.0f;
    static HB_INLINE F8 plain_weight(float, F8 v) { return v * v; }
};

struct SearchIQ1_S : SearchIQ1 {
    using L = Layout_IQ1_S;

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        float w[kBlock], largest = 0.0f;
        block_weights<SearchIQ1>(x, importance, w);
        std::memset(out, 0, L::kBytes);
        TernaryGroup<CommonShift<32>> groups[8];
        for (int g = 0; g < 8; ++g) {
            groups[g].search(grid, x + 32 * g, w + 32 * g, 1e-12f);
            if (groups[g].scale > largest) largest = groups[g].scale;
        }
        const float d = largest / 15.0f;
        if (largest > 0.0f) store_half_at(out, d * 1.125f);
        for (int g = 0; g < 8; ++g) {
            uint32_t word = 0;
            for (int k = 0; k < 4; ++k) {
                out[L::kOffset_qs + 4 * g + k] = static_cast<uint8_t>(groups[g].indices[k] & 255);
                word |= static_cast<uint32_t>(groups[g].indices[k] >> 8) << (3 * k);
            }
            if (largest > 0.0f) {
                const int code = scale_code(1.0f / d, groups[g].scale, 7) | groups[g].choice << 3;
                word |= static_cast<uint32_t>(code) << 12;
            }
            const auto stored = static_cast<uint16_t>(word);
            std::memcpy(out + L::kOffset_qh + 2 * g, &stored, 2);
        }
    }
};

struct SearchIQ1_M : SearchIQ1 {
    using L = Layout_IQ1_M;
    using Group16 = TernaryGroup<HalfShifts<16>>;

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        float w[kBlock], largest = 0.0f;
        block_weights<SearchIQ1>(x, importance, w);
        std::memset(out, 0, L::kBytes);
        Group16 groups[16];
        for (int g = 0; g < 16; ++g) {
            groups[g].search(grid, x + 16 * g, w + 16 * g, 1e-7f);
            if (groups[g].scale > largest) largest = groups[g].scale;
            const int* indices = groups[g].indices;
            for (int k = 0; k < 2; ++k) out[L::kOffset_qs + 2 * g + k] = indices[k] & 255;
            out[L::kOffset_qh + g] = static_cast<uint8_t>(indices[0] >> 8 | indices[1] >> 8 << 4);
        }
        if (largest > 0.0f) write_scales(grid, groups, x, w, largest, out);
    }

    // Codes of the groups' scales, and the scale of the block that fits them best.
    static void write_scales(const Grid& grid, const Group16* groups, const float* x,
                             const float* w, float largest, uint8_t* out) {
        float d = largest / 15.0f;
        const float inverse = 1.0f / d;
        float qx = 0.0f, qq = 0.0f;
        uint32_t words[4] = {};
        for (int g = 0; g < 16; ++g) {
            const int code = scale_code(inverse, groups[g].scale, 7), choice = groups[g].choice;
            const auto factor = static_cast<float>(2 * code + 1);
            words[g / 4] |= static_cast<uint32_t>(code) << (3 * (g % 4));
            uint8_t* high = out + L::kOffset_qh + g;
            *high = static_cast<uint8_t>(*high | (choice >> 1) << 3 | (choice & 1) << 7);
            for (int i = 0; i < 16; ++i) {
                const bool up = !(i < 8 ? choice >> 1 : choice & 1);
                const uint32_t point = grid.point(groups[g].indices[i / 8]);
                const float q = shifted_levels(up)[point >> (2 * (i % 8)) & 3u] * factor;
                const float weight = w[16 * g + i];
                qx += weight * q * x[16 * g + i];
                qq += weight * q * q;
            }
        }
        if (qq > 0.0f) d = qx / qq;
        uint8_t half[2];
        store_half_at(half, d * 1.1125f);
        const uint32_t bits = load_u16(half);
        for (int k = 0; k < 4; ++k) {
            const auto word = static_cast<uint16_t>(words[k] | (bits >> (4 * k) & 15u) << 12);
            std::memcpy(out + L::kOffset_scales + 2 * k, &word, 2);
        }
    }
};

}  // namespace HB_ISA
}  // namespace halfbyte
