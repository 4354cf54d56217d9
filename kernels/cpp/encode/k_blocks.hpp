// Q3_K and Q6_K: signed codes and scales; and the loop over blocks of all K kinds.
#pragma once

#include "encode/k_minimum.hpp"

namespace halfbyte {
namespace HB_ISA {

struct Q3KType {
    using L = Layout_Q3_K;
    static constexpr int kBits = 3, kGroup = 16, kZero = 4;
    static constexpr bool kHasMinimum = false;

    static HB_INLINE void fit_plain(KLanes& lanes, F* scales, F* sc, F* d) {
        for (int j = 0; j < 16; j += 4) {
            SignedDescent<kGroup, 4> descent;
            descent.x = sub_block<Q3KType>(lanes.x, j);
            descent.half = 4.0f;
            descent.codes = lanes.w + j * kGroup * W;
            descent.run(scales + j);
        }
        const F peak = peak_of<16>(scales).value;
        const Mask none = equal_to(peak, zero());
        const F inverse = select(none, zero(), div(set1(-32.0f), peak));
        for (int j = 0; j < 16; ++j) {
            const F l = to_float(cast_int8(round_any(mul(inverse, scales[j]))));
            // Bytes of zero scales are zeros, and a stored 0 means -32.
            sc[j] = select(none, set1(-32.0f), clamp(l, set1(-32.0f), set1(31.0f)));
        }
        *d = select(none, zero(), div(set1(1.0f), inverse));
    }

    static HB_INLINE void fit_weighted(KLanes& lanes, SymmetricFit* fits, F* sc, F* d) {
        const F energy = mul(set1(2.0f), sum_squares(lanes.x, kSuperBlock));
        spread_energy(lanes.x, div(energy, set1(256.0f)), kSuperBlock, lanes.w);
        alignas(64) float scales[16 * W], totals[16 * W];
        for (int j = 0; j < 16; ++j) {
            const float* w = sub_block<Q3KType>(lanes.w, j);
            F total = zero();
            for (int i = 0; i < kGroup; ++i) total = add(total, load(w + i * W));
            fits[j] = symmetric_search<kGroup>(sub_block<Q3KType>(lanes.x, j), w, 4.0f);
            store(scales + j * W, fits[j].scale);
            store(totals + j * W, total);
        }
        // Sums of huge values overflow, so a scale may be infinite.
        const SymmetricFit whole = symmetric_search<16, false>(scales, totals, 32.0f);
        for (int j = 0; j < 16; ++j) {
            sc[j] = sub(whole.code(load(scales + j * W), set1(32.0f)), set1(32.0f));
        }
        *d = whole.scale;
    }

    static HB_INLINE void encode(KLanes& lanes, bool weighted) {
        F scales[16], sc[16], d;
        SymmetricFit fits[16];
        if (weighted) {
            fit_weighted(lanes, fits, sc, &d);
        } else {
            fit_plain(lanes, scales, sc, &d);
        }
        d = store_scale(lanes.d, d);
        for (int j = 0; j < 16; ++j) {
            scales[j] = mul(d, sc[j]);
            store_low_bytes(lanes.scales + j * W, truncate_int(add(sc[j], set1(32.0f))));
        }
        requantize<Q3KType>(lanes, scales, nullptr, [&](int j, int i) {
            const int at = (j * kGroup + i) * W;
            return weighted ? fits[j].code(load(lanes.x + at), set1(4.0f)) : load(lanes.w + at);
        });
    }

    static HB_INLINE void write(const KLanes& lanes, int lane, uint8_t* out) {
        put_single_bits<2>(lanes.codes[lane], out + L::kOffset_hmask);
        put_two_bits<0>(lanes.codes[lane], out + L::kOffset_qs);
        uint8_t* packed = out + L::kOffset_scales;
        const uint8_t* sc = lanes.scales + lane;
        for (int j = 0; j < 8; ++j) {
            packed[j] = static_cast<uint8_t>((sc[j * W] & 15) | (sc[(j + 8) * W] & 15) << 4);
        }
        for (int j = 0; j < 4; ++j) {
            int tops = 0;
            for (int k = 0; k < 4; ++k) tops |= sc[(j + 4 * k) * W] >> 4 << (2 * k);
            packed[8 + j] = static_cast<uint8_t>(tops);
        }
        std::memcpy(out + L::kOffset_d, lanes.d + lane, 2);
    }
};

struct Q6KType {
    using L = Layout_Q6_K;
    static constexpr int kBits = 6, kGroup = 16, kZero = 32;
    static constexpr bool kHasMinimum = false;

    static HB_INLINE void encode(KLanes& lanes, bool weighted) {
        F scales[16];
        SymmetricFit fits[16];
        for (int j = 0; j < 16; ++j) {
            const float* x = sub_block<Q6KType>(lanes.x, j);
            float* w = lanes.w + j * kGroup * W;
            if (!weighted) {
                for (int i = 0; i < kGroup; ++i) {
                    const F v = load(x + i * W);
                    store(w + i * W, mul(v, v));
                }
            }
            fits[j] = symmetric_search<kGroup>(x, w, 32.0f);
            scales[j] = fits[j].scale;
        }
        const Peak peak = peak_of<16>(scales);
        const Mask nothing = peak.nothing();
        const F inverse = select(nothing, zero(), div(set1(-128.0f), peak.value));
        const F d = store_scale(lanes.d, select(nothing, zero(), div(set1(1.0f), inverse)));
        for (int j = 0; j < 16; ++j) {
            const I sc = cast_int8(imin(round_any(mul(inverse, scales[j])), iset1(127)));
            store_low_bytes(lanes.scales + j * W, sc);
            scales[j] = mul(d, to_float(sc));
        }
        requantize<Q6KType>(lanes, scales, nullptr, [&](int j, int i) {
            const F code = fits[j].code(load(sub_block<Q6KType>(lanes.x, j) + i * W), set1(32.0f));
            return select(nothing, zero(), code);
        });
    }

    static HB_INLINE void write(const KLanes& lanes, int lane, uint8_t* out) {
        put_nibbles<64>(lanes.codes[lane], out + L::kOffset_ql);
        put_two_bits<4>(lanes.codes[lane], out + L::kOffset_qh);
        for (int j = 0; j < 16; ++j) out[L::kOffset_scales + j] = lanes.scales[j * W + lane];
        std::memcpy(out + L::kOffset_d, lanes.d + lane, 2);
    }
};

// Blocks follow each other through the rows; missing lanes of the last round repeat the last block.
template <class Type>
static void encode_k(const float* x, const float* importance, int64_t rows, int64_t columns,
                     uint8_t* out) {
    KLanes lanes;
    const int64_t per_row = columns / kSuperBlock, blocks = rows * per_row;
    for (int64_t first = 0; first < blocks; first += W) {
        const int count = static_cast<int>(blocks - first < W ? blocks - first : W);
        const float *values[W], *weights[W] = {};
        for (int lane = 0; lane < W; ++lane) {
            const int64_t at = first + (lane < count ? lane : count - 1);
            values[lane] = x + at * kSuperBlock;
            if (importance) weights[lane] = importance + at % per_row * kSuperBlock;
        }
        load_lanes(values, kSuperBlock, lanes.x);
        if (importance) load_lanes(weights, kSuperBlock, lanes.w);
        Type::encode(lanes, importance != nullptr);
        for (int lane = 0; lane < count; ++lane) {
            Type::write(lanes, lane, out + (first + lane) * Type::L::kBytes);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
