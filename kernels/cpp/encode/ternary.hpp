// TQ1_0, TQ2_0, Q2_0: -1, 0 and 1 times the largest magnitude; Q1_0: signs times the mean one.
#pragma once

#include <cfloat>

#include "encode/blocks.hpp"
#include "unpack/small_rows.hpp"

namespace halfbyte {
namespace HB_ISA {

template <int Count>
HB_INLINE float largest_of(const float* x) {
    F most = zero();
    for (int i = 0; i < Count; i += W) most = max(most, abs(load(x + i)));
    return hmax(most);
}

// Codes 0, 1, 2 of x / largest, halves away from zero. A subnormal scale has an infinite
// reciprocal; `Lost` is what ggml makes of all its values.
template <int Count, uint8_t Lost>
HB_INLINE void ternary_codes(const float* x, float largest, uint8_t* codes) {
    const float reciprocal = reciprocal_or_zero(largest);
    if (reciprocal > FLT_MAX) {
        std::memset(codes, Lost, Count);
        return;
    }
    const F inverse = set1(reciprocal), below_half = set1(bits_to_float(0x3EFFFFFFu));
    const F minus_half = set1(-0.5f);
    for (int i = 0; i < Count; i += W) {
        const F step = mul(load(x + i), inverse);
        const I some = increment(izero(), less(minus_half, step));
        store_low_bytes(codes + i, increment(some, less(below_half, step)));
    }
}

HB_INLINE void encode_block(BlockTQ2_0, const float* x, uint8_t* out) {
    using L = Layout_TQ2_0;
    alignas(32) uint8_t codes[L::kValues];
    const float largest = largest_of<L::kValues>(x);
    ternary_codes<L::kValues, 1>(x, largest, codes);
    store_half_at(out + L::kOffset_d, largest);
    for (int half = 0; half < 2; ++half) {
        const uint8_t* c = codes + 128 * half;
        for (int m = 0; m < 32; ++m) {
            out[32 * half + m] =
                static_cast<uint8_t>(c[m] | c[m + 32] << 2 | c[m + 64] << 4 | c[m + 96] << 6);
        }
    }
}

// `Length` bytes of five digits of base 3, `Length` values apart; 4 digits leave the last one 0.
template <int Length, int Digits>
HB_INLINE void base3_bytes(const uint8_t* codes, uint8_t* out) {
    for (int m = 0; m < Length; ++m) {
        unsigned number = 0;
        for (int n = 0; n < 5; ++n) number = 3 * number + (n < Digits ? codes[m + n * Length] : 0);
        const auto scaled = static_cast<uint16_t>(number * 256 + 242);
        out[m] = static_cast<uint8_t>(scaled / 243);
    }
}

HB_INLINE void encode_block(BlockTQ1_0, const float* x, uint8_t* out) {
    using L = Layout_TQ1_0;
    alignas(32) uint8_t codes[L::kValues];
    const float largest = largest_of<L::kValues>(x);
    ternary_codes<L::kValues, 1>(x, largest, codes);
    store_half_at(out + L::kOffset_d, largest);
    base3_bytes<32, 5>(codes, out + L::kOffset_qs);
    base3_bytes<16, 5>(codes + 160, out + L::kOffset_qs + 32);
    base3_bytes<4, 4>(codes + 240, out + L::kOffset_qh);
}

HB_INLINE void encode_block(BlockQ2_0, const float* x, uint8_t* out) {
    using L = Layout_Q2_0;
    alignas(32) uint8_t codes[L::kValues];
    const float largest = largest_of<L::kValues>(x);
    ternary_codes<L::kValues, 0>(x, largest, codes);
    store_half_at(out + L::kOffset_d, largest);
    for (int i = 0; i < L::kValues / 4; ++i) {
        uint32_t four;
        std::memcpy(&four, codes + 4 * i, 4);
        // Bytes of 2 bits each move together: 8 k to 2 k.
        four |= four >> 6;
        out[L::kOffset_qs + i] = static_cast<uint8_t>((four & 15u) | (four >> 12 & 0xF0u));
    }
}

// Four blocks at a time, since each sum waits for the one before it.
static void encode_q1_0(const float* x, int64_t blocks, uint8_t* out) {
    using L = Layout_Q1_0;
    constexpr int kValues = L::kValues;
    const F one = set1(1.0f);
    for (int64_t b = 0; b < blocks; b += 4) {
        const int count = static_cast<int>(blocks - b < 4 ? blocks - b : 4);
        const float* p[4];
        float sums[4] = {};
        for (int i = 0; i < 4; ++i) p[i] = x + (b + (i < count ? i : 0)) * kValues;
        for (int j = 0; j < kValues; ++j) {
            for (int i = 0; i < 4; ++i) sums[i] += std::fabs(p[i][j]);
        }
        for (int i = 0; i < count; ++i, out += L::kBytes) {
            store_half_at(out + L::kOffset_d, sums[i] / static_cast<float>(kValues));
            for (int j = 0; j < kValues; j += 32) {
                uint32_t bits = 0;
                for (int k = 0; k < 32; k += W) {
                    const F positive = select(less(load(p[i] + j + k), zero()), zero(), one);
                    bits |= equal_bits(positive, one) << k;
                }
                std::memcpy(out + L::kOffset_qs + j / 8, &bits, 4);
            }
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
