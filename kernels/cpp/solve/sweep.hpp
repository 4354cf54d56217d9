// GPTQ's error feedback with rows in the lanes: a few columns one after the other, then their sum
// into the rest of the block, then that of the block into all later columns.
#pragma once

#include "solve/grid.hpp"
#include "solve/tiles.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int64_t kSweepStep = 24;  // columns rounded one by one; a multiple of kTileRows
static_assert(kSweepStep % kTileRows == 0, "tiles of the update start at its multiples");

struct SweepTile {
    const SweepJob& job;
    int64_t row, rows, width;  // of the tile: first row, how many exist, rounded up to panels
    int64_t held;              // columns of the block, and depth of a panel below
    float* weights;            // [held, width]
    float* pushed;             // panels of rows: errors [held, panel], then minus the weights
    double* errors;            // [width]

    int64_t depth() const { return job.cross ? 2 * held : held; }
    float* pushed_at(int64_t lane, int64_t k) const {
        constexpr int64_t kPanel = kPanelOf<FloatLanes>;
        return pushed + lane / kPanel * kPanel * depth() + k * kPanel + lane % kPanel;
    }
};

// Columns k0..k1 of the block for W rows.
static void sweep_lanes(const SweepTile& t, int64_t lane, int64_t k0, int64_t k1) {
    const SweepJob& job = t.job;
    const int64_t count = t.rows > lane ? t.rows - lane : 0, row = t.row + lane;
    for (int64_t k = k0; k < k1; ++k) {
        const int64_t column = job.first + k;
        const float* factor = job.factor + column * job.columns + job.first;
        float* at = t.weights + k * t.width + lane;
        const F w = load(at);
        const Rounded r = round_lanes(job.grid, column, row, count, w);
        const F e = div(sub(w, r.value), set1(factor[k]));
        if (job.codes) store_codes(r.code, count, job.codes + column * job.rows + row);
        store(at, r.value);
        float* error = t.pushed_at(lane, k);
        store(error, e);
        for (int i = 0; i < W; ++i)
            t.errors[lane + i] += static_cast<double>(error[i]) * static_cast<double>(error[i]);
        if (!job.cross) {
            for (int64_t j = k + 1; j < k1; ++j) {
                at += t.width;
                store(at, sub(load(at), mul(set1(factor[j]), e)));
            }
            continue;
        }
        const float* cross = job.cross + column * job.columns + job.first;
        store(t.pushed_at(lane, t.held + k), sub(zero(), w));
        for (int64_t j = k + 1; j < k1; ++j) {
            at += t.width;
            const F less_error = sub(load(at), mul(set1(factor[j]), e));
            store(at, add(less_error, mul(set1(cross[j]), w)));
        }
    }
}

// What columns k0..k1 push into the rest of the block.
static void sweep_within(const SweepTile& t, int64_t k0, int64_t k1) {
    constexpr int64_t kPanel = kPanelOf<FloatLanes>;
    const int64_t depth = t.depth();
    for (int64_t half = 0; half < depth; half += t.held) {
        const int64_t k = half + k0;
        for (int64_t i = k1; i < t.held; i += kTileRows) {
            const float* a = t.job.within + i / kPanel * kPanel * depth + k * kPanel + i % kPanel;
            for (int64_t j = 0; j < t.width; j += kPanel) {
                float* to = t.weights + i * t.width + j;
                const float* b = t.pushed_at(j, k);
                if (i + kTileRows <= t.held) {
                    full_tile<FloatLanes, Into::difference>(k1 - k0, a, b, to, t.width);
                } else {
                    edge_tile<FloatLanes, Into::difference>(k1 - k0, a, b, to, t.width, t.held - i,
                                                            kPanel);
                }
            }
        }
    }
}

static void sweep_task(const SweepJob& job, int64_t task) {
    constexpr int64_t kPanel = kPanelOf<FloatLanes>;
    const int64_t row = task * job.tile;
    const int64_t rows = job.rows - row < job.tile ? job.rows - row : job.tile;
    const int64_t held = job.last - job.first, width = round_up(rows, kPanel);
    const int64_t floats = 3 * held * width;
    auto* memory = static_cast<float*>(thread_scratch(Scratch::tile, 4 * floats + 8 * width + 8));
    SweepTile t{job,
                row,
                rows,
                width,
                held,
                memory,
                memory + held * width,
                reinterpret_cast<double*>(memory + round_up(floats, 2))};
    for (int64_t k = 0; k < held; ++k) {
        const float* from = job.weights + (job.first + k) * job.rows + row;
        for (int64_t i = 0; i < width; ++i) t.weights[k * width + i] = i < rows ? from[i] : 0.0f;
    }
    for (int64_t i = 0; i < width; ++i) t.errors[i] = 0.0;
    for (int64_t k0 = 0; k0 < held; k0 += kSweepStep) {
        const int64_t k1 = k0 + kSweepStep < held ? k0 + kSweepStep : held;
        for (int64_t lane = 0; lane < width; lane += W) sweep_lanes(t, lane, k0, k1);
        sweep_within(t, k0, k1);
    }
    for (int64_t k = 0; k < held; ++k) {
        std::memcpy(job.weights + (job.first + k) * job.rows + row, t.weights + k * width,
                    static_cast<size_t>(4 * rows));
    }
    for (int64_t i = 0; i < rows; ++i) job.errors[row + i] += t.errors[i];
    // A panel of later columns at a time, for all rows of the tile.
    for (int64_t j = job.last; j < job.columns; j += kPanel) {
        const int64_t count = job.columns - j < kPanel ? job.columns - j : kPanel;
        update_block<FloatLanes, Into::difference>(
            count, rows, t.depth(), job.later + (j - job.last) * t.depth(), 0, t.pushed,
            kPanel * t.depth(), job.weights + j * job.rows + row, job.rows);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
