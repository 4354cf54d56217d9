// Matrix products of bytes. A panel holds kPanel columns: word p of column j has bytes 4 p .. 4 p +
// 3 of the depth. Integer sums are exact, so their order is free; each output is rounded once.
#pragma once

#include "int8/dot.hpp"

namespace halfbyte {
namespace HB_ISA {

#if defined(HB_AVX512)
constexpr int kByteRows = 6, kByteVectors = 4;
#else
constexpr int kByteRows = 4, kByteVectors = 2;
#endif
constexpr int kPanel = kByteVectors * W;

// How the broadcast rows of a tile meet its panel.
enum class Rows {
    activations,  // unsigned bytes; no pair of the panel's weights saturates
    halves,       // the same for all weights: rows spread as 16-bit halves
    weights,      // signed bytes against a panel of unsigned ones
};

// What rows of weights leave to a second multiply-add so that no pair saturates: entries
// [start[row], start[row + 1]) hold a place of the depth and four weights.
struct Rest {
    const int32_t* start = nullptr;
    const int32_t* entries = nullptr;
    // The same for a panel of weights: `count` places of the depth, kPanel words for each.
    const int32_t* places = nullptr;
    const uint8_t* words = nullptr;
    int64_t count = 0;
};

#if defined(HB_SATURATES)
// Two words of the depth at once, for rows of weights or activations.
template <int MR, int NV, Rows kRows>
HB_INLINE void double_step(const uint8_t* rows, int64_t stride, const uint8_t* at,
                           I (&acc)[MR][NV]) {
    I b[NV][2];
    for (int n = 0; n < NV; ++n) {
        for (int k = 0; k < 2; ++k) b[n][k] = iload(at + 4 * (n * W + k * kPanel));
    }
    for (int i = 0; i < MR; ++i) {
        const I a[2] = {broadcast_word(rows + i * stride), broadcast_word(rows + i * stride + 4)};
        for (int n = 0; n < NV; ++n) {
            acc[i][n] = kRows == Rows::weights ? double_dot(acc[i][n], b[n], a)
                                               : double_dot(acc[i][n], a, b[n]);
        }
    }
}
#endif

// out[MR][NV * W] = rows (broadcast) times panel. `stride` is in bytes; kDouble: two words of the
// depth may be summed in 16 bits.
template <int MR, int NV, Rows kRows, bool kDouble>
HB_INLINE void byte_tile(int64_t depth, const uint8_t* rows, int64_t stride, const uint8_t* panel,
                         const Rest& rest, int32_t* out) {
    I acc[MR][NV];
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) acc[i][n] = izero();
    }
    const uint8_t* at = panel;
    int64_t p = 0;
#if defined(HB_SATURATES)
    if constexpr (kDouble) {
        for (; p + 8 <= depth; p += 8, at += 8 * kPanel)
            double_step<MR, NV, kRows>(rows + p, stride, at, acc);
    }
#endif
    for (; p < depth; p += 4, at += 4 * kPanel) {
#if defined(HB_SATURATES)
        if constexpr (kRows == Rows::halves) {
            Halves b[NV];
            for (int n = 0; n < NV; ++n) b[n] = signed_halves(iload(at + 4 * n * W));
            for (int i = 0; i < MR; ++i) {
                const Halves a = broadcast_halves(rows + i * stride + 2 * p);
                for (int n = 0; n < NV; ++n) acc[i][n] = wide_dot(acc[i][n], a, b[n]);
            }
            continue;
        }
#endif
        I b[NV];
        for (int n = 0; n < NV; ++n) b[n] = iload(at + 4 * n * W);
        for (int i = 0; i < MR; ++i) {
            const I a = broadcast_word(rows + i * stride + p);
            for (int n = 0; n < NV; ++n) {
                acc[i][n] = kRows == Rows::weights ? narrow_dot(acc[i][n], b[n], a)
                                                   : narrow_dot(acc[i][n], a, b[n]);
            }
        }
    }
    if (kRows == Rows::weights && rest.start) {
        for (int i = 0; i < MR; ++i) {
            for (int32_t e = rest.start[i]; e < rest.start[i + 1]; ++e) {
                const int32_t* entry = rest.entries + 2 * static_cast<int64_t>(e);
                const uint8_t* b = panel + static_cast<int64_t>(entry[0]) * kPanel;
                for (int n = 0; n < NV; ++n)
                    acc[i][n] = narrow_dot(acc[i][n], iload(b + 4 * n * W), iset1(entry[1]));
            }
        }
    }
    if constexpr (kRows == Rows::activations) {
        for (int64_t e = 0; e < rest.count; ++e) {
            const uint8_t* words = rest.words + e * 4 * kPanel;
            I b[NV];
            for (int n = 0; n < NV; ++n) b[n] = iload(words + 4 * n * W);
            for (int i = 0; i < MR; ++i) {
                const I a = broadcast_word(rows + i * stride + rest.places[e]);
                for (int n = 0; n < NV; ++n) acc[i][n] = narrow_dot(acc[i][n], a, b[n]);
            }
        }
    }
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) istore(out + (i * NV + n) * W, acc[i][n]);
    }
}

