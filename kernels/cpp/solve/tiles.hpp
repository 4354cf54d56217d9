// Products of packed panels with the vector lanes along the columns of C, in float or double. Every
// output is one chain of fused multiply-adds over the depth, whatever the tile it lies in.
#pragma once

#include "solvers.hpp"

namespace halfbyte {
namespace HB_ISA {

#if defined(HB_AVX512)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 3;

struct FloatLanes {
    using T = float;
    using V = F;
    static constexpr int N = W;
    static HB_INLINE V none() { return zero(); }
    static HB_INLINE V all(float a) { return set1(a); }
    static HB_INLINE V get(const float* p) { return load(p); }
    static HB_INLINE void put(float* p, V a) { store(p, a); }
    static HB_INLINE V plus(V a, V b) { return add(a, b); }
    static HB_INLINE V minus(V a, V b) { return sub(a, b); }
    static HB_INLINE V fused(V a, V b, V c) { return fma(a, b, c); }
};

struct DoubleLanes {
    using T = double;
    static constexpr int N = W / 2;
#if defined(HB_AVX512)
    using V = __m512d;
    static HB_INLINE V none() { return _mm512_setzero_pd(); }
    static HB_INLINE V all(double a) { return _mm512_set1_pd(a); }
    static HB_INLINE V get(const double* p) { return _mm512_loadu_pd(p); }
    static HB_INLINE void put(double* p, V a) { _mm512_storeu_pd(p, a); }
    static HB_INLINE V plus(V a, V b) { return _mm512_add_pd(a, b); }
    static HB_INLINE V minus(V a, V b) { return _mm512_sub_pd(a, b); }
    static HB_INLINE V fused(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(HB_X86_BYTES)
    using V = __m256d;
    static HB_INLINE V none() { return _mm256_setzero_pd(); }
    static HB_INLINE V all(double a) { return _mm256_set1_pd(a); }
    static HB_INLINE V get(const double* p) { return _mm256_loadu_pd(p); }
    static HB_INLINE void put(double* p, V a) { _mm256_storeu_pd(p, a); }
    static HB_INLINE V plus(V a, V b) { return _mm256_add_pd(a, b); }
    static HB_INLINE V minus(V a, V b) { return _mm256_sub_pd(a, b); }
    static HB_INLINE V fused(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(HB_NEON)
    struct V {
        float64x2_t lo, hi;
    };
    static HB_INLINE V none() { return all(0.0); }
    static HB_INLINE V all(double a) { return {vdupq_n_f64(a), vdupq_n_f64(a)}; }
    static HB_INLINE V get(const double* p) { return {vld1q_f64(p), vld1q_f64(p + 2)}; }
    static HB_INLINE void put(double* p, V a) {
        vst1q_f64(p, a.lo);
        vst1q_f64(p + 2, a.hi);
    }
    static HB_INLINE V plus(V a, V b) { return {vaddq_f64(a.lo, b.lo), vaddq_f64(a.hi, b.hi)}; }
    static HB_INLINE V minus(V a, V b) { return {vsubq_f64(a.lo, b.lo), vsubq_f64(a.hi, b.hi)}; }
    static HB_INLINE V fused(V a, V b, V c) {
        return {vfmaq_f64(c.lo, a.lo, b.lo), vfmaq_f64(c.hi, a.hi, b.hi)};
    }
#else
    struct V {
        double v[N];
    };
    static HB_INLINE V all(double a) {
        V r;
        for (int i = 0; i < N; ++i) r.v[i] = a;
        return r;
    }
    static HB_INLINE V none() { return all(0.0); }
    static HB_INLINE V get(const double* p) {
        V r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static HB_INLINE void put(double* p, V a) { std::memcpy(p, a.v, sizeof a.v); }
    static HB_INLINE V plus(V a, V b) {
        for (int i = 0; i < N; ++i) a.v[i] += b.v[i];
        return a;
    }
    static HB_INLINE V minus(V a, V b) {
        for (int i = 0; i < N; ++i) a.v[i] -= b.v[i];
        return a;
    }
    static HB_INLINE V fused(V a, V b, V c) {
        for (int i = 0; i < N; ++i) c.v[i] += a.v[i] * b.v[i];
        return c;
    }
#endif
};

template <class L>
constexpr int64_t kPanelOf = kTileVectors * L::N;

// What becomes of the sums of a tile.
enum class Into { overwrite, sum, difference };

// c[kTileRows, panel] from a (kTileRows neighbouring columns of a panel) and b (a panel).
template <class L, Into kInto>
HB_INLINE void full_tile(int64_t depth, const typename L::T* a, const typename L::T* b,
                         typename L::T* c, int64_t ldc) {
    constexpr int64_t kPanel = kPanelOf<L>;
    typename L::V acc[kTileRows][kTileVectors];
    for (int i = 0; i < kTileRows; ++i) {
        for (int n = 0; n < kTileVectors; ++n) acc[i][n] = L::none();
    }
    for (int64_t k = 0; k < depth; ++k, a += kPanel, b += kPanel) {
        typename L::V bv[kTileVectors];
        for (int n = 0; n < kTileVectors; ++n) bv[n] = L::get(b + n * L::N);
        for (int i = 0; i < kTileRows; ++i) {
            const typename L::V av = L::all(a[i]);
            for (int n = 0; n < kTileVectors; ++n) acc[i][n] = L::fused(av, bv[n], acc[i][n]);
        }
    }
    for (int i = 0; i < kTileRows; ++i) {
        for (int n = 0; n < kTileVectors; ++n) {
            typename L::T* p = c + i * ldc + n * L::N;
            if (kInto == Into::overwrite) L::put(p, acc[i][n]);
            if (kInto == Into::sum) L::put(p, L::plus(L::get(p), acc[i][n]));
            if (kInto == Into::difference) L::put(p, L::minus(L::get(p), acc[i][n]));
        }
    }
}

// A tile of which `rows` and `columns` exist; kInto is sum or difference.
template <class L, Into kInto>
static void edge_tile(int64_t depth, const typename L::T* a, const typename L::T* b,
                      typename L::T* c, int64_t ldc, int64_t rows, int64_t columns) {
    constexpr int64_t kPanel = kPanelOf<L>;
    typename L::T tile[kTileRows * kPanel];
    full_tile<L, Into::overwrite>(depth, a, b, tile, kPanel);
    for (int64_t i = 0; i < rows && i < kTileRows; ++i) {
        for (int64_t j = 0; j < columns && j < kPanel; ++j) {
            const typename L::T v = tile[i * kPanel + j];
            c[i * ldc + j] += kInto == Into::sum ? v : -v;
        }
    }
}

// c[rows, columns] += or -= a b. Panels of a are `a_panel` apart, those of b `b_panel`.
template <class L, Into kInto>
static void update_block(int64_t rows, int64_t columns, int64_t depth, const typename L::T* a,
                         int64_t a_panel, const typename L::T* b, int64_t b_panel, typename L::T* c,
                         int64_t ldc) {
    constexpr int64_t kPanel = kPanelOf<L>;
    for (int64_t j = 0; j < columns; j += kPanel, b += b_panel) {
        for (int64_t i = 0; i < rows; i += kTileRows) {
            const typename L::T* from = a + i / kPanel * a_panel + i % kPanel;
            typename L::T* to = c + i * ldc + j;
            if (i + kTileRows <= rows && j + kPanel <= columns) {
                full_tile<L, kInto>(depth, from, b, to, ldc);
            } else {
                edge_tile<L, kInto>(depth, from, b, to, ldc, rows - i, columns - j);
            }
        }
    }
}

// from[depth, columns] with row stride ld to panels.
template <class L>
static void pack_panels_of(const typename L::T* from, int64_t ld, int64_t depth, int64_t columns,
                           typename L::T* out) {
    using T = typename L::T;
    constexpr int64_t kPanel = kPanelOf<L>;
    for (int64_t j = 0; j < columns; j += kPanel) {
        const int64_t width = columns - j < kPanel ? columns - j : kPanel;
        for (int64_t k = 0; k < depth; ++k, out += kPanel) {
            const T* row = from + k * ld + j;
            if (width == kPanel) {
                for (int n = 0; n < kTileVectors; ++n)
                    L::put(out + n * L::N, L::get(row + n * L::N));
                continue;
            }
            for (int64_t c = 0; c < kPanel; ++c) out[c] = c < width ? row[c] : T(0);
        }
    }
}

// The same of the transpose: from[columns, depth].
template <class L>
static void pack_transposed(const typename L::T* from, int64_t ld, int64_t depth, int64_t columns,
                            typename L::T* out) {
    using T = typename L::T;
    constexpr int64_t kPanel = kPanelOf<L>;
    for (int64_t j = 0; j < columns; j += kPanel, out += kPanel * depth) {
        for (int64_t c = 0; c < kPanel; ++c) {
            const T* row = from + (j + c) * ld;
            for (int64_t k = 0; k < depth; ++k)
                out[k * kPanel + c] = j + c < columns ? row[k] : T(0);
        }
    }
}

static void pack_float(const float* from, int64_t ld, int64_t depth, int64_t columns, float* out) {
    pack_panels_of<FloatLanes>(from, ld, depth, columns, out);
}

static void pack_double(const double* from, int64_t ld, bool transposed, int64_t depth,
                        int64_t columns, double* out) {
    if (transposed) return pack_transposed<DoubleLanes>(from, ld, depth, columns, out);
    pack_panels_of<DoubleLanes>(from, ld, depth, columns, out);
}

}  // namespace HB_ISA
}  // namespace halfbyte
