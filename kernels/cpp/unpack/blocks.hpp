// Block encodings: where scale, minimum and the 32 codes lie. The only place that unpacks a block.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

// Memory beyond the weight may be named too: a prefetch never faults.
HB_INLINE void prefetch(const uint8_t* p) {
#if defined(HB_X86_BYTES)
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
#else
    static_cast<void>(p);
#endif
}

#if defined(HB_X86_BYTES)
HB_INLINE float half_at(const uint8_t* p) { return _cvtsh_ss(load_u16(p)); }

// Low nibbles of 16 bytes, then their high nibbles.
HB_INLINE B32 split_nibbles(const uint8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i shifts = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    const __m256i moved = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(raw), shifts);
    return _mm256_and_si256(moved, _mm256_set1_epi8(15));
}
HB_INLINE B32 load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
HB_INLINE B32 flip_top_bit(B32 b) {
    return _mm256_xor_si256(b, _mm256_set1_epi8(static_cast<char>(0x80)));
}
// Nibble 2j is the low half of byte j, 2j + 1 its high half.
HB_INLINE B32 pair_nibbles(const uint8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i low = _mm_and_si128(raw, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(raw, 4), _mm_set1_epi8(15));
    return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
}
#if defined(HB_AVX512)
// The same for two blocks at once: p in the low half, q in the high half.
HB_INLINE I split_nibbles2(const uint8_t* p, const uint8_t* q) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    const I both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(low), 0xFF00, high);
    const I shifts =
        _mm512_setr_epi64(0, 0, 0x400000004, 0x400000004, 0, 0, 0x400000004, 0x400000004);
    return _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi8(15));
}
HB_INLINE I load_bytes2(const uint8_t* p, const uint8_t* q) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
HB_INLINE I flip_top_bit2(I b) {
    return _mm512_xor_si512(b, _mm512_set1_epi8(static_cast<char>(0x80)));
}
HB_INLINE I add_bit4_2(I codes, uint32_t p, uint32_t q) {
    const __mmask64 set = static_cast<__mmask64>(p) | static_cast<__mmask64>(q) << 32;
    return _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16));
}
#endif
HB_INLINE void store_bytes(uint8_t* p, B32 b) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), b);
}
#else
HB_INLINE float half_at(const uint8_t* p) { return half_bits_to_float(load_u16(p)); }

HB_INLINE B32 split_nibbles(const uint8_t* p) {
    B32 r;
    for (int i = 0; i < 16; ++i) {
        r.v[i] = p[i] & 15;
        r.v[i + 16] = p[i] >> 4;
    }
    return r;
}
HB_INLINE B32 load_bytes(const uint8_t* p) {
    B32 r;
    std::memcpy(r.v, p, 32);
    return r;
}
HB_INLINE B32 flip_top_bit(B32 b) {
    for (int i = 0; i < 32; ++i) b.v[i] ^= 0x80;
    return b;
}
HB_INLINE B32 pair_nibbles(const uint8_t* p) {
    B32 r;
    for (int i = 0; i < 16; ++i) {
        r.v[2 * i] = p[i] & 15;
        r.v[2 * i + 1] = p[i] >> 4;
    }
    return r;
}
HB_INLINE void store_bytes(uint8_t* p, const B32& b) { std::memcpy(p, b.v, 32); }
#endif

// Each block type: `codes` gives 32 unsigned codes. Without a minimum the value is
// (code - kZero) * scale, with one it is code * scale + minimum.
struct BlockQ4_0 {
    using L = Layout_Q4_0;
    static constexpr int kBytes = L::kBytes, kZero = 8, kBits = 4;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE B32 codes(const uint8_t* p) { return split_nibbles(p + L::kOffset_qs); }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs);
    }
#endif
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

struct BlockQ4_1 {
    using L = Layout_Q4_1;
    static constexpr int kBytes = L::kBytes, kZero = 0, kBits = 4;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE B32 codes(const uint8_t* p) { return split_nibbles(p + L::kOffset_qs); }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs);
    }
#endif
    static HB_INLINE float minimum(const uint8_t* p) { return half_at(p + L::kOffset_m); }
    static HB_INLINE uint16_t minimum_bits(const uint8_t* p) { return load_u16(p + L::kOffset_m); }
};

struct BlockQ5_0 {
    using L = Layout_Q5_0;
    static constexpr int kBytes = L::kBytes, kZero = 16, kBits = 5;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return add_bit4(split_nibbles(p + L::kOffset_qs), load_u32(p + L::kOffset_qh));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return add_bit4_2(split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs),
                          load_u32(p + L::kOffset_qh), load_u32(q + L::kOffset_qh));
    }
#endif
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

struct BlockQ5_1 {
    using L = Layout_Q5_1;
    static constexpr int kBytes = L::kBytes, kZero = 0, kBits = 5;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return add_bit4(split_nibbles(p + L::kOffset_qs), load_u32(p + L::kOffset_qh));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return add_bit4_2(split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs),
                          load_u32(p + L::kOffset_qh), load_u32(q + L::kOffset_qh));
    }
#endif
    static HB_INLINE float minimum(const uint8_t* p) { return half_at(p + L::kOffset_m); }
    static HB_INLINE uint16_t minimum_bits(const uint8_t* p) { return load_u16(p + L::kOffset_m); }
};

struct BlockQ8_0 {
    using L = Layout_Q8_0;
    static constexpr int kBytes = L::kBytes, kZero = 128, kBits = 8;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return flip_top_bit(load_bytes(p + L::kOffset_qs));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return flip_top_bit2(load_bytes2(p + L::kOffset_qs, q + L::kOffset_qs));
    }
#endif
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

}  // namespace HB_ISA
}  // namespace halfbyte
