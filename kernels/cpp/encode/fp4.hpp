// MXFP4 and NVFP4: a small scale and the nearest E2M1 number of each value.
#pragma once

#include "encode/blocks.hpp"
#include "unpack/small_rows.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr float kE2M1Middles[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};

// Borders between doubled E2M1 numbers on a scale. Both neighbours differ from a value near the
// border by exact float32 numbers: comparing with it finds ggml's least |code * scale - x|.
struct E2M1Borders {
    F border[7];

    HB_INLINE E2M1Borders() {}
    HB_INLINE explicit E2M1Borders(float scale) {
        const F nothing = set1(bits_to_float(0x7F800000u));
        for (int i = 0; i < 7; ++i) {
            border[i] = scale == 0.0f ? nothing : set1(kE2M1Middles[i] * scale);
        }
    }
    HB_INLINE I codes(F x) const {
        const F size = abs(x);
        const F sign = select(less(x, sub(zero(), border[0])), set1(8.0f), zero());
        I code = truncate_int(sign);
        for (int i = 0; i < 7; ++i) code = increment(code, less(border[i], size));
        return code;
    }
};

// floor(log2(largest)) + 125, at least 0, where ggml's log2 rounds to float32: the last few numbers
// below a power of two 2^k count as it, the more of them the larger |k|.
HB_INLINE uint8_t e8m0_exponent(float largest) {
    constexpr int kRoundedUp[7] = {0, 1, 2, 5, 11, 22, 44};
    const uint32_t bits = float_to_bits(largest);
    const int exponent = static_cast<int>(bits >> 23) - 127, above = exponent + 1;
    int size = 0;
    for (int rest = above < 0 ? -above : above; rest > 1; rest >>= 1) ++size;
    const bool power = size > 0 && above == 1 << size;
    const int below = (1 << 23) - static_cast<int>(bits & 0x7FFFFFu);
    const int e = exponent + (below <= kRoundedUp[size - power] ? 1 : 0) + 125;
    return static_cast<uint8_t>(e < 0 ? 0 : e);
}

HB_INLINE void encode_block(BlockMXFP4, const float* x, uint8_t* out) {
    const Values v(x);
    const uint8_t e = e8m0_exponent(v.largest_magnitude());
    out[Layout_MXFP4::kOffset_e] = e;
    const E2M1Borders borders(power_of_two_scale(e));
    alignas(32) uint8_t codes[kStep];
    for (int i = 0; i < kVectors; ++i) store_low_bytes(codes + i * W, borders.codes(v.lanes[i]));
    pack_nibbles(codes, out + Layout_MXFP4::kOffset_qs, nullptr);
}

// The nearest byte, halves up. ggml stores 448 for everything from 256 on, and 0 for scales too
// small although some values are nearer to the smallest code than to 0. Else 0x7F marks a scale
// that is out of range.
template <bool Compat>
HB_INLINE uint8_t ue4m3_byte(float largest) {
    const float wanted = largest / 6.0f;
    if (!(wanted > 0.0f)) return 0;
    const uint32_t bits = float_to_bits(wanted);
    if (bits >> 23 <= 120) {
        const int steps = truncate_to_int(wanted * 512.0f + 0.5f);
        if (steps == 0) return !Compat && largest > 0x1p-11f ? 1 : 0;
        return static_cast<uint8_t>(steps > 7 ? 7 : steps);
    }
    if (!Compat && wanted > 464.0f) return 0x7F;
    const uint32_t rounded = ((bits + (1u << 19)) >> 20) - (120u << 3);
    return static_cast<uint8_t>(rounded > 0x7E || (Compat && rounded >= 15u << 3) ? 0x7E : rounded);
}

// ggml's own search, for values so far beyond the scale that differences round.
HB_INLINE void least_distance_codes(const float* x, int count, float scale, uint8_t* codes) {
    for (int i = 0; i < count; ++i) {
        float least = std::fabs(x[i]);
        codes[i] = 0;
        for (int k = 1; k < 16; ++k) {
            const int value = E2M1Values::kTable[k] - E2M1Values::kZero;
            const float distance = std::fabs(static_cast<float>(value) * scale - x[i]);
            if (distance < least) least = distance, codes[i] = static_cast<uint8_t>(k);
        }
    }
}

// Two runs of 16: low nibbles hold a run's first 8, high nibbles its last 8.
HB_INLINE void pack_half_runs(const uint8_t* codes, uint8_t* qs) {
    for (int run = 0; run < 2; ++run) {
        uint64_t low, high;
        std::memcpy(&low, codes + 16 * run, 8);
        std::memcpy(&high, codes + 16 * run + 8, 8);
        low |= high << 4;
        std::memcpy(qs + 8 * run, &low, 8);
    }
}

template <bool Compat>
static void encode_nvfp4(const float* x, int64_t blocks, uint8_t* out) {
    using L = Layout_NVFP4;
    constexpr int kPerRun = kVectors / 2;
    for (int64_t half = 0; half < 2 * blocks; ++half, x += kStep) {
        uint8_t* block = out + half / 2 * L::kBytes;
        const int first = static_cast<int>(half % 2) * 2;
        const Values v(x);
        alignas(32) uint8_t codes[kStep];
        for (int run = 0; run < 2; ++run) {
            F most = zero();
            for (int i = 0; i < kPerRun; ++i) most = max(most, abs(v.lanes[run * kPerRun + i]));
            const float largest = hmax(most);
            const uint8_t byte = ue4m3_byte<Compat>(largest);
            const float scale = ue4m3_half(byte);
            block[L::kOffset_d + first + run] = byte;
            const E2M1Borders borders(scale);
            for (int i = run * kPerRun; i < (run + 1) * kPerRun; ++i) {
                store_low_bytes(codes + i * W, borders.codes(v.lanes[i]));
            }
            if (Compat && largest > 16.0f * scale) {
                least_distance_codes(x + 16 * run, 16, scale, codes + 16 * run);
            }
        }
        pack_half_runs(codes, block + L::kOffset_qs + 8 * first);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
