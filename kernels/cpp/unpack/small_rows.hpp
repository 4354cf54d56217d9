// Rows of ggml's blocks without minimums that are no Q4_0 or K type: IQ4, ternary, FP4, 1 and 2
// bits. 32 values per step: value = (code - kZero) * scale, with one scale for each 16.
#pragma once

#include "unpack/affine.hpp"
#include "unpack/k_rows.hpp"

namespace halfbyte {
namespace HB_ISA {

// Codebook values as unsigned bytes with kZero added; twice, for lookups within 128 bits.
struct Iq4Values {
    static constexpr int kZero = 128;
    alignas(32) static constexpr uint8_t kTable[32] = {
        1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
        1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
};

struct E2M1Values {
    static constexpr int kZero = 12;
    alignas(32) static constexpr uint8_t kTable[32] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10,
                                                       9,  8,  6,  4,  0,  12, 13, 14, 15, 16, 18,
                                                       20, 24, 12, 11, 10, 9,  8,  6,  4,  0};
};

HB_INLINE float power_of_two_scale(uint8_t e) {
    return bits_to_float(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

// Half of an unsigned E4M3 number; 0x7F means 0, the top bit nothing.
HB_INLINE float ue4m3_half(uint8_t byte) {
    if (byte == 0x7F) return 0.0f;
    const uint32_t rest = byte & 0x7Fu;
    if (rest < 8) return static_cast<float>(rest) * 0x1p-10f;
    return bits_to_float((rest << 20) + (119u << 23));
}

template <class Layout, class Values>
struct BlockOf32 {
    using L = Layout;
    static constexpr int kBytes = L::kBytes, kSteps = 1, kZero = Values::kZero;
    static HB_INLINE B32 codes(const uint8_t* p, int) {
        return look_up(split_nibbles(p + L::kOffset_qs), Values::kTable);
    }
};

struct BlockIQ4_NL : BlockOf32<Layout_IQ4_NL, Iq4Values> {
    static HB_INLINE float scale(const uint8_t* p, int, int) { return half_at(p + L::kOffset_d); }
};

struct BlockMXFP4 : BlockOf32<Layout_MXFP4, E2M1Values> {
    static HB_INLINE float scale(const uint8_t* p, int, int) {
        return power_of_two_scale(p[L::kOffset_e]);
    }
};

struct BlockIQ4_XS {
    using L = Layout_IQ4_XS;
    static constexpr int kBytes = L::kBytes, kSteps = 8, kZero = Iq4Values::kZero;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        return look_up(split_nibbles(p + L::kOffset_qs + 16 * j), Iq4Values::kTable);
    }
    static HB_INLINE float scale(const uint8_t* p, int j, int) {
        const int low = (p[L::kOffset_scales_l + j / 2] >> (4 * (j % 2))) & 15;
        const int high = (load_u16(p + L::kOffset_scales_h) >> (2 * j)) & 3;
        return half_at(p + L::kOffset_d) * static_cast<float>((low | (high << 4)) - 32);
    }
};

struct BlockNVFP4 {
    using L = Layout_NVFP4;
    static constexpr int kBytes = L::kBytes, kSteps = 2, kZero = E2M1Values::kZero;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        const B32 nibbles = split_nibbles(p + L::kOffset_qs + 16 * j);
        return look_up(swap_middle_quarters(nibbles), E2M1Values::kTable);
    }
    static HB_INLINE float scale(const uint8_t* p, int j, int half) {
        return ue4m3_half(p[L::kOffset_d + 2 * j + half]);
    }
};

struct BlockTQ2_0 {
    using L = Layout_TQ2_0;
    static constexpr int kBytes = L::kBytes, kSteps = 8, kZero = 1;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        return field_at(p + L::kOffset_qs + 32 * (j / 4), 2 * (j % 4), 3);
    }
    static HB_INLINE float scale(const uint8_t* p, int, int) { return half_at(p + L::kOffset_d); }
};

// Digit `place` of base 3, counted from the highest, of `count` bytes.
HB_INLINE void base3_digits(const uint8_t* p, int count, int place, uint8_t* out) {
    constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
    const uint8_t power = kPowers[place];
    for (int i = 0; i < count; ++i) {
        const auto fraction = static_cast<uint8_t>(p[i] * power);
        out[i] = static_cast<uint8_t>((fraction * 3) >> 8);
    }
}

struct BlockTQ1_0 {
    using L = Layout_TQ1_0;
    static constexpr int kBytes = L::kBytes, kSteps = 8, kZero = 1;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        alignas(32) uint8_t out[kStep];
        if (j < 5) {
            base3_digits(p, 32, j, out);
            return load_bytes(out);
        }
        const int place = 2 * (j - 5);
        base3_digits(p + 32, 16, place, out);
        if (j < 7) {
            base3_digits(p + 32, 16, place + 1, out + 16);
        } else {
            for (int i = 0; i < 4; ++i) base3_digits(p + L::kOffset_qh, 4, i, out + 16 + 4 * i);
        }
        return load_bytes(out);
    }
    static HB_INLINE float scale(const uint8_t* p, int, int) { return half_at(p + L::kOffset_d); }
};

// Codes 0 and 16 stand for -d and d.
struct BlockQ1_0 {
    using L = Layout_Q1_0;
    static constexpr int kBytes = L::kBytes, kSteps = 4, kZero = 8;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        alignas(32) const uint8_t zeros[kStep] = {};
        return add_bit4(load_bytes(zeros), load_u32(p + L::kOffset_qs + 4 * j));
    }
    static HB_INLINE float scale(const uint8_t* p, int, int) {
        return half_at(p + L::kOffset_d) * 0.125f;
    }
};

struct BlockQ2_0 {
    using L = Layout_Q2_0;
    static constexpr int kBytes = L::kBytes, kSteps = 2, kZero = 1;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        return affine_codes(p + L::kOffset_qs + 8 * j, 2);
    }
    static HB_INLINE float scale(const uint8_t* p, int, int) { return half_at(p + L::kOffset_d); }
};

// Rows of whole blocks never have a tail.
template <class Block>
struct SmallRow {
    const uint8_t* row;

    HB_INLINE SmallRow(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}

    HB_INLINE void step(int64_t s, F* out) const {
        const uint8_t* p = row + s / Block::kSteps * Block::kBytes;
        const int j = static_cast<int>(s % Block::kSteps);
        const B32 codes = Block::codes(p, j);
        const F zero = set1(static_cast<float>(Block::kZero));
        const float scales[2] = {Block::scale(p, j, 0), Block::scale(p, j, 1)};
        for (int i = 0; i < kStep / W; ++i) {
            out[i] = mul(sub(bytes_to_float(codes, i), zero), set1(scales[i * W / 16]));
        }
    }
    HB_INLINE void tail(int64_t, int64_t, float*) const {}
};

}  // namespace HB_ISA
}  // namespace halfbyte
