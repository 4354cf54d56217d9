// Block encodings: where scale, minimum and the 32 codes lie. The only place that unpacks a block.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

// Each block type: `codes` gives 32 unsigned codes. Without a minimum the value is
// (code - kZero) * scale, with one it is code * scale + minimum.
struct BlockQ4_0 {
    using L = Layout_Q4_0;
    static constexpr int kBytes = L::kBytes, kZero = 8, kBits = 4;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE B32 codes(const uint8_t* p) { return split_nibbles(p + L::kOffset_qs); }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs);
    }
#endif
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

struct BlockQ4_1 {
    using L = Layout_Q4_1;
    static constexpr int kBytes = L::kBytes, kZero = 0, kBits = 4;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE B32 codes(const uint8_t* p) { return split_nibbles(p + L::kOffset_qs); }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs);
    }
#endif
    static HB_INLINE float minimum(const uint8_t* p) { return half_at(p + L::kOffset_m); }
    static HB_INLINE uint16_t minimum_bits(const uint8_t* p) { return load_u16(p + L::kOffset_m); }
};

struct BlockQ5_0 {
    using L = Layout_Q5_0;
    static constexpr int kBytes = L::kBytes, kZero = 16, kBits = 5;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return add_bit4(split_nibbles(p + L::kOffset_qs), load_u32(p + L::kOffset_qh));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return add_bit4_2(split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs),
                          load_u32(p + L::kOffset_qh), load_u32(q + L::kOffset_qh));
    }
#endif
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

struct BlockQ5_1 {
    using L = Layout_Q5_1;
    static constexpr int kBytes = L::kBytes, kZero = 0, kBits = 5;
    static constexpr bool kHasMinimum = true;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return add_bit4(split_nibbles(p + L::kOffset_qs), load_u32(p + L::kOffset_qh));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return add_bit4_2(split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs),
                          load_u32(p + L::kOffset_qh), load_u32(q + L::kOffset_qh));
    }
#endif
    static HB_INLINE float minimum(const uint8_t* p) { return half_at(p + L::kOffset_m); }
    static HB_INLINE uint16_t minimum_bits(const uint8_t* p) { return load_u16(p + L::kOffset_m); }
};

struct BlockQ8_0 {
    using L = Layout_Q8_0;
    static constexpr int kBytes = L::kBytes, kZero = 128, kBits = 8;
    static constexpr bool kHasMinimum = false;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return flip_top_bit(load_bytes(p + L::kOffset_qs));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return flip_top_bit2(load_bytes2(p + L::kOffset_qs, q + L::kOffset_qs));
    }
#endif
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

}  // namespace HB_ISA
}  // namespace halfbyte
