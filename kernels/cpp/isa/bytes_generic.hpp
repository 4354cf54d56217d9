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
// table[code] for codes below 16; the table stands twice.
HB_INLINE B32 look_up(B32 codes, const uint8_t* table) {
    for (int i = 0; i < 32; ++i) codes.v[i] = table[codes.v[i]];
    return codes;
}
// Quarters of 8 bytes in the order 0, 2, 1, 3.
HB_INLINE B32 swap_middle_quarters(B32 b) {
    B32 r = b;
    std::memcpy(r.v + 8, b.v + 16, 8);
    std::memcpy(r.v + 16, b.v + 8, 8);
    return r;
}
// ((byte >> shift) & mask) for each.
HB_INLINE B32 bit_field(B32 b, int shift, uint8_t mask) {
    for (int i = 0; i < 32; ++i) b.v[i] = static_cast<uint8_t>((b.v[i] >> shift) & mask);
    return b;
}
// codes + (field << Place); no bit is in both.
template <int Place>
HB_INLINE B32 add_field(B32 codes, const B32& field) {
    for (int i = 0; i < 32; ++i)
        codes.v[i] = static_cast<uint8_t>(codes.v[i] | (field.v[i] << Place));
    return codes;
}
HB_INLINE void store_bytes(uint8_t* p, const B32& b) { std::memcpy(p, b.v, 32); }

}  // namespace HB_ISA
}  // namespace halfbyte
