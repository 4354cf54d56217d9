// ggml's own encoders without importance, byte for byte: each lane does exactly the scalar steps,
// and only maxima (which no order changes) are taken across lanes.
#pragma once

#include "types.hpp"
#include "unpack/blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kVectors = kStep / W;

struct Values {
    F lanes[kVectors];

    HB_INLINE explicit Values(const float* x) {
        for (int i = 0; i < kVectors; ++i) lanes[i] = load(x + i * W);
    }
    // Bit i is set where value i equals `wanted`.
    HB_INLINE uint32_t matches(F wanted, bool magnitude) const {
        uint32_t bits = 0;
        for (int i = 0; i < kVectors; ++i) {
            bits |= equal_bits(magnitude ? abs(lanes[i]) : lanes[i], wanted) << (i * W);
        }
        return bits;
    }
    HB_INLINE float largest_magnitude() const {
        F m = zero();
        for (int i = 0; i < kVectors; ++i) m = max(m, abs(lanes[i]));
        return hmax(m);
    }
    HB_INLINE float largest() const {
        F m = lanes[0];
        for (int i = 1; i < kVectors; ++i) m = max(m, lanes[i]);
        return hmax(m);
    }
    HB_INLINE float smallest() const {
        F m = lanes[0];
        for (int i = 1; i < kVectors; ++i) m = min(m, lanes[i]);
        return hmin(m);
    }
};

HB_INLINE int lowest_bit(uint32_t bits) {
#if defined(HB_X86_BYTES)
    return static_cast<int>(_tzcnt_u32(bits));
#else
    int i = 0;
    while (!(bits & 1u)) bits >>= 1, ++i;
    return i;
#endif
}

// Nearest integer, halves to even, for |v| < 2^22.
HB_INLINE int nearest_int(float v) {
    const uint32_t bits = float_to_bits(v + 12582912.0f);
    return static_cast<int>(bits & 0x007FFFFFu) - 0x00400000;
}

HB_INLINE int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// The value at the first index where it occurs: which of +a and -a, or +0 and -0, decides bytes.
HB_INLINE float first_value(const float* x, uint32_t matches, float otherwise) {
    return matches ? x[lowest_bit(matches)] : otherwise;
}

HB_INLINE void store_half_at(uint8_t* p, float v) {
#if defined(HB_X86_BYTES)
    const __m128i rounded = _mm_cvtps_ph(_mm_set_ss(v), _MM_FROUND_TO_NEAREST_INT);
    const auto quick = static_cast<uint16_t>(_mm_cvtsi128_si32(rounded));
    const uint16_t bits = v == v ? quick : float_to_half_bits(v);
#else
    const uint16_t bits = float_to_half_bits(v);
#endif
    std::memcpy(p, &bits, 2);
}

HB_INLINE float reciprocal_or_zero(float v) { return v != 0.0f ? 1.0f / v : 0.0f; }

// Nibbles 0..15 in the low halves, 16..31 in the high halves; bit 4 of each into qh if wanted.
HB_INLINE void pack_nibbles(const uint8_t* codes, uint8_t* qs, uint8_t* qh) {
#if defined(HB_X86_BYTES)
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i low = _mm256_and_si256(all, _mm256_set1_epi8(15));
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(low, 1), 4);
    const __m128i both = _mm_or_si128(_mm256_castsi256_si128(low), high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(qs), both);
    if (!qh) return;
    const int bits = _mm256_movemask_epi8(_mm256_slli_epi16(all, 3));
    std::memcpy(qh, &bits, 4);
#else
    for (int i = 0; i < 16; ++i) {
        qs[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
    }
    if (!qh) return;
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4 & 1) << i;
    std::memcpy(qh, &bits, 4);
#endif
}

// Q4_0, Q5_0: d = (signed value of largest magnitude) / -Half, code = trunc(x / d + Half + 0.5).
template <int Half>
HB_INLINE float symmetric_codes(const float* x, uint8_t* codes) {
    const Values v(x);
    const float magnitude = v.largest_magnitude();
    const bool any = magnitude > 0.0f;
    const float peak = any ? first_value(x, v.matches(set1(magnitude), true), 0.0f) : 0.0f;
    const float d = peak / -static_cast<float>(Half);
    const F inverse = set1(reciprocal_or_zero(d)), shift = set1(static_cast<float>(Half) + 0.5f);
    for (int i = 0; i < kVectors; ++i) {
        const I q = cast_int8(truncate_int(add(mul(v.lanes[i], inverse), shift)));
        store_low_bytes(codes + i * W, imin(q, iset1(2 * Half - 1)));
    }
    return d;
}

