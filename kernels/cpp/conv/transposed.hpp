// Transposed convolution: weights times pixels gives the kernel cells of each input pixel, which
// are added up where they land. Pixels go in pieces of one size, so that sums have one order.
#pragma once

#include "matmul/gemm.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int64_t kPixelPiece = 128;

// Adds products [channels * cells, kPixelPiece] of pixels [p0, p0 + count) to out.
static void scatter_cells(const ConvJob& job, const float* products, int64_t channels, int64_t p0,
                          int64_t count, float* out) {
    for (int64_t row = 0; row < channels * job.kh * job.kw; ++row, products += kPixelPiece) {
        const int64_t i = row / job.kw % job.kh, j = row % job.kw;
        float* plane = out + row / (job.kh * job.kw) * job.oh * job.ow;
        for (int64_t q = 0; q < count;) {
            const int64_t ih = (p0 + q) / job.w, iw = (p0 + q) % job.w;
            const int64_t run = job.w - iw < count - q ? job.w - iw : count - q;
            const int64_t y = ih * job.stride_h - job.pad_top + i * job.dilation_h;
            if (y >= 0 && y < job.oh) {
                const int64_t x0 = iw * job.stride_w - job.pad_left + j * job.dilation_w;
                for (int64_t r = 0; r < run; ++r) {
                    const int64_t x = x0 + r * job.stride_w;
                    if (x >= 0 && x < job.ow) plane[y * job.ow + x] += products[q + r];
                }
            }
            q += run;
        }
    }
}

// `rows` output channels (a multiple of kGemmRows) of one group of one image. Weights are packed
// by pack_a from [out_channels * kh * kw, in_channels], group after group.
static void transposed_task(const ConvJob& job, int64_t task) {
    const int64_t group_rows = job.out_channels / job.groups, cells = job.kh * job.kw;
    const int64_t tiles = (group_rows + job.rows - 1) / job.rows;
    const int64_t row0 = task % tiles * job.rows, group = task / tiles % job.groups;
    const int64_t image = task / tiles / job.groups, k = job.in_channels / job.groups;
    const int64_t rows = group_rows - row0 < job.rows ? group_rows - row0 : job.rows;
    const int64_t pixels = job.h * job.w, plane = job.oh * job.ow;
    const float* x = job.x + (image * job.in_channels + group * k) * pixels;
    const float* a = job.weight + group * packed_a_size(group_rows * cells, k) + row0 * cells * k;
    const int64_t first = image * job.out_channels + group * group_rows + row0;
    float* out = job.out + first * plane;
    auto* panels = static_cast<float*>(
        thread_scratch(Scratch::panel, 4 * round_up(kPixelPiece, kGemmColumns) * kGemmDepth));
    auto* products =
        static_cast<float*>(thread_scratch(Scratch::tile, 4 * rows * cells * kPixelPiece));
    std::memset(out, 0, static_cast<size_t>(4 * rows * plane));
    for (int64_t p = 0; p < pixels; p += kPixelPiece) {
        const int64_t count = pixels - p < kPixelPiece ? pixels - p : kPixelPiece;
        for (int64_t c = 0; c < k; c += kGemmDepth) {
            const int64_t depth = k - c < kGemmDepth ? k - c : kGemmDepth;
            pack_panels(x + c * pixels + p, pixels, false, depth, count, panels);
            gemm_block<true>(rows * cells, count, depth, a + c * kGemmRows, k * kGemmRows, panels,
                             depth * kGemmColumns, products, kPixelPiece, c == 0);
        }
        scatter_cells(job, products, rows, p, count, out);
    }
    for (int64_t r = 0; r < rows; ++r) {
        const float bias = job.bias ? job.bias[group * group_rows + row0 + r] : 0.0f;
        const float* residual = job.residual ? job.residual + (first + r) * plane : nullptr;
        finish(job.finish, out + r * plane, bias, residual, plane, out + r * plane);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
