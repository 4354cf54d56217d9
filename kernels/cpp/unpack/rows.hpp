// Row readers: 32 values of one row per step, as float32 lanes, exactly as the encoding says.
#pragma once

#include "unpack/affine.hpp"
#include "unpack/blocks.hpp"
#include "unpack/iq_rows.hpp"
#include "unpack/k_rows.hpp"
#include "unpack/small_rows.hpp"

namespace halfbyte {
namespace HB_ISA {

// Dense elements: Load::lanes(p) gives W values, Load::kSize is the bytes of one.
template <class Load>
struct DenseRow {
    const uint8_t* row;

    HB_INLINE DenseRow(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}

    HB_INLINE void step(int64_t s, F* out) const {
        const uint8_t* p = row + s * kStep * Load::kSize;
        for (int i = 0; i < kStep / W; ++i) out[i] = Load::lanes(p + i * W * Load::kSize);
    }
    HB_INLINE void tail(int64_t s, int64_t count, float* out) const {
        uint8_t padded[kStep * Load::kSize] = {};
        std::memcpy(padded, row + s * kStep * Load::kSize,
                    static_cast<size_t>(count * Load::kSize));
        for (int i = 0; i < kStep / W; ++i) {
            store(out + i * W, Load::lanes(padded + i * W * Load::kSize));
        }
    }
};

struct LoadFloat32 {
    static constexpr int kSize = 4;
    static HB_INLINE F lanes(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct LoadFloat16 {
    static constexpr int kSize = 2;
    static HB_INLINE F lanes(const uint8_t* p) { return load_half(p); }
};
struct LoadBfloat16 {
    static constexpr int kSize = 2;
    static HB_INLINE F lanes(const uint8_t* p) { return load_bfloat(p); }
};
struct LoadE4M3FN {
    static constexpr int kSize = 1;
    static HB_INLINE F lanes(const uint8_t* p) { return load_e4m3fn(p); }
};
struct LoadE5M2 {
    static constexpr int kSize = 1;
    static HB_INLINE F lanes(const uint8_t* p) { return load_e5m2(p); }
};

// Blocks of 32, so a row never has a tail.
template <class Block>
struct BlockRow {
    const uint8_t* row;

    HB_INLINE BlockRow(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}

    HB_INLINE void step(int64_t s, F* out) const {
        const uint8_t* p = row + s * Block::kBytes;
        const F scale = set1(half_at(p));
        if constexpr (Block::kHasMinimum) {
            const F minimum = set1(Block::minimum(p));
            const B32 codes = Block::codes(p);
            for (int i = 0; i < kStep / W; ++i) {
                out[i] = add(mul(bytes_to_float(codes, i), scale), minimum);
            }
        } else if constexpr (Block::kBits == 8) {
            const uint8_t* values = p + Block::L::kOffset_qs;
            for (int i = 0; i < kStep / W; ++i)
                out[i] = mul(signed_bytes_to_float(values, i), scale);
        } else {
            const F offset = set1(static_cast<float>(Block::kZero));
            const B32 codes = Block::codes(p);
            for (int i = 0; i < kStep / W; ++i) {
                out[i] = mul(sub(bytes_to_float(codes, i), offset), scale);
            }
        }
    }
    HB_INLINE void tail(int64_t, int64_t, float*) const {}
};

template <class T>
struct Tag {
    using type = T;
};

// Call function(Tag<Reader>) with the reader of a weight's kind.
template <class Function>
HB_INLINE void with_reader(const WeightView& w, Function&& function) {
    switch (w.kind) {
        case Kind::float32:
            return function(Tag<DenseRow<LoadFloat32>>());
        case Kind::float16:
            return function(Tag<DenseRow<LoadFloat16>>());
        case Kind::bfloat16:
            return function(Tag<DenseRow<LoadBfloat16>>());
        case Kind::float8_e4m3fn:
            return function(Tag<DenseRow<LoadE4M3FN>>());
        case Kind::float8_e5m2:
            return function(Tag<DenseRow<LoadE5M2>>());
        case Kind::Q4_0:
            return function(Tag<BlockRow<BlockQ4_0>>());
        case Kind::Q4_1:
            return function(Tag<BlockRow<BlockQ4_1>>());
        case Kind::Q5_0:
            return function(Tag<BlockRow<BlockQ5_0>>());
        case Kind::Q5_1:
            return function(Tag<BlockRow<BlockQ5_1>>());
        case Kind::Q8_0:
            return function(Tag<BlockRow<BlockQ8_0>>());
        case Kind::Q2_K:
            return function(Tag<KRow<BlockQ2_K>>());
        case Kind::Q3_K:
            return function(Tag<KRow<BlockQ3_K>>());
        case Kind::Q4_K:
            return function(Tag<KRow<BlockQ4_K>>());
        case Kind::Q5_K:
            return function(Tag<KRow<BlockQ5_K>>());
        case Kind::Q6_K:
            return function(Tag<KRow<BlockQ6_K>>());
        case Kind::Q1_0:
            return function(Tag<SmallRow<BlockQ1_0>>());
        case Kind::Q2_0:
            return function(Tag<SmallRow<BlockQ2_0>>());
        case Kind::TQ1_0:
            return function(Tag<SmallRow<BlockTQ1_0>>());
        case Kind::TQ2_0:
            return function(Tag<SmallRow<BlockTQ2_0>>());
        case Kind::MXFP4:
            return function(Tag<SmallRow<BlockMXFP4>>());
        case Kind::NVFP4:
            return function(Tag<SmallRow<BlockNVFP4>>());
        case Kind::IQ4_NL:
            return function(Tag<SmallRow<BlockIQ4_NL>>());
        case Kind::IQ4_XS:
            return function(Tag<SmallRow<BlockIQ4_XS>>());
        case Kind::IQ2_XXS:
        case Kind::IQ2_XS:
        case Kind::IQ2_S:
        case Kind::IQ3_XXS:
        case Kind::IQ3_S:
        case Kind::IQ1_S:
        case Kind::IQ1_M:
            return function(Tag<PointRow>());
        case Kind::affine:
            if (groups_are_regular(w)) return function(Tag<AffineRow>());
            return function(Tag<AffineAnyRow>());
        default:
            return;
    }
}

// Rows [row0, row1) to out with stride `stride`; columns from w.columns to `padded` become zero.
template <class Reader>
static void decode_rows(const WeightView& w, int64_t row0, int64_t row1, float* out, int64_t stride,
                        int64_t padded) {
    const int64_t steps = w.columns / kStep, rest = w.columns % kStep;
    for (int64_t r = row0; r < row1; ++r, out += stride) {
        const Reader reader(w, r);
        for (int64_t s = 0; s < steps; ++s) {
            F values[kStep / W];
            reader.step(s, values);
            for (int i = 0; i < kStep / W; ++i) store(out + s * kStep + i * W, values[i]);
        }
        if (rest) {
            float values[kStep] = {};
            reader.tail(steps, rest, values);
            const int64_t count = padded > w.columns ? padded - steps * kStep : rest;
            std::memcpy(out + steps * kStep, values, static_cast<size_t>(4 * count));
        }
    }
}

static void decode(const WeightView& w, int64_t row0, int64_t row1, float* out) {
    with_reader(w, [&](auto tag) {
        decode_rows<typename decltype(tag)::type>(w, row0, row1, out, w.columns, w.columns);
    });
}

}  // namespace HB_ISA
}  // namespace halfbyte
