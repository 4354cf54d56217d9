// Code readers for integer dot products: 32 codes, a scale and maybe a minimum per block.
#pragma once

#include "unpack/rows.hpp"

namespace halfbyte {
namespace HB_ISA {

// kZero * (sum of the activation codes) is taken off the integer sum; it is exact.
template <class Block>
struct BlockCodes {
    static constexpr bool kSigned = kSignedBytes && Block::kBits == 8;
    static constexpr int kZero = kSigned ? 0 : Block::kZero;
    static constexpr bool kHasMinimum = Block::kHasMinimum;
    const uint8_t* row;

    HB_INLINE BlockCodes() : row(nullptr) {}
    HB_INLINE BlockCodes(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}
    HB_INLINE B32 codes(int64_t b) const {
        const B32 unsigned_codes = Block::codes(row + b * Block::kBytes);
        if constexpr (kSigned) return flip_top_bit(unsigned_codes);
        return unsigned_codes;
    }
#if defined(HB_AVX512)
    HB_INLINE I codes2(const BlockCodes& other, int64_t b) const {
        return Block::codes2(row + b * Block::kBytes, other.row + b * Block::kBytes);
    }
#endif
    // Scales as stored, and W of them as lanes.
    using Stored = uint16_t;
    HB_INLINE Stored scale(int64_t b) const { return load_u16(row + b * Block::kBytes); }
    HB_INLINE Stored minimum(int64_t b) const {
        return Block::minimum_bits(row + b * Block::kBytes);
    }
    static HB_INLINE F lanes(const Stored* p) { return load_half(p); }
};

// The zero point becomes a minimum: (code - zero) * scale = code * scale + (-zero * scale).
template <bool EightBits>
struct AffineCodes {
    static constexpr bool kSigned = kSignedBytes && EightBits;
    static constexpr int kZero = 0;
    static constexpr bool kHasMinimum = true;
    const WeightView* w;
    int64_t row;

    HB_INLINE AffineCodes() : w(nullptr), row(0) {}
    HB_INLINE AffineCodes(const WeightView& view, int64_t r) : w(&view), row(r) {}
    HB_INLINE B32 codes(int64_t b) const {
        const uint8_t* p = w->data + row * w->row_bytes + b * 4 * w->bits;
        const B32 unsigned_codes = EightBits ? load_bytes(p) : affine_codes(p, w->bits);
        if constexpr (kSigned) return flip_top_bit(unsigned_codes);
        return unsigned_codes;
    }
#if defined(HB_AVX512)
    HB_INLINE I codes2(const AffineCodes& other, int64_t b) const {
        return _mm512_inserti64x4(_mm512_castsi256_si512(codes(b)), other.codes(b), 1);
    }
#endif
    using Stored = float;
    static HB_INLINE F lanes(const Stored* p) { return load(p); }
    HB_INLINE Stored scale(int64_t b) const {
        return AffineRow(*w, row).scale(kStep * b / w->group_size);
    }
    HB_INLINE Stored minimum(int64_t b) const {
        const AffineRow reader(*w, row);
        const int64_t group = kStep * b / w->group_size;
        const float shift = kSigned ? 128.0f : 0.0f;
        return (shift - reader.zero_point(group)) * reader.scale(group);
    }
};

// Types of 256-value blocks whose scales are shared by 32 values.
template <class Block>
struct KCodes {
    static constexpr bool kSigned = false;
    static constexpr int kZero = 0;
    static constexpr bool kHasMinimum = true;
    const uint8_t* row;

    HB_INLINE KCodes() : row(nullptr) {}
    HB_INLINE KCodes(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}
    HB_INLINE const uint8_t* block(int64_t b) const {
        return row + b / kStepsPerBlock * Block::kBytes;
    }
    HB_INLINE B32 codes(int64_t b) const {
        return Block::codes(block(b), static_cast<int>(b % kStepsPerBlock));
    }
#if defined(HB_AVX512)
    HB_INLINE I codes2(const KCodes& other, int64_t b) const {
        return _mm512_inserti64x4(_mm512_castsi256_si512(codes(b)), other.codes(b), 1);
    }
#endif
    using Stored = float;
    static HB_INLINE F lanes(const Stored* p) { return load(p); }
};

// Codebook values and small integers, one scale for each 32.
template <class Block>
struct SmallCodes {
    static constexpr bool kSigned = kSignedBytes && Block::kZero == 128;
    static constexpr int kZero = kSigned ? 0 : Block::kZero;
    static constexpr bool kHasMinimum = false;
    const uint8_t* row;

