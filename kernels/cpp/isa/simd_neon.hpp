// 8 lanes in two registers: aarch64 with the dot-product extension. Included only by a unit
// compiled for them.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "half.hpp"

#define HB_NEON 1

namespace halfbyte {
namespace HB_ISA {

constexpr int W = 8;
struct F {
    float32x4_t lo, hi;
};
struct I {
    int32x4_t lo, hi;
};
struct Mask {
    uint32x4_t lo, hi;
};
struct B32 {
    uint8x16_t lo, hi;
};
constexpr bool kSignedBytes = true;  // the dot product takes signed bytes

HB_INLINE F set1(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
HB_INLINE F zero() { return set1(0.0f); }
HB_INLINE F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
HB_INLINE void store(float* p, F v) {
    vst1q_f32(p, v.lo);
    vst1q_f32(p + 4, v.hi);
}
HB_INLINE F load_n(const float* p, int64_t n) {
    float values[W] = {};
    std::memcpy(values, p, static_cast<size_t>(4 * n));
    return load(values);
}
HB_INLINE void store_n(float* p, F v, int64_t n) {
    float values[W];
    store(values, v);
    std::memcpy(p, values, static_cast<size_t>(4 * n));
}
HB_INLINE F add(F a, F b) { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
HB_INLINE F sub(F a, F b) { return {vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
HB_INLINE F mul(F a, F b) { return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
HB_INLINE F div(F a, F b) { return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
HB_INLINE F max(F a, F b) { return {vmaxq_f32(a.lo, b.lo), vmaxq_f32(a.hi, b.hi)}; }
HB_INLINE F min(F a, F b) { return {vminq_f32(a.lo, b.lo), vminq_f32(a.hi, b.hi)}; }
HB_INLINE F fma(F a, F b, F c) {
    return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}
HB_INLINE F abs(F a) { return {vabsq_f32(a.lo), vabsq_f32(a.hi)}; }
HB_INLINE F truncate(F a) { return {vrndq_f32(a.lo), vrndq_f32(a.hi)}; }
HB_INLINE F nearest(F a) { return {vrndnq_f32(a.lo), vrndnq_f32(a.hi)}; }
HB_INLINE F copysign(F magnitude, F sign) {
    const uint32x4_t top = vdupq_n_u32(0x80000000u);
    return {vbslq_f32(top, sign.lo, magnitude.lo), vbslq_f32(top, sign.hi, magnitude.hi)};
}
HB_INLINE Mask less(F a, F b) { return {vcltq_f32(a.lo, b.lo), vcltq_f32(a.hi, b.hi)}; }
HB_INLINE Mask equal_to(F a, F b) { return {vceqq_f32(a.lo, b.lo), vceqq_f32(a.hi, b.hi)}; }
HB_INLINE Mask unordered(F a) {
    const Mask same = equal_to(a, a);
    return {vmvnq_u32(same.lo), vmvnq_u32(same.hi)};
}
HB_INLINE F select(Mask m, F yes, F no) {
    return {vbslq_f32(m.lo, yes.lo, no.lo), vbslq_f32(m.hi, yes.hi, no.hi)};
}
HB_INLINE F square_root(F a) { return {vsqrtq_f32(a.lo), vsqrtq_f32(a.hi)}; }
HB_INLINE Mask both(Mask a, Mask b) { return {vandq_u32(a.lo, b.lo), vandq_u32(a.hi, b.hi)}; }
HB_INLINE Mask either(Mask a, Mask b) { return {vorrq_u32(a.lo, b.lo), vorrq_u32(a.hi, b.hi)}; }
HB_INLINE bool any(Mask m) { return vmaxvq_u32(vorrq_u32(m.lo, m.hi)) != 0; }
HB_INLINE float32x4_t power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
HB_INLINE float32x4_t scale_quad(float32x4_t value, float32x4_t n) {
    const int32x4_t whole = vcvtq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    const float32x4_t once = vmulq_f32(value, power_of_two(half));
    return vmulq_f32(once, power_of_two(vsubq_s32(whole, half)));
}
// value * 2^n for integral n in [-252, 252]; two steps, so that subnormal results round once.
HB_INLINE F scale2(F value, F n) {
    return {scale_quad(value.lo, n.lo), scale_quad(value.hi, n.hi)};
}
HB_INLINE uint32_t equal_bits(F a, F b) {
    const Mask same = equal_to(a, b);
    const uint32_t low_bits[4] = {1, 2, 4, 8}, high_bits[4] = {16, 32, 64, 128};
    return vaddvq_u32(vandq_u32(same.lo, vld1q_u32(low_bits))) +
           vaddvq_u32(vandq_u32(same.hi, vld1q_u32(high_bits)));
}
HB_INLINE float hmax(F a) { return vmaxvq_f32(vmaxq_f32(a.lo, a.hi)); }
HB_INLINE float hmin(F a) { return vminvq_f32(vminq_f32(a.lo, a.hi)); }

// Lane sums of four registers: (0+2)+(1+3) each.
HB_INLINE float32x2_t halves(float32x4_t a) { return vadd_f32(vget_low_f32(a), vget_high_f32(a)); }
HB_INLINE float32x4_t quad_sums(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
    return vcombine_f32(vpadd_f32(halves(a), halves(b)), vpadd_f32(halves(c), halves(d)));
}
HB_INLINE void reduce4(const F* a, float* out) {
    const float32x4_t low = quad_sums(a[0].lo, a[1].lo, a[2].lo, a[3].lo);
    const float32x4_t high = quad_sums(a[0].hi, a[1].hi, a[2].hi, a[3].hi);
    vst1q_f32(out, vaddq_f32(low, high));
}
HB_INLINE float hsum(F a) {
    const F all[4] = {a, a, a, a};
    float sums[4];
    reduce4(all, sums);
    return sums[0];
}

HB_INLINE F widen_half(uint16x8_t raw) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(raw))),
            vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(raw)))};
}
HB_INLINE uint16x8_t load_words(const void* p) {
    return vreinterpretq_u16_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
}
HB_INLINE F load_half(const void* p) { return widen_half(load_words(p)); }
HB_INLINE F load_bfloat(const void* p) {
    const uint16x8_t raw = load_words(p);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(raw), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(raw), 16))};
}
HB_INLINE F load_e5m2(const void* p) {
    return widen_half(vshll_n_u8(vld1_u8(static_cast<const uint8_t*>(p)), 8));
}
HB_INLINE F load_e4m3fn(const void* p) {
    float values[W];
    for (int i = 0; i < W; ++i) values[i] = e4m3fn_to_float(static_cast<const uint8_t*>(p)[i]);
    return load(values);
}
HB_INLINE void store_half(uint16_t* p, F a) {
    float values[W];
    store(values, a);
    for (int i = 0; i < W; ++i) p[i] = float_to_half_bits(values[i]);
}

