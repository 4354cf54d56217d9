// Products of dense float32 with the vector lanes along the columns of C. Every output is summed
// over k in order, in one accumulator: its bits depend neither on tiles nor on threads.
#pragma once

#include "nn/unary.hpp"

namespace halfbyte {
namespace HB_ISA {

#if defined(HB_AVX512)
constexpr int kGemmRows = 12;
#else
constexpr int kGemmRows = 6;
#endif
constexpr int kGemmVectors = 2;
constexpr int kGemmColumns = kGemmVectors * W;
constexpr int64_t kGemmDepth = 256;  // k per pass: a panel of B stays in the first cache
constexpr int64_t kGemmBlock = 192;  // rows of A per pass: they stay in the second

// What follows the last pass over k, done while a tile is in registers: sums with a bias by row or
// by column and a residual, kept between low and high. Pointers are those of the tile.
struct Tail {
    const float* row_bias = nullptr;
    const float* column_bias = nullptr;
    const float* residual = nullptr;
    int64_t stride = 0;  // between rows of the residual
    float low = 0.0f, high = 0.0f;

    Tail at(int64_t row, int64_t column) const {
        Tail t = *this;
        if (row_bias) t.row_bias += row;
        if (column_bias) t.column_bias += column;
        if (residual) t.residual += row * stride + column;
        return t;
    }
};

// Whether a Tail can do it.
static bool has_tail(const Finish& f) {
    return f.function == Unary::none || f.function == Unary::relu || f.function == Unary::clip;
}

static void set_bounds(const Finish& f, Tail* tail) {
    tail->low = f.function == Unary::none ? -INFINITY : f.function == Unary::relu ? 0.0f : f.alpha;
    tail->high = f.function == Unary::clip ? f.beta : INFINITY;
}

// As Tail says for one vector of tile row i; a NaN stays.
HB_INLINE F tail_lanes(const Tail& t, F v, int64_t i, int64_t column) {
    if (t.row_bias) v = add(v, set1(t.row_bias[i]));
    if (t.column_bias) v = add(v, load(t.column_bias + column));
    if (t.residual) v = add(v, load(t.residual + i * t.stride + column));
    return min(set1(t.high), max(set1(t.low), v));
}

static void tail_row(const Tail& t, int64_t i, int64_t n, float* c) {
    for (int64_t j = 0; j < n; ++j) {
        float v = c[j];
        if (t.row_bias) v += t.row_bias[i];
        if (t.column_bias) v += t.column_bias[j];
        if (t.residual) v += t.residual[i * t.stride + j];
        v = t.low > v ? t.low : v;
        c[j] = t.high < v ? t.high : v;
    }
}

// c[MR][NV * W] (+)= a b over k steps. Packed a: kGemmRows values per step, else rows of lda.
template <int MR, int NV, bool kPacked>
HB_INLINE void gemm_tile(int64_t k, const float* a, int64_t lda, const float* b, float* c,
                         int64_t ldc, bool first, const Tail* tail) {
    F acc[MR][NV];
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) acc[i][n] = first ? zero() : load(c + i * ldc + n * W);
    }
    for (int64_t p = 0; p < k; ++p) {
        F bv[NV];
        for (int n = 0; n < NV; ++n) bv[n] = load(b + n * W);
        for (int i = 0; i < MR; ++i) {
            const F av = set1(kPacked ? a[i] : a[i * lda]);
            for (int n = 0; n < NV; ++n) acc[i][n] = fma(av, bv[n], acc[i][n]);
        }
        a += kPacked ? kGemmRows : 1;
        b += kGemmColumns;
    }
    if (tail) {
        for (int i = 0; i < MR; ++i) {
            for (int n = 0; n < NV; ++n) acc[i][n] = tail_lanes(*tail, acc[i][n], i, n * W);
        }
    }
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) store(c + i * ldc + n * W, acc[i][n]);
    }
}

// gemm_tile for 1 <= columns <= kGemmColumns: what lies beyond goes through a tile of its own.
template <int MR, bool kPacked>
static void gemm_columns(int64_t k, const float* a, int64_t lda, const float* b, float* c,
                         int64_t ldc, int64_t columns, bool first, const Tail* tail) {
    if (columns == kGemmColumns) {
        return gemm_tile<MR, kGemmVectors, kPacked>(k, a, lda, b, c, ldc, first, tail);
    }
    float tile[MR * kGemmColumns];
    const auto bytes = static_cast<size_t>(4 * columns);
    if (!first) {
        for (int i = 0; i < MR; ++i) std::memcpy(tile + i * kGemmColumns, c + i * ldc, bytes);
    }
    if (columns <= W) {
        gemm_tile<MR, 1, kPacked>(k, a, lda, b, tile, kGemmColumns, first, nullptr);
    } else {
        gemm_tile<MR, kGemmVectors, kPacked>(k, a, lda, b, tile, kGemmColumns, first, nullptr);
    }
    for (int i = 0; i < MR; ++i) {
        if (tail) tail_row(*tail, i, columns, tile + i * kGemmColumns);
        std::memcpy(c + i * ldc, tile + i * kGemmColumns, bytes);
    }
}

