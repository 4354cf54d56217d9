// 3x3 convolution of stride 1 by 4x4 output tiles: 36 products per tile and channel pair instead of
// 144 (Lavin and Gray, F(4x4, 3x3)). Lanes run along tiles; inputs lie in four column phases.
#pragma once

#include "conv/slab.hpp"
#include "matmul/gemm.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kTile = 4, kCells = 6, kPlanes = kCells * kCells;
constexpr int64_t kWinogradRows = kGemmRows * (24 / kGemmRows);

// Rows of G for points 0, 1, -1, 2, -2 and infinity.
HB_INLINE void weight_transform(const float* g, int64_t step, float* out, int64_t out_step) {
    const float a = g[0], b = g[step], c = g[2 * step];
    out[0] = a / 4.0f;
    out[out_step] = -(a + b + c) / 6.0f;
    out[2 * out_step] = -(a - b + c) / 6.0f;
    out[3 * out_step] = a / 24.0f + b / 12.0f + c / 6.0f;
    out[4 * out_step] = a / 24.0f - b / 12.0f + c / 6.0f;
    out[5 * out_step] = c;
}

// w [out_channels, in_channels, 3, 3] to 36 packed matrices [out_channels, in_channels].
static void winograd_weights(const float* w, int64_t out_channels, int64_t in_channels,
                             float* out) {
    const int64_t size = packed_a_size(out_channels, in_channels);
    fill(out, kPlanes * size, 0.0f);
    for (int64_t o = 0; o < out_channels; ++o) {
        float* block = out + (o / kGemmRows * in_channels) * kGemmRows + o % kGemmRows;
        for (int64_t c = 0; c < in_channels; ++c) {
            const float* g = w + (o * in_channels + c) * 9;
            float half[kCells * 3], full[kPlanes];
            for (int j = 0; j < 3; ++j) weight_transform(g + j, 3, half + j, 3);
            for (int i = 0; i < kCells; ++i)
                weight_transform(half + 3 * i, 1, full + kCells * i, 1);
            for (int p = 0; p < kPlanes; ++p) block[p * size + c * kGemmRows] = full[p];
        }
    }
}

// B^T d for six vectors.
HB_INLINE void input_transform(const F* d, F* out) {
    const F four = set1(4.0f), five = set1(5.0f), two = set1(2.0f);
    const F a = sub(d[4], mul(four, d[2])), b = sub(d[3], mul(four, d[1]));
    const F e = sub(d[4], d[2]), f = mul(two, sub(d[3], d[1]));
    out[0] = add(sub(mul(four, d[0]), mul(five, d[2])), d[4]);
    out[1] = add(a, b);
    out[2] = sub(a, b);
    out[3] = add(e, f);
    out[4] = sub(e, f);
    out[5] = add(sub(mul(four, d[1]), mul(five, d[3])), d[5]);
}

// A^T m for six vectors to four.
HB_INLINE void output_transform(const F* m, F* out) {
    const F a = add(m[1], m[2]), b = sub(m[1], m[2]);
    const F c = add(m[3], m[4]), d = sub(m[3], m[4]);
    out[0] = add(add(m[0], a), c);
    out[1] = fma(set1(2.0f), d, b);
    out[2] = fma(set1(4.0f), c, a);
    out[3] = add(fma(set1(8.0f), d, b), m[5]);
}

// Tiles [t0, t0 + count) of one image, as runs within tile rows.
struct TileRun {
    int64_t row, column, count, lane;
};

struct TileGrid {
    int64_t rows, columns;
};

HB_INLINE TileGrid tile_grid(const ConvJob& job) {
    return {(job.oh + kTile - 1) / kTile, (job.ow + kTile - 1) / kTile};
}

static int64_t tile_runs(const TileGrid& grid, int64_t t0, int64_t count, TileRun* runs) {
    int64_t made = 0, row = t0 / grid.columns, column = t0 % grid.columns;
    for (int64_t lane = 0; lane < count; ++row, column = 0) {
        const int64_t left = grid.columns - column,
                      length = left < count - lane ? left : count - lane;
        runs[made++] = {row, column, length, lane};
        lane += length;
    }
    return made;
}

// Six input rows of one tile row, padded, in four phases of `width` columns.
static void phase_rows(const ConvJob& job, const float* plane, int64_t first, int64_t width,
                       float* out) {
    for (int r = 0; r < kCells; ++r, out += kTile * width) {
        const int64_t row = first + r - job.pad_top;
        if (row < 0 || row >= job.h) {
            fill(out, kTile * width, 0.0f);
            continue;
        }
        for (int64_t phase = 0; phase < kTile; ++phase) {
            const float* from = plane + row * job.w + phase - job.pad_left;
            float* to = out + phase * width;
            const int64_t shift = phase - job.pad_left;
            const int64_t low = shift >= 0 ? 0 : (-shift + kTile - 1) / kTile;
            int64_t high = job.w - shift <= 0 ? 0 : (job.w - shift + kTile - 1) / kTile;
            high = high > width ? width : high;
            for (int64_t q = 0; q < low; ++q) to[q] = 0.0f;
            for (int64_t q = low; q < high; ++q) to[q] = from[kTile * q];
            for (int64_t q = high > low ? high : low; q < width; ++q) to[q] = 0.0f;
        }
    }
}