// Q4_1, Q5_1: d = (max - min) / Top, code = trunc((x - min) / d + 0.5).
template <int Top, bool Clamp>
HB_INLINE float asymmetric_codes(const float* x, uint8_t* codes, float* minimum) {
    const Values v(x);
    const float low = v.smallest(), high = v.largest();
    *minimum = first_value(x, v.matches(set1(low), false), low);
    const float top = first_value(x, v.matches(set1(high), false), high);
    const float d = (top - *minimum) / static_cast<float>(Top);
    const F inverse = set1(reciprocal_or_zero(d)), base = set1(*minimum), half = set1(0.5f);
    for (int i = 0; i < kVectors; ++i) {
        I q = truncate_int(add(mul(sub(v.lanes[i], base), inverse), half));
        if (Clamp) q = imin(cast_int8(q), iset1(Top));
        store_low_bytes(codes + i * W, q);
    }
    return d;
}

HB_INLINE void encode_block(BlockQ4_0, const float* x, uint8_t* out) {
    uint8_t codes[kStep];
    store_half_at(out, symmetric_codes<8>(x, codes));
    pack_nibbles(codes, out + BlockQ4_0::L::kOffset_qs, nullptr);
}

HB_INLINE void encode_block(BlockQ5_0, const float* x, uint8_t* out) {
    uint8_t codes[kStep];
    store_half_at(out, symmetric_codes<16>(x, codes));
    pack_nibbles(codes, out + BlockQ5_0::L::kOffset_qs, out + BlockQ5_0::L::kOffset_qh);
}

HB_INLINE void encode_block(BlockQ4_1, const float* x, uint8_t* out) {
    uint8_t codes[kStep];
    float minimum;
    store_half_at(out, asymmetric_codes<15, true>(x, codes, &minimum));
    store_half_at(out + BlockQ4_1::L::kOffset_m, minimum);
    pack_nibbles(codes, out + BlockQ4_1::L::kOffset_qs, nullptr);
}

HB_INLINE void encode_block(BlockQ5_1, const float* x, uint8_t* out) {
    uint8_t codes[kStep];
    float minimum;
    store_half_at(out, asymmetric_codes<31, false>(x, codes, &minimum));
    store_half_at(out + BlockQ5_1::L::kOffset_m, minimum);
    pack_nibbles(codes, out + BlockQ5_1::L::kOffset_qs, out + BlockQ5_1::L::kOffset_qh);
}

// Halves round away from zero here, unlike in activation kernels.
HB_INLINE void encode_block(BlockQ8_0, const float* x, uint8_t* out) {
    const Values v(x);
    const float d = v.largest_magnitude() / 127.0f;
    const F inverse = set1(reciprocal_or_zero(d)), half = set1(0.5f);
    store_half_at(out, d);
    for (int i = 0; i < kVectors; ++i) {
        const F scaled = mul(v.lanes[i], inverse), whole = truncate(scaled);
        const F away = add(whole, copysign(set1(1.0f), scaled));
        const F rounded = select(less(abs(sub(scaled, whole)), half), whole, away);
        store_low_bytes(out + BlockQ8_0::L::kOffset_qs + i * W, truncate_int(rounded));
    }
}

template <class Block>
static void encode_blocks(const float* x, int64_t blocks, uint8_t* out) {
    for (int64_t b = 0; b < blocks; ++b)
        encode_block(Block(), x + b * kStep, out + b * Block::kBytes);
}

// The same for blocks of any number of values.
template <class Block>
static void encode_whole_blocks(const float* x, int64_t values, uint8_t* out) {
    constexpr int kValues = Block::L::kValues;
    for (int64_t i = 0; i < values; i += kValues, out += Block::kBytes) {
        encode_block(Block(), x + i, out);
    }
}

static void encode_half(const float* x, int64_t n, uint8_t* out) {
    auto* halves = reinterpret_cast<uint16_t*>(out);
    int64_t i = 0;
    for (; i + W <= n; i += W) store_half(halves + i, load(x + i));
    for (; i < n; ++i) halves[i] = float_to_half_bits(x[i]);
}

static void encode_bfloat(const float* x, int64_t n, uint8_t* out) {
    auto* words = reinterpret_cast<uint16_t*>(out);
    for (int64_t i = 0; i < n; ++i) words[i] = float_to_bfloat_bits(x[i]);
}

}  // namespace HB_ISA
}  // namespace halfbyte
