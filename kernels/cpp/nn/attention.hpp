// Attention over a key/value cache: scores, softmax and weighted sum of one tile of query rows.
// A row's sums run over positions in one order, with lanes tied to absolute positions, so its bits
// do not depend on the tile or on the batch.
#pragma once

#include <cmath>

#include "matmul/tile.hpp"
#include "nn/elementwise.hpp"

namespace halfbyte {
namespace HB_ISA {

struct QueryRow {
    int64_t query, head;  // head counts within its group
    int64_t low, high;    // positions that it may see
};

static QueryRow query_row(const AttentionJob& job, int64_t row) {
    const int64_t group = job.heads / job.kv_heads;
    QueryRow r{row / group, row % group, 0, job.length};
    const int64_t position = job.offset + r.query;
    if (job.causal && position + 1 < r.high) r.high = position + 1;
    if (job.window > 0 && position - job.window + 1 > 0) r.low = position - job.window + 1;
    if (r.high < r.low) r.high = r.low;
    return r;
}

// scores[i * stride + j] = q[i] . k[j] for j in [low, high).
static void attention_scores(const float* q, int64_t rows, const float* k, int64_t d, int64_t low,
                             int64_t high, float* scores, int64_t stride) {
    float sums[kTileRows][kTileColumns];
    for (int64_t j = low; j < high; j += kTileColumns) {
        const int64_t left = high - j < kTileColumns ? high - j : kTileColumns;
        if (left == kTileColumns) {
            dot_rows(rows, q, d, k + j * d, d, d, sums);
            for (int64_t i = 0; i < rows; ++i)
                std::memcpy(scores + i * stride + j, sums[i], sizeof sums[i]);
            continue;
        }
        for (int64_t c = 0; c < left; ++c) {
            dot_rows(rows, q, d, k + (j + c) * d, 0, d, sums);
            for (int64_t i = 0; i < rows; ++i) scores[i * stride + j + c] = sums[i][0];
        }
    }
}

// Scores of one row to unnormalised probabilities over [align(low), align(high)); returns the sum.
static float attention_softmax(const AttentionJob& job, const QueryRow& row, const uint8_t* mask,
                               float* s) {
    const float hidden = -INFINITY;
    const int64_t start = row.low / W * W, end = round_up(row.high, W);
    for (int64_t j = start; j < row.low; ++j) s[j] = hidden;
    for (int64_t j = row.high; j < end; ++j) s[j] = hidden;
    F largest = set1(hidden);
    for (int64_t j = start; j < end; j += W) {
        F v = mul(load(s + j), set1(job.scale));
        if (job.softcap > 0.0f) {
            const F capped = mul(tanh(div(v, set1(job.softcap))), set1(job.softcap));
            v = select(equal_to(v, set1(hidden)), v, capped);
        }
        store(s + j, v);
        if (mask) {
            for (int64_t c = j; c < j + W && c < row.high; ++c) {
                if (!mask[c]) s[c] = hidden;
            }
            v = load(s + j);
        }
        largest = max(largest, v);
    }
    const float top = hmax(largest);
    if (top == hidden) return 0.0f;
    F total = zero();
    for (int64_t j = start; j < end; j += W) {
        const F p = exp(sub(load(s + j), set1(top)));
        store(s + j, p);
        total = add(total, p);
    }
    return hsum(total);
}

// acc += p[i][j] * v[j] for NV vectors of the head, j in order.
template <int MR, int NV>
static void attention_values(const float* p, int64_t stride, const float* v, int64_t d, int64_t low,
                             int64_t high, float* out, int64_t ldo) {
    F acc[MR][NV];
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) acc[i][n] = zero();
    }
    for (int64_t j = low; j < high; ++j) {
        F values[NV];
        for (int n = 0; n < NV; ++n) values[n] = load(v + j * d + n * W);
        for (int i = 0; i < MR; ++i) {
            const F weight = set1(p[i * stride + j]);
            for (int n = 0; n < NV; ++n) acc[i][n] = fma(weight, values[n], acc[i][n]);
        }
    }
    for (int i = 0; i < MR; ++i) {
        for (int n = 0; n < NV; ++n) store(out + i * ldo + n * W, acc[i][n]);
    }
}

