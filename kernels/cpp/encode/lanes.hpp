// Blocks side by side in the lanes of vectors: value i of lane l stands at [i * W + l]. A lane does
// exactly the scalar operations of its block in their order, so bytes do not depend on W.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: a sum with it has no bits after the point
constexpr float kNothing = 1e-15f;       // blocks whose values are all smaller are stored as zeros

// Nearest integer, halves to even, for |v| <= 4194303.
HB_INLINE F round_small(F v) {
#if defined(HB_X86_BYTES) || defined(HB_NEON)
    return nearest(v);
#else
    return sub(add(v, set1(kRounder)), set1(kRounder));  // a call for each lane otherwise
#endif
}

// Nearest integer as ggml takes it from the mantissa of v + kRounder, also where that overflows.
HB_INLINE I round_any(F v) {
    const I mantissa = iand(bits_of(add(v, set1(kRounder))), iset1(0x007FFFFF));
    return isub(mantissa, iset1(0x00400000));
}
HB_INLINE F round_any_float(F v) { return to_float(round_any(v)); }

HB_INLINE F clamp(F v, F low, F high) { return min(max(v, low), high); }

// The lesser; of equals (zeros of either sign) the one seen first.
HB_INLINE F first_least(F seen, F v) {
#if defined(HB_NEON)
    return select(less(v, seen), v, seen);
#else
    return min(v, seen);
#endif
}

// n values (a multiple of 8) of W rows to lanes.
HB_INLINE void load_lanes(const float* const* rows, int n, float* to) {
#if defined(HB_X86_BYTES)
    for (int lane = 0; lane < W; lane += 8) {
        for (int i = 0; i < n; i += 8) {
            __m256 tile[8];
            for (int k = 0; k < 8; ++k) tile[k] = _mm256_loadu_ps(rows[lane + k] + i);
            transpose_eight(tile);
            for (int k = 0; k < 8; ++k) _mm256_store_ps(to + (i + k) * W + lane, tile[k]);
        }
    }
#else
    for (int i = 0; i < n; ++i) {
        for (int lane = 0; lane < W; ++lane) to[i * W + lane] = rows[lane][i];
    }
#endif
}

// Lane l of n words (a multiple of 8) to n words at `to` + l * stride bytes.
HB_INLINE void store_words(const uint32_t* words, int n, uint8_t* to, int64_t stride) {
#if defined(HB_X86_BYTES)
    for (int lane = 0; lane < W; lane += 8) {
        for (int i = 0; i < n; i += 8) {
            __m256 tile[8];
            for (int k = 0; k < 8; ++k) {
                const auto* from = reinterpret_cast<const float*>(words + (i + k) * W + lane);
                tile[k] = _mm256_load_ps(from);
            }
            transpose_eight(tile);
            for (int k = 0; k < 8; ++k) {
                auto* row = reinterpret_cast<float*>(to + (lane + k) * stride + 4 * i);
                _mm256_storeu_ps(row, tile[k]);
            }
        }
    }
#else
    for (int lane = 0; lane < W; ++lane) {
        for (int i = 0; i < n; ++i)
            std::memcpy(to + lane * stride + 4 * i, words + i * W + lane, 4);
    }
#endif
}

// Four codes of 0..255 to the bytes of a word.
HB_INLINE I pack_codes(const F* codes) {
    const I low = ior(truncate_int(codes[0]), shift_left<8>(truncate_int(codes[1])));
    const I high = ior(truncate_int(codes[2]), shift_left<8>(truncate_int(codes[3])));
    return ior(low, shift_left<16>(high));
}

// Weights importance * sqrt(energy + x^2), in place of the importance.
HB_INLINE void spread_energy(const float* x, F energy, int n, float* w) {
    for (int i = 0; i < n; ++i) {
        const F v = load(x + i * W);
        store(w + i * W, mul(load(w + i * W), square_root(add(energy, mul(v, v)))));
    }
}

HB_INLINE F sum_squares(const float* x, int n) {
    F sum = zero();
    for (int i = 0; i < n; ++i) {
        const F v = load(x + i * W);
        sum = add(sum, mul(v, v));
    }
    return sum;
}

}  // namespace HB_ISA
}  // namespace halfbyte
