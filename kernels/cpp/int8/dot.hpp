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
HB_INLINE I narrow_dot(I acc, I u, I s) { return _mm512_dpbusd_epi32(acc, u, s); }
HB_INLINE void istore(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
HB_INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
HB_INLINE I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }

#elif defined(HB_X86_BYTES)

constexpr int kShift = 0;
#define HB_SATURATES 1
// Products of bytes are summed in pairs of 16 bits: exact where no pair of weights passes 128.
HB_INLINE I narrow_dot(I acc, I u, I s) {
    const I pairs = _mm256_maddubs_epi16(u, s);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// The same of two words, exact where the weights of a lane's four stay within 128 by sign.
HB_INLINE I double_dot(I acc, const I* u, const I* s) {
    const I pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(u[0], s[0]), _mm256_maddubs_epi16(u[1], s[1]));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Exact for all weights: even and odd bytes go apart.
struct Halves {
    I even, odd;
};
HB_INLINE Halves signed_halves(I v) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
HB_INLINE I wide_dot(I acc, const Halves& u, const Halves& s) {
    const I pairs =
        _mm256_add_epi32(_mm256_madd_epi16(u.even, s.even), _mm256_madd_epi16(u.odd, s.odd));
    return _mm256_add_epi32(acc, pairs);
}
// Even and odd bytes as 16 bits each: 8 bytes for each four of the depth.
HB_INLINE Halves broadcast_halves(const uint8_t* p) {
    return {broadcast_word(p), broadcast_word(p + 4)};
}
static void spread_rows(const uint8_t* bytes, int64_t n, uint8_t* out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8, out += 16) {
        const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i));
        const __m128i words = _mm_cvtepu8_epi16(raw);
        const __m128i low = _mm_shufflelo_epi16(words, _MM_SHUFFLE(3, 1, 2, 0));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                         _mm_shufflehi_epi16(low, _MM_SHUFFLE(3, 1, 2, 0)));
    }
    if (i == n) return;
    uint8_t rest[8] = {}, spread[16];
    std::memcpy(rest, bytes + i, 4);
    spread_rows(rest, 8, spread);
    std::memcpy(out, spread, 8);
}
HB_INLINE void istore(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
HB_INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
HB_INLINE I imul(I a, I b) { return _mm256_mullo_epi32(a, b); }

#elif defined(HB_NEON)

constexpr int kShift = 128;
HB_INLINE I narrow_dot(I acc, I u, I s) {
    const uint8x16_t top = vdupq_n_u8(0x80);
    const int8x16_t lo = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(u.lo), top));
    const int8x16_t hi = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(u.hi), top));
    return {vdotq_s32(acc.lo, lo, vreinterpretq_s8_s32(s.lo)),
            vdotq_s32(acc.hi, hi, vreinterpretq_s8_s32(s.hi))};
}
HB_INLINE void istore(int32_t* p, I v) {
    vst1q_s32(p, v.lo);
    vst1q_s32(p + 4, v.hi);
}
HB_INLINE I iadd(I a, I b) { return {vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)}; }
HB_INLINE I imul(I a, I b) { return {vmulq_s32(a.lo, b.lo), vmulq_s32(a.hi, b.hi)}; }

#else

constexpr int kShift = 0;
HB_INLINE I narrow_dot(I acc, I u, I s) { return dot4<false>(acc, u, s); }
HB_INLINE void istore(int32_t* p, I v) { std::memcpy(p, v.v, sizeof v.v); }
HB_INLINE I iadd(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] += b.v[i];
    return a;
}
HB_INLINE I imul(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] *= b.v[i];
    return a;
}

#endif

// Finished values as 0..255: nearest, moved by the zero point, saturated.
HB_INLINE I rounded(F value, float zero) {
    const F moved = add(nearest(value), set1(zero));
    return truncate_int(min(max(moved, HB_ISA::zero()), set1(255.0f)));
}

HB_INLINE void store_rounded(uint8_t* p, F value, float zero, uint8_t flip) {
    store_low_bytes(p, isub(rounded(value, zero), iset1(flip)));
}

#if defined(HB_SATURATES)
// Four vectors of 0..255 as 32 bytes.
HB_INLINE void store_packed(uint8_t* p, const I* lanes, uint8_t flip) {
    const I words = _mm256_packus_epi16(_mm256_packus_epi32(lanes[0], lanes[1]),
                                        _mm256_packus_epi32(lanes[2], lanes[3]));
    const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const I bytes = _mm256_permutevar8x32_epi32(words, order);
    const I top = _mm256_set1_epi8(static_cast<char>(flip));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_xor_si256(bytes, top));
}
#endif

}  // namespace HB_ISA
}  // namespace halfbyte
