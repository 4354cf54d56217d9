// LSTM and GRU over the products of the inputs, step by step. Gates are added up in place.
#pragma once

#include "matmul/gemm.hpp"

namespace halfbyte {
namespace HB_ISA {

HB_INLINE F sigmoid(F v) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), v)))); }

// Calls function(offset, lanes to keep).
template <class Function>
HB_INLINE void in_lanes(int64_t n, Function function) {
    for (int64_t i = 0; i < n; i += W) function(i, n - i < W ? n - i : W);
}

// gates[batch, n] += h[batch, k] * packed
static void add_product(const float* h, int64_t batch, int64_t n, int64_t k, const float* packed,
                        float* gates, int64_t stride) {
    for (int64_t p = 0; p < k; p += kGemmDepth) {
        const int64_t depth = k - p < kGemmDepth ? k - p : kGemmDepth;
        const float* b = packed + p * kGemmColumns;
        if (batch == 1) {
            gemm_row(n, depth, h + p, b, k * kGemmColumns, gates, false);
        } else {
            gemm_block<false>(batch, n, depth, h + p, k, b, k * kGemmColumns, gates, stride, false);
        }
    }
}

// Gates of one sequence in order i, o, f, c.
static void lstm_cell(const RecurrentJob& job, const float* g, float* h, float* c) {
    const int64_t n = job.hidden;
    const float* p = job.peepholes;
    in_lanes(n, [&](int64_t at, int64_t left) {
        const F before = load_n(c + at, left);
        F i = load_n(g + at, left), o = load_n(g + n + at, left), f = load_n(g + 2 * n + at, left);
        if (p) {
            i = fma(load_n(p + at, left), before, i);
            f = fma(load_n(p + 2 * n + at, left), before, f);
        }
        const F fresh = tanh(load_n(g + 3 * n + at, left));
        const F after = add(mul(sigmoid(f), before), mul(sigmoid(i), fresh));
        if (p) o = fma(load_n(p + n + at, left), after, o);
        store_n(c + at, after, left);
        store_n(h + at, mul(sigmoid(o), tanh(after)), left);
    });
}

static void lstm(const RecurrentJob& job) {
    const int64_t n = job.hidden, size = job.batch * n;
    for (int64_t step = 0; step < job.steps; ++step) {
        const int64_t s = job.reverse ? job.steps - 1 - step : step;
        float* gates = job.gates + s * 4 * size;
        add_product(job.h, job.batch, 4 * n, n, job.weight, gates, 4 * n);
        for (int64_t b = 0; b < job.batch; ++b)
            lstm_cell(job, gates + 4 * b * n, job.h + b * n, job.c + b * n);
        if (job.y) std::memcpy(job.y + s * job.y_step, job.h, static_cast<size_t>(4 * size));
    }
}

// What follows the gates z and r of one sequence; `candidate` holds the product for h.
static void gru_cell(const RecurrentJob& job, const float* g, const float* candidate, float* h) {
    const int64_t n = job.hidden;
    in_lanes(n, [&](int64_t at, int64_t left) {
        const F z = sigmoid(load_n(g + at, left));
        F fresh = load_n(candidate + at, left);
        if (job.linear_before_reset) {
            const F r = sigmoid(load_n(g + n + at, left));
            fresh = fma(r, fresh, load_n(g + 2 * n + at, left));
        }
        fresh = tanh(fresh);
        const F before = load_n(h + at, left);
        store_n(h + at, add(sub(fresh, mul(z, fresh)), mul(z, before)), left);
    });
}

static void gru_step(const RecurrentJob& job, float* gates, float* reset, float* candidate) {
    const int64_t n = job.hidden, batch = job.batch;
    add_product(job.h, batch, 2 * n, n, job.weight, gates, 3 * n);
    for (int64_t b = 0; b < batch; ++b) {
        const float* g = gates + 3 * b * n;
        float* to = candidate + b * n;
        if (job.linear_before_reset) {
            if (job.h_bias) {
                std::memcpy(to, job.h_bias, static_cast<size_t>(4 * n));
            } else {
                std::memset(to, 0, static_cast<size_t>(4 * n));
            }
            continue;
        }
        std::memcpy(to, g + 2 * n, static_cast<size_t>(4 * n));
        in_lanes(n, [&](int64_t at, int64_t left) {
            const F r = sigmoid(load_n(g + n + at, left));
            store_n(reset + b * n + at, mul(r, load_n(job.h + b * n + at, left)), left);
        });
    }
    add_product(job.linear_before_reset ? job.h : reset, batch, n, n, job.weight_last, candidate,
                n);
    for (int64_t b = 0; b < batch; ++b)
        gru_cell(job, gates + 3 * b * n, candidate + b * n, job.h + b * n);
}

static void gru(const RecurrentJob& job) {
    const int64_t size = job.batch * job.hidden;
    auto* memory = static_cast<float*>(thread_scratch(Scratch::tile, 8 * size));
    for (int64_t step = 0; step < job.steps; ++step) {
        const int64_t s = job.reverse ? job.steps - 1 - step : step;
        gru_step(job, job.gates + s * 3 * size, memory, memory + size);
        if (job.y) std::memcpy(job.y + s * job.y_step, job.h, static_cast<size_t>(4 * size));
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
