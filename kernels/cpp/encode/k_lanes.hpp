// W blocks of 256 values in lanes, and the fields that end up in their bytes.
#pragma once

#include "encode/search_minimum.hpp"
#include "encode/search_positive.hpp"
#include "encode/search_symmetric.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kSuperBlock = 256;

struct KLanes {
    alignas(64) float x[kSuperBlock * W];
    alignas(64) float w[kSuperBlock * W];  // importance, then weights
    alignas(64) uint32_t words[64 * W];    // codes of 4 values each
    uint8_t codes[W][kSuperBlock];
    uint8_t scales[16 * W], minimums[16 * W];  // stored integers of sub-block j at [j * W]
    uint16_t d[W], dmin[W];
};

// Stored float16 of the lanes, and back.
HB_INLINE F store_scale(uint16_t* to, F v) {
    store_half(to, v);
    return load_half(to);
}

template <class Type>
HB_INLINE const float* sub_block(const float* lanes, int j) {
    return lanes + j * Type::kGroup * W;
}

// Codes on the stored grid: code(j, x) of a value where the step of its sub-block j is not 0, else
// left(j, i) for value i. step, lift: [sub-blocks].
template <class Type, class Left>
HB_INLINE void requantize(KLanes& lanes, const F* step, const F* lift, const Left& left) {
    const F low = set1(-static_cast<float>(Type::kZero));
    const F high = set1(static_cast<float>((1 << Type::kBits) - 1 - Type::kZero));
    const F shift = set1(static_cast<float>(Type::kZero));
    for (int j = 0; j < kSuperBlock / Type::kGroup; ++j) {
        const float* x = sub_block<Type>(lanes.x, j);
        const Mask unused = equal_to(step[j], zero());
        const bool some = any(unused);
        for (int i = 0; i < Type::kGroup; i += 4) {
            F codes[4];
            for (int k = 0; k < 4; ++k) {
                F v = load(x + (i + k) * W);
                if (Type::kHasMinimum) v = add(v, lift[j]);
                codes[k] = add(clamp(round_any_float(div(v, step[j])), low, high), shift);
                if (some) codes[k] = select(unused, left(j, i + k), codes[k]);
            }
            istore(lanes.words + (j * Type::kGroup + i) / 4 * W, pack_codes(codes));
        }
    }
    store_words(lanes.words, kSuperBlock / 4, lanes.codes[0], kSuperBlock);
}

// d and integers with the largest of n values on `top`. Of a negative value or an infinite inverse
// the low byte counts, cut to `top` if Limited.
template <int N, bool Limited>
HB_INLINE F largest_first(const F* values, int top, I* integers) {
    F most = zero();
    for (int j = 0; j < N; ++j) most = select(less(most, values[j]), values[j], most);
    const F limit = set1(static_cast<float>(top));
    const Mask some = less(zero(), most);
    const F inverse = select(some, div(limit, most), zero());
    for (int j = 0; j < N; ++j) {
        integers[j] = iand(round_any(mul(inverse, values[j])), iset1(255));
        if (Limited) integers[j] = imin(integers[j], iset1(top));
    }
    return select(some, div(most, limit), zero());
}

// The signed value of largest magnitude of n.
template <int N>
HB_INLINE Peak peak_of(const F* values) {
    Peak peak;
    for (int j = 0; j < N; ++j) peak.see(values[j]);
    return peak;
}

HB_INLINE uint64_t load_word(const uint8_t* p) {
    uint64_t v;
    std::memcpy(&v, p, 8);
    return v;
}
HB_INLINE void store_word(uint8_t* p, uint64_t v) { std::memcpy(p, &v, 8); }

// The functions below work on 8 bytes at once: no shifted code leaves its byte.
// Byte 32 h + l: two bits of codes 128 h + l, + 32, + 64, + 96, taken from bit `From`.
template <int From>
HB_INLINE void put_two_bits(const uint8_t* codes, uint8_t* to) {
    constexpr uint64_t kLow = 0x0303030303030303ull;
    for (int half = 0; half < 2; ++half, codes += 128, to += 32) {
        for (int l = 0; l < 32; l += 8) {
            uint64_t v = load_word(codes + l) >> From & kLow;
            v |= (load_word(codes + l + 32) >> From & kLow) << 2;
            v |= (load_word(codes + l + 64) >> From & kLow) << 4;
            v |= (load_word(codes + l + 96) >> From & kLow) << 6;
            store_word(to + l, v);
        }
    }
}

// Bit k of byte l: bit `From` of code 32 k + l.
template <int From>
HB_INLINE void put_single_bits(const uint8_t* codes, uint8_t* to) {
    for (int l = 0; l < 32; l += 8) {
        uint64_t v = 0;
        for (int k = 0; k < 8; ++k) {
            v |= (load_word(codes + 32 * k + l) >> From & 0x0101010101010101ull) << k;
        }
        store_word(to + l, v);
    }
}

// Bytes of a pair of runs: low nibbles of `codes` below those `Apart` further.
template <int Apart>
HB_INLINE void put_nibbles(const uint8_t* codes, uint8_t* to) {
    constexpr uint64_t kLow = 0x0F0F0F0F0F0F0F0Full;
    for (int g = 0; g < kSuperBlock / (2 * Apart); ++g, codes += 2 * Apart, to += Apart) {
        for (int l = 0; l < Apart; l += 8) {
            const uint64_t high = load_word(codes + l + Apart) & kLow;
            store_word(to + l, (load_word(codes + l) & kLow) | high << 4);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
