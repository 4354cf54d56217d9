// Block encodings: where scale, minimum and the 32 codes lie. The only place that unpacks a block.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

// `codes` gives the 32 unsigned codes of a block, `codes2` those of two blocks at once.
template <class Layout>
struct FourBitCodes {
    using L = Layout;
    static constexpr int kBytes = L::kBytes, kBits = 4;
    static HB_INLINE B32 codes(const uint8_t* p) { return split_nibbles(p + L::kOffset_qs); }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs);
    }
#endif
};

template <class Layout>
struct FiveBitCodes {
    using L = Layout;
    static constexpr int kBytes = L::kBytes, kBits = 5;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return add_bit4(split_nibbles(p + L::kOffset_qs), load_u32(p + L::kOffset_qh));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return add_bit4_2(split_nibbles2(p + L::kOffset_qs, q + L::kOffset_qs),
                          load_u32(p + L::kOffset_qh), load_u32(q + L::kOffset_qh));
    }
#endif
};

template <class Layout>
struct EightBitCodes {
    using L = Layout;
    static constexpr int kBytes = L::kBytes, kBits = 8;
    static HB_INLINE B32 codes(const uint8_t* p) {
        return flip_top_bit(load_bytes(p + L::kOffset_qs));
    }
#if defined(HB_AVX512)
    static HB_INLINE I codes2(const uint8_t* p, const uint8_t* q) {
        return flip_top_bit2(load_bytes2(p + L::kOffset_qs, q + L::kOffset_qs));
    }
#endif
};

struct NoMinimum {
    static constexpr bool kHasMinimum = false;
    static HB_INLINE float minimum(const uint8_t*) { return 0.0f; }
    static HB_INLINE uint16_t minimum_bits(const uint8_t*) { return 0; }
};

template <class Layout>
struct HalfMinimum {
    static constexpr bool kHasMinimum = true;
    static HB_INLINE float minimum(const uint8_t* p) { return half_at(p + Layout::kOffset_m); }
    static HB_INLINE uint16_t minimum_bits(const uint8_t* p) {
        return load_u16(p + Layout::kOffset_m);
    }
};

// Without a minimum the value is (code - kZero) * scale, with one it is code * scale + minimum.
struct BlockQ4_0 : FourBitCodes<Layout_Q4_0>, NoMinimum {
    static constexpr int kZero = 8;
};

struct BlockQ4_1 : FourBitCodes<Layout_Q4_1>, HalfMinimum<Layout_Q4_1> {
    static constexpr int kZero = 0;
};

struct BlockQ5_0 : FiveBitCodes<Layout_Q5_0>, NoMinimum {
    static constexpr int kZero = 16;
};

struct BlockQ5_1 : FiveBitCodes<Layout_Q5_1>, HalfMinimum<Layout_Q5_1> {
    static constexpr int kZero = 0;
};

struct BlockQ8_0 : EightBitCodes<Layout_Q8_0>, NoMinimum {
    static constexpr int kZero = 128;
};

}  // namespace HB_ISA
}  // namespace halfbyte
