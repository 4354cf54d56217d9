// Q2_K, Q4_K and Q5_K: a scale and a minimum in each sub-block.
#pragma once

#include "encode/k_lanes.hpp"

namespace halfbyte {
namespace HB_ISA {

template <class Type>
struct MinimumEncoder {
    static constexpr int kSubBlocks = kSuperBlock / Type::kGroup, kTop = (1 << Type::kBits) - 1;

    static HB_INLINE void fit_plain(KLanes& lanes, MinimumFit* fits) {
        for (int j = 0; j < kSubBlocks; j += 4) {
            for (int k = j; k < j + 4; ++k) {
                const int at = k * Type::kGroup * W;
                Type::plain_weights(lanes.x + at, lanes.w + at);
            }
            minimum_search<Type::kGroup, kTop, Type::kAbsolute, 4>(
                sub_block<Type>(lanes.x, j), sub_block<Type>(lanes.w, j), Type::kTrials, fits + j);
        }
    }

    static HB_INLINE void fit_weighted(KLanes& lanes, MinimumFit* fits, float* totals) {
        const F energy = mul(set1(Type::kEnergy), sum_squares(lanes.x, kSuperBlock));
        spread_energy(lanes.x, div(energy, set1(256.0f)), kSuperBlock, lanes.w);
        for (int j = 0; j < kSubBlocks; ++j) {
            const float* w = sub_block<Type>(lanes.w, j);
            F total = zero();
            for (int i = 0; i < Type::kGroup; ++i) total = add(total, load(w + i * W));
            store(totals + j * W, total);
        }
        for (int j = 0; j < kSubBlocks; j += 4) {
            minimum_search<Type::kGroup, kTop, false, 4>(sub_block<Type>(lanes.x, j),
                                                         sub_block<Type>(lanes.w, j),
                                                         kWeightedTrials, fits + j);
        }
    }

    static HB_INLINE void code_scales(const MinimumFit* fits, const float* totals, bool weighted,
                                      I* sc, I* mn, F* d, F* dmin) {
        if (!weighted) {
            F scales[kSubBlocks], lows[kSubBlocks];
            for (int j = 0; j < kSubBlocks; ++j) {
                scales[j] = fits[j].scale, lows[j] = sub(zero(), fits[j].low);
            }
            *d = largest_first<kSubBlocks, Type::kLimited>(scales, Type::kScaleTop, sc);
            *dmin = largest_first<kSubBlocks, Type::kLimited>(lows, Type::kScaleTop, mn);
            return;
        }
        alignas(64) float values[2 * kSubBlocks * W], codes[2 * kSubBlocks * W];
        for (int j = 0; j < kSubBlocks; ++j) {
            store(values + j * W, fits[j].scale);
            store(values + (kSubBlocks + j) * W, sub(zero(), fits[j].low));
        }
        F found[2];
        positive_search<kSubBlocks, Type::kScaleTop, 2>(values, totals, codes, found);
        for (int j = 0; j < kSubBlocks; ++j) {
            sc[j] = truncate_int(load(codes + j * W));
            mn[j] = truncate_int(load(codes + (kSubBlocks + j) * W));
            if (Type::kBits == 5) sc[j] = imin(sc[j], iset1(63)), mn[j] = imin(mn[j], iset1(63));
        }
        *d = found[0], *dmin = found[1];
    }

    static HB_INLINE void encode(KLanes& lanes, bool weighted) {
        MinimumFit fits[kSubBlocks];
        alignas(64) float totals[kSubBlocks * W];
        if (weighted) {
            fit_weighted(lanes, fits, totals);
        } else {
            fit_plain(lanes, fits);
        }
        I sc[kSubBlocks], mn[kSubBlocks];
        F d, dmin, step[kSubBlocks], lift[kSubBlocks];
        code_scales(fits, totals, weighted, sc, mn, &d, &dmin);
        d = store_scale(lanes.d, d);
        dmin = store_scale(lanes.dmin, dmin);
        Type::join_scales(sc, mn);
        for (int j = 0; j < kSubBlocks; ++j) {
            store_low_bytes(lanes.scales + j * W, sc[j]);
            store_low_bytes(lanes.minimums + j * W, mn[j]);
            step[j] = mul(d, to_float(sc[j]));
            lift[j] = mul(dmin, to_float(mn[j]));
        }
        requantize<Type>(lanes, step, lift, [&](int j, int i) {
            const F x = load(sub_block<Type>(lanes.x, j) + i * W);
            return fits[j].code(x, set1(static_cast<float>(kTop)));
        });
    }
};

struct Q2KType {
    using L = Layout_Q2_K;
    static constexpr int kBits = 2, kGroup = 16, kZero = 0, kScaleTop = 15;
    static constexpr bool kHasMinimum = true, kAbsolute = true, kLimited = false;
    static constexpr Trials kTrials = {-0.5f, 0.1f, 15};
    static constexpr float kEnergy = 1.0f;

