// Convolution where each output channel reads one input channel: straight sums over the slab.
// Weights are as ONNX stores them, [out_channels, 1, kh, kw].
#pragma once

#include "conv/lanes.hpp"
#include "conv/slab.hpp"
#include "matmul/gemm.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int64_t kSlabBytes = 96 << 10;

// sums[0 .. ow) of one output row, rounded up to whole vectors; `from` at the row's first cell.
template <int KH, int KW>
HB_INLINE void depthwise_row(const float* from, const int64_t* offsets, const float* weight,
                             int64_t cells, int64_t ow, float* sums) {
    const int64_t count = KH * KW > 0 ? KH * KW : cells;
    F held[KH * KW > 0 ? KH * KW : 1];
    if constexpr (KH * KW > 0) {
        for (int t = 0; t < KH * KW; ++t) held[t] = set1(weight[t]);
    }
    for (int64_t i = 0; i < ow; i += W) {
        F acc = zero();
        for (int64_t t = 0; t < count; ++t) {
            const F w = KH * KW > 0 ? held[t] : set1(weight[t]);
            acc = fma(load(from + offsets[t] + i), w, acc);
        }
        store(sums + i, acc);
    }
}

// kRows output rows of a 3x3 kernel: every value of the slab is read once for all of them.
template <int kRows, int kStride>
HB_INLINE void depthwise_3x3(const float* from, const Slab& s, const float* weight, float bias,
                             const Tail& bounds, int64_t ow, float* out) {
    const F low = set1(bounds.low), high = set1(bounds.high), shift = set1(bias);
    const int64_t second = kStride == 1 ? 1 : s.width, third = kStride == 1 ? 2 : 1;
    F held[9];
    for (int t = 0; t < 9; ++t) held[t] = set1(weight[t]);
    for (int64_t i = 0; i < ow; i += W) {
        F acc[kRows];
        for (int k = 0; k < kRows; ++k) acc[k] = shift;
        for (int r = 0; r < (kRows - 1) * kStride + 3; ++r) {
            const float* x = from + r * s.row + i;
            const F x0 = load(x), x1 = load(x + second), x2 = load(x + third);
            for (int k = 0; k < kRows; ++k) {
                const int t = r - k * kStride;
                if (t < 0 || t > 2) continue;
                acc[k] = fma(x0, held[3 * t], acc[k]);
                acc[k] = fma(x1, held[3 * t + 1], acc[k]);
                acc[k] = fma(x2, held[3 * t + 2], acc[k]);
            }
        }
        for (int k = 0; k < kRows; ++k) {
            const F value = min(high, max(low, acc[k]));
            if (ow - i >= W) {
                store(out + k * ow + i, value);
            } else {
                store_n(out + k * ow + i, value, ow - i);
            }
        }
    }
}

template <int kStride>
static void depthwise_3x3_band(const ConvJob& job, const Slab& s, const float* slab,
                               int64_t channel, int64_t oh0, int64_t oh1, int64_t out_at) {
    constexpr int kRows = kStride == 1 ? 4 : 2;
    const float* weight = job.weight + channel * 9;
    const float bias = job.bias ? job.bias[channel] : 0.0f;
    const bool inside = has_tail(job.finish) && !job.residual;
    Tail bounds;
    set_bounds(inside ? job.finish : Finish(), &bounds);
    float* out = job.out + out_at;
    int64_t oh = oh0;
    for (; oh + kRows <= oh1; oh += kRows)
        depthwise_3x3<kRows, kStride>(slab + (oh - oh0) * kStride * s.row, s, weight, bias, bounds,
                                      job.ow, out + oh * job.ow);
    for (; oh < oh1; ++oh)
        depthwise_3x3<1, kStride>(slab + (oh - oh0) * kStride * s.row, s, weight, bias, bounds,
                                  job.ow, out + oh * job.ow);
    if (inside) return;
    const int64_t at = out_at + oh0 * job.ow;
    finish(job.finish, job.out + at, 0.0f, job.residual ? job.residual + at : nullptr,
           (oh1 - oh0) * job.ow, job.out + at);
}

