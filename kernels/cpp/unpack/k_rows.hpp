// Rows of ggml's 256-value blocks: 32 values per step, with one or two scales (and minimums).
#pragma once

#include "unpack/blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kStepsPerBlock = 8;

// Codes of 32 values and what they mean: value = (code - zero) * scale, or code * scale + minimum,
// with scale[0] for the first 16 values and scale[1] for the others.
struct StepFields {
    B32 codes;
    float scale[2];
    float minimum[2];
};

HB_INLINE B32 field_at(const uint8_t* p, int shift, uint8_t mask) {
    return bit_field(load_bytes(p), shift, mask);
}

// Sub-block j of the 12 bytes with 8 scales and 8 minimums of 6 bits.
HB_INLINE void six_bit_scale(const uint8_t* q, int j, int* scale, int* minimum) {
    if (j < 4) {
        *scale = q[j] & 63;
        *minimum = q[j + 4] & 63;
    } else {
        *scale = (q[j + 4] & 15) | ((q[j - 4] >> 6) << 4);
        *minimum = (q[j + 4] >> 4) | ((q[j] >> 6) << 4);
    }
}

template <class L>
HB_INLINE void shared_scale(const uint8_t* p, int j, StepFields* out) {
    int scale, minimum;
    six_bit_scale(p + L::kOffset_scales, j, &scale, &minimum);
    out->scale[0] = out->scale[1] = half_at(p + L::kOffset_d) * static_cast<float>(scale);
    out->minimum[0] = out->minimum[1] =
        -(half_at(p + L::kOffset_dmin) * static_cast<float>(minimum));
}

// `scales` of a type with one per 16 values: those of all 16 groups, and their minimums.
struct BlockQ2_K {
    using L = Layout_Q2_K;
    static constexpr int kBytes = L::kBytes, kZero = 0;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE void scales(const uint8_t* p, int8_t* scale, int8_t* minimum) {
        const uint8_t* q = p + L::kOffset_scales;
        for (int g = 0; g < 16; ++g) {
            scale[g] = static_cast<int8_t>(q[g] & 15);
            minimum[g] = static_cast<int8_t>(q[g] >> 4);
        }
    }
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        return field_at(p + L::kOffset_qs + 32 * (j / 4), 2 * (j % 4), 3);
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        out->codes = codes(p, j);
        const float d = half_at(p + L::kOffset_d), dmin = half_at(p + L::kOffset_dmin);
        for (int g = 0; g < 2; ++g) {
            const int packed = p[L::kOffset_scales + 2 * j + g];
            out->scale[g] = d * static_cast<float>(packed & 15);
            out->minimum[g] = -(dmin * static_cast<float>(packed >> 4));
        }
    }
};

struct BlockQ3_K {
    using L = Layout_Q3_K;
    static constexpr int kBytes = L::kBytes, kZero = 4;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE void scales(const uint8_t* p, int8_t* scale, int8_t*) {
        const uint8_t* q = p + L::kOffset_scales;
        const uint32_t high = load_u32(q + 8);
        for (int part = 0; part < 4; ++part) {
            const uint32_t low = load_u32(q + 4 * (part % 2)) >> (part < 2 ? 0 : 4);
            const uint32_t top = (high >> (2 * part)) & 0x03030303;
            const uint32_t both = (low & 0x0f0f0f0f) | (top << 4);
            std::memcpy(scale + 4 * part, &both, 4);
        }
        for (int g = 0; g < 16; ++g) scale[g] = static_cast<int8_t>(scale[g] - 32);
    }
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        const B32 low = field_at(p + L::kOffset_qs + 32 * (j / 4), 2 * (j % 4), 3);
        return add_field<2>(low, field_at(p + L::kOffset_hmask, j, 1));
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        out->codes = codes(p, j);
        const float d = half_at(p + L::kOffset_d);
        const uint8_t* q = p + L::kOffset_scales;
        for (int g = 0; g < 2; ++g) {
            const int k = 2 * j + g;
            const int low = (q[k % 8] >> (k < 8 ? 0 : 4)) & 15;
            const int high = (q[8 + k % 4] >> (2 * (k / 4))) & 3;
            out->scale[g] = d * static_cast<float>((low | (high << 4)) - 32);
            out->minimum[g] = 0.0f;
        }
    }
};

struct BlockQ4_K {
    using L = Layout_Q4_K;
    static constexpr int kBytes = L::kBytes, kZero = 0;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        return field_at(p + L::kOffset_qs + 32 * (j / 2), 4 * (j % 2), 15);
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        out->codes = codes(p, j);
        shared_scale<L>(p, j, out);
    }
};

struct BlockQ5_K {
    using L = Layout_Q5_K;
    static constexpr int kBytes = L::kBytes, kZero = 0;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        const B32 low = field_at(p + L::kOffset_qs + 32 * (j / 2), 4 * (j % 2), 15);
        return add_field<4>(low, field_at(p + L::kOffset_qh, j, 1));
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        out->codes = codes(p, j);
        shared_scale<L>(p, j, out);
    }
};

struct BlockQ6_K {
    using L = Layout_Q6_K;
    static constexpr int kBytes = L::kBytes, kZero = 32;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE void scales(const uint8_t* p, int8_t* scale, int8_t*) {
        std::memcpy(scale, p + L::kOffset_scales, 16);
    }
    static HB_INLINE B32 codes(const uint8_t* p, int j) {
        const int half = j / 4, quarter = j % 4;
        const uint8_t* low = p + L::kOffset_ql + 64 * half + 32 * (quarter % 2);
        return add_field<4>(field_at(low, quarter < 2 ? 0 : 4, 15),
                            field_at(p + L::kOffset_qh + 32 * half, 2 * quarter, 3));
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        out->codes = codes(p, j);
        const float d = half_at(p + L::kOffset_d);
        for (int g = 0; g < 2; ++g) {
            const auto scale = static_cast<int8_t>(p[L::kOffset_scales + 2 * j + g]);
            out->scale[g] = d * static_cast<float>(scale);
            out->minimum[g] = 0.0f;
        }
    }
};

// A row of 256-value blocks never has a tail.
template <class Block>
struct KRow {
    const uint8_t* row;

    HB_INLINE KRow(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}

    HB_INLINE void step(int64_t s, F* out) const {
        StepFields fields;
        Block::fields(row + s / kStepsPerBlock * Block::kBytes,
                      static_cast<int>(s % kStepsPerBlock), &fields);
        const F zero = set1(static_cast<float>(Block::kZero));
        for (int i = 0; i < kStep / W; ++i) {
            const int g = i * W / 16;
            const F scale = set1(fields.scale[g]), code = bytes_to_float(fields.codes, i);
            if constexpr (Block::kHasMinimum) {
                out[i] = add(mul(code, scale), set1(fields.minimum[g]));
            } else {
                out[i] = mul(sub(code, zero), scale);
            }
        }
    }
    HB_INLINE void tail(int64_t, int64_t, float*) const {}
};

}  // namespace HB_ISA
}  // namespace halfbyte
