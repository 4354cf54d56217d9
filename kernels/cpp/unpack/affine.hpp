// Affine codes: packed unsigned, least significant bits first along the row, with groups.
#pragma once

#include "types.hpp"
#include "unpack/blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

HB_INLINE float number_at(const void* p, Number type, int64_t i) {
    switch (type) {
        case Number::float32:
            return static_cast<const float*>(p)[i];
        case Number::float16:
            return half_at(static_cast<const uint8_t*>(p) + 2 * i);
        case Number::bfloat16:
            return bfloat_bits_to_float(load_u16(static_cast<const uint8_t*>(p) + 2 * i));
        case Number::uint8:
            return static_cast<float>(static_cast<const uint8_t*>(p)[i]);
        case Number::none:
            break;
    }
    return 0.0f;
}

// Code j of a row; never reads past the byte that holds its last bit.
HB_INLINE uint32_t code_at(const uint8_t* row, int64_t j, int bits) {
    const int64_t bit = j * bits;
    const int shift = static_cast<int>(bit & 7);
    uint32_t word = row[bit >> 3];
    if (shift + bits > 8) word |= static_cast<uint32_t>(row[(bit >> 3) + 1]) << 8;
    return (word >> shift) & ((1u << bits) - 1u);
}

// 32 codes that start at a multiple of 32: `bits` * 4 whole bytes.
HB_INLINE B32 affine_codes(const uint8_t* p, int bits) {
    if (bits == 8) return load_bytes(p);
    if (bits == 4) return pair_nibbles(p);
    alignas(32) uint8_t codes[32];
    for (int octet = 0; octet < 4; ++octet) {
        uint64_t word = 0;
        for (int b = 0; b < bits; ++b)
            word |= static_cast<uint64_t>(p[octet * bits + b]) << (8 * b);
        for (int j = 0; j < 8; ++j) {
            codes[8 * octet + j] = static_cast<uint8_t>((word >> (j * bits)) & ((1u << bits) - 1u));
        }
    }
    return load_bytes(codes);
}

// One row of an affine weight; groups in column order whose size is a multiple of 32 go fast.
struct AffineRow {
    const WeightView* w;
    const uint8_t* codes;
    int64_t first_group;

    HB_INLINE AffineRow(const WeightView& view, int64_t row)
        : w(&view), codes(view.data + row * view.row_bytes), first_group(row * view.groups) {}

    HB_INLINE float scale(int64_t group) const {
        return number_at(w->scales, w->scale_type, first_group + group);
    }
    HB_INLINE float zero_point(int64_t group) const {
        if (w->zero_type == Number::none) return w->implied_zero;
        return number_at(w->zero_points, w->zero_type, first_group + group);
    }
    HB_INLINE float value(int64_t column) const {
        const int64_t group = w->group_index ? w->group_index[column] : column / w->group_size;
        const float code = static_cast<float>(code_at(codes, column, w->bits));
        return (code - zero_point(group)) * scale(group);
    }
    HB_INLINE void step(int64_t s, F* out) const {
        const int64_t group = kStep * s / w->group_size;
        const F scales = set1(scale(group)), zeros = set1(zero_point(group));
        const B32 bytes = affine_codes(codes + s * 4 * w->bits, w->bits);
        for (int i = 0; i < kStep / W; ++i) {
            out[i] = mul(sub(bytes_to_float(bytes, i), zeros), scales);
        }
    }
    HB_INLINE void tail(int64_t s, int64_t count, float* out) const {
        for (int64_t j = 0; j < count; ++j) out[j] = value(kStep * s + j);
    }
};

// Any group size and act-order: value by value.
struct AffineAnyRow : AffineRow {
    using AffineRow::AffineRow;
    HB_INLINE void step(int64_t s, F* out) const {
        float values[kStep];
        tail(s, kStep, values);
        for (int i = 0; i < kStep / W; ++i) out[i] = load(values + W * i);
    }
};

}  // namespace HB_ISA
}  // namespace halfbyte