// A finished band of a 3x3 kernel; false where its steps are others.
static bool depthwise_fast_band(const ConvJob& job, const Slab& s, const float* slab,
                                int64_t channel, int64_t oh0, int64_t oh1, int64_t out_at) {
    if (job.kh != 3 || job.kw != 3 || job.dilation_h != 1 || job.dilation_w != 1) return false;
    if (job.stride_h != job.stride_w || job.stride_h > 2) return false;
    if (job.stride_h == 1) {
        depthwise_3x3_band<1>(job, s, slab, channel, oh0, oh1, out_at);
    } else {
        depthwise_3x3_band<2>(job, s, slab, channel, oh0, oh1, out_at);
    }
    return true;
}

static void depthwise_band(const ConvJob& job, const Slab& s, const float* slab,
                           const int64_t* offsets, int64_t channel, int64_t oh0, int64_t oh1,
                           float* sums, int64_t out_at) {
    const int64_t cells = job.kh * job.kw;
    const float* weight = job.weight + channel * cells;
    const float bias = job.bias ? job.bias[channel] : 0.0f;
    for (int64_t oh = oh0; oh < oh1; ++oh) {
        const float* from = slab + (oh - oh0) * job.stride_h * s.row;
        if (job.kh == 3 && job.kw == 3) {
            depthwise_row<3, 3>(from, offsets, weight, cells, job.ow, sums);
        } else {
            depthwise_row<0, 0>(from, offsets, weight, cells, job.ow, sums);
        }
        const int64_t at = out_at + oh * job.ow;
        finish(job.finish, sums, bias, job.residual ? job.residual + at : nullptr, job.ow,
               job.out + at);
    }
}

// `rows` blocks of W channels from task * rows on, counted over all images.
static void depthwise_blocks(const ConvJob& job, int64_t task) {
    const int64_t blocks = (job.out_channels + W - 1) / W, all = job.batch * blocks;
    const int64_t end = (task + 1) * job.rows < all ? (task + 1) * job.rows : all;
    for (int64_t block = task * job.rows; block < end; ++block)
        depthwise_lanes(job, block / blocks, block % blocks * W);
}

// `rows` output channels from task * rows on, counted over all images.
static void depthwise_planes(const ConvJob& job, int64_t task) {
    const int64_t planes = job.batch * job.out_channels, cells = job.kh * job.kw;
    const int64_t end = (task + 1) * job.rows < planes ? (task + 1) * job.rows : planes;
    const int64_t multiplier = job.out_channels / job.in_channels;
    const Slab one = slab_of(job, 0, 1);
    const int64_t room = kSlabBytes / (4 * one.row) - one.rows;
    int64_t band = 1 + (room > 0 ? room / job.stride_h : 0);
    if (band > job.oh) band = job.oh;
    const Slab largest = slab_of(job, 0, band);
    const int64_t row = round_up(job.ow, W);
    auto* memory = static_cast<float*>(
        thread_scratch(Scratch::tile, 8 * cells + 4 * (largest.plane + 2 * W + row)));
    auto* offsets = reinterpret_cast<int64_t*>(memory);
    float* sums = memory + 2 * cells;
    float* slab = sums + row;
    for (int64_t t = 0; t < cells; ++t) offsets[t] = slab_offset(job, one, t / job.kw, t % job.kw);
    for (int64_t plane = task * job.rows; plane < end; ++plane) {
        const int64_t image = plane / job.out_channels, channel = plane % job.out_channels;
        const float* x = job.x + (image * job.in_channels + channel / multiplier) * job.h * job.w;
        for (int64_t oh = 0; oh < job.oh; oh += band) {
            const int64_t stop = oh + band < job.oh ? oh + band : job.oh;
            const Slab s = slab_of(job, oh, stop);
            fill_slab(job, s, x, 1, 0.0f, slab);
            const int64_t out_at = plane * job.oh * job.ow;
            if (depthwise_fast_band(job, s, slab, channel, oh, stop, out_at)) continue;
            depthwise_band(job, s, slab, offsets, channel, oh, stop, sums, out_at);
        }
    }
}

static void depthwise_task(const ConvJob& job, int64_t task) {
    if (job.lanes) {
        depthwise_blocks(job, task);
    } else {
        depthwise_planes(job, task);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