static void attention_tail(const float* p, const float* v, int64_t d, int64_t low, int64_t high,
                           int64_t count, float* out) {
    F acc = zero();
    for (int64_t j = low; j < high; ++j) acc = fma(set1(p[j]), load_n(v + j * d, count), acc);
    store_n(out, acc, count);
}

#if defined(HB_AVX512)
constexpr int kValueVectors = 4;
#else
constexpr int kValueVectors = 2;
#endif

// All d columns of `rows` rows.
static void attention_output(int64_t rows, const float* p, int64_t stride, const float* v,
                             int64_t d, int64_t low, int64_t high, float* out) {
    int64_t at = 0;
    for (; at + kValueVectors * W <= d; at += kValueVectors * W) {
        if (rows == kTileRows) {
            attention_values<kTileRows, kValueVectors>(p, stride, v + at, d, low, high, out + at,
                                                       d);
            continue;
        }
        for (int64_t i = 0; i < rows; ++i) {
            attention_values<1, kValueVectors>(p + i * stride, stride, v + at, d, low, high,
                                               out + i * d + at, d);
        }
    }
    for (; at + W <= d; at += W) {
        for (int64_t i = 0; i < rows; ++i) {
            attention_values<1, 1>(p + i * stride, stride, v + at, d, low, high, out + i * d + at,
                                   d);
        }
    }
    for (int64_t i = 0; at < d && i < rows; ++i) {
        attention_tail(p + i * stride, v + at, d, low, high, d - at, out + i * d + at);
    }
}

static void attention_rows(const AttentionJob& job, int64_t batch, int64_t kv_head, int64_t row0,
                           int64_t rows) {
    const int64_t d = job.head_dim, group = job.heads / job.kv_heads;
    const int64_t stride = round_up(job.length, W);
    auto* scores = static_cast<float*>(thread_scratch(Scratch::scores, 4 * rows * stride));
    auto* q = static_cast<float*>(thread_scratch(Scratch::tile, 8 * rows * d));
    float* out = q + rows * d;
    const int64_t cache = (batch * job.kv_heads + kv_head) * job.capacity * d;
    const uint8_t* mask = job.mask ? job.mask + batch * job.length : nullptr;
    QueryRow info[kTileRows];
    int64_t place[kTileRows];
    int64_t low = job.length, high = 0;
    for (int64_t i = 0; i < rows; ++i) {
        info[i] = query_row(job, row0 + i);
        low = info[i].low < low ? info[i].low : low;
        high = info[i].high > high ? info[i].high : high;
        const int64_t head = kv_head * group + info[i].head;
        place[i] = ((batch * job.queries + info[i].query) * job.heads + head) * d;
        std::memcpy(q + i * d, job.q + place[i], static_cast<size_t>(4 * d));
    }
    attention_scores(q, rows, job.k + cache, d, low, high, scores, stride);
    float totals[kTileRows];
    for (int64_t i = 0; i < rows; ++i) {
        float* s = scores + i * stride;
        totals[i] = attention_softmax(job, info[i], mask, s);
        const int64_t start = totals[i] > 0.0f ? info[i].low : high;
        for (int64_t j = low; j < start && j < high; ++j) s[j] = 0.0f;
        for (int64_t j = info[i].high; j < high; ++j) s[j] = 0.0f;
    }
    attention_output(rows, scores, stride, job.v + cache, d, low, high, out);
    for (int64_t i = 0; i < rows; ++i) {
        const float total = totals[i] > 0.0f ? totals[i] : 1.0f;
        map1(out + i * d, d, job.out + place[i], [&](F v) { return div(v, set1(total)); });
    }
}

static void attention_task(const AttentionJob& job, int64_t task) {
    const int64_t rows = job.queries * (job.heads / job.kv_heads);
    const int64_t tiles = (rows + job.tile - 1) / job.tile;
    const int64_t tile = task % tiles, kv = task / tiles;
    const int64_t end = (tile + 1) * job.tile < rows ? (tile + 1) * job.tile : rows;
    for (int64_t row = tile * job.tile; row < end; row += kTileRows) {
        const int64_t count = end - row < kTileRows ? end - row : kTileRows;
        attention_rows(job, kv / job.kv_heads, kv % job.kv_heads, row, count);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
