// Maximum and average over windows of planes, W planes at once.
#pragma once

#include <cmath>

#include "conv/lanes.hpp"

namespace halfbyte {
namespace HB_ISA {

// Maxima (or sums) of 4 windows. A NaN stays, in whichever operand.
template <bool kAverage>
HB_INLINE void pool_windows(const float* const* starts, const int64_t* offsets, int64_t cells,
                            F* out) {
    F acc[4];
    for (int i = 0; i < 4; ++i) acc[i] = load(starts[i] + offsets[0]);
    for (int64_t t = 1; t < cells; ++t) {
        for (int i = 0; i < 4; ++i) {
            const F v = load(starts[i] + offsets[t]);
            acc[i] = kAverage ? add(acc[i], v) : max_nan(v, acc[i]);
        }
    }
    for (int i = 0; i < 4; ++i) out[i] = acc[i];
}

template <bool kAverage>
static void pool_pixels(const PoolJob& job, const Band& b, const float* band,
                        const int64_t* offsets, int64_t oh0, int64_t oh1, int64_t planes,
                        int64_t first) {
    const ConvJob& w = job.window;
    const int64_t plane = w.oh * w.ow;
    Cursor at{oh0, 0};
    for (int64_t p = oh0 * w.ow; p < oh1 * w.ow; p += W) {
        const int64_t count = oh1 * w.ow - p < W ? oh1 * w.ow - p : W;
        const float* starts[W];
        window_starts(w, b, band, oh0, count, at, starts);
        F values[W];
        for (int i = 0; i < W; i += 4)
            pool_windows<kAverage>(starts + i, offsets, w.kh * w.kw, values + i);
        for (int64_t i = 0; kAverage && i < count; ++i) {
            const int64_t row = (p + i) / w.ow, column = (p + i) % w.ow;
            values[i] = div(values[i], set1(job.row_counts[row] * job.column_counts[column]));
        }
        scatter_lanes(values, w.out + first * plane, plane, planes, p, count);
    }
}

// `rows` blocks of W planes from task * rows on.
static void pool_task(const PoolJob& job, int64_t task) {
    const ConvJob& w = job.window;
    const int64_t blocks = (w.batch + W - 1) / W, cells = w.kh * w.kw, rows = rows_per_band(w);
    const int64_t end = (task + 1) * w.rows < blocks ? (task + 1) * w.rows : blocks;
    const Band largest = band_of(w, 0, rows);
    const int64_t held = (largest.rows * largest.width + W) * W;
    auto* band = static_cast<float*>(thread_scratch(Scratch::tile, 4 * held + 8 * cells));
    auto* offsets = reinterpret_cast<int64_t*>(band + held);
    window_offsets(w, largest, offsets);
    for (int64_t block = task * w.rows; block < end; ++block) {
        const int64_t first = block * W, planes = w.batch - first < W ? w.batch - first : W;
        for (int64_t oh = 0; oh < w.oh; oh += rows) {
            const int64_t stop = oh + rows < w.oh ? oh + rows : w.oh;
            const Band b = band_of(w, oh, stop);
            fill_band(w, b, w.x + first * w.h * w.w, planes, job.average ? 0.0f : -INFINITY, band);
            if (job.average) {
                pool_pixels<true>(job, b, band, offsets, oh, stop, planes, first);
            } else {
                pool_pixels<false>(job, b, band, offsets, oh, stop, planes, first);
            }
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