// byte_tile for any number of rows and of vectors: out[rows][vectors * W].
template <int NV, Rows kRows, bool kDouble>
static void byte_rows(int64_t rows, int64_t depth, const uint8_t* a, int64_t stride,
                      const uint8_t* panel, const Rest& rest, int32_t* out) {
    Rest left = rest;
    const auto pass = [&](int64_t count) {
        a += count * stride;
        out += count * NV * W;
        rows -= count;
        if (left.start) left.start += count;
    };
    for (; rows >= kByteRows; pass(kByteRows))
        byte_tile<kByteRows, NV, kRows, kDouble>(depth, a, stride, panel, left, out);
    for (; rows >= 2; pass(2)) byte_tile<2, NV, kRows, kDouble>(depth, a, stride, panel, left, out);
    if (rows) byte_tile<1, NV, kRows, kDouble>(depth, a, stride, panel, left, out);
}

template <Rows kRows, bool kDouble = false>
static void byte_block(int64_t rows, int vectors, int64_t depth, const uint8_t* a, int64_t stride,
                       const uint8_t* panel, const Rest& rest, int32_t* out) {
    if (vectors == 1) return byte_rows<1, kRows, kDouble>(rows, depth, a, stride, panel, rest, out);
    if (vectors == 2) return byte_rows<2, kRows, kDouble>(rows, depth, a, stride, panel, rest, out);
#if defined(HB_AVX512)
    if (vectors == 3) return byte_rows<3, kRows, kDouble>(rows, depth, a, stride, panel, rest, out);
    byte_rows<4, kRows, kDouble>(rows, depth, a, stride, panel, rest, out);
#endif
}

// W sums as they are.
HB_INLINE void put_sums(const Requantize& to, I sum, int64_t at, int64_t count) {
    int32_t lanes[W];
    istore(lanes, sum);
    std::memcpy(static_cast<int32_t*>(to.out) + at, lanes,
                static_cast<size_t>(4 * (count < W ? count : W)));
}

HB_INLINE F clipped(F value, const Requantize& to) {
    return min(max(value, set1(to.low)), set1(to.high));
}

// W finished values to element `at` of the output, `count` of them where it ends.
HB_INLINE void put_lanes(const Requantize& to, F value, int64_t at, int64_t count) {
    const F inside = clipped(value, to);
    if (to.to_float) {
        float* out = static_cast<float*>(to.out) + at;
        if (count >= W) return store(out, inside);
        return store_n(out, inside, count);
    }
    uint8_t* out = static_cast<uint8_t*>(to.out) + at;
    if (count >= W) return store_rounded(out, inside, to.zero, to.flip);
    uint8_t bytes[W];
    store_rounded(bytes, inside, to.zero, to.flip);
    std::memcpy(out, bytes, static_cast<size_t>(count));
}

// b [k, n], or [n, k] if b_rows, to panels of `depth` rows; what lies beyond k and n holds 0.
static void pack_byte_panels(const int8_t* b, int64_t n, int64_t k, int64_t depth, bool b_rows,
                             int8_t* out) {
    for (int64_t j = 0; j < n; j += kPanel, out += depth * kPanel) {
        for (int64_t p = 0; p < depth; ++p) {
            int8_t* word = out + p / 4 * 4 * kPanel + p % 4;
            for (int64_t c = 0; c < kPanel; ++c) {
                const bool inside = p < k && j + c < n;
                word[4 * c] = !inside ? 0 : b_rows ? b[(j + c) * k + p] : b[p * n + j + c];
            }
        }
    }
}

static int32_t byte_sum(const uint8_t* a, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[i];
    return sum;
}

