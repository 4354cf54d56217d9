// The tasks of one linear call: row ranges of weights by row ranges of x.
#pragma once

#include "matmul/float.hpp"
#include "matmul/int8.hpp"
#include "nn/elementwise.hpp"

namespace halfbyte {
namespace HB_ISA {

// Rows m0..m1 of x into the forms that the weights of this call need.
static void pack_rows(const LinearJob& job, int64_t m0, int64_t m1) {
    const int64_t blocks = job.padded / kStep;
    for (int64_t m = m0; m < m1; ++m) {
        const float* x = job.x + m * job.columns;
        if (job.packed) {
            float* out = job.packed + m * job.padded;
            std::memcpy(out, x, static_cast<size_t>(4 * job.columns));
            for (int64_t i = job.columns; i < job.padded; ++i) out[i] = 0.0f;
        }
        if (job.codes) {
            quantize_row(x, job.columns, job.codes + m * job.padded, job.code_scales + m * blocks,
                         job.code_sums + m * blocks, job.code_pairs + m * blocks,
                         job.code_offsets + m * blocks);
        }
    }
}

static void linear_range(const LinearJob& job, const WeightView& w, const float* bias, int64_t row0,
                         int64_t row1, int64_t m0, int64_t m1, float* y, int64_t stride) {
    if (job.int8 && meets_int8(w)) {
        int8_linear(job, w, row0, row1, m0, m1, y, stride);
    } else {
        float_linear(job, w, row0, row1, m0, m1, y, stride);
    }
    if (!bias) return;
    for (int64_t m = 0; m < m1 - m0; ++m) {
        add_values(y + m * stride, bias + row0, row1 - row0, y + m * stride);
    }
}

static void linear_task(const LinearJob& job, int64_t task) {
    const int64_t m_tiles = (job.m + job.m_tile - 1) / job.m_tile;
    const int64_t m0 = task % m_tiles * job.m_tile;
    const int64_t m1 = m0 + job.m_tile < job.m ? m0 + job.m_tile : job.m;
    int64_t tile = task / m_tiles;
    const LinearOutput* o = job.outputs;
    while (tile >= (o->weight.rows + job.row_tile - 1) / job.row_tile) {
        tile -= (o->weight.rows + job.row_tile - 1) / job.row_tile;
        ++o;
    }
    const int64_t row0 = tile * job.row_tile;
    const int64_t row1 =
        row0 + job.row_tile < o->weight.rows ? row0 + job.row_tile : o->weight.rows;
    float* y = o->y + m0 * o->stride + row0;
    linear_range(job, o->weight, o->bias, row0, row1, m0, m1, y, o->stride);
    if (!job.swiglu) return;
    const int64_t width = row1 - row0;
    auto* up = static_cast<float*>(thread_scratch(Scratch::tile, 4 * width * (m1 - m0)));
    linear_range(job, o[1].weight, o[1].bias, row0, row1, m0, m1, up, width);
    for (int64_t m = 0; m < m1 - m0; ++m) {
        swiglu(y + m * o->stride, up + m * width, width, y + m * o->stride);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