HB_INLINE F words_to_float(uint16x8_t words) {
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))),
            vcvtq_f32_u32(vmovl_u16(vget_high_u16(words)))};
}
HB_INLINE F bytes_to_float(B32 b, int part) {
    const uint8x16_t half = part & 2 ? b.hi : b.lo;
    return words_to_float(vmovl_u8(part & 1 ? vget_high_u8(half) : vget_low_u8(half)));
}
HB_INLINE F signed_bytes_to_float(const uint8_t* p, int part) {
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p + W * part)));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(words)))};
}
// Bit i of `bits` adds 16 to byte i.
HB_INLINE B32 add_bit4(B32 codes, uint32_t bits) {
    const uint8_t each_bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t select_bit = vld1q_u8(each_bit), sixteen = vdupq_n_u8(16);
    const auto byte = [&](int i) { return vdup_n_u8(static_cast<uint8_t>(bits >> (8 * i))); };
    const uint8x16_t low = vtstq_u8(vcombine_u8(byte(0), byte(1)), select_bit);
    const uint8x16_t high = vtstq_u8(vcombine_u8(byte(2), byte(3)), select_bit);
    return {vaddq_u8(codes.lo, vandq_u8(low, sixteen)),
            vaddq_u8(codes.hi, vandq_u8(high, sixteen))};
}