    static HB_INLINE void plain_weights(const float* x, float* w) {
        for (int i = 0; i < kGroup; ++i) store(w + i * W, abs(load(x + i * W)));
    }
    // One byte holds both: a scale beyond 4 bits (a negative one) spills into the minimum.
    static HB_INLINE void join_scales(I* sc, I* mn) {
        for (int j = 0; j < 16; ++j) {
            mn[j] = iand(ior(mn[j], shift_right<4>(sc[j])), iset1(15));
            sc[j] = iand(sc[j], iset1(15));
        }
    }
    static HB_INLINE void write(const KLanes& lanes, int lane, uint8_t* out) {
        for (int j = 0; j < 16; ++j) {
            const int at = j * W + lane;
            out[j] = static_cast<uint8_t>(lanes.scales[at] | lanes.minimums[at] << 4);
        }
        put_two_bits<0>(lanes.codes[lane], out + L::kOffset_qs);
        std::memcpy(out + L::kOffset_d, lanes.d + lane, 2);
        std::memcpy(out + L::kOffset_dmin, lanes.dmin + lane, 2);
    }
    static HB_INLINE void encode(KLanes& lanes, bool weighted) {
        MinimumEncoder<Q2KType>::encode(lanes, weighted);
    }
};

template <class Layout, int Bits>
struct SixBitScales {
    using L = Layout;
    static constexpr int kBits = Bits, kGroup = 32, kZero = 0, kScaleTop = 63;
    static constexpr bool kHasMinimum = true, kAbsolute = false, kLimited = true;
    static constexpr Trials kTrials = Bits == 4 ? Trials{-1.0f, 0.1f, 20} : Trials{-0.5f, 0.1f, 15};
    static constexpr float kEnergy = 2.0f;

    static HB_INLINE void plain_weights(const float* x, float* w) {
        const F mean = square_root(div(sum_squares(x, kGroup), set1(32.0f)));
        for (int i = 0; i < kGroup; ++i) store(w + i * W, add(mean, abs(load(x + i * W))));
    }
    // The top bits of the later four lie in the bytes of the first four, where an integer beyond
    // 6 bits (of a negative scale) spills into them.
    static HB_INLINE void join_six(I* values) {
        for (int j = 0; j < 4; ++j) {
            const I tops = shift_left<6>(shift_right<4>(values[j + 4]));
            const I byte = iand(ior(values[j], tops), iset1(255));
            values[j] = iand(byte, iset1(63));
            const I low = iand(values[j + 4], iset1(15));
            values[j + 4] = ior(low, shift_left<4>(shift_right<6>(byte)));
        }
    }
    static HB_INLINE void join_scales(I* sc, I* mn) {
        join_six(sc);
        join_six(mn);
    }
    static HB_INLINE void write(const KLanes& lanes, int lane, uint8_t* out) {
        std::memcpy(out + L::kOffset_d, lanes.d + lane, 2);
        std::memcpy(out + L::kOffset_dmin, lanes.dmin + lane, 2);
        uint8_t* packed = out + L::kOffset_scales;
        for (int j = 0; j < 4; ++j) {
            const int at = j * W + lane, later = at + 4 * W;
            const int sc = lanes.scales[later], mn = lanes.minimums[later];
            packed[j] = static_cast<uint8_t>(lanes.scales[at] | sc >> 4 << 6);
            packed[j + 4] = static_cast<uint8_t>(lanes.minimums[at] | mn >> 4 << 6);
            packed[j + 8] = static_cast<uint8_t>((sc & 15) | (mn & 15) << 4);
        }
        if constexpr (Bits == 5) put_single_bits<4>(lanes.codes[lane], out + L::kOffset_qh);
        put_nibbles<32>(lanes.codes[lane], out + L::kOffset_qs);
    }
    static HB_INLINE void encode(KLanes& lanes, bool weighted) {
        MinimumEncoder<SixBitScales>::encode(lanes, weighted);
    }
};

using Q4KType = SixBitScales<Layout_Q4_K, 4>;
using Q5KType = SixBitScales<Layout_Q5_K, 5>;

}  // namespace HB_ISA
}  // namespace halfbyte
