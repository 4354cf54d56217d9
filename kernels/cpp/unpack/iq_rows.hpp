// Rows of ggml's IQ types: 32 values per step, looked up in the codebook of the kind.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

// Signed codes of 32 values, and their scales: [0] for the first 16 values, [1] for the others.
struct PointStep {
    uint64_t codes[4];
    float scale[2];
};

// All bits of byte i are bit i of the index.
struct SignBytes {
    uint64_t of[256];
    constexpr SignBytes() : of() {
        for (int s = 0; s < 256; ++s) {
            for (int i = 0; i < 8; ++i) {
                if (s >> i & 1) of[s] |= uint64_t{0xFF} << (8 * i);
            }
        }
    }
};
static constexpr SignBytes kSignBytes;

constexpr uint64_t kOnes = 0x0101010101010101u;

HB_INLINE uint64_t load_u64(const void* p) {
    uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
}

// Points of 8 and of 4 values.
HB_INLINE uint64_t eight(const int8_t* values, uint32_t index) {
    return load_u64(values + 8 * index);
}
HB_INLINE uint64_t two_fours(const int8_t* values, uint32_t first, uint32_t second) {
    return load_u32(values + 4 * first) | static_cast<uint64_t>(load_u32(values + 4 * second))
                                              << 32;
}

// Negates the bytes whose sign is set. Levels are 1 to 127, so that no byte carries.
HB_INLINE uint64_t with_signs(uint64_t levels, uint32_t signs) {
    const uint64_t mask = kSignBytes.of[signs];
    return (levels ^ mask) + (mask & kOnes);
}

// The eighth of 8 signs makes their number even.
HB_INLINE uint32_t even_signs(uint32_t seven) {
    uint32_t parity = seven ^ (seven >> 4);
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return seven | (parity & 1) << 7;
}

// 8 level + 1, or 8 level - 1 if `down`, for levels -1, 0 and 1.
HB_INLINE uint64_t shifted(uint64_t levels, bool down) {
    const uint64_t eights = levels << 3 & 0xF8 * kOnes;
    const uint64_t shift = kOnes | (0 - static_cast<uint64_t>(down));  // no branch: down is random
    constexpr uint64_t low = 0x7F * kOnes;
    return ((eights & low) + (shift & low)) ^ ((eights ^ shift) & ~low);
}

HB_INLINE float step_scale(float d, uint32_t sc, float step) {
    return d * (static_cast<float>(2 * sc + 1) * step);
}

HB_INLINE void step_iq2_xxs(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ2_XXS;
    const uint8_t* q = p + L::kOffset_qs + 8 * j;
    const uint32_t upper = load_u32(q + 4);
    for (int k = 0; k < 4; ++k) {
        out->codes[k] = with_signs(eight(values, q[k]), even_signs(upper >> 7 * k & 127));
    }
    out->scale[0] = out->scale[1] = step_scale(half_at(p + L::kOffset_d), upper >> 28, 0.125f);
}

HB_INLINE void nibble_scales(float d, uint8_t packed, PointStep* out) {
    out->scale[0] = step_scale(d, packed & 15u, 0.125f);
    out->scale[1] = step_scale(d, packed >> 4, 0.125f);
}

HB_INLINE void step_iq2_xs(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ2_XS;
    for (int k = 0; k < 4; ++k) {
        const uint32_t both = load_u16(p + L::kOffset_qs + 8 * j + 2 * k);
        out->codes[k] = with_signs(eight(values, both & 511), even_signs(both >> 9));
    }
    nibble_scales(half_at(p + L::kOffset_d), p[L::kOffset_scales + j], out);
}

HB_INLINE void step_iq2_s(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ2_S;
    const uint32_t high = p[L::kOffset_qh + j];
    for (int k = 0; k < 4; ++k) {
        const uint32_t index = p[L::kOffset_qs + 4 * j + k] | (high >> 2 * k & 3) << 8;
        out->codes[k] = with_signs(eight(values, index), p[L::kOffset_signs + 4 * j + k]);
    }
    nibble_scales(half_at(p + L::kOffset_d), p[L::kOffset_scales + j], out);
}

HB_INLINE void step_iq3_xxs(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ3_XXS;
    const uint8_t* q = p + L::kOffset_qs + 8 * j;
    const uint32_t upper = load_u32(p + L::kOffset_scales + 4 * j);
    for (int k = 0; k < 4; ++k) {
        const uint64_t levels = two_fours(values, q[2 * k], q[2 * k + 1]);
        out->codes[k] = with_signs(levels, even_signs(upper >> 7 * k & 127));
    }
    out->scale[0] = out->scale[1] = step_scale(half_at(p + L::kOffset_d), upper >> 28, 0.25f);
}

