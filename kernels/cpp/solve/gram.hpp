// Sums of outer products: float32 inside a chunk of rows, float64 over the chunks.
#pragma once

#include "solve/tiles.hpp"

namespace halfbyte {
namespace HB_ISA {

// Adds a tile of float sums to doubles.
static void add_tile(const float* tile, double* c, int64_t ldc, int64_t rows, int64_t columns) {
    constexpr int64_t kPanel = kPanelOf<FloatLanes>;
    if (columns == kPanel) {
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < kPanel; ++j)
                c[i * ldc + j] += static_cast<double>(tile[i * kPanel + j]);
        }
        return;
    }
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j)
            c[i * ldc + j] += static_cast<double>(tile[i * kPanel + j]);
    }
}

// The lower triangle's share of a block from what lies above the diagonal.
static void mirror_block(const GramJob& job, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    constexpr int64_t kSide = 8;  // of squares whose cache lines are written and read whole
    for (int64_t j = j0 > i0 ? j0 : i0; j < j1; j += kSide) {
        const int64_t last = j + kSide < j1 ? j + kSide : j1;
        for (int64_t i = i0; i < i1 && i < last; i += kSide) {
            for (int64_t to = j; to < last; ++to) {
                const int64_t near = i + kSide < to ? i + kSide : to, end = near < i1 ? near : i1;
                double* row = job.total + to * job.columns;
                for (int64_t from = i; from < end; ++from)
                    row[from] = job.total[from * job.columns + to];
            }
        }
    }
}

static void gram_task(const GramJob& job, int64_t task) {
    constexpr int64_t kPanel = kPanelOf<FloatLanes>;
    const int64_t across = (job.columns + job.block_columns - 1) / job.block_columns;
    const int64_t i0 = task / across * kSolveBlock, j0 = task % across * job.block_columns;
    const int64_t i1 = i0 + kSolveBlock < job.rows ? i0 + kSolveBlock : job.rows;
    const int64_t j1 = j0 + job.block_columns < job.columns ? j0 + job.block_columns : job.columns;
    if (job.symmetric && j1 <= i0) return;
    float tile[kTileRows * kPanel];
    for (int64_t k0 = 0; k0 < job.depth; k0 += kGramDepth) {
        const int64_t depth = job.depth - k0 < kGramDepth ? job.depth - k0 : kGramDepth;
        for (int64_t j = j0; j < j1; j += kPanel) {
            const float* b = job.b + k0 * job.b_width + j * depth;
            const int64_t width = j1 - j < kPanel ? j1 - j : kPanel;
            for (int64_t i = i0; i < i1; i += kTileRows) {
                if (job.symmetric && j + kPanel <= i) break;
                const float* a =
                    job.a + k0 * job.a_width + i / kPanel * kPanel * depth + i % kPanel;
                full_tile<FloatLanes, Into::overwrite>(depth, a, b, tile, kPanel);
                add_tile(tile, job.total + i * job.columns + j, job.columns,
                         i1 - i < kTileRows ? i1 - i : kTileRows, width);
            }
        }
    }
    if (job.mirror) mirror_block(job, i0, i1, j0, j1);
}

}  // namespace HB_ISA
}  // namespace halfbyte
