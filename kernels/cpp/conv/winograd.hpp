// 3x3 convolution of stride 1 by 4x4 output tiles: 36 products per tile and channel pair instead of
// 144 (Lavin and Gray, F(4x4, 3x3)). Lanes run along channels; tiles are the rows of the products.
#pragma once

#include "conv/lanes.hpp"
#include "matmul/gemm.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kTile = 4, kCells = 6, kPlanes = kCells * kCells;

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

// w [out_channels, in_channels, 3, 3] to 36 matrices [in_channels, out_channels] packed by pack_b.
static void winograd_weights(const float* w, int64_t out_channels, int64_t in_channels,
                             float* out) {
    const int64_t size = packed_b_size(out_channels, in_channels);
    std::memset(out, 0, static_cast<size_t>(4 * kPlanes * size));
    for (int64_t o = 0; o < out_channels; ++o) {
        float* panel = out + o / kGemmColumns * in_channels * kGemmColumns + o % kGemmColumns;
        for (int64_t c = 0; c < in_channels; ++c) {
            const float* g = w + (o * in_channels + c) * 9;
            float half[kCells * 3], full[kPlanes];
            for (int j = 0; j < 3; ++j) weight_transform(g + j, 3, half + j, 3);
            for (int i = 0; i < kCells; ++i)
                weight_transform(half + 3 * i, 1, full + kCells * i, 1);
            for (int p = 0; p < kPlanes; ++p) panel[p * size + c * kGemmColumns] = full[p];
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

// Neighbouring tiles of one tile row; `lane` counts within the block of a task.
struct TileRun {
    int64_t row, column, count, lane;
};

struct TileBlock {
    int64_t columns;           // tiles in a tile row
    int64_t first, count;      // tiles
    int64_t row0, row1;        // tile rows
    int64_t inputs, products;  // values per tile and plane
    int64_t run_count;
    TileRun* runs;
};

static void find_runs(TileBlock* block) {
    int64_t row = block->row0, column = block->first % block->columns;
    block->run_count = 0;
    for (int64_t lane = 0; lane < block->count; ++row, column = 0) {
        const int64_t left = block->columns - column, wanted = block->count - lane;
        const int64_t length = left < wanted ? left : wanted;
        block->runs[block->run_count++] = {row, column, length, lane};
        lane += length;
    }
}

// One tile of W channels into the 36 planes, `plane` values apart.
HB_INLINE void transform_tile(const float* from, int64_t width, float* out, int64_t plane) {
    F half[kCells][kCells];
    for (int c = 0; c < kCells; ++c) {
        F column[kCells], changed[kCells];
        for (int r = 0; r < kCells; ++r) column[r] = load(from + (r * width + c) * W);
        input_transform(column, changed);
        for (int r = 0; r < kCells; ++r) half[r][c] = changed[r];
    }
    for (int r = 0; r < kCells; ++r) {
        F full[kCells];
        input_transform(half[r], full);
        for (int c = 0; c < kCells; ++c) store(out + (r * kCells + c) * plane, full[c]);
    }
}

// All channels of the tiles of a block: [36][count][inputs].
static void transform_inputs(const ConvJob& job, const TileBlock& block, const float* x,
                             float* band, float* out) {
    ConvJob tiles = job;
    tiles.ow = block.columns * kTile;
    const Band b = band_of(tiles, block.row0 * kTile, block.row1 * kTile);
    for (int64_t c = 0; c < job.in_channels; c += W) {
        const int64_t planes = job.in_channels - c < W ? job.in_channels - c : W;
        fill_band(tiles, b, x + c * job.h * job.w, planes, 0.0f, band);
        for (int64_t r = 0; r < block.run_count; ++r) {
            const TileRun& run = block.runs[r];
            for (int64_t i = 0; i < run.count; ++i) {
                const int64_t row = (run.row - block.row0) * kTile;
                const int64_t column = (run.column + i) * kTile;
                transform_tile(band + (row * b.width + column) * W, b.width,
                               out + (run.lane + i) * block.inputs + c, block.count * block.inputs);
            }
        }
    }
}

// The 16 pixels of one tile of W channels into four rows of `width` pixels.
HB_INLINE void restore_tile(const float* from, int64_t plane, float* out, int64_t width) {
    F half[kTile][kCells];
    for (int c = 0; c < kCells; ++c) {
        F column[kCells], changed[kTile];
        for (int r = 0; r < kCells; ++r) column[r] = load(from + (r * kCells + c) * plane);
        output_transform(column, changed);
        for (int r = 0; r < kTile; ++r) half[r][c] = changed[r];
    }
    for (int r = 0; r < kTile; ++r) {
        F full[kTile];
        output_transform(half[r], full);
        for (int c = 0; c < kTile; ++c) store(out + (r * width + c) * W, full[c]);
    }
}

// Pixels [pixels][W] of W channels to their planes, finished.
template <Unary kFunction>
static void finish_lanes(const ConvJob& job, const float* from, int64_t pixels, int64_t channel,
                         int64_t planes, int64_t at) {
    const F alpha = set1(job.finish.alpha), beta = set1(job.finish.beta);
    const int64_t plane = job.oh * job.ow;
    for (int64_t p = 0; p < pixels; p += W) {
        const int64_t count = pixels - p < W ? pixels - p : W;
        F values[W];
        for (int64_t i = 0; i < W; ++i) values[i] = load(from + (p + i) * W);
        transpose_lanes(values);
        for (int64_t i = 0; i < planes; ++i) {
            const int64_t to = at + i * plane + p;
            F v = job.bias ? add(values[i], set1(job.bias[channel + i])) : values[i];
            if (job.residual) v = add(v, load_n(job.residual + to, count));
            v = unary_lanes<kFunction>(v, alpha, beta);
            if (count == W) {
                store(job.out + to, v);
            } else {
                store_n(job.out + to, v, count);
            }
        }
    }
}

static void store_lanes(const ConvJob& job, const float* from, int64_t pixels, int64_t channel,
                        int64_t planes, int64_t at) {
    const bool done = with_unary(job.finish.function, [&](auto tag) {
        finish_lanes<decltype(tag)::value>(job, from, pixels, channel, planes, at);
    });
    if (done) return;
    finish_lanes<Unary::none>(job, from, pixels, channel, planes, at);
    for (int64_t i = 0; i < planes; ++i) {
        float* row = job.out + at + i * job.oh * job.ow;
        unary(job.finish, row, pixels, row);
    }
}

static void restore_outputs(const ConvJob& job, const TileBlock& block, const float* products,
                            int64_t image, float* rows) {
    for (int64_t o = 0; o < job.out_channels; o += W) {
        const int64_t planes = job.out_channels - o < W ? job.out_channels - o : W;
        const int64_t first = (image * job.out_channels + o) * job.oh * job.ow;
        for (int64_t r = 0; r < block.run_count; ++r) {
            const TileRun& run = block.runs[r];
            const int64_t width = run.count * kTile + W, column = run.column * kTile;
            for (int64_t i = 0; i < run.count; ++i) {
                restore_tile(products + (run.lane + i) * block.products + o,
                             block.count * block.products, rows + i * kTile * W, width);
            }
            const int64_t left = job.ow - column;
            const int64_t pixels = run.count * kTile < left ? run.count * kTile : left;
            for (int64_t y = 0; y < kTile && run.row * kTile + y < job.oh; ++y) {
                store_lanes(job, rows + y * width * W, pixels, o, planes,
                            first + (run.row * kTile + y) * job.ow + column);
            }
        }
    }
}

// `columns` tiles of one image, all channels.
static void winograd_task(const ConvJob& job, int64_t task) {
    const int64_t columns = (job.ow + kTile - 1) / kTile;
    const int64_t tiles = columns * ((job.oh + kTile - 1) / kTile);
    const int64_t parts = (tiles + job.columns - 1) / job.columns, image = task / parts;
    TileBlock block;
    block.columns = columns;
    block.first = task % parts * job.columns;
    block.count = tiles - block.first < job.columns ? tiles - block.first : job.columns;
    block.row0 = block.first / columns;
    block.row1 = (block.first + block.count - 1) / columns + 1;
    block.inputs = round_up(job.in_channels, W);
    block.products = round_up(job.out_channels, kGemmColumns);
    block.runs = static_cast<TileRun*>(
        thread_scratch(Scratch::scores, static_cast<int64_t>(sizeof(TileRun)) * (block.count + 1)));
    find_runs(&block);
    const int64_t in_plane = block.count * block.inputs, out_plane = block.count * block.products;
    auto* inputs =
        static_cast<float*>(thread_scratch(Scratch::panel, 4 * kPlanes * (in_plane + out_plane)));
    float* products = inputs + kPlanes * in_plane;
    const int64_t band_columns = columns * kTile + 2 + job.w + job.pad_left;
    const int64_t band = ((block.row1 - block.row0) * kTile + 2) * band_columns * W;
    const int64_t rows = kTile * (columns * kTile + W) * W;
    auto* memory = static_cast<float*>(
        thread_scratch(Scratch::tile, 4 * ((band > rows ? band : rows) + W * W)));
    const int64_t ci = job.in_channels, size = packed_b_size(job.out_channels, ci);
    transform_inputs(job, block, job.x + image * ci * job.h * job.w, memory, inputs);
    for (int64_t p = 0; p < kPlanes; ++p) {
        for (int64_t k = 0; k < ci; k += kGemmDepth) {
            const int64_t depth = ci - k < kGemmDepth ? ci - k : kGemmDepth;
            gemm_block<false>(block.count, block.products, depth, inputs + p * in_plane + k,
                              block.inputs, job.weight + p * size + k * kGemmColumns,
                              ci * kGemmColumns, products + p * out_plane, block.products, k == 0);
        }
    }
    restore_outputs(job, block, products, image, memory);
}

}  // namespace HB_ISA
}  // namespace halfbyte