HB_INLINE I iset1(int32_t v) { return {vdupq_n_s32(v), vdupq_n_s32(v)}; }
HB_INLINE I izero() { return iset1(0); }
HB_INLINE I iload(const void* p) {
    const auto* bytes = static_cast<const uint8_t*>(p);
    return {vreinterpretq_s32_u8(vld1q_u8(bytes)), vreinterpretq_s32_u8(vld1q_u8(bytes + 16))};
}
HB_INLINE I isub(I a, I b) { return {vsubq_s32(a.lo, b.lo), vsubq_s32(a.hi, b.hi)}; }
HB_INLINE F to_float(I v) { return {vcvtq_f32_s32(v.lo), vcvtq_f32_s32(v.hi)}; }
HB_INLINE I broadcast4(const int8_t* p) { return iset1(static_cast<int32_t>(load_u32(p))); }
// acc[lane] += sum of 4 products of bytes w and signed bytes x; unsigned w must be below 128.
template <bool SignedW>
HB_INLINE I dot4(I acc, I w, I x) {
    return {vdotq_s32(acc.lo, vreinterpretq_s8_s32(w.lo), vreinterpretq_s8_s32(x.lo)),
            vdotq_s32(acc.hi, vreinterpretq_s8_s32(w.hi), vreinterpretq_s8_s32(x.hi))};
}
HB_INLINE int32x4_t truncate_quad(float32x4_t v) {
    const float32x4_t limit = vdupq_n_f32(2147483648.0f);
    const uint32x4_t inside = vandq_u32(vcgtq_f32(v, vnegq_f32(limit)), vcltq_f32(v, limit));
    return vbslq_s32(inside, vcvtq_s32_f32(v), vdupq_n_s32(INT32_MIN));
}
// As x86 converts: out-of-range and NaN give INT32_MIN.
HB_INLINE I truncate_int(F v) { return {truncate_quad(v.lo), truncate_quad(v.hi)}; }
HB_INLINE I cast_int8(I v) {
    return {vshrq_n_s32(vshlq_n_s32(v.lo, 24), 24), vshrq_n_s32(vshlq_n_s32(v.hi, 24), 24)};
}
// One more where m holds.
HB_INLINE I increment(I a, Mask m) {
    return {vsubq_s32(a.lo, vreinterpretq_s32_u32(m.lo)),
            vsubq_s32(a.hi, vreinterpretq_s32_u32(m.hi))};
}
HB_INLINE I imin(I a, I b) { return {vminq_s32(a.lo, b.lo), vminq_s32(a.hi, b.hi)}; }
HB_INLINE I iand(I a, I b) { return {vandq_s32(a.lo, b.lo), vandq_s32(a.hi, b.hi)}; }
HB_INLINE I ior(I a, I b) { return {vorrq_s32(a.lo, b.lo), vorrq_s32(a.hi, b.hi)}; }
template <int N>
HB_INLINE I shift_left(I a) {
    return {vshlq_n_s32(a.lo, N), vshlq_n_s32(a.hi, N)};
}
HB_INLINE int32x4_t quad_right(int32x4_t a, int n) {
    const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n));
    return vreinterpretq_s32_u32(moved);
}
template <int N>
HB_INLINE I shift_right(I a) {
    return {quad_right(a.lo, N), quad_right(a.hi, N)};
}
HB_INLINE I bits_of(F a) { return {vreinterpretq_s32_f32(a.lo), vreinterpretq_s32_f32(a.hi)}; }
HB_INLINE void istore(void* p, I a) {
    auto* words = static_cast<int32_t*>(p);
    vst1q_s32(words, a.lo);
    vst1q_s32(words + 4, a.hi);
}
// Low bytes of the lanes.
HB_INLINE void store_low_bytes(uint8_t* p, I v) {
    vst1_s8(reinterpret_cast<int8_t*>(p),
            vmovn_s16(vcombine_s16(vmovn_s32(v.lo), vmovn_s32(v.hi))));
}

}  // namespace HB_ISA
}  // namespace halfbyte

#include "isa/bytes_neon.hpp"
