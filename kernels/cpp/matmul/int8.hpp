// y = x W^T with activations rounded to int8 per row and 32 columns, integer dot products and
// float32 block scales. Lanes are weight rows; each output adds its blocks in order of k.
#pragma once

#include "matmul/codes.hpp"
#include "matmul/int8_pairs.hpp"
#include "matmul/int8_tiles.hpp"

namespace halfbyte {
namespace HB_ISA {

// One row of x to codes; scale = amax / 127, codes round to nearest even.
static void quantize_row(const float* x, int64_t columns, int8_t* codes, float* scales,
                         int32_t* sums, int32_t* pairs, float* offsets) {
    for (int64_t b = 0; b < columns / kStep; ++b, x += kStep, codes += kStep) {
        F values[kStep / W];
        F largest = zero();
        for (int i = 0; i < kStep / W; ++i) {
            values[i] = load(x + i * W);
            largest = max(largest, abs(values[i]));
        }
        const float scale = hmax(largest) / 127.0f;
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        for (int i = 0; i < kStep / W; ++i) {
            const F scaled = nearest(mul(values[i], set1(inverse)));
            store_low_bytes(reinterpret_cast<uint8_t*>(codes + i * W),
                            truncate_int(max(min(scaled, set1(127.0f)), set1(-127.0f))));
        }
        int32_t first = 0, last = 0;
        for (int i = 0; i < kStep / 2; ++i) {
            first += codes[i];
            last += codes[i + kStep / 2];
        }
        scales[b] = scale;
        sums[b] = first + last;
        pairs[b] = (first & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(last) << 16);
        offsets[b] = scale * static_cast<float>(sums[b]);
    }
}

// Block scales of W rows side by side: [block][W].
template <class Codes>
HB_INLINE void gather_scales(const Codes* rows, int64_t blocks, typename Codes::Stored* scales,
                             typename Codes::Stored* minima) {
    for (int i = 0; i < W; ++i) {
        const Codes row = rows[i];
        for (int64_t b = 0; b < blocks; ++b) {
            scales[b * W + i] = row.scale(b);
            if constexpr (Codes::kHasMinimum) minima[b * W + i] = row.minimum(b);
        }
    }
}

// Four 6-bit factors of each lane times d: [4][W].
HB_INLINE void scaled_factors(I factors, F d, float* out) {
    const I byte = iset1(255);
    store(out, mul(to_float(iand(factors, byte)), d));
    store(out + W, mul(to_float(iand(shift_right<8>(factors), byte)), d));
    store(out + 2 * W, mul(to_float(iand(shift_right<16>(factors), byte)), d));
    store(out + 3 * W, mul(to_float(shift_right<24>(factors)), d));
}

// Lanes are rows here too. The stored words pass through `scales`: reading them as vectors right
// after they were written would stall.
template <class Block>
HB_INLINE void gather_scales(const KCodes<Block>* rows, int64_t blocks, float* scales,
                             float* minima) {
    using L = typename Block::L;
    for (int64_t b = 0; b < blocks; b += kStepsPerBlock) {
        auto* to = reinterpret_cast<uint8_t*>(scales + b * W);
        for (int i = 0; i < W; ++i) {
            const uint8_t* p = rows[i].block(b);
            for (int part = 0; part < 3; ++part) {
                std::memcpy(to + 4 * (part * W + i), p + L::kOffset_scales + 4 * part, 4);
            }
            std::memcpy(to + 12 * W + 2 * i, p + L::kOffset_d, 2);
            std::memcpy(to + 14 * W + 2 * i, p + L::kOffset_dmin, 2);
        }
    }
    const I six = iset1(0x3f3f3f3f), four = iset1(0x0f0f0f0f), top = iset1(0x30303030);
    for (int64_t b = 0; b < blocks; b += kStepsPerBlock) {
        float* out = scales + b * W;
        const auto* from = reinterpret_cast<const uint8_t*>(out);
        const I low = iload(from), next = iload(from + 4 * W), high = iload(from + 8 * W);
        const F d = load_half(from + 12 * W), dmin = sub(zero(), load_half(from + 14 * W));
        scaled_factors(iand(low, six), d, out);
        scaled_factors(ior(iand(high, four), iand(shift_right<2>(low), top)), d, out + 4 * W);
        scaled_factors(iand(next, six), dmin, minima + b * W);
        const I last = iand(shift_right<4>(high), four);
        scaled_factors(ior(last, iand(shift_right<2>(next), top)), dmin, minima + (b + 4) * W);
    }
}

template <class Codes>
static void int8_gemv(const WeightView& w, int64_t row0, int64_t row1, const LinearJob& job,
                      int64_t m, float* y) {
    using Stored = typename Codes::Stored;
    const int64_t blocks = w.columns / kStep;
    const int8_t* x = job.codes + m * job.padded;
    const float* scales = job.code_scales + m * blocks;
    const float* offsets = job.code_offsets + m * blocks;
    const int32_t* sums = job.code_sums + m * blocks;
    const auto bytes = static_cast<int64_t>(2 * sizeof(Stored) * W) * blocks;
    auto* row_scales = static_cast<Stored*>(thread_scratch(Scratch::panel, bytes));
    Stored* row_minima = row_scales + W * blocks;
    const int64_t ahead = W * w.row_bytes / blocks;
    for (int64_t r = row0; r < row1; r += W) {
        Codes rows[W];
        for (int i = 0; i < W; ++i) rows[i] = Codes(w, r + i < row1 ? r + i : row1 - 1);
        gather_scales(rows, blocks, row_scales, row_minima);
        const uint8_t* next = w.data + (r + W) * w.row_bytes;
        F acc = zero();
        for (int64_t b = 0; b < blocks; ++b, next += ahead) {
            for (int64_t line = 0; line < ahead; line += 64) prefetch(next + line);
            const I dots = isub(row_dots(rows, b, x + b * kStep), iset1(Codes::kZero * sums[b]));
            const F scale = mul(Codes::lanes(row_scales + b * W), set1(scales[b]));
            acc = fma(to_float(dots), scale, acc);
            if constexpr (Codes::kHasMinimum) {
                acc = fma(Codes::lanes(row_minima + b * W), set1(offsets[b]), acc);
            }
        }
        store_n(y + r - row0, acc, row1 - r < W ? row1 - r : W);
    }
}

// W weight rows, interleaved so that one vector holds 4 codes of each.
struct IntPanel {
    uint8_t* codes;  // [group][block][kBlockWords][W][4]
    float* scales;   // [group][block][W]
    float* minima;   // the same, if the kind has minima
};

template <class Codes>
static void pack_panel(const WeightView& w, int64_t row0, int64_t row1, const IntPanel& panel,
                       typename Codes::Stored* stored) {
    const int64_t blocks = w.columns / kStep, groups = (row1 - row0 + W - 1) / W;
    for (int64_t g = 0; g < groups; ++g) {
        Codes rows[W];
        for (int i = 0; i < W; ++i) {
            const int64_t row = row0 + g * W + i;
            rows[i] = Codes(w, row < row1 ? row : row1 - 1);
        }
        gather_scales(rows, blocks, stored, stored + W * blocks);
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t at = g * blocks + b;
            interleave_codes(rows, b, panel.codes + at * kStep * W);
            store(panel.scales + at * W, Codes::lanes(stored + b * W));
            if constexpr (Codes::kHasMinimum) {
                store(panel.minima + at * W, Codes::lanes(stored + (blocks + b) * W));
            }
        }
    }
}

// Rows m..m+MR of x against NV groups of the panel; `width` outputs are stored.
template <class Codes, int MR, int NV>
static void int8_tile(const LinearJob& job, int64_t m, const IntPanel& panel, int64_t group,
                      int64_t blocks, float* y, int64_t stride, int64_t width) {
    const int8_t* x = job.codes + m * job.padded;
    const float* scales = job.code_scales + m * blocks;
    const float* offsets = job.code_offsets + m * blocks;
    const int32_t* sums = job.code_sums + m * blocks;
    F acc[MR][NV];
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) acc[i][n] = zero();
    }
    for (int64_t b = 0; b < blocks; ++b) {
        I dots[MR][NV];
        for (int i = 0; i < MR; ++i) {
            const I start = iset1(-Codes::kZero * sums[i * blocks + b]);
            for (int n = 0; n < NV; ++n) dots[i][n] = start;
        }
        for (int s = 0; s < kBlockWords; ++s) {
            I wv[NV];
            for (int n = 0; n < NV; ++n) {
                const int64_t at = (group + n) * blocks + b;
                wv[n] = iload(panel.codes + (at * kBlockWords + s) * 4 * W);
            }
            for (int i = 0; i < MR; ++i) {
                const I xv = broadcast4(x + i * job.padded + b * kStep + 4 * s);
                for (int n = 0; n < NV; ++n)
                    dots[i][n] = dot4<Codes::kSigned>(dots[i][n], wv[n], xv);
            }
        }
        for (int n = 0; n < NV; ++n) {
            const int64_t at = ((group + n) * blocks + b) * W;
            const F scale = load(panel.scales + at);
            for (int i = 0; i < MR; ++i) {
                const F both = mul(scale, set1(scales[i * blocks + b]));
                acc[i][n] = fma(to_float(dots[i][n]), both, acc[i][n]);
                if constexpr (Codes::kHasMinimum) {
                    acc[i][n] =
                        fma(load(panel.minima + at), set1(offsets[i * blocks + b]), acc[i][n]);
                }
            }
        }
    }
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) {
            const int64_t count = width - n * W < W ? width - n * W : W;
            if (count > 0) store_n(y + i * stride + n * W, acc[i][n], count);
        }
    }
}

