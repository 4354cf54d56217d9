// Code readers of 256-value blocks with a scale (and maybe a minimum) per 16 values. A word of
// scales holds those of the first and the last 16 of 32 values, as two int16.
#pragma once

#include "unpack/rows.hpp"

namespace halfbyte {
namespace HB_ISA {

HB_INLINE int32_t first_of_pair(int32_t pair) { return static_cast<int16_t>(pair & 0xffff); }
HB_INLINE int32_t last_of_pair(int32_t pair) { return pair >> 16; }

// Per block: value = (code - 2^kZeroBits) * scale * d, or code * scale * d + minimum * negated
// dmin.
template <class Block>
struct PairCodes {
    using BlockType = Block;
    using L = typename Block::L;
    static constexpr bool kHasMinimum = Block::kHasMinimum;
    static constexpr int kZero = Block::kZero;
    static constexpr int kZeroBits = kZero == 32 ? 5 : 2;
    static_assert(kZero == 0 || kZero == 1 << kZeroBits, "the zero is taken off by a shift");
    const uint8_t* row;

    HB_INLINE PairCodes() : row(nullptr) {}
    HB_INLINE PairCodes(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}
    HB_INLINE const uint8_t* block(int64_t s) const { return row + s * Block::kBytes; }
    HB_INLINE B32 codes(int64_t b) const {
        return Block::codes(block(b / kStepsPerBlock), static_cast<int>(b % kStepsPerBlock));
    }
#if defined(HB_AVX512)
    HB_INLINE I codes2(const PairCodes& other, int64_t b) const {
        return _mm512_inserti64x4(_mm512_castsi256_si512(codes(b)), other.codes(b), 1);
    }
#endif
    HB_INLINE float scale(int64_t s) const { return half_at(block(s) + L::kOffset_d); }
    HB_INLINE float minimum(int64_t s) const {
        if constexpr (kHasMinimum) return -half_at(block(s) + L::kOffset_dmin);
        return 0.0f;
    }
};

// Scales of W rows side by side.
struct PairScales {
    int32_t* scales;   // [block of 32][W]
    int32_t* minima;   // the same, if the kind has minima
    float* d;          // [block of 256][W]
    float* minimum_d;  // the same
};

// Words of W rows, [W][kStepsPerBlock], to [kStepsPerBlock][W].
HB_INLINE void words_to_lanes(const int32_t (*words)[kStepsPerBlock], int32_t* out) {
#if defined(HB_TRANSPOSE)
    F lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = load(reinterpret_cast<const float*>(words[i]));
    transpose_lanes(lanes);
    for (int j = 0; j < W; ++j) store(reinterpret_cast<float*>(out + j * W), lanes[j]);
#else
    for (int j = 0; j < kStepsPerBlock; ++j) {
        for (int i = 0; i < W; ++i) out[j * W + i] = words[i][j];
    }
#endif
}

template <class Codes>
HB_INLINE void gather_pairs(const Codes* rows, int64_t supers, const PairScales& to) {
    using Block = typename Codes::BlockType;
    for (int64_t s = 0; s < supers; ++s) {
        alignas(64) int32_t scales[W][kStepsPerBlock], minima[W][kStepsPerBlock];
        for (int i = 0; i < W; ++i) {
            int8_t scale[16], minimum[16];
            Block::scales(rows[i].block(s), scale, minimum);
            int16_t wide[32];
            for (int g = 0; g < 16; ++g) wide[g] = scale[g];
            std::memcpy(scales[i], wide, 32);
            if constexpr (Codes::kHasMinimum) {
                for (int g = 0; g < 16; ++g) wide[g] = minimum[g];
                std::memcpy(minima[i], wide, 32);
                to.minimum_d[s * W + i] = rows[i].minimum(s);
            }
            to.d[s * W + i] = rows[i].scale(s);
        }
        words_to_lanes(scales, to.scales + s * kStepsPerBlock * W);
        if constexpr (Codes::kHasMinimum) {
            words_to_lanes(minima, to.minima + s * kStepsPerBlock * W);
        }
    }
}

// Both int16 of each lane become its first, or its last (elsewhere: the lane becomes it).
// dot4_scaled adds to each lane the 4 products of its bytes times its scale.
#if defined(HB_AVX512)
HB_INLINE I first_scales(I pairs) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, pairs, _mm512_slli_epi32(pairs, 16));
}
HB_INLINE I last_scales(I pairs) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(pairs, 16), pairs);
}
HB_INLINE I pair_dot(I a, I b) { return _mm512_madd_epi16(a, b); }
HB_INLINE I dot4_scaled(I acc, I w, I x, I scale) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), scale));
}
#elif defined(HB_X86_BYTES)
HB_INLINE I first_scales(I pairs) {
    return _mm256_blend_epi16(pairs, _mm256_slli_epi32(pairs, 16), 0xAA);
}
HB_INLINE I last_scales(I pairs) {
    return _mm256_blend_epi16(_mm256_srli_epi32(pairs, 16), pairs, 0xAA);
}
HB_INLINE I pair_dot(I a, I b) { return _mm256_madd_epi16(a, b); }
HB_INLINE I dot4_scaled(I acc, I w, I x, I scale) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), scale));
}
#else
template <class Function>
HB_INLINE I each_lane(I a, I b, Function&& function) {
    int32_t left[W], right[W];
    istore(left, a);
    istore(right, b);
    for (int i = 0; i < W; ++i) left[i] = function(left[i], right[i]);
    return iload(left);
}
HB_INLINE I first_scales(I pairs) {
    return each_lane(pairs, pairs, [](int32_t p, int32_t) { return first_of_pair(p); });
}
HB_INLINE I last_scales(I pairs) {
    return each_lane(pairs, pairs, [](int32_t p, int32_t) { return last_of_pair(p); });
}
HB_INLINE I pair_dot(I a, I b) {
    return each_lane(a, b, [](int32_t p, int32_t q) {
        return first_of_pair(p) * first_of_pair(q) + last_of_pair(p) * last_of_pair(q);
    });
}
HB_INLINE I dot4_scaled(I acc, I w, I x, I scale) {
    const I dots = dot4<false>(izero(), w, x);
    const I scaled = each_lane(dots, scale, [](int32_t p, int32_t q) { return p * q; });
    return each_lane(acc, scaled, [](int32_t p, int32_t q) { return p + q; });
}
#endif