// Rows below a full kGemmRows: as few tiles as the instruction set allows.
template <bool kPacked>
static void gemm_rest(int64_t rows, int64_t k, const float* a, int64_t lda, const float* b,
                      float* c, int64_t ldc, int64_t columns, bool first, const Tail* tail) {
#define HB_REST(count) \
    return gemm_columns<count, kPacked>(k, a, lda, b, c, ldc, columns, first, tail);
    if (rows >= 6) {
        gemm_columns<6, kPacked>(k, a, lda, b, c, ldc, columns, first, tail);
        const Tail below = tail ? tail->at(6, 0) : Tail();
        return gemm_rest<kPacked>(rows - 6, k, a + 6 * (kPacked ? 1 : lda), lda, b, c + 6 * ldc,
                                  ldc, columns, first, tail ? &below : nullptr);
    }
    switch (rows) {
        case 1:
            HB_REST(1)
        case 2:
            HB_REST(2)
        case 3:
            HB_REST(3)
        case 4:
            HB_REST(4)
        case 5:
            HB_REST(5)
        default:
            return;
    }
#undef HB_REST
}

// c[rows, columns] (+)= a b. Packed a: pass `a` at its k, blocks of kGemmRows are `lda` apart.
// b: panels of kGemmColumns, `panel` apart. tail: of the block, or null before the last pass.
template <bool kPacked>
static void gemm_block(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t lda,
                       const float* b, int64_t panel, float* c, int64_t ldc, bool first,
                       const Tail* tail = nullptr) {
    for (int64_t j = 0; j < columns; j += kGemmColumns, b += panel) {
        const int64_t width = columns - j < kGemmColumns ? columns - j : kGemmColumns;
        const float* block = a;
        Tail here;
        int64_t i = 0;
        for (; i + kGemmRows <= rows; i += kGemmRows) {
            if (tail) here = tail->at(i, j);
            gemm_columns<kGemmRows, kPacked>(k, block, lda, b, c + i * ldc + j, ldc, width, first,
                                             tail ? &here : nullptr);
            block += kPacked ? lda : kGemmRows * lda;
        }
        if (tail) here = tail->at(i, j);
        gemm_rest<kPacked>(rows - i, k, block, lda, b, c + i * ldc + j, ldc, width, first,
                           tail ? &here : nullptr);
    }
}

// One row against several panels at once: enough independent sums to hide their latency.
static void gemm_row(int64_t columns, int64_t k, const float* a, const float* b, int64_t panel,
                     float* c, bool first, const Tail* tail = nullptr) {
    constexpr int kPanels = 4;
    constexpr int64_t kStride = kPanels * kGemmColumns;
    int64_t j = 0;
    for (; j + kStride <= columns; j += kStride, b += kPanels * panel) {
        F acc[kPanels][kGemmVectors];
        for (int q = 0; q < kPanels; ++q) {
            for (int n = 0; n < kGemmVectors; ++n)
                acc[q][n] = first ? zero() : load(c + j + q * kGemmColumns + n * W);
        }
        for (int64_t p = 0; p < k; ++p) {
            const F av = set1(a[p]);
            for (int q = 0; q < kPanels; ++q) {
                for (int n = 0; n < kGemmVectors; ++n)
                    acc[q][n] = fma(av, load(b + q * panel + p * kGemmColumns + n * W), acc[q][n]);
            }
        }
        for (int q = 0; q < kPanels; ++q) {
            for (int n = 0; n < kGemmVectors; ++n) {
                const int64_t at = j + q * kGemmColumns + n * W;
                store(c + at, tail ? tail_lanes(*tail, acc[q][n], 0, at) : acc[q][n]);
            }
        }
    }
    const Tail rest = tail ? tail->at(0, j) : Tail();
    gemm_block<false>(1, columns - j, k, a, 0, b, panel, c + j, columns, first,
                      tail ? &rest : nullptr);
}

static int64_t packed_a_size(int64_t m, int64_t k) { return round_up(m, kGemmRows) * k; }
static int64_t packed_b_size(int64_t n, int64_t k) { return round_up(n, kGemmColumns) * k; }

