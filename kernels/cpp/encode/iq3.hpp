// IQ3_XXS and IQ3_S: quads of 8 odd levels.
#pragma once

#include "encode/grid_blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

struct SearchIQ3 {
    using Cell = Quad;
    static constexpr int kGroup = 32;
    static constexpr float kTop = 15.0f, kStep = 0.2f, kVariance = 2.0f;
    static HB_INLINE F8 plain_weight(float, F8 v) { return v * v; }
};

struct SearchIQ3_XXS : SearchIQ3 {
    using L = Layout_IQ3_XXS;
    static constexpr int kTrials = 31, kFirst = -15;
    static constexpr bool kEven = true, kRefitAll = false;
    static HB_INLINE bool vanishes(float peak) { return peak < 1e-8f; }

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        Found<Quad, 32> found;
        search_block<SearchIQ3_XXS>(grid, x, importance, found);
        std::memset(out, 0, L::kBytes);
        if (!(found.largest > 0.0f)) return;
        const float d = found.largest / 31.0f;
        int codes[8];
        found.scale_codes(d, codes);
        store_half_at(out, d * 1.0125f);
        for (int k = 0; k < 64; ++k)
            out[L::kOffset_qs + k] = static_cast<uint8_t>(found.indices[k]);
        for (int g = 0; g < 8; ++g) {
            uint32_t word = static_cast<uint32_t>(codes[g]) << 28;
            for (int k = 0; k < 4; ++k) word |= uint32_t{found.signs[4 * g + k]} << (7 * k);
            std::memcpy(out + L::kOffset_scales + 4 * g, &word, 4);
        }
    }
};

// Compat: ggml does not move on in qs and signs after a group of zeros.
template <bool Compat>
struct SearchIQ3_S : SearchIQ3 {
    using L = Layout_IQ3_S;
    static constexpr int kTrials = 19, kFirst = -9;
    static constexpr bool kEven = false, kRefitAll = true;
    static HB_INLINE bool vanishes(float peak) { return peak == 0.0f; }

    static void encode(const Grid& grid, const float* x, const float* importance, uint8_t* out) {
        Found<Quad, 32> found;
        search_block<SearchIQ3_S>(grid, x, importance, found);
        std::memset(out, 0, L::kBytes);
        int place = 0;
        for (int g = 0; g < 8; ++g) {
            if (found.skipped[g]) {
                if (!Compat) ++place;
                continue;
            }
            uint8_t* high = out + L::kOffset_qh + g;
            for (int k = 0; k < 8; ++k) {
                const int index = found.indices[8 * g + k];
                out[L::kOffset_qs + 8 * place + k] = static_cast<uint8_t>(index & 255);
                *high = static_cast<uint8_t>(*high | (index >> 8) << k);
            }
            std::memcpy(out + L::kOffset_signs + 4 * place, found.signs + 4 * g, 4);
            ++place;
        }
        if (!(found.largest > 0.0f)) return;
        const float d = found.largest / 31.0f;
        int codes[8];
        found.scale_codes(d, codes);
        store_half_at(out, d * 1.033f);
        for (int g = 0; g < 8; g += 2) {
            out[L::kOffset_scales + g / 2] = static_cast<uint8_t>(codes[g] | codes[g + 1] << 4);
        }
    }
};

}  // namespace HB_ISA
}  // namespace halfbyte
