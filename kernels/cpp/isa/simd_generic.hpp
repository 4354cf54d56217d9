// 8 lanes in plain C++, for any machine; compilers turn the loops into SSE2 or NEON.
#pragma once

#include <cmath>
#include <cstring>

#include "half.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int W = 8;
struct F {
    float v[W];
};
struct I {
    int32_t v[W];
};
struct Mask {
    bool v[W];
};
struct B32 {
    uint8_t v[32];
};
constexpr bool kSignedBytes = false;

#define HB_EACH for (int i = 0; i < W; ++i)

HB_INLINE F set1(float a) {
    F r;
    HB_EACH r.v[i] = a;
    return r;
}
HB_INLINE F zero() { return set1(0.0f); }
HB_INLINE F load(const float* p) {
    F r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
HB_INLINE void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
HB_INLINE F load_n(const float* p, int64_t n) {
    F r;
    HB_EACH r.v[i] = i < n ? p[i] : 0.0f;
    return r;
}
HB_INLINE void store_n(float* p, F a, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
#define HB_BINARY(name, expression)  \
    HB_INLINE F name(F a, F b) {     \
        F r;                         \
        HB_EACH r.v[i] = expression; \
        return r;                    \
    }
HB_BINARY(add, a.v[i] + b.v[i])
HB_BINARY(sub, a.v[i] - b.v[i])
HB_BINARY(mul, a.v[i] * b.v[i])
HB_BINARY(div, a.v[i] / b.v[i])
HB_BINARY(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
HB_BINARY(min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
HB_BINARY(copysign, std::copysign(a.v[i], b.v[i]))
#undef HB_BINARY
// Two roundings: a software fused multiply-add would be a hundred times slower.
HB_INLINE F fma(F a, F b, F c) {
    F r;
    HB_EACH r.v[i] = a.v[i] * b.v[i] + c.v[i];
    return r;
}
HB_INLINE F abs(F a) {
    HB_EACH a.v[i] = std::fabs(a.v[i]);
    return a;
}
HB_INLINE F truncate(F a) {
    HB_EACH a.v[i] = std::trunc(a.v[i]);
    return a;
}
HB_INLINE F nearest(F a) {
    HB_EACH a.v[i] = std::nearbyint(a.v[i]);
    return a;
}
HB_INLINE Mask less(F a, F b) {
    Mask r;
    HB_EACH r.v[i] = a.v[i] < b.v[i];
    return r;
}
HB_INLINE Mask equal_to(F a, F b) {
    Mask r;
    HB_EACH r.v[i] = a.v[i] == b.v[i];
    return r;
}
HB_INLINE Mask unordered(F a) {
    Mask r;
    HB_EACH r.v[i] = a.v[i] != a.v[i];
    return r;
}
HB_INLINE F select(Mask m, F yes, F no) {
    HB_EACH yes.v[i] = m.v[i] ? yes.v[i] : no.v[i];
    return yes;
}
HB_INLINE F square_root(F a) {
    HB_EACH a.v[i] = std::sqrt(a.v[i]);
    return a;
}
HB_INLINE Mask both(Mask a, Mask b) {
    HB_EACH a.v[i] = a.v[i] && b.v[i];
    return a;
}
HB_INLINE Mask either(Mask a, Mask b) {
    HB_EACH a.v[i] = a.v[i] || b.v[i];
    return a;
}
HB_INLINE bool any(Mask m) {
    bool r = false;
    HB_EACH r = r || m.v[i];
    return r;
}
// value * 2^n for integral n in [-252, 252]; two steps, so that subnormal results round once.
HB_INLINE F scale2(F value, F n) {
    HB_EACH {
        const int32_t whole = truncate_to_int(n.v[i]);
        const int32_t half = whole >> 1;
        const float a = bits_to_float(static_cast<uint32_t>(half + 127) << 23);
        const float b = bits_to_float(static_cast<uint32_t>(whole - half + 127) << 23);
        value.v[i] = value.v[i] * a * b;
    }
    return value;
}
HB_INLINE uint32_t equal_bits(F a, F b) {
    uint32_t bits = 0;
    HB_EACH bits |= static_cast<uint32_t>(a.v[i] == b.v[i]) << i;
    return bits;
}
HB_INLINE float hmax(F a) {
    float r = a.v[0];
    HB_EACH r = a.v[i] > r ? a.v[i] : r;
    return r;
}
HB_INLINE float hmin(F a) {
    float r = a.v[0];
    HB_EACH r = a.v[i] < r ? a.v[i] : r;
    return r;
}
HB_INLINE float hsum(F a) {
    const float low = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
    const float high = (a.v[4] + a.v[6]) + (a.v[5] + a.v[7]);
    return low + high;
}
HB_INLINE void reduce4(const F* a, float* out) {
    for (int j = 0; j < 4; ++j) out[j] = hsum(a[j]);
}

#define HB_LOAD(name, type, convert)      \
    HB_INLINE F name(const void* p) {     \
        type raw[W];                      \
        std::memcpy(raw, p, sizeof raw);  \
        F r;                              \
        HB_EACH r.v[i] = convert(raw[i]); \
        return r;                         \
    }
HB_LOAD(load_half, uint16_t, half_bits_to_float)
HB_LOAD(load_bfloat, uint16_t, bfloat_bits_to_float)
HB_LOAD(load_e5m2, uint8_t, e5m2_to_float)
HB_LOAD(load_e4m3fn, uint8_t, e4m3fn_to_float)
#undef HB_LOAD
HB_INLINE void store_half(uint16_t* p, F a) { HB_EACH p[i] = float_to_half_bits(a.v[i]); }

HB_INLINE F bytes_to_float(const B32& b, int part) {
    F r;
    HB_EACH r.v[i] = static_cast<float>(b.v[W * part + i]);
    return r;
}
HB_INLINE F signed_bytes_to_float(const uint8_t* p, int part) {
    F r;
    HB_EACH r.v[i] = static_cast<float>(static_cast<int8_t>(p[W * part + i]));
    return r;
}
HB_INLINE B32 add_bit4(B32 codes, uint32_t bits) {
    for (int i = 0; i < 32; ++i)
        codes.v[i] = static_cast<uint8_t>(codes.v[i] + ((bits >> i & 1u) << 4));
    return codes;
}

HB_INLINE I iset1(int32_t a) {
    I r;
    HB_EACH r.v[i] = a;
    return r;
}
HB_INLINE I izero() { return iset1(0); }
HB_INLINE I iload(const void* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
HB_INLINE I isub(I a, I b) {
    HB_EACH a.v[i] -= b.v[i];
    return a;
}
HB_INLINE F to_float(I a) {
    F r;
    HB_EACH r.v[i] = static_cast<float>(a.v[i]);
    return r;
}
HB_INLINE I broadcast4(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return iset1(word);
}
// acc[lane] += sum of 4 products of unsigned bytes w and signed bytes x.
template <bool SignedW>
HB_INLINE I dot4(I acc, I w, I x) {
    static_assert(!SignedW, "codes are unsigned here");
    uint8_t codes[4 * W];
    int8_t values[4 * W];
    std::memcpy(codes, w.v, sizeof codes);
    std::memcpy(values, x.v, sizeof values);
    HB_EACH {
        for (int j = 0; j < 4; ++j)
            acc.v[i] += static_cast<int>(codes[4 * i + j]) * values[4 * i + j];
    }
    return acc;
}
HB_INLINE I truncate_int(F a) {
    I r;
    HB_EACH r.v[i] = truncate_to_int(a.v[i]);
    return r;
}
HB_INLINE I cast_int8(I a) {
    HB_EACH a.v[i] = static_cast<int8_t>(static_cast<uint32_t>(a.v[i]));
    return a;
}
// One more where m holds.
HB_INLINE I increment(I a, Mask m) {
    HB_EACH a.v[i] += m.v[i];
    return a;
}
HB_INLINE I imin(I a, I b) {
    HB_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
HB_INLINE I iand(I a, I b) {
    HB_EACH a.v[i] &= b.v[i];
    return a;
}
HB_INLINE I ior(I a, I b) {
    HB_EACH a.v[i] |= b.v[i];
    return a;
}
template <int N>
HB_INLINE I shift_left(I a) {
    HB_EACH a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N);
    return a;
}
template <int N>
HB_INLINE I shift_right(I a) {
    HB_EACH a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> N);
    return a;
}
HB_INLINE I bits_of(F a) {
    I r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
HB_INLINE void istore(void* p, I a) { std::memcpy(p, a.v, sizeof a.v); }
HB_INLINE void store_low_bytes(uint8_t* p, I a) {
    HB_EACH p[i] = static_cast<uint8_t>(static_cast<uint32_t>(a.v[i]));
}
#undef HB_EACH

}  // namespace HB_ISA
}  // namespace halfbyte

#include "isa/bytes_generic.hpp"
