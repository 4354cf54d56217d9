// Convolution of few output pixels: they are the rows of the product, and the lanes run along
// output channels. Weights are packed by pack_b from [out_channels, k], group after group.
#pragma once

#include "conv/gemm_conv.hpp"
#include "conv/lanes.hpp"

namespace halfbyte {
namespace HB_ISA {

// Values that `channels` channels of the slab give to each pixel, in blocks of kGemmRows pixels
// (one row of values where there is one pixel).
static void rows_from_slab(const float* slab, int64_t plane, int64_t channels,
                           const int64_t* offsets, int64_t cells, const int64_t* starts,
                           int64_t pixels, float* out) {
    const int64_t step = pixels == 1 ? 1 : kGemmRows;
    for (int64_t p = 0; p < pixels; p += kGemmRows) {
        const int64_t count = pixels - p < kGemmRows ? pixels - p : kGemmRows;
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t t = 0; t < cells; ++t, out += step) {
                const float* from = slab + c * plane + offsets[t];
                for (int64_t i = 0; i < count; ++i) out[i] = from[starts[p + i]];
            }
        }
    }
}

// c [pixels, width] to out planes, finished.
static void planes_from_rows(const ConvJob& job, const ConvTask& t, const float* c, int64_t width,
                             float* lane) {
    const int64_t pixels = job.oh * job.ow;
    const int64_t first = t.group * (job.out_channels / job.groups) + t.row0;
    for (int64_t j = 0; j < width; j += W) {
        const int64_t planes = width - j < W ? width - j : W;
        for (int64_t p = 0; p < pixels; p += W) {
            const int64_t count = pixels - p < W ? pixels - p : W;
            F values[W];
            for (int64_t i = 0; i < W; ++i)
                values[i] = load(c + (p + (i < count ? i : count - 1)) * t.columns + j);
            scatter_lanes(values, lane, pixels, planes, p, count);
        }
        for (int64_t i = 0; i < planes; ++i) {
            const int64_t at = t.out_at + (j + i) * pixels;
            finish(job.finish, lane + i * pixels, job.bias ? job.bias[first + j + i] : 0.0f,
                   job.residual ? job.residual + at : nullptr, pixels, job.out + at);
        }
    }
}

// `rows` output channels (a multiple of kGemmColumns) of one group of one image.
static void conv_rows_task(const ConvJob& job, int64_t task) {
    ConvTask t = conv_task(job, task);
    const int64_t cells = job.kh * job.kw, channels = job.in_channels / job.groups;
    const int64_t k = channels * cells, pixels = job.oh * job.ow;
    const int64_t group_rows = job.out_channels / job.groups;
    const int64_t pass = kGemmDepth / cells > 0 ? kGemmDepth / cells : 1;
    const bool direct = reads_every_pixel(job);
    const Slab s = slab_of(job, 0, job.oh);
    t.columns = round_up(t.rows, kGemmColumns);
    const int64_t held = round_up(pixels, kGemmRows);
    const int64_t numbers = 2 * (cells + pixels), slab_floats = direct ? 0 : pass * s.plane;
    auto* memory = static_cast<float*>(
        thread_scratch(Scratch::tile, 4 * (numbers + slab_floats + held * pass * cells)));
    auto* offsets = reinterpret_cast<int64_t*>(memory);
    int64_t* starts = offsets + cells;
    float* slab = memory + numbers;
    float* a = slab + slab_floats;
    auto* c = static_cast<float*>(
        thread_scratch(Scratch::panel, 4 * (pixels * t.columns + W * pixels + W)));
    for (int64_t i = 0; i < cells; ++i)
        offsets[i] = direct ? 0 : slab_offset(job, s, i / job.kw, i % job.kw);
    for (int64_t p = 0; p < pixels; ++p)
        starts[p] = direct ? p : p / job.ow * job.stride_h * s.row + p % job.ow;
    const float* b = job.weight + (t.group * round_up(group_rows, kGemmColumns) + t.row0) * k;
    for (int64_t at = 0; at < channels; at += pass) {
        const int64_t count = channels - at < pass ? channels - at : pass, depth = count * cells;
        const float* x = t.x + at * job.h * job.w;
        if (!direct) fill_slab(job, s, x, count, 0.0f, slab);
        rows_from_slab(direct ? x : slab, direct ? pixels : s.plane, count, offsets, cells, starts,
                       pixels, a);
        const float* panel = b + at * cells * kGemmColumns;
        if (pixels == 1) {
            gemm_row(t.columns, depth, a, panel, k * kGemmColumns, c, at == 0);
        } else {
            gemm_block<true>(pixels, t.columns, depth, a, depth * kGemmRows, panel,
                             k * kGemmColumns, c, t.columns, at == 0);
        }
    }
    planes_from_rows(job, t, c, t.rows, c + pixels * t.columns);
}

}  // namespace HB_ISA
}  // namespace halfbyte
