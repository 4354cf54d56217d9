// 8 lanes: AVX2, FMA, F16C and BMI2. Included only by a unit compiled for them.
#pragma once

#include <immintrin.h>

#include "half.hpp"
#include "isa/tile_x86.hpp"

#define HB_X86_BYTES 1

namespace halfbyte {
namespace HB_ISA {

constexpr int W = 8;
using F = __m256;
using I = __m256i;
using Mask = __m256;
constexpr bool kSignedBytes = true;  // maddubs would overflow on unsigned codes of all 8 bits

HB_INLINE F zero() { return _mm256_setzero_ps(); }
HB_INLINE F set1(float v) { return _mm256_set1_ps(v); }
HB_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
HB_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
HB_INLINE I first(int64_t n) {
    const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
}
HB_INLINE F load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
HB_INLINE void store_n(float* p, F v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
HB_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
HB_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
HB_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
HB_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
HB_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
HB_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
HB_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
HB_INLINE F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
HB_INLINE F copysign(F magnitude, F sign) {
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
HB_INLINE F truncate(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
HB_INLINE F nearest(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HB_INLINE Mask less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
HB_INLINE Mask equal_to(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
HB_INLINE Mask unordered(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
HB_INLINE F select(Mask m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
HB_INLINE F square_root(F a) { return _mm256_sqrt_ps(a); }
HB_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
HB_INLINE Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
HB_INLINE bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
// value * 2^n for integral n in [-252, 252]; two steps, so that subnormal results round once.
HB_INLINE F scale2(F value, F n) {
    const I whole = _mm256_cvtps_epi32(n);
    const I half = _mm256_srai_epi32(whole, 1);
    const I rest = _mm256_sub_epi32(whole, half);
    const I bias = _mm256_set1_epi32(127);
    const F a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const F b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return mul(mul(value, a), b);
}
HB_INLINE uint32_t equal_bits(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
}
HB_INLINE float hmax(F a) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}
HB_INLINE float hmin(F a) {
    __m128 v = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_min_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_min_ss(v, _mm_shuffle_ps(v, v, 1)));
}

// Lane sums of four vectors in the one fixed tree: (0+2)+(1+3) inside 128 bits, then low + high.
HB_INLINE __m128 sum4(F a, F b, F c, F d) {
    const F ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const F cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const F low = _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0));
    const F high = _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2));
    const F parts = add(low, high);
    return _mm_add_ps(_mm256_castps256_ps128(parts), _mm256_extractf128_ps(parts, 1));
}
HB_INLINE void reduce4(const F* a, float* out) { _mm_storeu_ps(out, sum4(a[0], a[1], a[2], a[3])); }
HB_INLINE float hsum(F a) { return _mm_cvtss_f32(sum4(a, a, a, a)); }

// 16 values to those at even and at odd places.
#define HB_SPLIT_PAIRS 1
HB_INLINE void split_pairs(const float* x, float* even, float* odd) {
    const F a = load(x), b = load(x + 8);
    const __m256d low = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    const __m256d high = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    store(even, _mm256_castpd_ps(_mm256_permute4x64_pd(low, 0xd8)));
    store(odd, _mm256_castpd_ps(_mm256_permute4x64_pd(high, 0xd8)));
}

#define HB_TRANSPOSE 1
HB_INLINE void transpose_lanes(F* r) { transpose_eight(r); }

HB_INLINE F load_half(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
HB_INLINE F load_bfloat(const void* p) {
    const __m128i raw = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
HB_INLINE F load_e5m2(const void* p) {
    const __m128i raw = _mm_loadl_epi64(static_cast<const __m128i*>(p));
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(raw), 8));
}
HB_INLINE F load_e4m3fn(const void* p) {
    const I raw = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    const I sign = _mm256_slli_epi32(_mm256_and_si256(raw, _mm256_set1_epi32(0x80)), 24);
    const I rest = _mm256_and_si256(raw, _mm256_set1_epi32(0x7F));
    const F scaled = mul(_mm256_castsi256_ps(_mm256_slli_epi32(rest, 20)), set1(0x1p120f));
    const I nan = _mm256_cmpeq_epi32(rest, _mm256_set1_epi32(0x7F));
    const I value =
        _mm256_blendv_epi8(_mm256_castps_si256(scaled), _mm256_set1_epi32(0x7FC00000), nan);
    return _mm256_castsi256_ps(_mm256_or_si256(value, sign));
}
HB_INLINE void store_half(uint16_t* p, F v) {
    const __m128i raw = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const I wide = _mm256_castps_si256(unordered(v));
    const __m128i is_nan =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const __m128i sign = _mm_and_si128(raw, _mm_set1_epi16(static_cast<int16_t>(0x8000)));
    const __m128i nan = _mm_or_si128(sign, _mm_set1_epi16(0x7E00));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_blendv_epi8(raw, nan, is_nan));
}

// 32 unsigned bytes.
using B32 = __m256i;
HB_INLINE F bytes_to_float(B32 b, int part) {
    const __m128i half = part & 2 ? _mm256_extracti128_si256(b, 1) : _mm256_castsi256_si128(b);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(part & 1 ? _mm_srli_si128(half, 8) : half));
}
HB_INLINE F signed_bytes_to_float(const uint8_t* p, int part) {
    const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * part));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
}
// Bit i of `bits` adds 16 to byte i.
HB_INLINE B32 add_bit4(B32 codes, uint32_t bits) {
    const B32 spread =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const B32 select_bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
    const B32 words = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
    const B32 set = _mm256_cmpeq_epi8(_mm256_and_si256(words, select_bit), select_bit);
    return _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)));
}

HB_INLINE I izero() { return _mm256_setzero_si256(); }
HB_INLINE I iset1(int32_t v) { return _mm256_set1_epi32(v); }
HB_INLINE I iload(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
HB_INLINE I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
HB_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }
HB_INLINE I broadcast4(const int8_t* p) {
    return _mm256_set1_epi32(static_cast<int32_t>(load_u32(p)));
}
// acc[lane] += sum of 4 products of bytes w and signed bytes x; unsigned w must be below 128.
template <bool SignedW>
HB_INLINE I dot4(I acc, I w, I x) {
    const I pairs = SignedW ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                            : _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// As the C cast: out-of-range gives INT32_MIN.
HB_INLINE I truncate_int(F v) { return _mm256_cvttps_epi32(v); }
HB_INLINE I cast_int8(I v) { return _mm256_srai_epi32(_mm256_slli_epi32(v, 24), 24); }
// One more where m holds.
HB_INLINE I increment(I a, Mask m) { return _mm256_sub_epi32(a, _mm256_castps_si256(m)); }
HB_INLINE I imin(I a, I b) { return _mm256_min_epi32(a, b); }
HB_INLINE I iand(I a, I b) { return _mm256_and_si256(a, b); }
HB_INLINE I ior(I a, I b) { return _mm256_or_si256(a, b); }
template <int N>
HB_INLINE I shift_left(I a) {
    return _mm256_slli_epi32(a, N);
}
template <int N>
HB_INLINE I shift_right(I a) {
    return _mm256_srli_epi32(a, N);
}
HB_INLINE I bits_of(F a) { return _mm256_castps_si256(a); }
HB_INLINE void istore(void* p, I a) { _mm256_storeu_si256(static_cast<I*>(p), a); }
// Low bytes of the lanes.
HB_INLINE void store_low_bytes(uint8_t* p, I v) {
    const I pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0,
                                    4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const I bytes = _mm256_shuffle_epi8(v, pick);
    const __m128i both =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
}

}  // namespace HB_ISA
}  // namespace halfbyte

#include "isa/bytes_x86.hpp"
