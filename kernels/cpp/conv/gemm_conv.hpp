// Convolution as a product of the weights [out_channels, in_channels * kh * kw] with columns that
// are laid out one panel at a time. Weights are packed by pack_a, group after group.
#pragma once

#include "conv/slab.hpp"
#include "matmul/gemm.hpp"

namespace halfbyte {
namespace HB_ISA {

// A run of neighbouring output pixels of one row: `lane` of the panel, `source` in the slab.
struct Run {
    int64_t lane, source, vectors;
};

// Runs of output pixels [p, p + count); returns how many.
static int64_t pixel_runs(const ConvJob& job, const Slab& s, int64_t p, int64_t count, Run* runs) {
    int64_t made = 0, row = p / job.ow, column = p % job.ow;
    for (int64_t lane = 0; lane < count; ++row, column = 0) {
        const int64_t length = job.ow - column < count - lane ? job.ow - column : count - lane;
        const int64_t source = (row * job.stride_h - s.first_row) * s.row + column;
        runs[made++] = {lane, source, (length + W - 1) / W};
        lane += length;
    }
    return made;
}

// Panels of pixels [p0, p0 + columns) for `channels` channels of the slab. A store may spill into
// the next step of the panel, which is written after it.
static void columns_from_slab(const ConvJob& job, const Slab& s, const float* slab,
                              int64_t channels, const int64_t* offsets, int64_t p0, int64_t columns,
                              float* out) {
    const int64_t cells = job.kh * job.kw;
    Run runs[kGemmColumns];
    for (int64_t j = 0; j < columns; j += kGemmColumns) {
        const int64_t width = columns - j < kGemmColumns ? columns - j : kGemmColumns;
        const int64_t count = pixel_runs(job, s, p0 + j, width, runs);
        for (int64_t c = 0; c < channels; ++c) {
            const float* plane = slab + c * s.plane;
            for (int64_t t = 0; t < cells; ++t, out += kGemmColumns) {
                const float* from = plane + offsets[t];
                for (int64_t r = 0; r < count; ++r) {
                    for (int64_t v = 0; v < runs[r].vectors; ++v)
                        store(out + runs[r].lane + v * W, load(from + runs[r].source + v * W));
                }
            }
        }
    }
}

// The same for kernels of one cell that read every pixel: straight from the input.
static void columns_from_input(const float* x, int64_t pixels, int64_t channels, int64_t p0,
                               int64_t columns, float* out) {
    pack_panels(x + p0, pixels, false, channels, columns, out);
}

HB_INLINE bool reads_every_pixel(const ConvJob& job) {
    return job.kh * job.kw == 1 && job.stride_h == 1 && job.stride_w == 1 && job.pad_top == 0 &&
           job.pad_left == 0 && job.oh == job.h && job.ow == job.w;
}

struct ConvTask {
    int64_t group, row0, rows, p0, columns;
    const float* x;  // of the image and group
    const float* a;  // packed weights of the group, from row0
    float* out;      // of row0 and p0
    int64_t out_at;  // its index
};

static ConvTask conv_task(const ConvJob& job, int64_t task) {
    const int64_t pixels = job.oh * job.ow, group_rows = job.out_channels / job.groups;
    const int64_t column_tiles = (pixels + job.columns - 1) / job.columns;
    const int64_t row_tiles = (group_rows + job.rows - 1) / job.rows;
    ConvTask t;
    t.p0 = task % column_tiles * job.columns;
    task /= column_tiles;
    t.row0 = task % row_tiles * job.rows;
    task /= row_tiles;
    t.group = task % job.groups;
    const int64_t image = task / job.groups, channels = job.in_channels / job.groups;
    t.columns = pixels - t.p0 < job.columns ? pixels - t.p0 : job.columns;
    t.rows = group_rows - t.row0 < job.rows ? group_rows - t.row0 : job.rows;
    t.x = job.x + (image * job.in_channels + t.group * channels) * job.h * job.w;
    const int64_t k = channels * job.kh * job.kw;
    t.a = job.weight + (t.group * round_up(group_rows, kGemmRows) + t.row0) * k;
    t.out_at = (image * job.out_channels + t.group * group_rows + t.row0) * pixels + t.p0;
    t.out = job.out + t.out_at;
    return t;
}

static void finish_rows(const ConvJob& job, const ConvTask& t, int64_t row, int64_t rows) {
    const int64_t pixels = job.oh * job.ow;
    if (!job.bias && !job.residual && job.finish.function == Unary::none) return;
    const float* bias =
        job.bias ? job.bias + t.group * (job.out_channels / job.groups) + t.row0 : nullptr;
    for (int64_t i = row; i < row + rows; ++i) {
        float* c = t.out + i * pixels;
        finish(job.finish, c, bias ? bias[i] : 0.0f,
               job.residual ? job.residual + t.out_at + i * pixels : nullptr, t.columns, c);
    }
}

// The tail of output channels from row m of a task on.
static Tail conv_tail(const ConvJob& job, const ConvTask& t, int64_t m) {
    const int64_t pixels = job.oh * job.ow;
    Tail tail;
    if (job.bias) tail.row_bias = job.bias + t.group * (job.out_channels / job.groups) + t.row0 + m;
    if (job.residual) tail.residual = job.residual + t.out_at + m * pixels;
    tail.stride = pixels;
    set_bounds(job.finish, &tail);
    return tail;
}

constexpr int64_t kFewRows = 4;

// A run of output pixels of kRows output channels, straight from the slab: for so few channels
// laying out columns would cost more than the sums.
template <int kRows>
static void direct_run(const ConvJob& job, const Slab& s, const float* slab, int64_t channels,
                       const int64_t* offsets, const float* a, int64_t length, float* c,
                       int64_t ldc, bool first) {
    for (int64_t i = 0; i < length; i += 2 * W) {
        const int64_t left = length - i, low = left < W ? left : W;
        const int64_t high = left - W < 0 ? 0 : left - W < W ? left - W : W;
        F acc[kRows][2];
        for (int r = 0; r < kRows; ++r) {
            acc[r][0] = first ? zero() : load_n(c + r * ldc + i, low);
            acc[r][1] = first || high == 0 ? zero() : load_n(c + r * ldc + i + W, high);
        }
        const float* weight = a;
        for (int64_t channel = 0; channel < channels; ++channel) {
            const float* plane = slab + channel * s.plane + i;
            for (int64_t t = 0; t < job.kh * job.kw; ++t, weight += kGemmRows) {
                const F x0 = load(plane + offsets[t]), x1 = load(plane + offsets[t] + W);
                for (int r = 0; r < kRows; ++r) {
                    const F w = set1(weight[r]);
                    acc[r][0] = fma(w, x0, acc[r][0]);
                    acc[r][1] = fma(w, x1, acc[r][1]);
                }
            }
        }
        for (int r = 0; r < kRows; ++r) {
            store_n(c + r * ldc + i, acc[r][0], low);
            if (high > 0) store_n(c + r * ldc + i + W, acc[r][1], high);
        }
    }
}

// One pass of a task of at most kFewRows output channels.
static void direct_pass(const ConvJob& job, const ConvTask& t, const Slab& s, const float* slab,
                        int64_t channels, const int64_t* offsets, const float* a, bool first) {
    const int64_t pixels = job.oh * job.ow;
    for (int64_t done = 0; done < t.columns;) {
        const int64_t row = (t.p0 + done) / job.ow, column = (t.p0 + done) % job.ow;
        const int64_t left = t.columns - done, room = job.ow - column;
        const int64_t length = room < left ? room : left;
        const float* from = slab + (row * job.stride_h - s.first_row) * s.row + column;
        float* c = t.out + done;
        switch (t.rows) {
            case 1:
                direct_run<1>(job, s, from, channels, offsets, a, length, c, pixels, first);
                break;
            case 2:
                direct_run<2>(job, s, from, channels, offsets, a, length, c, pixels, first);
                break;
            case 3:
                direct_run<3>(job, s, from, channels, offsets, a, length, c, pixels, first);
                break;
            default:
                direct_run<4>(job, s, from, channels, offsets, a, length, c, pixels, first);
        }
        done += length;
    }
}

static void conv_gemm_task(const ConvJob& job, int64_t task) {
    const ConvTask t = conv_task(job, task);
    const int64_t cells = job.kh * job.kw, channels = job.in_channels / job.groups;
    const int64_t k = channels * cells, pixels = job.oh * job.ow;
    const int64_t pass = kGemmDepth / cells > 0 ? kGemmDepth / cells : 1;
    const bool direct = reads_every_pixel(job);
    const Slab s = slab_of(job, t.p0 / job.ow, (t.p0 + t.columns - 1) / job.ow + 1);
    const int64_t held = round_up(t.columns, kGemmColumns);
    auto* panels = static_cast<float*>(
        thread_scratch(Scratch::panel, 4 * (held * pass * cells + kGemmColumns)));
    auto* slab = static_cast<float*>(thread_scratch(
        Scratch::tile, direct ? 0 : 8 * cells + 4 * (pass * s.plane + 2 * kGemmColumns)));
    auto* offsets = reinterpret_cast<int64_t*>(slab);
    if (!direct) {
        for (int64_t i = 0; i < cells; ++i)
            offsets[i] = slab_offset(job, s, i / job.kw, i % job.kw);
        slab += 2 * cells;
    }
    for (int64_t c = 0; c < channels; c += pass) {
        const int64_t count = channels - c < pass ? channels - c : pass;
        const int64_t depth = count * cells;
        const float* x = t.x + c * job.h * job.w;
        if (direct) {
            columns_from_input(x, pixels, count, t.p0, t.columns, panels);
        } else {
            fill_slab(job, s, x, count, 0.0f, slab);
            if (t.rows <= kFewRows) {
                direct_pass(job, t, s, slab, count, offsets, t.a + c * cells * kGemmRows, c == 0);
                if (c + count == channels) finish_rows(job, t, 0, t.rows);
                continue;
            }
            columns_from_slab(job, s, slab, count, offsets, t.p0, t.columns, panels);
        }
        const bool last = c + count == channels;
        for (int64_t m = 0; m < t.rows; m += kGemmBlock) {
            const int64_t rows = t.rows - m < kGemmBlock ? t.rows - m : kGemmBlock;
            Tail tail = conv_tail(job, t, m);
            const bool fused = last && has_tail(job.finish);
            gemm_block<true>(rows, t.columns, depth, t.a + m * k + c * cells * kGemmRows,
                             k * kGemmRows, panels, depth * kGemmColumns, t.out + m * pixels,
                             pixels, c == 0, fused ? &tail : nullptr);
            if (last && !fused) finish_rows(job, t, m, rows);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
