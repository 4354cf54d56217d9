// Windows over W planes at once: values of the planes lie side by side, so that every cell of a
// window is one vector, whatever the stride, and small planes fill the lanes too.
#pragma once

#include "nets.hpp"
#include "nn/unary.hpp"

namespace halfbyte {
namespace HB_ISA {

#if !defined(HB_TRANSPOSE)
HB_INLINE void transpose_lanes(F* rows) {
    float from[W * W], to[W * W];
    for (int i = 0; i < W; ++i) store(from + i * W, rows[i]);
    for (int i = 0; i < W; ++i) {
        for (int j = 0; j < W; ++j) to[j * W + i] = from[i * W + j];
    }
    for (int i = 0; i < W; ++i) rows[i] = load(to + i * W);
}
#endif

constexpr int64_t kLaneBytes = 64 << 10;

// Padded rows of W planes: row r of the band is row `first + r` of the padded input.
struct Band {
    int64_t first = 0, rows = 0, width = 0;  // width in columns of W values
};

static Band band_of(const ConvJob& job, int64_t oh0, int64_t oh1) {
    Band b;
    b.first = oh0 * job.stride_h;
    b.rows = (oh1 - oh0 - 1) * job.stride_h + (job.kh - 1) * job.dilation_h + 1;
    const int64_t reach = (job.ow - 1) * job.stride_w + (job.kw - 1) * job.dilation_w + 1;
    b.width = reach > job.pad_left + job.w ? reach : job.pad_left + job.w;
    return b;
}

// Output rows per band such that the band stays in the second cache.
static int64_t rows_per_band(const ConvJob& job) {
    const Band one = band_of(job, 0, 1);
    const int64_t room = kLaneBytes / (4 * W * one.width) - one.rows;
    const int64_t rows = 1 + (room > 0 ? room / job.stride_h : 0);
    return rows < job.oh ? rows : job.oh;
}

// Pixels [from, to) of W planes into `out` by place(pixel); lanes beyond `planes` repeat the last.
template <class Place>
HB_INLINE void gather_lanes(const float* x, int64_t plane, int64_t planes, int64_t from, int64_t to,
                            Place place) {
    const float* rows[W];
    for (int i = 0; i < W; ++i) rows[i] = x + (i < planes ? i : planes - 1) * plane;
    for (int64_t at = from; at < to; at += W) {
        const int64_t left = to - at < W ? to - at : W;
        F values[W];
        if (left == W) {
            for (int i = 0; i < W; ++i) values[i] = load(rows[i] + at);
        } else {
            for (int i = 0; i < W; ++i) values[i] = load_n(rows[i] + at, left);
        }
        transpose_lanes(values);
        for (int64_t i = 0; i < left; ++i) store(place(at + i), values[i]);
    }
}

static void fill_band(const ConvJob& job, const Band& b, const float* x, int64_t planes,
                      float value, float* out) {
    const F padding = set1(value);
    const int64_t top = job.pad_top - b.first;  // band row of input row 0
    const int64_t low = top < 0 ? -top : 0;
    int64_t high = b.rows - top < job.h ? b.rows - top : job.h;
    if (high < low) high = low;
    if (job.pad_left > 0 || b.width > job.w || low + top > 0 || high + top < b.rows) {
        for (int64_t i = 0; i < b.rows * b.width; ++i) store(out + i * W, padding);
    }
    int64_t column = 0;
    float* to = out + ((low + top) * b.width + job.pad_left) * W;
    gather_lanes(x, job.h * job.w, planes, low * job.w, high * job.w, [&](int64_t) {
        float* here = to;
        to += W;
        if (++column == job.w) {
            column = 0;
            to += (b.width - job.w) * W;
        }
        return here;
    });
}

// out planes [from, from + count): the lanes of W vectors, one per pixel.
HB_INLINE void scatter_lanes(F* values, float* out, int64_t plane, int64_t planes, int64_t from,
                             int64_t count) {
    transpose_lanes(values);
    for (int64_t i = 0; i < planes; ++i) {
        if (count == W) {
            store(out + i * plane + from, values[i]);
        } else {
            store_n(out + i * plane + from, values[i], count);
        }
    }
}

// Where the windows of W pixels from flat output pixel p on start, within the band.
struct Cursor {
    int64_t row, column;
};

HB_INLINE void window_starts(const ConvJob& job, const Band& b, const float* band, int64_t oh0,
                             int64_t count, Cursor& at, const float** starts) {
    for (int64_t i = 0; i < W; ++i) {
        starts[i] = band + ((at.row - oh0) * job.stride_h * b.width + at.column * job.stride_w) * W;
        if (i + 1 < count || count == W) {
            if (++at.column == job.ow) {
                at.column = 0;
                ++at.row;
            }
        }
    }
}

static void window_offsets(const ConvJob& job, const Band& b, int64_t* offsets) {
    for (int64_t t = 0; t < job.kh * job.kw; ++t) {
        const int64_t row = t / job.kw * job.dilation_h, column = t % job.kw * job.dilation_w;
        offsets[t] = (row * b.width + column) * W;
    }
}

// Sums of 4 windows.
template <int kCells>
HB_INLINE void window_sums(const float* const* starts, const int64_t* offsets, const float* weights,
                           int64_t cells, F* out) {
    F acc[4] = {zero(), zero(), zero(), zero()};
    const int64_t count = kCells > 0 ? kCells : cells;
    for (int64_t t = 0; t < count; ++t) {
        const F w = load(weights + t * W);
        for (int i = 0; i < 4; ++i) acc[i] = fma(load(starts[i] + offsets[t]), w, acc[i]);
    }
    for (int i = 0; i < 4; ++i) out[i] = acc[i];
}

template <Unary kFunction>
static void depthwise_pixels(const ConvJob& job, const Band& b, const float* band,
                             const int64_t* offsets, const float* weights, int64_t oh0, int64_t oh1,
                             int64_t planes, int64_t out_at) {
    const int64_t cells = job.kh * job.kw, plane = job.oh * job.ow;
    const F alpha = set1(job.finish.alpha), beta = set1(job.finish.beta);
    const F bias = load(weights + cells * W);
    Cursor at{oh0, 0};
    for (int64_t p = oh0 * job.ow; p < oh1 * job.ow; p += W) {
        const int64_t count = oh1 * job.ow - p < W ? oh1 * job.ow - p : W;
        const float* starts[W];
        window_starts(job, b, band, oh0, count, at, starts);
        F values[W];
        for (int i = 0; i < W; i += 4) {
            if (cells == 9) {
                window_sums<9>(starts + i, offsets, weights, cells, values + i);
            } else {
                window_sums<0>(starts + i, offsets, weights, cells, values + i);
            }
        }
        for (int i = 0; i < W; ++i)
            values[i] = unary_lanes<kFunction>(add(values[i], bias), alpha, beta);
        scatter_lanes(values, job.out + out_at, plane, planes, p, count);
    }
}

// Weights and bias of W output channels: [cells + 1][W].
static void lane_weights(const ConvJob& job, int64_t channel, int64_t planes, float* out) {
    const int64_t cells = job.kh * job.kw;
    for (int64_t i = 0; i < W; ++i) {
        const int64_t c = channel + (i < planes ? i : planes - 1);
        for (int64_t t = 0; t < cells; ++t) out[t * W + i] = job.weight[c * cells + t];
        out[cells * W + i] = job.bias ? job.bias[c] : 0.0f;
    }
}

// W planes of one image from channel `first` on; input channel = output channel.
static void depthwise_lanes(const ConvJob& job, int64_t image, int64_t first) {
    const int64_t planes = job.out_channels - first < W ? job.out_channels - first : W;
    const int64_t cells = job.kh * job.kw, rows = rows_per_band(job);
    const Band largest = band_of(job, 0, rows);
    const int64_t weight_floats = (cells + 1) * W;
    auto* memory = static_cast<float*>(thread_scratch(
        Scratch::tile,
        4 * (weight_floats + (largest.rows * largest.width + W) * W) + 8 * (cells + 1)));
    float* band = memory + weight_floats;
    auto* offsets = reinterpret_cast<int64_t*>(band + (largest.rows * largest.width + W) * W);
    lane_weights(job, first, planes, memory);
    window_offsets(job, largest, offsets);
    const float* x = job.x + (image * job.in_channels + first) * job.h * job.w;
    const int64_t out_at = (image * job.out_channels + first) * job.oh * job.ow;
    for (int64_t oh = 0; oh < job.oh; oh += rows) {
        const int64_t stop = oh + rows < job.oh ? oh + rows : job.oh;
        const Band b = band_of(job, oh, stop);
        fill_band(job, b, x, planes, 0.0f, band);
        const bool inside = !job.residual && with_unary(job.finish.function, [&](auto tag) {
            depthwise_pixels<decltype(tag)::value>(job, b, band, offsets, memory, oh, stop, planes,
                                                   out_at);
        });
        if (inside) continue;
        depthwise_pixels<Unary::none>(job, b, band, offsets, memory, oh, stop, planes, out_at);
        const int64_t from = oh * job.ow, count = (stop - oh) * job.ow;
        for (int64_t i = 0; i < planes; ++i) {
            const int64_t place = out_at + i * job.oh * job.ow + from;
            finish(job.finish, job.out + place, 0.0f, job.residual ? job.residual + place : nullptr,
                   count, job.out + place);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
