// Rows of ggml's 256-value blocks: 32 values per step, with one or two scales (and minimums).
#pragma once

#include "unpack/blocks.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kStepsPerBlock = 8;

// Codes of 32 values and what they mean: value = (code - zero) * scale, or code * scale + minimum,
// with scale[0] for the first 16 values and scale[1] for the others.
struct StepFields {
    uint8_t codes[kStep];
    float scale[2];
    float minimum[2];
};

HB_INLINE void masked_bytes(const uint8_t* p, int shift, uint8_t mask, uint8_t* out) {
    for (int i = 0; i < kStep; ++i) out[i] = static_cast<uint8_t>((p[i] >> shift) & mask);
}

HB_INLINE void add_high_bits(const uint8_t* p, int shift, uint8_t mask, int place, uint8_t* out) {
    for (int i = 0; i < kStep; ++i) {
        out[i] = static_cast<uint8_t>(out[i] | (((p[i] >> shift) & mask) << place));
    }
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

struct BlockQ2_K {
    using L = Layout_Q2_K;
    static constexpr int kBytes = L::kBytes, kZero = 0;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        masked_bytes(p + L::kOffset_qs + 32 * (j / 4), 2 * (j % 4), 3, out->codes);
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
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        masked_bytes(p + L::kOffset_qs + 32 * (j / 4), 2 * (j % 4), 3, out->codes);
        add_high_bits(p + L::kOffset_hmask, j, 1, 2, out->codes);
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
    static HB_INLINE void codes(const uint8_t* p, int j, uint8_t* out) {
        masked_bytes(p + L::kOffset_qs + 32 * (j / 2), 4 * (j % 2), 15, out);
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        codes(p, j, out->codes);
        shared_scale<L>(p, j, out);
    }
};

struct BlockQ5_K {
    using L = Layout_Q5_K;
    static constexpr int kBytes = L::kBytes, kZero = 0;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE void codes(const uint8_t* p, int j, uint8_t* out) {
        masked_bytes(p + L::kOffset_qs + 32 * (j / 2), 4 * (j % 2), 15, out);
        add_high_bits(p + L::kOffset_qh, j, 1, 4, out);
    }
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        codes(p, j, out->codes);
        shared_scale<L>(p, j, out);
    }
};

struct BlockQ6_K {
    using L = Layout_Q6_K;
    static constexpr int kBytes = L::kBytes, kZero = 32;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE void fields(const uint8_t* p, int j, StepFields* out) {
        const int half = j / 4, quarter = j % 4;
        const uint8_t* low = p + L::kOffset_ql + 64 * half + 32 * (quarter % 2);
        masked_bytes(low, quarter < 2 ? 0 : 4, 15, out->codes);
        add_high_bits(p + L::kOffset_qh + 32 * half, 2 * quarter, 3, 4, out->codes);
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
        const B32 codes = load_bytes(fields.codes);
        const F zero = set1(static_cast<float>(Block::kZero));
        for (int i = 0; i < kStep / W; ++i) {
            const int g = i * W / 16;
            const F scale = set1(fields.scale[g]), code = bytes_to_float(codes, i);
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
