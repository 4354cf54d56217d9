// Exactly 8 lanes on every instruction set: what the searches over grids of points need.
#pragma once

#include <cfloat>
#include <cmath>

#include "encode/blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

#if defined(HB_X86_BYTES)

struct F8 {
    __m256 v;
};
struct I8 {
    __m256i v;
};
struct M8 {
    __m256 v;
};

HB_INLINE F8 all8(float a) { return {_mm256_set1_ps(a)}; }
HB_INLINE F8 load8(const float* p) { return {_mm256_loadu_ps(p)}; }
HB_INLINE void store8(float* p, F8 a) { _mm256_storeu_ps(p, a.v); }
HB_INLINE F8 operator+(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
HB_INLINE F8 operator-(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
HB_INLINE F8 operator*(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
HB_INLINE F8 operator/(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
HB_INLINE F8 root8(F8 a) { return {_mm256_sqrt_ps(a.v)}; }
HB_INLINE F8 larger(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
HB_INLINE F8 smaller(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
HB_INLINE F8 magnitude(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
HB_INLINE float largest8(F8 a) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}
// The least lane, in every lane.
HB_INLINE F8 least8(F8 a) {
    __m256 v = _mm256_min_ps(a.v, _mm256_permute2f128_ps(a.v, a.v, 1));
    v = _mm256_min_ps(v, _mm256_permute_ps(v, 0x4e));
    return {_mm256_min_ps(v, _mm256_permute_ps(v, 0xb1))};
}

HB_INLINE M8 operator>(F8 a, F8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
HB_INLINE M8 operator<(F8 a, F8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
HB_INLINE M8 operator<=(F8 a, F8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
HB_INLINE M8 operator==(F8 a, F8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
HB_INLINE M8 operator&(M8 a, M8 b) { return {_mm256_and_ps(a.v, b.v)}; }
HB_INLINE M8 operator|(M8 a, M8 b) { return {_mm256_or_ps(a.v, b.v)}; }
HB_INLINE M8 without(M8 a, M8 b) { return {_mm256_andnot_ps(b.v, a.v)}; }
HB_INLINE uint32_t bits8(M8 a) { return static_cast<uint32_t>(_mm256_movemask_ps(a.v)); }
HB_INLINE F8 choose(M8 m, F8 yes, F8 no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }

HB_INLINE I8 iall8(int32_t a) { return {_mm256_set1_epi32(a)}; }
HB_INLINE I8 iload8(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
HB_INLINE void istore8(int32_t* p, I8 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
HB_INLINE I8 load_words8(const uint16_t* p) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
HB_INLINE I8 operator+(I8 a, I8 b) { return {_mm256_add_epi32(a.v, b.v)}; }
HB_INLINE I8 operator-(I8 a, I8 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
HB_INLINE I8 operator&(I8 a, I8 b) { return {_mm256_and_si256(a.v, b.v)}; }
HB_INLINE I8 larger(I8 a, I8 b) { return {_mm256_max_epi32(a.v, b.v)}; }
HB_INLINE I8 smaller(I8 a, I8 b) { return {_mm256_min_epi32(a.v, b.v)}; }
template <int N>
HB_INLINE I8 shift_left(I8 a) {
    return {_mm256_slli_epi32(a.v, N)};
}
HB_INLINE I8 shift_right(I8 a, int n) { return {_mm256_srli_epi32(a.v, n)}; }
HB_INLINE M8 differs(I8 a, I8 b) {
    const __m256i equal = _mm256_cmpeq_epi32(a.v, b.v);
    return {_mm256_castsi256_ps(_mm256_xor_si256(equal, _mm256_set1_epi32(-1)))};
}
HB_INLINE I8 choose(M8 m, I8 yes, I8 no) {
    return {_mm256_blendv_epi8(no.v, yes.v, _mm256_castps_si256(m.v))};
}
// 1 more where the mask is set.
HB_INLINE I8 count(I8 a, M8 m) { return {_mm256_sub_epi32(a.v, _mm256_castps_si256(m.v))}; }
HB_INLINE F8 to_float8(I8 a) { return {_mm256_cvtepi32_ps(a.v)}; }
HB_INLINE I8 bits_of(F8 a) { return {_mm256_castps_si256(a.v)}; }
// row[index % 4]; the row's second half repeats its first.
HB_INLINE F8 look4(F8 row, I8 index) { return {_mm256_permutevar_ps(row.v, index.v)}; }
// row[index % 8].
HB_INLINE F8 look8(F8 row, I8 index) { return {_mm256_permutevar8x32_ps(row.v, index.v)}; }

#else

struct F8 {
    float v[8];
};
struct I8 {
    int32_t v[8];
};
struct M8 {
    bool v[8];
};

#define HB_EACH8 for (int i = 0; i < 8; ++i)
#define HB_MAP8(type, head, expression) \
    HB_INLINE type head {               \
        type r;                         \
        HB_EACH8 r.v[i] = expression;   \
        return r;                       \
    }

HB_MAP8(F8, all8(float a), a)
HB_MAP8(F8, load8(const float* p), p[i])
HB_INLINE void store8(float* p, F8 a) { std::memcpy(p, a.v, sizeof a.v); }
HB_MAP8(F8, operator+(F8 a, F8 b), a.v[i] + b.v[i])
HB_MAP8(F8, operator-(F8 a, F8 b), a.v[i] - b.v[i])
HB_MAP8(F8, operator*(F8 a, F8 b), a.v[i] * b.v[i])
HB_MAP8(F8, operator/(F8 a, F8 b), a.v[i] / b.v[i])
HB_MAP8(F8, root8(F8 a), std::sqrt(a.v[i]))
HB_MAP8(F8, larger(F8 a, F8 b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
HB_MAP8(F8, smaller(F8 a, F8 b), a.v[i] < b.v[i] ? a.v[i] : b.v[i])
HB_MAP8(F8, magnitude(F8 a), std::fabs(a.v[i]))
HB_INLINE float largest8(F8 a) {
    float r = a.v[0];
    HB_EACH8 r = a.v[i] > r ? a.v[i] : r;
    return r;
}
HB_INLINE F8 least8(F8 a) {
    float r = a.v[0];
    HB_EACH8 r = a.v[i] < r ? a.v[i] : r;
    return all8(r);
}

HB_MAP8(M8, operator>(F8 a, F8 b), a.v[i] > b.v[i])
HB_MAP8(M8, operator<(F8 a, F8 b), a.v[i] < b.v[i])
HB_MAP8(M8, operator<=(F8 a, F8 b), a.v[i] <= b.v[i])
HB_MAP8(M8, operator==(F8 a, F8 b), a.v[i] == b.v[i])
HB_MAP8(M8, operator&(M8 a, M8 b), a.v[i] && b.v[i])
HB_MAP8(M8, operator|(M8 a, M8 b), a.v[i] || b.v[i])
HB_MAP8(M8, without(M8 a, M8 b), a.v[i] && !b.v[i])
HB_INLINE uint32_t bits8(M8 a) {
    uint32_t bits = 0;
    HB_EACH8 bits |= static_cast<uint32_t>(a.v[i]) << i;
    return bits;
}
HB_MAP8(F8, choose(M8 m, F8 yes, F8 no), m.v[i] ? yes.v[i] : no.v[i])

HB_MAP8(I8, iall8(int32_t a), a)
HB_MAP8(I8, iload8(const int32_t* p), p[i])
HB_INLINE void istore8(int32_t* p, I8 a) { std::memcpy(p, a.v, sizeof a.v); }
HB_MAP8(I8, load_words8(const uint16_t* p), p[i])
HB_INLINE int32_t wrapped(uint32_t a) { return static_cast<int32_t>(a); }
HB_INLINE uint32_t unwrapped(int32_t a) { return static_cast<uint32_t>(a); }
HB_MAP8(I8, operator+(I8 a, I8 b), wrapped(unwrapped(a.v[i]) + unwrapped(b.v[i])))
HB_MAP8(I8, operator-(I8 a, I8 b), wrapped(unwrapped(a.v[i]) - unwrapped(b.v[i])))
HB_MAP8(I8, operator&(I8 a, I8 b), a.v[i] & b.v[i])
HB_MAP8(I8, larger(I8 a, I8 b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
HB_MAP8(I8, smaller(I8 a, I8 b), a.v[i] < b.v[i] ? a.v[i] : b.v[i])
template <int N>
HB_MAP8(I8, shift_left(I8 a), wrapped(unwrapped(a.v[i]) << N))
HB_MAP8(I8, shift_right(I8 a, int n), wrapped(unwrapped(a.v[i]) >> n))
    HB_MAP8(M8, differs(I8 a, I8 b), a.v[i] != b.v[i])
        HB_MAP8(I8, choose(M8 m, I8 yes, I8 no), m.v[i] ? yes.v[i] : no.v[i])
            HB_MAP8(I8, count(I8 a, M8 m), a.v[i] + m.v[i])
                HB_MAP8(F8, to_float8(I8 a), static_cast<float>(a.v[i])) HB_INLINE I8
    bits_of(F8 a) {
    I8 r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
HB_MAP8(F8, look4(F8 row, I8 index), row.v[index.v[i] & 3])
HB_MAP8(F8, look8(F8 row, I8 index), row.v[index.v[i] & 7])
#undef HB_MAP8
#undef HB_EACH8

#endif

// Nearest integers, halves to even, for magnitudes below 2^22; beyond, as ggml's own trick.
HB_INLINE I8 nearest8(F8 a) {
    const I8 raw = bits_of(a + all8(12582912.0f)) & iall8(0x007FFFFF);
    return raw - iall8(0x00400000);
}

}  // namespace HB_ISA
}  // namespace halfbyte
