// Input rows copied with their padding, columns sorted by their remainder of the stride, so that
// the values that one kernel cell meets along an output row lie side by side.
#pragma once

#include "nn/unary.hpp"

namespace halfbyte {
namespace HB_ISA {

// One channel of a slab holds `rows` rows of stride_w phases of `width` columns each.
struct Slab {
    int64_t first_row = 0;  // of the padded input
    int64_t rows = 0, width = 0, row = 0, plane = 0;
};

// The slab that output rows [oh0, oh1) need.
static Slab slab_of(const ConvJob& job, int64_t oh0, int64_t oh1) {
    Slab s;
    s.first_row = oh0 * job.stride_h;
    s.rows = (oh1 - oh0 - 1) * job.stride_h + (job.kh - 1) * job.dilation_h + 1;
    const int64_t padded = (job.ow - 1) * job.stride_w + (job.kw - 1) * job.dilation_w + 1;
    s.width = (padded + job.stride_w - 1) / job.stride_w;
    s.row = s.width * job.stride_w;
    s.plane = s.row * s.rows;
    return s;
}

// Where output (oh, ow) of kernel cell (i, j) reads, less oh * stride_h * row + ow.
static int64_t slab_offset(const ConvJob& job, const Slab& s, int64_t i, int64_t j) {
    const int64_t column = j * job.dilation_w;
    return i * job.dilation_h * s.row + column % job.stride_w * s.width + column / job.stride_w;
}

HB_INLINE void fill(float* out, int64_t n, float value) {
    for (int64_t i = 0; i < n; ++i) out[i] = value;
}

#if !defined(HB_SPLIT_PAIRS)
HB_INLINE void split_pairs(const float* x, float* even, float* odd) {
    for (int i = 0; i < W; ++i) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
}
#endif

// A phase of stride 2: `held` values from `first` on, padding on both sides.
struct Phase {
    float* out;
    int64_t first, held;
};

static Phase phase_of(float* out, int64_t width, int64_t first, int64_t count) {
    const int64_t low = first < width ? first : width, room = width - low;
    return {out, low, count < room ? count : room};
}

// One input row of w values into two phases: columns of the row at even and at odd places.
static void fill_pairs(const ConvJob& job, const Slab& s, const float* x, float value, float* out) {
    const int64_t pad = job.pad_left, half = pad / 2;
    float* const other = out + s.width;
    const bool swapped = pad % 2 != 0;
    const Phase even = phase_of(swapped ? other : out, s.width, half, (job.w + 1) / 2);
    const Phase odd = phase_of(swapped ? out : other, s.width, half + pad % 2, job.w / 2);
    float *const e = even.out + even.first, *const o = odd.out + odd.first;
    const int64_t both = even.held < odd.held ? even.held : odd.held;
    int64_t i = 0;
    for (; i + W <= both; i += W) split_pairs(x + 2 * i, e + i, o + i);
    for (int64_t j = i; j < even.held; ++j) e[j] = x[2 * j];
    for (int64_t j = i; j < odd.held; ++j) o[j] = x[2 * j + 1];
    const Phase phases[] = {even, odd};
    for (const Phase& p : phases) {
        fill(p.out, p.first, value);
        fill(p.out + p.first + p.held, s.width - p.first - p.held, value);
    }
}

// One input row into its phases; `value` pads.
static void fill_row(const ConvJob& job, const Slab& s, const float* x, float value, float* out) {
    if (job.stride_w == 1) {
        const int64_t left = job.pad_left < s.width ? job.pad_left : s.width;
        const int64_t room = s.width - left, held = job.w < room ? job.w : room;
        for (int64_t i = 0; i < left; ++i) out[i] = value;
        int64_t i = 0;
        for (; i + W <= held; i += W) store(out + left + i, load(x + i));
        if (i < held) store_n(out + left + i, load_n(x + i, held - i), held - i);
        for (i = left + held; i < s.width; ++i) out[i] = value;
        return;
    }
    if (job.stride_w == 2) return fill_pairs(job, s, x, value, out);
    for (int64_t phase = 0; phase < job.stride_w; ++phase, out += s.width) {
        // column = q * stride + phase - pad_left lies inside the input for q in [low, high).
        const int64_t shift = phase - job.pad_left, step = job.stride_w;
        int64_t low = shift >= 0 ? 0 : (-shift + step - 1) / step;
        int64_t high = job.w - shift <= 0 ? 0 : (job.w - shift + step - 1) / step;
        if (high > s.width) high = s.width;
        if (low > high) low = high;
        fill(out, low, value);
        const float* from = x + shift;
        for (int64_t q = low; q < high; ++q) out[q] = from[q * step];
        fill(out + high, s.width - high, value);
    }
}

// Channels [0, channels) of x [channels, h, w]; kStep values beyond the slab may be read.
static void fill_slab(const ConvJob& job, const Slab& s, const float* x, int64_t channels,
                      float value, float* out) {
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t r = 0; r < s.rows; ++r, out += s.row) {
            const int64_t row = s.first_row + r - job.pad_top;
            if (row < 0 || row >= job.h) {
                fill(out, s.row, value);
            } else {
                fill_row(job, s, x + (c * job.h + row) * job.w, value, out);
            }
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
