// Convolution of bytes: the pixels of a tile are gathered into one panel, weights are broadcast.
#pragma once

#include "int8/product.hpp"

namespace halfbyte {
namespace HB_ISA {

// Byte i of four rows becomes word i.
HB_INLINE void interleave_rows(const uint8_t* const* rows, int64_t n, uint8_t* out) {
    int64_t i = 0;
#if defined(HB_X86_BYTES)
    for (; i + 16 <= n; i += 16) {
        __m128i r[4];
        for (int k = 0; k < 4; ++k)
            r[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k] + i));
        const __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
        const __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
        auto* to = reinterpret_cast<__m128i*>(out + 4 * i);
        _mm_storeu_si128(to, _mm_unpacklo_epi16(low01, low23));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
    }
#elif defined(HB_NEON)
    for (; i + 16 <= n; i += 16) {
        const uint8x16x4_t all = {{vld1q_u8(rows[0] + i), vld1q_u8(rows[1] + i),
                                   vld1q_u8(rows[2] + i), vld1q_u8(rows[3] + i)}};
        vst4q_u8(out + 4 * i, all);
    }
#endif
    for (; i < n; ++i) {
        for (int k = 0; k < 4; ++k) out[4 * i + k] = rows[k][i];
    }
}

// One tap of one channel for output pixels [p0, p0 + n).
static void gather_pixels(const ByteConvJob& job, const uint8_t* plane, int64_t ky, int64_t kx,
                          int64_t p0, int64_t n, uint8_t* out) {
    int64_t oy = p0 / job.ow, ox = p0 % job.ow;
    const int64_t left = kx * job.dilation_w - job.pad_left;
    while (n > 0) {
        const int64_t run = job.ow - ox < n ? job.ow - ox : n;
        const int64_t iy = oy * job.stride_h + ky * job.dilation_h - job.pad_top;
        if (iy < 0 || iy >= job.h) {
            std::memset(out, job.x_zero, static_cast<size_t>(run));
        } else {
            const uint8_t* row = plane + iy * job.w;
            int64_t i = 0;
            for (; i < run && (ox + i) * job.stride_w + left < 0; ++i) out[i] = job.x_zero;
            // The first i for which the input column is w or more.
            const int64_t beyond = (job.w - left + job.stride_w - 1) / job.stride_w - ox;
            const int64_t end = beyond < i ? i : beyond < run ? beyond : run;
            const uint8_t* from = row + left;
            if (job.stride_w == 1) {
                if (end > i) std::memcpy(out + i, from + ox + i, static_cast<size_t>(end - i));
            } else {
                for (int64_t q = i; q < end; ++q) out[q] = from[(ox + q) * job.stride_w];
            }
            if (job.x_flip) {
                for (int64_t q = i; q < end; ++q) out[q] = static_cast<uint8_t>(out[q] ^ 0x80);
            }
            if (end < run) std::memset(out + end, job.x_zero, static_cast<size_t>(run - end));
        }
        out += run;
        n -= run;
        ox = 0;
        ++oy;
    }
}

constexpr int64_t kTilePanels = 8;
constexpr int64_t kTileBytes = 1 << 17;

// How many panels of one depth are gathered at a time: they stay in the second cache.
static int64_t tile_panels(int64_t depth) {
    const int64_t fitting = kTileBytes / (depth * kPanel);
    return fitting < 1 ? 1 : fitting < kTilePanels ? fitting : kTilePanels;
}

// The panels of a tile, one after the other: job.depth rows each.
static void gather_panels(const ByteConvJob& job, const uint8_t* x, int64_t p0, int64_t width,
                          uint8_t* out) {
    const int64_t taps = job.kh * job.kw, real = job.in_channels / job.groups * taps;
    const bool direct = taps == 1 && job.stride_h == 1 && job.stride_w == 1 && !job.x_flip &&
                        job.pad_top == 0 && job.pad_left == 0 && job.oh == job.h && job.ow == job.w;
    uint8_t held[4][kTilePanels * kPanel];
    static const uint8_t nothing[kTilePanels * kPanel] = {};
    for (int64_t k = 0; k < job.depth; k += 4) {
        const uint8_t* rows[4];
        for (int64_t r = 0; r < 4; ++r) {
            const int64_t at = k + r;
            if (at >= real) {
                rows[r] = nothing;
            } else if (direct) {
                rows[r] = x + at * job.h * job.w + p0;
            } else {
                const int64_t channel = at / taps, tap = at % taps;
                gather_pixels(job, x + channel * job.h * job.w, tap / job.kw, tap % job.kw, p0,
                              width, held[r]);
                rows[r] = held[r];
            }
        }
        for (int64_t j = 0; j < width; j += kPanel) {
            const int64_t count = width - j < kPanel ? width - j : kPanel;
            const uint8_t* from[4] = {rows[0] + j, rows[1] + j, rows[2] + j, rows[3] + j};
            uint8_t* to = out + j * job.depth + k * kPanel;
            interleave_rows(from, count, to);
            if (count < kPanel) {
                std::memset(to + 4 * count, 0, static_cast<size_t>(4 * (kPanel - count)));
            }
        }
    }
}