// Lane r = scaled integer dot product of block b of rows[r] with 32 activation codes.
template <class Codes>
HB_INLINE I scaled_row_dots(const Codes* rows, int64_t b, const int8_t* x, const int32_t* pairs) {
#if defined(HB_AVX512)
    const I twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    const I spread =
        _mm512_mask_blend_epi64(0xCC, _mm512_set1_epi16(0x0100), _mm512_set1_epi16(0x0302));
    I t[8];
    for (int r = 0; r < 8; ++r) {
        const I both = _mm512_mask_set1_epi32(iset1(pairs[r]), 0xFF00, pairs[r + 8]);
        t[r] = dot4_scaled(izero(), rows[r].codes2(rows[r + 8], b), twice,
                           _mm512_shuffle_epi8(both, spread));
    }
    return sum_rows(t);
#elif defined(HB_X86_BYTES)
    const I x32 = iload(x);
    const I spread = _mm256_set_m128i(_mm_set1_epi16(0x0302), _mm_set1_epi16(0x0100));
    I t[8];
    for (int r = 0; r < 8; ++r) {
        const I scale = _mm256_shuffle_epi8(iset1(pairs[r]), spread);
        t[r] = _mm256_madd_epi16(_mm256_maddubs_epi16(rows[r].codes(b), x32), scale);
    }
    return sum_rows(t);
#else
    int32_t result[W];
    for (int r = 0; r < W; ++r) {
        uint8_t codes[kStep];
        store_bytes(codes, rows[r].codes(b));
        int32_t sums[2] = {0, 0};
        for (int i = 0; i < 16; ++i) {
            sums[0] += static_cast<int8_t>(codes[i]) * x[i];
            sums[1] += static_cast<int8_t>(codes[i + 16]) * x[i + 16];
        }
        result[r] = sums[0] * first_of_pair(pairs[r]) + sums[1] * last_of_pair(pairs[r]);
    }
    return iload(result);
#endif
}

}  // namespace HB_ISA
}  // namespace halfbyte
