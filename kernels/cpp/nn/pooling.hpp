// Maximum and average over windows of planes.
#pragma once

#include <cmath>

#include "conv/slab.hpp"

namespace halfbyte {
namespace HB_ISA {

HB_INLINE void pool_row(const PoolJob& job, const float* from, const int64_t* offsets, int64_t row,
                        float* sums) {
    const ConvJob& w = job.window;
    const int64_t cells = w.kh * w.kw;
    for (int64_t i = 0; i < w.ow; i += W) {
        if (job.average) {
            F acc = zero();
            for (int64_t t = 0; t < cells; ++t) acc = add(acc, load(from + offsets[t] + i));
            const F counts = mul(load(job.column_counts + i), set1(job.row_counts[row]));
            store(sums + i, div(acc, counts));
        } else {
            F acc = load(from + offsets[0] + i);
            for (int64_t t = 1; t < cells; ++t) {
                // A NaN in the second operand stays.
                acc = max_nan(load(from + offsets[t] + i), acc);
            }
            store(sums + i, acc);
        }
    }
}

// `rows` planes from task * rows on. column_counts has kStep values to spare.
static void pool_task(const PoolJob& job, int64_t task) {
    const ConvJob& w = job.window;
    const int64_t end = (task + 1) * w.rows < w.batch ? (task + 1) * w.rows : w.batch;
    const Slab s = slab_of(w, 0, w.oh);
    const int64_t cells = w.kh * w.kw, row = round_up(w.ow, W);
    auto* memory =
        static_cast<float*>(thread_scratch(Scratch::tile, 8 * cells + 4 * (s.plane + 2 * W + row)));
    auto* offsets = reinterpret_cast<int64_t*>(memory);
    float* sums = memory + 2 * cells;
    float* slab = sums + row;
    for (int64_t t = 0; t < cells; ++t) offsets[t] = slab_offset(w, s, t / w.kw, t % w.kw);
    for (int64_t plane = task * w.rows; plane < end; ++plane) {
        fill_slab(w, s, w.x + plane * w.h * w.w, 1, job.average ? 0.0f : -INFINITY, slab);
        float* out = w.out + plane * w.oh * w.ow;
        for (int64_t oh = 0; oh < w.oh; ++oh, out += w.ow) {
            pool_row(job, slab + oh * w.stride_h * s.row, offsets, oh, sums);
            std::memcpy(out, sums, static_cast<size_t>(4 * w.ow));
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