// Rows of a [m, k] in blocks of kGemmRows, step by step; rows that are missing hold 0.
static void pack_a(const float* a, int64_t m, int64_t k, float* out) {
    for (int64_t i = 0; i < m; i += kGemmRows, out += kGemmRows * k) {
        for (int64_t r = 0; r < kGemmRows; ++r) {
            const float* row = a + (i + r) * k;
            for (int64_t p = 0; p < k; ++p) out[p * kGemmRows + r] = i + r < m ? row[p] : 0.0f;
        }
    }
}

// b[k0 .. k0 + k, n0 .. n0 + n] to panels; b is [k, n] with stride ldb, or [n, k] if b_rows.
static void pack_panels(const float* b, int64_t ldb, bool b_rows, int64_t k, int64_t n,
                        float* out) {
    for (int64_t j = 0; j < n; j += kGemmColumns, out += kGemmColumns * k) {
        const int64_t width = n - j < kGemmColumns ? n - j : kGemmColumns;
        if (b_rows) {
            for (int64_t c = 0; c < kGemmColumns; ++c) {
                const float* row = b + (j + c) * ldb;
                for (int64_t p = 0; p < k; ++p)
                    out[p * kGemmColumns + c] = c < width ? row[p] : 0.0f;
            }
            continue;
        }
        for (int64_t p = 0; p < k; ++p) {
            const float* row = b + p * ldb + j;
            float* to = out + p * kGemmColumns;
            if (width == kGemmColumns) {
                for (int v = 0; v < kGemmVectors; ++v) store(to + v * W, load(row + v * W));
                continue;
            }
            for (int64_t c = 0; c < kGemmColumns; ++c) to[c] = c < width ? row[c] : 0.0f;
        }
    }
}

static void pack_b(const float* b, int64_t n, int64_t k, bool b_rows, float* out) {
    pack_panels(b, b_rows ? k : n, b_rows, k, n, out);
}

// Rows [m0, m1) of A against one pass of B; finished where it is the last pass.
static void product_pass(const ProductJob& job, int64_t m0, int64_t m1, int64_t n0, int64_t width,
                         int64_t k0, int64_t depth, const float* b, int64_t panel) {
    const bool last = k0 + depth >= job.k;
    const bool plain = !job.bias && !job.residual && job.finish.function == Unary::none;
    for (int64_t m = m0; m < m1; m += kGemmBlock) {
        const int64_t rows = m1 - m < kGemmBlock ? m1 - m : kGemmBlock, at = m * job.n + n0;
        const float* a = job.a + m * job.lda + k0;
        Tail tail;
        tail.column_bias = job.bias ? job.bias + n0 : nullptr;
        tail.residual = job.residual ? job.residual + at : nullptr;
        tail.stride = job.n;
        set_bounds(job.finish, &tail);
        const Tail* used = last && !plain && has_tail(job.finish) ? &tail : nullptr;
        if (rows == 1) {
            gemm_row(width, depth, a, b, panel, job.c + at, k0 == 0, used);
        } else {
            gemm_block<false>(rows, width, depth, a, job.lda, b, panel, job.c + at, job.n, k0 == 0,
                              used);
        }
        if (!last || plain || used) continue;
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = at + i * job.n;
            finish_row(job.finish, job.c + row, tail.column_bias,
                       job.residual ? job.residual + row : nullptr, width, job.c + row);
        }
    }
}

static void product_task(const ProductJob& job, int64_t task) {
    const int64_t tiles = (job.n + job.columns - 1) / job.columns;
    const int64_t n0 = task % tiles * job.columns, m0 = task / tiles * job.rows;
    const int64_t width = job.n - n0 < job.columns ? job.n - n0 : job.columns;
    const int64_t m1 = m0 + job.rows < job.m ? m0 + job.rows : job.m;
    float* memory = nullptr;
    if (!job.b_packed) {
        const int64_t held = round_up(width, kGemmColumns) * kGemmDepth;
        memory = static_cast<float*>(thread_scratch(Scratch::panel, 4 * held));
    }
    for (int64_t k0 = 0; k0 < job.k; k0 += kGemmDepth) {
        const int64_t depth = job.k - k0 < kGemmDepth ? job.k - k0 : kGemmDepth;
        if (job.b_packed) {
            const float* b = job.b + n0 * job.k + k0 * kGemmColumns;
            product_pass(job, m0, m1, n0, width, k0, depth, b, kGemmColumns * job.k);
            continue;
        }
        const float* from = job.b_rows ? job.b + n0 * job.ldb + k0 : job.b + k0 * job.ldb + n0;
        pack_panels(from, job.ldb, job.b_rows, depth, width, memory);
        product_pass(job, m0, m1, n0, width, k0, depth, memory, kGemmColumns * depth);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
