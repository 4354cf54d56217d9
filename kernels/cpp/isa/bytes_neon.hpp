// Bytes of blocks on aarch64: 32 codes in two 128-bit vectors. Included after the lanes.
#pragma once

namespace halfbyte {
namespace HB_ISA {

HB_INLINE void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

HB_INLINE float half_at(const uint8_t* p) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(load_u16(p)))), 0);
}
// Low nibbles of 16 bytes, then their high nibbles.
HB_INLINE B32 split_nibbles(const uint8_t* p) {
    const uint8x16_t raw = vld1q_u8(p);
    return {vandq_u8(raw, vdupq_n_u8(15)), vshrq_n_u8(raw, 4)};
}
HB_INLINE B32 load_bytes(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
HB_INLINE B32 flip_top_bit(B32 b) {
    return {veorq_u8(b.lo, vdupq_n_u8(0x80)), veorq_u8(b.hi, vdupq_n_u8(0x80))};
}
// Nibble 2j is the low half of byte j, 2j + 1 its high half.
HB_INLINE B32 pair_nibbles(const uint8_t* p) {
    const B32 split = split_nibbles(p);
    return {vzip1q_u8(split.lo, split.hi), vzip2q_u8(split.lo, split.hi)};
}
// table[code] for codes below 16; the table stands twice.
HB_INLINE B32 look_up(B32 codes, const uint8_t* table) {
    const uint8x16_t values = vld1q_u8(table);
    return {vqtbl1q_u8(values, codes.lo), vqtbl1q_u8(values, codes.hi)};
}
// Quarters of 8 bytes in the order 0, 2, 1, 3.
HB_INLINE B32 swap_middle_quarters(B32 b) {
    return {vcombine_u8(vget_low_u8(b.lo), vget_low_u8(b.hi)),
            vcombine_u8(vget_high_u8(b.lo), vget_high_u8(b.hi))};
}
// ((byte >> shift) & mask) for each.
HB_INLINE B32 bit_field(B32 b, int shift, uint8_t mask) {
    const int8x16_t by = vdupq_n_s8(static_cast<int8_t>(-shift));
    const uint8x16_t kept = vdupq_n_u8(mask);
    return {vandq_u8(vshlq_u8(b.lo, by), kept), vandq_u8(vshlq_u8(b.hi, by), kept)};
}
// codes + (field << Place); no bit is in both.
template <int Place>
HB_INLINE B32 add_field(B32 codes, B32 field) {
    return {vorrq_u8(codes.lo, vshlq_n_u8(field.lo, Place)),
            vorrq_u8(codes.hi, vshlq_n_u8(field.hi, Place))};
}
HB_INLINE void store_bytes(uint8_t* p, B32 b) {
    vst1q_u8(p, b.lo);
    vst1q_u8(p + 16, b.hi);
}

}  // namespace HB_ISA
}  // namespace halfbyte