HB_INLINE void step_iq3_s(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ3_S;
    const uint8_t* q = p + L::kOffset_qs + 8 * j;
    const uint32_t high = p[L::kOffset_qh + j];
    for (int k = 0; k < 4; ++k) {
        const uint32_t first = q[2 * k] | (high >> 2 * k & 1) << 8;
        const uint32_t second = q[2 * k + 1] | (high >> (2 * k + 1) & 1) << 8;
        const uint64_t levels = two_fours(values, first, second);
        out->codes[k] = with_signs(levels, p[L::kOffset_signs + 4 * j + k]);
    }
    const uint32_t sc = p[L::kOffset_scales + j / 2] >> 4 * (j % 2) & 15;
    out->scale[0] = out->scale[1] = step_scale(half_at(p + L::kOffset_d), sc, 1.0f);
}

HB_INLINE void step_iq1_s(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ1_S;
    const uint32_t high = load_u16(p + L::kOffset_qh + 2 * j);
    for (int k = 0; k < 4; ++k) {
        const uint32_t index = p[L::kOffset_qs + 4 * j + k] | (high >> 3 * k & 7) << 8;
        out->codes[k] = shifted(eight(values, index), high >> 15);
    }
    const uint32_t sc = high >> 12 & 7;
    out->scale[0] = out->scale[1] = step_scale(half_at(p + L::kOffset_d), sc, 0.125f);
}

HB_INLINE void step_iq1_m(const uint8_t* p, int j, const int8_t* values, PointStep* out) {
    using L = Layout_IQ1_M;
    const uint8_t* words = p + L::kOffset_scales;
    for (int k = 0; k < 4; ++k) {
        const uint32_t nibble = p[L::kOffset_qh + 2 * j + k / 2] >> 4 * (k % 2) & 15;
        const uint32_t index = p[L::kOffset_qs + 4 * j + k] | (nibble & 7) << 8;
        out->codes[k] = shifted(eight(values, index), nibble & 8);
    }
    const uint64_t all = load_u64(words);
    const auto bits = static_cast<uint16_t>((all >> 12 & 0xF) | (all >> 24 & 0xF0) |
                                            (all >> 36 & 0xF00) | (all >> 48 & 0xF000));
    uint8_t half[2];
    std::memcpy(half, &bits, 2);
    const float d = half_at(half);
    const uint32_t sc = load_u16(words + j / 2 * 2) >> 6 * (j % 2) & 63;
    out->scale[0] = step_scale(d, sc & 7, 0.125f);
    out->scale[1] = step_scale(d, sc >> 3, 0.125f);
}

// One function for all kinds: their readers share the code of the products that call it.
static void point_step(Kind kind, const uint8_t* block, int j, const int8_t* values,
                       PointStep* out) {
    switch (kind) {
        case Kind::IQ2_XXS:
            return step_iq2_xxs(block, j, values, out);
        case Kind::IQ2_XS:
            return step_iq2_xs(block, j, values, out);
        case Kind::IQ2_S:
            return step_iq2_s(block, j, values, out);
        case Kind::IQ3_XXS:
            return step_iq3_xxs(block, j, values, out);
        case Kind::IQ3_S:
            return step_iq3_s(block, j, values, out);
        case Kind::IQ1_S:
            return step_iq1_s(block, j, values, out);
        default:
            return step_iq1_m(block, j, values, out);
    }
}

// A row of 256-value blocks never has a tail.
struct PointRow {
    const uint8_t* row;
    const int8_t* values;
    int64_t block_bytes;
    Kind kind;

    HB_INLINE PointRow(const WeightView& w, int64_t r)
        : row(w.data + r * w.row_bytes),
          values(codebook_values(w.kind)),
          block_bytes(w.row_bytes / (w.columns / 256)),
          kind(w.kind) {}

    HB_INLINE void step(int64_t s, F* out) const {
        PointStep found;
        point_step(kind, row + s / 8 * block_bytes, static_cast<int>(s % 8), values, &found);
        const auto* codes = reinterpret_cast<const uint8_t*>(found.codes);
        for (int i = 0; i < kStep / W; ++i) {
            out[i] = mul(signed_bytes_to_float(codes, i), set1(found.scale[i * W / 16]));
        }
    }
    HB_INLINE void tail(int64_t, int64_t, float*) const {}
};

}  // namespace HB_ISA
}  // namespace halfbyte
