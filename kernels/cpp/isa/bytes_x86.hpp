// Bytes of blocks on x86: 32 codes in one 256-bit vector. Included after the lanes.
#pragma once

namespace halfbyte {
namespace HB_ISA {

// Memory beyond the weight may be named too: a prefetch never faults.
HB_INLINE void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}
HB_INLINE float half_at(const uint8_t* p) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(p))));
}

// Low nibbles of 16 bytes, then their high nibbles.
HB_INLINE B32 split_nibbles(const uint8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i shifts = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    const __m256i moved = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(raw), shifts);
    return _mm256_and_si256(moved, _mm256_set1_epi8(15));
}
HB_INLINE B32 load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
HB_INLINE B32 flip_top_bit(B32 b) {
    return _mm256_xor_si256(b, _mm256_set1_epi8(static_cast<char>(0x80)));
}
// Nibble 2j is the low half of byte j, 2j + 1 its high half.
HB_INLINE B32 pair_nibbles(const uint8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i low = _mm_and_si128(raw, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(raw, 4), _mm_set1_epi8(15));
    return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
}
#if defined(HB_AVX512)
// The same for two blocks at once: p in the low half, q in the high half.
HB_INLINE I split_nibbles2(const uint8_t* p, const uint8_t* q) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    const I both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(low), 0xFF00, high);
    const I shifts =
        _mm512_setr_epi64(0, 0, 0x400000004, 0x400000004, 0, 0, 0x400000004, 0x400000004);
    return _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi8(15));
}
HB_INLINE I load_bytes2(const uint8_t* p, const uint8_t* q) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
HB_INLINE I flip_top_bit2(I b) {
    return _mm512_xor_si512(b, _mm512_set1_epi8(static_cast<char>(0x80)));
}
HB_INLINE I add_bit4_2(I codes, uint32_t p, uint32_t q) {
    const __mmask64 set = static_cast<__mmask64>(p) | static_cast<__mmask64>(q) << 32;
    return _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16));
}
#endif
// table[code] for codes below 16; the table stands twice.
HB_INLINE B32 look_up(B32 codes, const uint8_t* table) {
    return _mm256_shuffle_epi8(load_bytes(table), codes);
}
// Quarters of 8 bytes in the order 0, 2, 1, 3.
HB_INLINE B32 swap_middle_quarters(B32 b) { return _mm256_permute4x64_epi64(b, 0xd8); }
// ((byte >> shift) & mask) for each; the mask drops what crosses from a byte's neighbour.
HB_INLINE B32 bit_field(B32 b, int shift, uint8_t mask) {
    const B32 moved = _mm256_srl_epi16(b, _mm_cvtsi32_si128(shift));
    return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(mask)));
}
// codes + (field << Place); no bit is in both, and none leaves its byte.
template <int Place>
HB_INLINE B32 add_field(B32 codes, B32 field) {
    return _mm256_or_si256(codes, _mm256_slli_epi16(field, Place));
}
HB_INLINE void store_bytes(uint8_t* p, B32 b) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), b);
}

}  // namespace HB_ISA
}  // namespace halfbyte
