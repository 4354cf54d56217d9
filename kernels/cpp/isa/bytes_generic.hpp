// Bytes of blocks in plain C++. Included after the lanes.
#pragma once

namespace halfbyte {
namespace HB_ISA {

HB_INLINE void prefetch(const uint8_t*) {}
HB_INLINE float half_at(const uint8_t* p) { return half_bits_to_float(load_u16(p)); }

HB_INLINE B32 split_nibbles(const uint8_t* p) {
    B32 r;
    for (int i = 0; i < 16; ++i) {
        r.v[i] = p[i] & 15;
        r.v[i + 16] = p[i] >> 4;
    }
    return r;
}
HB_INLINE B32 load_bytes(const uint8_t* p) {
    B32 r;
    std::memcpy(r.v, p, 32);
    return r;
}
HB_INLINE B32 flip_top_bit(B32 b) {
    for (int i = 0; i < 32; ++i) b.v[i] ^= 0x80;
    return b;
}
HB_INLINE B32 pair_nibbles(const uint8_t* p) {
    B32 r;
    for (int i = 0; i < 16; ++i) {
        r.v[2 * i] = p[i] & 15;
        r.v[2 * i + 1] = p[i] >> 4;
    }
    return r;
}
HB_INLINE void store_bytes(uint8_t* p, const B32& b) { std::memcpy(p, b.v, 32); }

}  // namespace HB_ISA
}  // namespace halfbyte