// Sums of one channel over the pixels of a tile.
static void finish_pixels(const ByteConvJob& job, const int32_t* sums, const int32_t* totals,
                          int64_t channel, int64_t at, int64_t width) {
    const Requantize& to = job.finish;
    const I offset = iset1(job.offset[channel]);
    const F scale = set1(to.scale[channel]), shift = set1(to.shift ? to.shift[channel] : 0.0f);
    for (int64_t j = 0; j < width; j += W) {
        I sum = iadd(iload(sums + j), offset);
        if (totals) {
            sum = isub(sum, imul(iload(totals + j), iset1(job.weight_zero[channel])));
        }
        if (to.to_int) {
            put_sums(to, sum, at + j, width - j);
            continue;
        }
        put_lanes(to, add(mul(to_float(sum), scale), shift), at + j, width - j);
    }
}

// All channels of a task against the gathered pixels [p0, p0 + width).
static void conv_tile(const ByteConvJob& job, const uint8_t* panels, const int32_t* totals,
                      int64_t image, int64_t channel, int64_t end, int64_t p0, int64_t width) {
    constexpr int64_t kBlock = 8 * kByteRows;
    const int64_t stride = job.depth / 4 * kRowStep, pixels = job.oh * job.ow;
    int32_t sums[kBlock * kPanel];
    for (int64_t c = channel; c < end; c += kBlock) {
        const int64_t rows = end - c < kBlock ? end - c : kBlock;
        const auto* weight = reinterpret_cast<const uint8_t*>(job.weight) + c * stride;
        for (int64_t j = 0; j < width; j += kPanel) {
            const int64_t count = width - j < kPanel ? width - j : kPanel;
            const int vectors = static_cast<int>((count + W - 1) / W);
            byte_block<false>(rows, vectors, job.depth, weight, stride, panels + j * job.depth,
                              sums);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t at = (image * job.out_channels + c + i) * pixels + p0 + j;
                finish_pixels(job, sums + i * vectors * W, totals ? totals + j : nullptr, c + i, at,
                              count);
            }
        }
    }
}

static void byte_conv_task(const ByteConvJob& job, int64_t task) {
    const int64_t pixels = job.oh * job.ow, tiles = (pixels + job.columns - 1) / job.columns;
    const int64_t channels = job.out_channels / job.groups;
    const int64_t parts = (channels + job.rows - 1) / job.rows;
    const int64_t part = task % parts, tile = task / parts % tiles;
    const int64_t group = task / (parts * tiles) % job.groups;
    const int64_t image = task / (parts * tiles * job.groups);
    const int64_t in_group = job.in_channels / job.groups, plane = job.h * job.w;
    const uint8_t* x = job.x + (image * job.in_channels + group * in_group) * plane;
    const int64_t c0 = part * job.rows;
    const int64_t c1 = c0 + job.rows < channels ? c0 + job.rows : channels;
    const int64_t end = (tile + 1) * job.columns < pixels ? (tile + 1) * job.columns : pixels;
    const int64_t step = tile_panels(job.depth) * kPanel;
    auto* panels = static_cast<uint8_t*>(thread_scratch(Scratch::panel, job.depth * step));
    int32_t totals[kTilePanels * kPanel];
    for (int64_t p0 = tile * job.columns; p0 < end; p0 += step) {
        const int64_t width = end - p0 < step ? end - p0 : step;
        gather_panels(job, x, p0, width, panels);
        if (job.weight_zero) {
            for (int64_t j = 0; j < step; ++j) totals[j] = 0;
            for (int64_t j = 0; j < width; j += kPanel) {
                for (int64_t k = 0; k < job.depth * kPanel; ++k)
                    totals[j + k / 4 % kPanel] += panels[j * job.depth + k];
            }
        }
        conv_tile(job, panels, job.weight_zero ? totals : nullptr, image, group * channels + c0,
                  group * channels + c1, p0, width);
    }
}

