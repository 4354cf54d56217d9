// 16 lanes: AVX-512 F, BW, VL, DQ and VNNI. Included only by a unit compiled for them.
#pragma once

#include <immintrin.h>

#include "half.hpp"
#include "isa/tile_x86.hpp"

#define HB_X86_BYTES 1
#define HB_AVX512 1

namespace halfbyte {
namespace HB_ISA {

constexpr int W = 16;
using F = __m512;
using I = __m512i;
using Mask = __mmask16;
constexpr bool kSignedBytes = false;  // dot4 takes unsigned codes of all 8 bits

HB_INLINE F zero() { return _mm512_setzero_ps(); }
HB_INLINE F set1(float v) { return _mm512_set1_ps(v); }
HB_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
HB_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
HB_INLINE Mask first(int64_t n) { return static_cast<Mask>((1u << n) - 1u); }
HB_INLINE F load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
HB_INLINE void store_n(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
HB_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
HB_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
HB_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
HB_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
HB_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
HB_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
HB_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
HB_INLINE F abs(F a) { return _mm512_abs_ps(a); }
HB_INLINE F copysign(F magnitude, F sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
HB_INLINE F truncate(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
HB_INLINE F nearest(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HB_INLINE Mask less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
HB_INLINE Mask equal_to(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
HB_INLINE Mask unordered(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
HB_INLINE F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
HB_INLINE F square_root(F a) { return _mm512_sqrt_ps(a); }
HB_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
HB_INLINE Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
HB_INLINE bool any(Mask m) { return m != 0; }
// value * 2^n for integral n, rounded once.
HB_INLINE F scale2(F value, F n) { return _mm512_scalef_ps(value, n); }
HB_INLINE uint32_t equal_bits(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
HB_INLINE float hmax(F a) { return _mm512_reduce_max_ps(a); }
HB_INLINE float hmin(F a) { return _mm512_reduce_min_ps(a); }

// Lane sums of four vectors in the one fixed tree: (0+2)+(1+3) inside each 128 bits, then
// (0+2)+(1+3) over the four parts.
HB_INLINE __m128 sum4(F a, F b, F c, F d) {
    const F ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const F low = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0));
    const F high = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2));
    const F parts = add(low, high);
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(parts), _mm512_extractf32x8_ps(parts, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
HB_INLINE void reduce4(const F* a, float* out) { _mm_storeu_ps(out, sum4(a[0], a[1], a[2], a[3])); }
HB_INLINE float hsum(F a) { return _mm_cvtss_f32(sum4(a, a, a, a)); }

HB_INLINE F load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
HB_INLINE F load_bfloat(const void* p) {
    const __m256i raw = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
HB_INLINE F load_e5m2(const void* p) {
    const __m128i raw = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(raw), 8));
}
HB_INLINE F load_e4m3fn(const void* p) {
    const I raw = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    const I sign = _mm512_slli_epi32(_mm512_and_si512(raw, _mm512_set1_epi32(0x80)), 24);
    const I rest = _mm512_and_si512(raw, _mm512_set1_epi32(0x7F));
    const F scaled = mul(_mm512_castsi512_ps(_mm512_slli_epi32(rest, 20)), set1(0x1p120f));
    const Mask nan = _mm512_cmpeq_epi32_mask(rest, _mm512_set1_epi32(0x7F));
    const I value =
        _mm512_mask_mov_epi32(_mm512_castps_si512(scaled), nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_castsi512_ps(_mm512_or_si512(value, sign));
}
HB_INLINE void store_half(uint16_t* p, F v) {
    const __m256i raw = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i sign = _mm256_and_si256(raw, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
    const __m256i nan = _mm256_or_si256(sign, _mm256_set1_epi16(0x7E00));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_mask_mov_epi16(raw, unordered(v), nan));
}

// 32 unsigned bytes.
using B32 = __m256i;
HB_INLINE F bytes_to_float(B32 b, int part) {
    const __m128i half = part ? _mm256_extracti128_si256(b, 1) : _mm256_castsi256_si128(b);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(half));
}
HB_INLINE F signed_bytes_to_float(const uint8_t* p, int part) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * part));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw));
}
// Bit i of `bits` adds 16 to byte i.
HB_INLINE B32 add_bit4(B32 codes, uint32_t bits) {
    return _mm256_mask_add_epi8(codes, bits, codes, _mm256_set1_epi8(16));
}

HB_INLINE I izero() { return _mm512_setzero_si512(); }
HB_INLINE I iset1(int32_t v) { return _mm512_set1_epi32(v); }
HB_INLINE I iload(const void* p) { return _mm512_loadu_si512(p); }
HB_INLINE I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
HB_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }
HB_INLINE I broadcast4(const int8_t* p) {
    return _mm512_set1_epi32(static_cast<int32_t>(load_u32(p)));
}
// acc[lane] += sum of 4 products of unsigned bytes w and signed bytes x.
template <bool SignedW>
HB_INLINE I dot4(I acc, I w, I x) {
    static_assert(!SignedW, "codes are unsigned here");
    return _mm512_dpbusd_epi32(acc, w, x);
}
// As the C cast: out-of-range gives INT32_MIN.
HB_INLINE I truncate_int(F v) { return _mm512_cvttps_epi32(v); }
HB_INLINE I cast_int8(I v) { return _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24); }
// One more where m holds.
HB_INLINE I increment(I a, Mask m) { return _mm512_mask_add_epi32(a, m, a, _mm512_set1_epi32(1)); }
HB_INLINE I imin(I a, I b) { return _mm512_min_epi32(a, b); }
HB_INLINE I iand(I a, I b) { return _mm512_and_si512(a, b); }
HB_INLINE I ior(I a, I b) { return _mm512_or_si512(a, b); }
template <int N>
HB_INLINE I shift_left(I a) {
    return _mm512_slli_epi32(a, N);
}
template <int N>
HB_INLINE I shift_right(I a) {
    return _mm512_srli_epi32(a, N);
}
HB_INLINE I bits_of(F a) { return _mm512_castps_si512(a); }
HB_INLINE void istore(void* p, I a) { _mm512_storeu_si512(p, a); }
// Low bytes of the lanes.
HB_INLINE void store_low_bytes(uint8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

}  // namespace HB_ISA
}  // namespace halfbyte

#include "isa/bytes_x86.hpp"