template <class Codes>
static void int8_gemm(const WeightView& w, int64_t row0, int64_t row1, const LinearJob& job,
                      int64_t m0, int64_t m1, float* y, int64_t stride) {
    const int64_t rows = row1 - row0, blocks = w.columns / kStep;
    const int64_t held = round_up(rows, W * kIntVectors);
    const int64_t values = held * w.columns, pairs = held * blocks;
    const int64_t bytes = values + 8 * pairs + 8 * W * blocks;
    auto* memory = static_cast<uint8_t*>(thread_scratch(Scratch::panel, bytes));
    auto* scales = reinterpret_cast<float*>(memory + values);
    const IntPanel panel{memory, scales, scales + pairs};
    auto* stored = reinterpret_cast<typename Codes::Stored*>(panel.minima + pairs);
    pack_panel<Codes>(w, row0, row1, panel, stored);
    sweep_tiles(rows, m0, m1, [&](auto count, int64_t r, int64_t m) {
        int8_tile<Codes, decltype(count)::value, kIntVectors>(
            job, m, panel, r / W, blocks, y + r + (m - m0) * stride, stride, rows - r);
    });
}

static void int8_linear(const LinearJob& job, const WeightView& w, int64_t row0, int64_t row1,
                        int64_t m0, int64_t m1, float* y, int64_t stride) {
    if (w.kind == Kind::Q2_K) {
        return pair_linear<PairCodes<BlockQ2_K>>(job, w, row0, row1, m0, m1, y, stride);
    }
    if (w.kind == Kind::Q3_K) {
        return pair_linear<PairCodes<BlockQ3_K>>(job, w, row0, row1, m0, m1, y, stride);
    }
    if (w.kind == Kind::Q6_K) {
        return pair_linear<PairCodes<BlockQ6_K>>(job, w, row0, row1, m0, m1, y, stride);
    }
    with_codes(w, [&](auto tag) {
        using Codes = typename decltype(tag)::type;
        if (m1 - m0 == 1) {
            int8_gemv<Codes>(w, row0, row1, job, m0, y);
        } else {
            int8_gemm<Codes>(w, row0, row1, job, m0, m1, y, stride);
        }
    });
}

}  // namespace HB_ISA
}  // namespace halfbyte
