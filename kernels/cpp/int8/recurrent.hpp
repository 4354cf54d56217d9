// An LSTM whose hidden state is rounded to bytes anew in every step, on the scale of its range.
#pragma once

#include "int8/elementwise.hpp"
#include "nn/math.hpp"

namespace halfbyte {
namespace HB_ISA {

HB_INLINE F logistic(F v) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), v)))); }

// Gates i, o, f, c of one sequence: its own share plus what the hidden state adds.
static void byte_lstm_cell(int64_t n, const float* own, const float* held, float* h, float* c) {
    for (int64_t at = 0; at < n; at += W) {
        const int64_t left = n - at < W ? n - at : W;
        F gate[4];
        for (int i = 0; i < 4; ++i)
            gate[i] = add(load_n(own + i * n + at, left), load_n(held + i * n + at, left));
        const F kept = mul(logistic(gate[2]), load_n(c + at, left));
        const F after = add(kept, mul(logistic(gate[0]), tanh(gate[3])));
        store_n(c + at, after, left);
        store_n(h + at, mul(logistic(gate[1]), tanh(after)), left);
    }
}

// Memory of one run: codes [batch, depth], held [batch, 4 * hidden], scale and offset [4 * hidden].
struct ByteLstmMemory {
    uint8_t* codes;
    float *held, *scale;
    int32_t* offset;
};

// held = h times the recurrent weights, h rounded to bytes.
static void byte_lstm_product(const ByteLstmJob& job, const ByteLstmMemory& memory) {
    const int64_t n = job.hidden, size = job.batch * n, wide = 4 * n, depth = job.product.depth;
    float low, high;
    value_range(job.h, size, &low, &high);
    const float step = (high - low) / 255.0f;
    if (step == 0.0f) {
        std::memset(memory.held, 0, static_cast<size_t>(4 * job.batch * wide));
        return;
    }
    const float place = std::nearbyint(-low / step);
    const float origin = place < 0.0f ? 0.0f : place > 255.0f ? 255.0f : place;
    for (int64_t b = 0; b < job.batch; ++b)
        quantize_bytes(job.h + b * n, n, step, origin, 0, memory.codes + b * depth);
    const auto x_zero = static_cast<int32_t>(origin);
    for (int64_t j = 0; j < wide; ++j) {
        memory.scale[j] = step * job.scale[j];
        const int32_t lift = job.product.weight_zero ? job.product.weight_zero[j] : 0;
        memory.offset[j] =
            (kShift - x_zero) * job.sums[j] + x_zero * static_cast<int32_t>(n) * lift;
    }
    ByteProductJob product = job.product;
    product.a = memory.codes;
    product.m = product.rows = job.batch;
    product.offset = memory.offset;
    product.finish.scale = memory.scale;
    product.finish.out = memory.held;
    byte_product_task(product, 0);
}

static void byte_lstm(const ByteLstmJob& job) {
    const int64_t n = job.hidden, size = job.batch * n, wide = 4 * n;
    const int64_t codes = round_up(job.batch * job.product.depth, 64);
    auto* raw = static_cast<uint8_t*>(
        thread_scratch(Scratch::tile, codes + 4 * (job.batch * wide + 2 * wide)));
    ByteLstmMemory memory{raw, reinterpret_cast<float*>(raw + codes), nullptr, nullptr};
    memory.scale = memory.held + job.batch * wide;
    memory.offset = reinterpret_cast<int32_t*>(memory.scale + wide);
    std::memset(raw, 0, static_cast<size_t>(codes));
    for (int64_t step = 0; step < job.steps; ++step) {
        const int64_t s = job.reverse ? job.steps - 1 - step : step;
        byte_lstm_product(job, memory);
        for (int64_t b = 0; b < job.batch; ++b)
            byte_lstm_cell(n, job.gates + (s * job.batch + b) * wide, memory.held + b * wide,
                           job.h + b * n, job.c + b * n);
        std::memcpy(job.y + s * size, job.h, static_cast<size_t>(4 * size));
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
