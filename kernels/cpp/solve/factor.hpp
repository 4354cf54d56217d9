// The inverse of a Cholesky factor by elimination in place, block column by block column; and
// products of doubles.
#pragma once

#include "solve/tiles.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int64_t kDoublePanel = kPanelOf<DoubleLanes>;

// Row i of the block -= share * row p, up to column i.
static void eliminate(double* __restrict to, const double* __restrict from, double share,
                      int64_t count) {
    for (int64_t j = 0; j < count; ++j) to[j] -= share * from[j];
}

// Replaces the diagonal block D = L L^T by L^-1, in x and packed; false unless it is definite.
static bool factor_block(const FactorJob& job) {
    constexpr int64_t n = kSolveBlock;
    double block[n * n];
    double* x = job.x + job.step * job.size + job.step;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) block[i * n + j] = j <= i ? x[i * job.size + j] : 0.0;
    }
    double column[n];
    for (int64_t p = 0; p < n; ++p) {
        double* row = block + p * n;
        const double pivot = row[p];
        if (!(pivot > 0.0) || !(pivot <= 1.7976931348623157e308)) return false;
        const double inverse = 1.0 / std::sqrt(pivot);
        for (int64_t i = p + 1; i < n; ++i) {
            column[i] = block[i * n + p] * inverse;
            block[i * n + p] = 0.0;
        }
        for (int64_t j = 0; j < p; ++j) row[j] *= inverse;
        row[p] = inverse;
        for (int64_t i = p + 1; i < n; ++i) {
            eliminate(block + i * n, row, column[i], p + 1);
            eliminate(block + i * n + p + 1, column + p + 1, column[i], i - p);
        }
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) x[i * job.size + j] = block[i * n + j];
    }
    pack_transposed<DoubleLanes>(block, n, n, n, job.inverse);
    pack_panels_of<DoubleLanes>(block, n, n, n, job.packed + n * job.step);
    return true;
}

// One block of `packed`: left of the step rows of L^-1 become final, right of it rows of L.
static void factor_panel_task(const FactorJob& job, int64_t task) {
    constexpr int64_t n = kSolveBlock, kPanel = kDoublePanel;
    const int64_t at = task * n;
    if (at == job.step) return;
    const bool right = at > job.step;
    double* x = job.x + (right ? at * job.size + job.step : job.step * job.size + at);
    double block[n * n];
    if (right) {
        pack_transposed<DoubleLanes>(x, job.size, n, n, block);
    } else {
        pack_panels_of<DoubleLanes>(x, job.size, n, n, block);
    }
    double* packed = job.packed + n * at;
    for (int64_t j = 0; j < n; j += kPanel) {
        for (int64_t i = 0; i < n; i += kTileRows) {
            const double* a = job.inverse + i / kPanel * kPanel * n + i % kPanel;
            full_tile<DoubleLanes, Into::overwrite>(n, a, block + j * n,
                                                    packed + j * n + i * kPanel, kPanel);
        }
        for (int64_t i = 0; i < n && !right; ++i) {
            for (int64_t c = 0; c < kPanel; ++c)
                x[i * job.size + j + c] = packed[j * n + i * kPanel + c];
        }
    }
    for (int64_t i = 0; i < n && right; ++i) {
        for (int64_t j = 0; j < n; ++j) x[i * job.size + j] = 0.0;
    }
}

// Blocks of 4 kSolveBlock columns of the rows after the step: x -= L (rows of L^-1, L^T).
static void factor_update_task(const FactorJob& job, int64_t task) {
    constexpr int64_t n = kSolveBlock, kWide = 4 * n;
    const int64_t across = (job.size + kWide - 1) / kWide;
    // The last rows are the longest: they come first.
    const int64_t row = job.size - n - task / across * n, column = task % across * kWide;
    if (row <= job.step || column >= row + n) return;
    const int64_t end = row + n < column + kWide ? row + n : column + kWide;
    update_block<DoubleLanes, Into::difference>(
        n, end - column, n, job.packed + n * row, kDoublePanel * n, job.packed + n * column,
        kDoublePanel * n, job.x + row * job.size + column, job.size);
}

static void double_product_task(const DoubleProductJob& job, int64_t task) {
    constexpr int64_t n = kSolveBlock;
    const int64_t across = (job.column1 - job.column0) / n;
    const int64_t row = job.row0 + task / across * n, column = job.column0 + task % across * n;
    if (job.upper && column < row) return;
    const int64_t panel = kDoublePanel * job.depth;
    update_block<DoubleLanes, Into::sum>(n, n, job.depth, job.a + job.depth * row, panel,
                                         job.b + job.depth * column, panel,
                                         job.c + row * job.stride + column, job.stride);
}

}  // namespace HB_ISA
}  // namespace halfbyte