// One channel of a run of tiles into the 36 panels; `panel` floats lie between planes.
static void transform_run(const float* rows, int64_t width, const TileRun& run, float* out,
                          int64_t plane, int64_t channels) {
    for (int64_t i = 0; i < run.count; i += W) {
        F half[kCells][kCells];
        for (int c = 0; c < kCells; ++c) {
            F column[kCells], changed[kCells];
            for (int r = 0; r < kCells; ++r) {
                column[r] =
                    load(rows + (r * kTile + c % kTile) * width + run.column + i + c / kTile);
            }
            input_transform(column, changed);
            for (int r = 0; r < kCells; ++r) half[r][c] = changed[r];
        }
        const int64_t left = run.count - i < W ? run.count - i : W;
        for (int r = 0; r < kCells; ++r) {
            F full[kCells];
            input_transform(half[r], full);
            for (int c = 0; c < kCells; ++c) {
                float values[W];
                store(values, full[c]);
                float* to = out + (r * kCells + c) * plane;
                const int64_t lane = run.lane + i, inside = lane % kGemmColumns;
                if (inside + W <= kGemmColumns && left == W) {
                    store(to + lane / kGemmColumns * channels * kGemmColumns + inside, full[c]);
                    continue;
                }
                for (int64_t q = 0; q < left; ++q) {
                    const int64_t at = lane + q;
                    to[at / kGemmColumns * channels * kGemmColumns + at % kGemmColumns] = values[q];
                }
            }
        }
    }
}

static void transform_inputs(const ConvJob& job, const float* x, const TileRun* runs, int64_t count,
                             int64_t plane, float* rows, int64_t width, float* out) {
    for (int64_t r = 0; r < count; ++r) {
        for (int64_t c = 0; c < job.in_channels; ++c) {
            phase_rows(job, x + c * job.h * job.w, runs[r].row * kTile, width, rows);
            transform_run(rows, width, runs[r], out + c * kGemmColumns, plane, job.in_channels);
        }
    }
}

// One output channel: products [36][stride] to pixels.
static void transform_outputs(const ConvJob& job, const float* products, int64_t step,
                              const TileRun& run, int64_t channel, float* rows, int64_t at) {
    const int64_t width = round_up(run.count, W) * kTile;
    for (int64_t i = 0; i < run.count; i += W) {
        F half[kTile][kCells];
        for (int c = 0; c < kCells; ++c) {
            F column[kCells], changed[kTile];
            for (int r = 0; r < kCells; ++r)
                column[r] = load(products + (r * kCells + c) * step + run.lane + i);
            output_transform(column, changed);
            for (int r = 0; r < kTile; ++r) half[r][c] = changed[r];
        }
        for (int r = 0; r < kTile; ++r) {
            F full[kTile];
            output_transform(half[r], full);
            float values[kTile][W];
            for (int p = 0; p < kTile; ++p) store(values[p], full[p]);
            float* to = rows + r * width + i * kTile;
            for (int q = 0; q < W; ++q) {
                for (int p = 0; p < kTile; ++p) to[q * kTile + p] = values[p][q];
            }
        }
    }
    const float bias = job.bias ? job.bias[channel] : 0.0f;
    const int64_t column = run.column * kTile;
    const int64_t left = job.ow - column;
    const int64_t count = run.count * kTile < left ? run.count * kTile : left;
    for (int64_t r = 0; r < kTile && run.row * kTile + r < job.oh; ++r) {
        const int64_t to = at + (run.row * kTile + r) * job.ow + column;
        finish(job.finish, rows + r * width, bias, job.residual ? job.residual + to : nullptr,
               count, job.out + to);
    }
}

// `columns` tiles of one image, all output channels.
static void winograd_task(const ConvJob& job, int64_t task) {
    const TileGrid grid = tile_grid(job);
    const int64_t tiles = grid.rows * grid.columns;
    const int64_t parts = (tiles + job.columns - 1) / job.columns;
    const int64_t image = task / parts, t0 = task % parts * job.columns;
    const int64_t count = tiles - t0 < job.columns ? tiles - t0 : job.columns;
    const int64_t held = round_up(count, kGemmColumns), ci = job.in_channels;
    const int64_t plane = held * ci, width = grid.columns + 2 + W, step = held + W;
    auto* inputs = static_cast<float*>(thread_scratch(Scratch::panel, 4 * kPlanes * plane));
    const int64_t out_width = round_up(grid.columns, W) * kTile + W;
    auto* memory = static_cast<float*>(thread_scratch(
        Scratch::tile,
        4 * (kPlanes * kWinogradRows * step + kTile * (kCells * width + out_width))));
    float* products = memory;
    float* rows = memory + kPlanes * kWinogradRows * step;
    float* out_rows = rows + kCells * kTile * width;
    auto* runs = static_cast<TileRun*>(
        thread_scratch(Scratch::scores, static_cast<int64_t>(sizeof(TileRun)) * (count + 1)));
    const int64_t run_count = tile_runs(grid, t0, count, runs);
    transform_inputs(job, job.x + image * ci * job.h * job.w, runs, run_count, plane, rows, width,
                     inputs);
    const int64_t size = packed_a_size(job.out_channels, ci);
    for (int64_t o = 0; o < job.out_channels; o += kWinogradRows) {
        const int64_t left = job.out_channels - o;
        const int64_t outs = left < kWinogradRows ? left : kWinogradRows;
        for (int64_t p = 0; p < kPlanes; ++p) {
            gemm_block<true>(outs, held, ci, job.weight + p * size + o * ci, ci * kGemmRows,
                             inputs + p * plane, ci * kGemmColumns,
                             products + p * kWinogradRows * step, step, true);
        }
        for (int64_t i = 0; i < outs; ++i) {
            const int64_t at = (image * job.out_channels + o + i) * job.oh * job.ow;
            for (int64_t r = 0; r < run_count; ++r) {
                transform_outputs(job, products + i * step, kWinogradRows * step, runs[r], o + i,
                                  out_rows, at);
            }
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
