// Coordinate descent on codes: a few rows go over the columns together, so that a row of H that
// several of them need is read once.
#pragma once

#include "solve/grid.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int64_t kDescendRows = 16;

struct DescendTile {
    const DescendJob& job;
    int64_t row, rows, stride;
    float* gradient;  // [kDescendRows, stride]
    float* values;    // [columns, kDescendRows]
    float* codes;     // the same
};

// Row r: gradient -= step * H[k].
static void push_step(const DescendTile& t, int64_t r, int64_t k, float step) {
    const int64_t n = t.job.columns;
    const float* h = t.job.hessian + k * n;
    float* g = t.gradient + r * t.stride;
    const F share = set1(-step);
    int64_t j = 0;
    for (; j + W <= n; j += W) store(g + j, fma(share, load(h + j), load(g + j)));
    for (; j < n; ++j) g[j] -= step * h[j];
}

// One column of all rows of the tile; returns how many codes changed.
static int64_t descend_column(const DescendTile& t, int64_t k) {
    const float curve = t.job.hessian[k * t.job.columns + k];
    if (!(curve > 0.0f)) return 0;
    float slopes[kDescendRows], steps[kDescendRows];
    for (int64_t r = 0; r < kDescendRows; ++r) slopes[r] = t.gradient[r * t.stride + k];
    bool changed = false;
    for (int64_t lane = 0; lane < t.rows; lane += W) {
        float* value = t.values + k * kDescendRows + lane;
        float* code = t.codes + k * kDescendRows + lane;
        const F slope = load(slopes + lane), old = load(value), h = set1(curve);
        const Rounded r =
            round_lanes(t.job.grid, k, t.row + lane, t.rows - lane, add(old, div(slope, h)));
        const F step = sub(r.value, old);
        const F gain = mul(step, sub(mul(set1(2.0f), slope), mul(step, h)));
        const Mask same = equal_to(r.code, load(code)), better = less(zero(), gain);
        const F taken = select(same, zero(), select(better, step, zero()));
        store(steps + lane, taken);
        const Mask stays = equal_to(taken, zero());
        store(code, select(stays, load(code), r.code));
        store(value, select(stays, old, add(old, step)));
        changed = changed || any(less(zero(), abs(taken)));
    }
    if (!changed) return 0;
    int64_t count = 0;
    for (int64_t r = 0; r < t.rows; ++r) {
        if (steps[r] == 0.0f) continue;
        push_step(t, r, k, steps[r]);
        ++count;
    }
    return count;
}

static void descend_task(const DescendJob& job, int64_t task) {
    const int64_t n = job.columns, row = task * kDescendRows, stride = round_up(n, W) + 2 * W;
    const int64_t rows = job.rows - row < kDescendRows ? job.rows - row : kDescendRows;
    auto* memory =
        static_cast<float*>(thread_scratch(Scratch::tile, 4 * kDescendRows * (stride + 2 * n)));
    float* values = memory + kDescendRows * stride;
    const DescendTile t{job, row, rows, stride, memory, values, values + kDescendRows * n};
    for (int64_t r = 0; r < kDescendRows; ++r) {
        const int64_t at = (row + r) * n;
        for (int64_t k = 0; k < n; ++k) {
            t.gradient[r * stride + k] = r < rows ? job.gradient[at + k] : 0.0f;
            t.values[k * kDescendRows + r] = r < rows ? job.values[at + k] : 0.0f;
            t.codes[k * kDescendRows + r] = r < rows ? static_cast<float>(job.codes[at + k]) : 0.0f;
        }
    }
    int64_t total = 0;
    for (int64_t pass = 0; pass < job.passes; ++pass) {
        int64_t changed = 0;
        for (int64_t k = 0; k < n; ++k) changed += descend_column(t, k);
        total += changed;
        if (changed == 0) break;
    }
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (row + r) * n;
        std::memcpy(job.gradient + at, t.gradient + r * stride, static_cast<size_t>(4 * n));
        for (int64_t k = 0; k < n; ++k) {
            job.values[at + k] = t.values[k * kDescendRows + r];
            job.codes[at + k] = static_cast<int16_t>(t.codes[k * kDescendRows + r]);
        }
    }
    job.changes[task] = total;
}

}  // namespace HB_ISA
}  // namespace halfbyte