// The factors of W channels, as lanes.
struct ChannelFactors {
    I offset, lift;
    F scale, shift;
};

static ChannelFactors channel_factors(const ByteProductJob& job, int64_t at, int64_t count) {
    const Requantize& to = job.finish;
    if (count >= W) {
        return {iload(job.offset + at), job.weight_zero ? iload(job.weight_zero + at) : izero(),
                load(to.scale + at), to.shift ? load(to.shift + at) : zero()};
    }
    int32_t offset[W] = {}, lift[W] = {};
    std::memcpy(offset, job.offset + at, static_cast<size_t>(4 * count));
    if (job.weight_zero) {
        std::memcpy(lift, job.weight_zero + at, static_cast<size_t>(4 * count));
    }
    return {iload(offset), iload(lift), load_n(to.scale + at, count),
            to.shift ? load_n(to.shift + at, count) : zero()};
}

// Sums [rows][vectors * W] of a tile: rows m0 on, channels n0 on.
static void finish_tile(const ByteProductJob& job, const int32_t* sums, int64_t m0, int64_t rows,
                        int64_t n0, int64_t width) {
    const int64_t stride = round_up(width, W);
    for (int64_t j = 0; j < width; j += W) {
        const int64_t at = n0 + j, count = width - j;
        const ChannelFactors by = channel_factors(job, at, count);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = m0 + i;
            I sum = iadd(iload(sums + i * stride + j), by.offset);
            if (job.weight_zero) {
                const int32_t total = byte_sum(job.a + row * job.depth, job.depth);
                sum = isub(sum, imul(by.lift, iset1(total)));
            }
            if (job.finish.to_int) {
                put_sums(job.finish, sum, row * job.n + at, count);
            } else {
                const F value = add(mul(to_float(sum), by.scale), by.shift);
                put_lanes(job.finish, value, row * job.n + at, count);
            }
        }
    }
}

// What the weights of panel `index` leave to a second multiply-add.
HB_INLINE Rest panel_rest(const ByteProductJob& job, int64_t index) {
    Rest rest;
    if (!job.rest_start) return rest;
    const int64_t first = job.rest_start[index];
    rest.places = job.rest_places + first;
    rest.words = job.rest_words + first * 4 * kPanel;
    rest.count = job.rest_start[index + 1] - first;
    return rest;
}

static void byte_product_task(const ByteProductJob& job, int64_t task) {
    const int64_t tiles = (job.n + job.columns - 1) / job.columns;
    const int64_t first = task % tiles * job.columns, m0 = task / tiles * job.rows;
    const int64_t last = first + job.columns < job.n ? first + job.columns : job.n;
    const int64_t m1 = m0 + job.rows < job.m ? m0 + job.rows : job.m;
    constexpr int64_t kBlock = 8 * kByteRows;
    int32_t sums[kBlock * kPanel];
    for (int64_t m = m0; m < m1; m += kBlock) {
        const int64_t rows = m1 - m < kBlock ? m1 - m : kBlock;
        const uint8_t* a = job.a + m * job.depth;
#if defined(HB_SATURATES)
        uint8_t* spread = nullptr;
        if (job.level == 0) {
            const int64_t bytes = 2 * rows * job.depth;
            spread = static_cast<uint8_t*>(thread_scratch(Scratch::panel, bytes));
            spread_rows(a, rows * job.depth, spread);
        }
#endif
        for (int64_t n0 = first; n0 < last; n0 += kPanel) {
            const int64_t width = last - n0 < kPanel ? last - n0 : kPanel;
            const int vectors = static_cast<int>((width + W - 1) / W);
            const auto* panel = reinterpret_cast<const uint8_t*>(job.b) + n0 * job.depth;
            const Rest rest = panel_rest(job, n0 / kPanel);
#if defined(HB_SATURATES)
            if (job.level != 1) {
                if (job.level == 0)
                    byte_block<Rows::halves>(rows, vectors, job.depth, spread, 2 * job.depth, panel,
                                             {}, sums);
                else
                    byte_block<Rows::activations, true>(rows, vectors, job.depth, a, job.depth,
                                                        panel, rest, sums);
                finish_tile(job, sums, m, rows, n0, width);
                continue;
            }
#endif
            byte_block<Rows::activations>(rows, vectors, job.depth, a, job.depth, panel, rest,
                                          sums);
            finish_tile(job, sums, m, rows, n0, width);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
