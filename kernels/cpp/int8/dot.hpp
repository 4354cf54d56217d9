// Exact dot products of four unsigned and four signed bytes per lane. kShift is what the kernels
// take off every unsigned byte to use signed instructions; sums are corrected for it.
#pragma once

#include "integers.hpp"

namespace halfbyte {
namespace HB_ISA {

HB_INLINE I broadcast_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return iset1(word);
}

#if defined(HB_AVX512)

constexpr int kShift = 0;
struct Unsigned {
    I v;
};
struct Signed {
    I v;
};
HB_INLINE Unsigned as_unsigned(I v) { return {v}; }
HB_INLINE Signed as_signed(I v) { return {v}; }
HB_INLINE I byte_dot(I acc, Unsigned u, Signed s) { return _mm512_dpbusd_epi32(acc, u.v, s.v); }
HB_INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
HB_INLINE I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }

#elif defined(HB_X86_BYTES)

// Products of bytes summed in pairs saturate in 16 bits: even and odd bytes go apart.
constexpr int kShift = 0;
struct Unsigned {
    I even, odd;
};
struct Signed {
    I even, odd;
};
HB_INLINE Unsigned as_unsigned(I v) {
    return {_mm256_and_si256(v, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16(v, 8)};
}
HB_INLINE Signed as_signed(I v) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
HB_INLINE I byte_dot(I acc, const Unsigned& u, const Signed& s) {
    const I pairs =
        _mm256_add_epi32(_mm256_madd_epi16(u.even, s.even), _mm256_madd_epi16(u.odd, s.odd));
    return _mm256_add_epi32(acc, pairs);
}
HB_INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
HB_INLINE I imul(I a, I b) { return _mm256_mullo_epi32(a, b); }

#elif defined(HB_NEON)

constexpr int kShift = 128;
struct Unsigned {
    int8x16_t lo, hi;
};
struct Signed {
    int8x16_t lo, hi;
};
HB_INLINE Unsigned as_unsigned(I v) {
    const uint8x16_t top = vdupq_n_u8(0x80);
    return {vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(v.lo), top)),
            vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(v.hi), top))};
}
HB_INLINE Signed as_signed(I v) { return {vreinterpretq_s8_s32(v.lo), vreinterpretq_s8_s32(v.hi)}; }
HB_INLINE I byte_dot(I acc, const Unsigned& u, const Signed& s) {
    return {vdotq_s32(acc.lo, u.lo, s.lo), vdotq_s32(acc.hi, u.hi, s.hi)};
}
HB_INLINE I iadd(I a, I b) { return {vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)}; }
HB_INLINE I imul(I a, I b) { return {vmulq_s32(a.lo, b.lo), vmulq_s32(a.hi, b.hi)}; }

#else

constexpr int kShift = 0;
struct Unsigned {
    I v;
};
struct Signed {
    I v;
};
HB_INLINE Unsigned as_unsigned(I v) { return {v}; }
HB_INLINE Signed as_signed(I v) { return {v}; }
HB_INLINE I byte_dot(I acc, const Unsigned& u, const Signed& s) {
    return dot4<false>(acc, u.v, s.v);
}
HB_INLINE I iadd(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] += b.v[i];
    return a;
}
HB_INLINE I imul(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] *= b.v[i];
    return a;
}

#endif

// Lanes of finished values to the low bytes of p, nearest and saturated to 0..255.
HB_INLINE void store_rounded(uint8_t* p, F value, float zero, uint8_t flip) {
    const F moved = add(nearest(value), set1(zero));
    const F inside = min(max(moved, HB_ISA::zero()), set1(255.0f));
    store_low_bytes(p, truncate_int(inside));
    if (flip) {
        for (int i = 0; i < W; ++i) p[i] = static_cast<uint8_t>(p[i] ^ flip);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