HB_INLINE I widened(const uint8_t* p) {
#if defined(HB_AVX512)
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(HB_X86_BYTES)
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif defined(HB_NEON)
    const uint16x8_t wide = vmovl_u8(vld1_u8(p));
    return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide))),
            vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(wide)))};
#else
    I lanes;
    for (int i = 0; i < W; ++i) lanes.v[i] = p[i];
    return lanes;
#endif
}

// Rows of one padded plane with its columns sorted by column % stride: loads are contiguous.
struct Phases {
    uint8_t* bytes;
    int64_t length;  // of one phase of one row
    int64_t stride;

    HB_INLINE const uint8_t* at(int64_t row, int64_t column) const {
        return bytes + (row * stride + column % stride) * length + column / stride;
    }
};

static Phases padded_phases(const ByteConvJob& job, const uint8_t* plane) {
    const int64_t rows = (job.oh - 1) * job.stride_h + (job.kh - 1) * job.dilation_h + 1;
    const int64_t columns = (job.ow - 1) * job.stride_w + (job.kw - 1) * job.dilation_w + 1;
    const int64_t length = columns / job.stride_w + 1 + W;
    const int64_t bytes = rows * job.stride_w * length;
    Phases found{static_cast<uint8_t*>(thread_scratch(Scratch::panel, bytes)), length,
                 job.stride_w};
    std::memset(found.bytes, job.x_zero, static_cast<size_t>(bytes));
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t iy = row - job.pad_top;
        if (iy < 0 || iy >= job.h) continue;
        const int64_t low = job.pad_left > 0 ? job.pad_left : 0;
        const int64_t high = job.w + job.pad_left < columns ? job.w + job.pad_left : columns;
        for (int64_t column = low; column < high; ++column) {
            const uint8_t value = plane[iy * job.w + column - job.pad_left];
            found.bytes[(row * job.stride_w + column % job.stride_w) * length +
                        column / job.stride_w] = static_cast<uint8_t>(value ^ job.x_flip);
        }
    }
    return found;
}

// One plane per task: every channel has its own filter; weights are [channels, kh * kw] there.
static void byte_depthwise_task(const ByteConvJob& job, int64_t task) {
    const int64_t channel = task % job.out_channels, image = task / job.out_channels;
    const int64_t multiplier = job.out_channels / job.in_channels;
    const int64_t source = image * job.in_channels + channel / multiplier;
    const Phases rows = padded_phases(job, job.x + source * job.h * job.w);
    const int64_t taps = job.kh * job.kw;
    const int8_t* weight = job.weight + channel * taps;
    // Sums are of unsigned bytes here, whatever the product kernels shift.
    int32_t weights = 0;
    for (int64_t k = 0; k < taps; ++k) weights += weight[k];
    const I offset = iset1(job.offset[channel] - kShift * weights);
    const I lift = iset1(job.weight_zero ? job.weight_zero[channel] : 0);
    const F scale = set1(job.finish.scale[channel]);
    const F shift = set1(job.finish.shift ? job.finish.shift[channel] : 0.0f);
    for (int64_t oy = 0; oy < job.oh; ++oy) {
        for (int64_t ox = 0; ox < job.ow; ox += W) {
            I sum = offset;
            for (int64_t k = 0; k < taps; ++k) {
                const uint8_t* from = rows.at(oy * job.stride_h + k / job.kw * job.dilation_h,
                                              k % job.kw * job.dilation_w);
                const I factor = isub(iset1(weight[k]), lift);
                sum = iadd(sum, imul(widened(from + ox), factor));
            }
            const int64_t at = ((image * job.out_channels + channel) * job.oh + oy) * job.ow + ox;
            if (job.finish.to_int) {
                put_sums(job.finish, sum, at, job.ow - ox);
                continue;
            }
            put_lanes(job.finish, add(mul(to_float(sum), scale), shift), at, job.ow - ox);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