    HB_INLINE SmallCodes() : row(nullptr) {}
    HB_INLINE SmallCodes(const WeightView& w, int64_t r) : row(w.data + r * w.row_bytes) {}
    HB_INLINE const uint8_t* block(int64_t b) const {
        return row + b / Block::kSteps * Block::kBytes;
    }
    HB_INLINE B32 codes(int64_t b) const {
        const B32 unsigned_codes = Block::codes(block(b), static_cast<int>(b % Block::kSteps));
        if constexpr (kSigned) return flip_top_bit(unsigned_codes);
        return unsigned_codes;
    }
#if defined(HB_AVX512)
    HB_INLINE I codes2(const SmallCodes& other, int64_t b) const {
        return _mm512_inserti64x4(_mm512_castsi256_si512(codes(b)), other.codes(b), 1);
    }
#endif
    using Stored = float;
    static HB_INLINE F lanes(const Stored* p) { return load(p); }
    HB_INLINE Stored scale(int64_t b) const {
        return Block::scale(block(b), static_cast<int>(b % Block::kSteps), 0);
    }
    HB_INLINE Stored minimum(int64_t) const { return 0.0f; }
};

template <class Function>
HB_INLINE void with_codes(const WeightView& w, Function&& function) {
    switch (w.kind) {
        case Kind::Q4_0:
            return function(Tag<BlockCodes<BlockQ4_0>>());
        case Kind::Q4_1:
            return function(Tag<BlockCodes<BlockQ4_1>>());
        case Kind::Q5_0:
            return function(Tag<BlockCodes<BlockQ5_0>>());
        case Kind::Q5_1:
            return function(Tag<BlockCodes<BlockQ5_1>>());
        case Kind::Q8_0:
            return function(Tag<BlockCodes<BlockQ8_0>>());
        case Kind::Q4_K:
            return function(Tag<KCodes<BlockQ4_K>>());
        case Kind::Q5_K:
            return function(Tag<KCodes<BlockQ5_K>>());
        case Kind::Q1_0:
            return function(Tag<SmallCodes<BlockQ1_0>>());
        case Kind::Q2_0:
            return function(Tag<SmallCodes<BlockQ2_0>>());
        case Kind::TQ1_0:
            return function(Tag<SmallCodes<BlockTQ1_0>>());
        case Kind::TQ2_0:
            return function(Tag<SmallCodes<BlockTQ2_0>>());
        case Kind::MXFP4:
            return function(Tag<SmallCodes<BlockMXFP4>>());
        case Kind::IQ4_NL:
            return function(Tag<SmallCodes<BlockIQ4_NL>>());
        case Kind::IQ4_XS:
            return function(Tag<SmallCodes<BlockIQ4_XS>>());
        default:
            if (w.bits == 8) return function(Tag<AffineCodes<true>>());
            return function(Tag<AffineCodes<false>>());
    }
}

#if defined(HB_X86_BYTES)
// Lane r = sum of the lanes of vector r; with 16 lanes, each half of a vector is a row, and the
// high halves are rows 8 to 15.
HB_INLINE I sum_rows(const I* t) {
    I u[4], v[2];
#if defined(HB_AVX512)
    for (int r = 0; r < 4; ++r) {
        u[r] = _mm512_add_epi32(_mm512_unpacklo_epi32(t[2 * r], t[2 * r + 1]),
                                _mm512_unpackhi_epi32(t[2 * r], t[2 * r + 1]));
    }
    for (int r = 0; r < 2; ++r) {
        v[r] = _mm512_add_epi32(_mm512_unpacklo_epi64(u[2 * r], u[2 * r + 1]),
                                _mm512_unpackhi_epi64(u[2 * r], u[2 * r + 1]));
    }
    const I even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const I odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    return _mm512_add_epi32(_mm512_permutex2var_epi64(v[0], even, v[1]),
                            _mm512_permutex2var_epi64(v[0], odd, v[1]));
#else
    for (int r = 0; r < 4; ++r) {
        u[r] = _mm256_add_epi32(_mm256_unpacklo_epi32(t[2 * r], t[2 * r + 1]),
                                _mm256_unpackhi_epi32(t[2 * r], t[2 * r + 1]));
    }
    for (int r = 0; r < 2; ++r) {
        v[r] = _mm256_add_epi32(_mm256_unpacklo_epi64(u[2 * r], u[2 * r + 1]),
                                _mm256_unpackhi_epi64(u[2 * r], u[2 * r + 1]));
    }
    return _mm256_add_epi32(_mm256_permute2x128_si256(v[0], v[1], 0x20),
                            _mm256_permute2x128_si256(v[0], v[1], 0x31));
#endif
}
#endif

// Lane r = integer dot product of block b of rows[r] with 32 activation codes.
template <class Codes>
HB_INLINE I row_dots(const Codes* rows, int64_t b, const int8_t* x) {
#if defined(HB_AVX512)
    const __m256i x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const I twice = _mm512_broadcast_i64x4(x32);
    I t[8];
    for (int r = 0; r < 8; ++r) {
        t[r] = dot4<false>(izero(), rows[r].codes2(rows[r + 8], b), twice);
    }
    return sum_rows(t);
#elif defined(HB_X86_BYTES)
    const I x32 = iload(x);
    I t[8];
    for (int r = 0; r < 8; ++r) t[r] = dot4<Codes::kSigned>(izero(), rows[r].codes(b), x32);
    return sum_rows(t);
#elif defined(HB_NEON)
    const int8x16_t x0 = vld1q_s8(x), x1 = vld1q_s8(x + 16);
    int32x4_t t[8];
    for (int r = 0; r < 8; ++r) {
        const B32 codes = rows[r].codes(b);
        t[r] = vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(codes.lo), x0);
        t[r] = vdotq_s32(t[r], vreinterpretq_s8_u8(codes.hi), x1);
    }
    return {vpaddq_s32(vpaddq_s32(t[0], t[1]), vpaddq_s32(t[2], t[3])),
            vpaddq_s32(vpaddq_s32(t[4], t[5]), vpaddq_s32(t[6], t[7]))};
#else
    I result;
    for (int r = 0; r < W; ++r) {
        const B32 codes = rows[r].codes(b);
        int32_t sum = 0;
        for (int i = 0; i < kStep; ++i) sum += static_cast<int>(codes.v[i]) * x[i];
        result.v[r] = sum;
    }
    return result;
#endif
}

// Block b of W rows so that word s of the result holds codes 4 s .. 4 s + 3 of every row in turn.
template <class Codes>
HB_INLINE void interleave_codes(const Codes* rows, int64_t b, uint8_t* out) {
#if defined(HB_AVX512)
    I t[8], u[8];
    for (int r = 0; r < 8; ++r) t[r] = rows[r].codes2(rows[r + 8], b);
    // Transpose 8 rows of 8 words in each half; rows r + 8 ride in the high half.
    for (int r = 0; r < 4; ++r) {
        u[2 * r] = _mm512_unpacklo_epi32(t[2 * r], t[2 * r + 1]);
        u[2 * r + 1] = _mm512_unpackhi_epi32(t[2 * r], t[2 * r + 1]);
    }
    for (int r = 0; r < 2; ++r) {
        t[4 * r] = _mm512_unpacklo_epi64(u[4 * r], u[4 * r + 2]);
        t[4 * r + 1] = _mm512_unpackhi_epi64(u[4 * r], u[4 * r + 2]);
        t[4 * r + 2] = _mm512_unpacklo_epi64(u[4 * r + 1], u[4 * r + 3]);
        t[4 * r + 3] = _mm512_unpackhi_epi64(u[4 * r + 1], u[4 * r + 3]);
    }
    const I low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const I high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int s = 0; s < 4; ++s) {
        _mm512_storeu_si512(out + 64 * s, _mm512_permutex2var_epi64(t[s], low, t[s + 4]));
        _mm512_storeu_si512(out + 64 * (s + 4), _mm512_permutex2var_epi64(t[s], high, t[s + 4]));
    }
#else
    for (int i = 0; i < W; ++i) {
        uint8_t bytes[kStep];
        store_bytes(bytes, rows[i].codes(b));
        for (int s = 0; s < kStep / 4; ++s) std::memcpy(out + (s * W + i) * 4, bytes + 4 * s, 4);
    }
#endif
}

}  // namespace HB_ISA
}  // namespace halfbyte
