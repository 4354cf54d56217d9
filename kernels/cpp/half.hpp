// Scalar float16, bfloat16 and float8 conversions. `static`, so every instruction set keeps its
// own.
#pragma once

#include <cstdint>
#include <cstring>

namespace halfbyte {

static inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline uint16_t load_u16(const void* p) {
    uint16_t value;
    std::memcpy(&value, p, 2);
    return value;
}

static inline uint32_t load_u32(const void* p) {
    uint32_t value;
    std::memcpy(&value, p, 4);
    return value;
}

// Exact. Multiplying by 2^112 also normalises float16 subnormals.
static inline float half_bits_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t rest = static_cast<uint32_t>(half & 0x7FFFu) << 13;
    if ((half & 0x7C00u) == 0x7C00u) return bits_to_float(sign | 0x7F800000u | rest);
    const float value = bits_to_float(rest) * bits_to_float(0x77800000u);
    return bits_to_float(sign | float_to_bits(value));
}

// Round to nearest even, overflow to infinity, every NaN becomes 0x7E00 with its sign.
static inline uint16_t float_to_half_bits(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
    if (magnitude < 0x38800000u) {
        // Adding 0.5 puts the float16 subnormal's unit in the last place: the sum rounds to even.
        const float sum = bits_to_float(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (float_to_bits(sum) - 0x3F000000u));
    }
    const uint32_t rounded = magnitude + 0x0FFFu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

static inline float bfloat_bits_to_float(uint16_t value) {
    return bits_to_float(static_cast<uint32_t>(value) << 16);
}

// Round to nearest even; a NaN keeps its upper payload and becomes quiet.
static inline uint16_t float_to_bfloat_bits(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float e5m2_to_float(uint8_t value) {
    return half_bits_to_float(static_cast<uint16_t>(value << 8));
}

// No infinities; 0x7F and 0xFF are NaN; exponent bias 7.
static inline float e4m3fn_to_float(uint8_t value) {
    const uint32_t sign = static_cast<uint32_t>(value & 0x80u) << 24;
    const uint32_t rest = value & 0x7Fu;
    if (rest == 0x7Fu) return bits_to_float(sign | 0x7FC00000u);
    const float magnitude = bits_to_float(rest << 20) * bits_to_float(0x7B800000u);
    return bits_to_float(sign | float_to_bits(magnitude));
}

// As x86 converts: NaN and everything outside int32 give INT32_MIN.
static inline int32_t truncate_to_int(float value) {
    if (!(value > -2147483648.0f && value < 2147483648.0f)) return INT32_MIN;
    return static_cast<int32_t>(value);
}

}  // namespace halfbyte
