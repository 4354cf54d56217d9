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

// Bytes of one input row to a padded row of `bytes`, x_zero around them.
static void pad_row(const ByteConvJob& job, const uint8_t* row, int64_t bytes, uint8_t* out) {
    const int64_t left = job.pad_left < bytes ? job.pad_left : bytes;
    const int64_t count = job.w < bytes - left ? job.w : bytes - left;
    std::memset(out, job.x_zero, static_cast<size_t>(left));
    if (job.x_flip) {
        for (int64_t i = 0; i < count; ++i) out[left + i] = static_cast<uint8_t>(row[i] ^ 0x80);
    } else {
        std::memcpy(out + left, row, static_cast<size_t>(count));
    }
    std::memset(out + left + count, job.x_zero, static_cast<size_t>(bytes - left - count));
}

// One plane of the spread input: four channels side by side, or one channel.
static void byte_conv_input_task(const ByteConvJob& job, int64_t task) {
    const int64_t in_group = job.in_channels / job.groups, plane = task % job.planes;
    const int64_t group = task / job.planes;  // of all images
    const int64_t each = job.by_taps ? 1 : 4, count = in_group - plane * each;
    const uint8_t* x = job.x + (group * in_group + plane * each) * job.h * job.w;
    uint8_t* out = job.spread + task * job.down * job.across * each;
    auto* held = static_cast<uint8_t*>(thread_scratch(Scratch::tile, 4 * job.across));
    if (!job.by_taps) std::memset(held, 0, static_cast<size_t>(4 * job.across));
    const uint8_t* rows[4];
    for (int64_t r = 0; r < 4; ++r) rows[r] = held + r * job.across;
    for (int64_t y = 0; y < job.down; ++y, out += job.across * each) {
        const int64_t iy = y - job.pad_top;
        const bool outside = iy < 0 || iy >= job.h;
        if (outside) {
            std::memset(out, job.x_zero, static_cast<size_t>(job.across * each));
        } else if (job.by_taps) {
            pad_row(job, x + iy * job.w, job.across, out);
        } else {
            for (int64_t r = 0; r < 4 && r < count; ++r)
                pad_row(job, x + (r * job.h + iy) * job.w, job.across, held + r * job.across);
            interleave_rows(rows, job.across, out);
        }
    }
}

constexpr int64_t kTilePanels = 8;
constexpr int64_t kTileBytes = 1 << 17;

// How many panels of one depth are gathered at a time: they stay in the second cache.
static int64_t tile_panels(int64_t depth) {
    const int64_t fitting = kTileBytes / (depth * kPanel);
    return fitting < 1 ? 1 : fitting < kTilePanels ? fitting : kTilePanels;
}

// Where the pixels of a panel begin in a plane of the spread input, and which of them lie side by
// side: run r covers panel columns [first[r], first[r + 1]).
struct PanelPlaces {
    int64_t place[kPanel];
    int first[kPanel + 1];
    int runs = 0;
};

static PanelPlaces panel_places(const ByteConvJob& job, int64_t p0, int64_t count) {
    PanelPlaces found;
    const int64_t unit = job.by_taps ? 1 : 4;
    int64_t oy = p0 / job.ow, ox = p0 % job.ow;
    for (int64_t j = 0; j < count; ++j) {
        found.place[j] = (oy * job.stride_h * job.across + ox * job.stride_w) * unit;
        const bool joins = j > 0 && found.place[j] == found.place[j - 1] + 4;
        if (!joins) found.first[found.runs++] = static_cast<int>(j);
        if (++ox == job.ow) ox = 0, ++oy;
    }
    found.first[found.runs] = static_cast<int>(count);
    return found;
}

// The words of one four of the depth; writes up to W words past the panel.
HB_INLINE void gather_words(const PanelPlaces& from, const uint8_t* base, uint8_t* out) {
    for (int r = 0; r < from.runs; ++r) {
        const int first = from.first[r], end = from.first[r + 1];
        if (end - first == 1) {
            std::memcpy(out + 4 * first, base + from.place[first], 4);
            continue;
        }
        const uint8_t* source = base + from.place[first];
        for (int j = first; j < end; j += 8) std::memcpy(out + 4 * j, source + 4 * (j - first), 32);
    }
}

// The panels of a tile, one after the other: job.depth rows each. x: the group's spread input.
static void gather_panels(const ByteConvJob& job, const uint8_t* x, int64_t p0, int64_t width,
                          uint8_t* out) {
    const int64_t unit = job.by_taps ? 1 : 4, steps = job.by_taps ? (job.kw + 3) / 4 : job.kw;
    const int64_t step = job.by_taps ? 4 : job.dilation_w * unit;
    for (int64_t j = 0; j < width; j += kPanel) {
        const int64_t count = width - j < kPanel ? width - j : kPanel;
        const PanelPlaces places = panel_places(job, p0 + j, count);
        uint8_t* to = out + j * job.depth;
        for (int64_t c = 0; c < job.planes; ++c) {
            for (int64_t ky = 0; ky < job.kh; ++ky) {
                const uint8_t* row = x + (c * job.down + ky * job.dilation_h) * job.across * unit;
                for (int64_t kx = 0; kx < steps; ++kx, to += 4 * kPanel)
                    gather_words(places, row + kx * step, to);
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
    constexpr int64_t kBlock = 4 * kByteRows;
    const int64_t pixels = job.oh * job.ow;
    int32_t sums[kBlock * kPanel];
    for (int64_t c = channel; c < end; c += kBlock) {
        const int64_t rows = end - c < kBlock ? end - c : kBlock;
        const auto* weight = reinterpret_cast<const uint8_t*>(job.weight) + c * job.depth;
        const Rest rest{job.rest_start ? job.rest_start + c : nullptr, job.rest};
        for (int64_t j = 0; j < width; j += kPanel) {
            const int64_t count = width - j < kPanel ? width - j : kPanel;
            const int vectors = static_cast<int>((count + W - 1) / W);
            const auto block =
                job.doubled ? byte_block<Rows::weights, true> : byte_block<Rows::weights, false>;
            block(rows, vectors, job.depth, weight, job.depth, panels + j * job.depth, rest, sums);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t at = (image * job.out_channels + c + i) * pixels + p0 + j;
                finish_pixels(job, sums + i * vectors * W, totals ? totals + j : nullptr, c + i, at,
                              count);
            }
        }
    }
}

// The sums of each pixel's bytes, without those that only fill up the depth.
static void pixel_totals(const ByteConvJob& job, const uint8_t* panels, int64_t width,
                         int32_t* totals) {
    int32_t lifted = 0;
    for (int64_t k = 0; k < job.depth; ++k) lifted += kShift * job.ones[k];
    for (int64_t j = 0; j < width; j += kPanel) {
        const uint8_t* panel = panels + j * job.depth;
        for (int n = 0; n < kByteVectors; ++n) {
            I sum = iset1(lifted);
            for (int64_t k = 0; k < job.depth; k += 4)
                sum = narrow_dot(sum, iload(panel + k * kPanel + 4 * n * W),
                                 broadcast_word(job.ones + k));
            istore(totals + j + n * W, sum);
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
    const int64_t plane = job.down * job.across * (job.by_taps ? 1 : 4);
    const uint8_t* x = job.spread + (image * job.groups + group) * job.planes * plane;
    const int64_t c0 = part * job.rows;
    const int64_t c1 = c0 + job.rows < channels ? c0 + job.rows : channels;
    const int64_t end = (tile + 1) * job.columns < pixels ? (tile + 1) * job.columns : pixels;
    const int64_t step = tile_panels(job.depth) * kPanel;
    auto* panels = static_cast<uint8_t*>(thread_scratch(Scratch::panel, job.depth * step + 64));
    int32_t totals[kTilePanels * kPanel];
    for (int64_t p0 = tile * job.columns; p0 < end; p0 += step) {
        const int64_t width = end - p0 < step ? end - p0 : step;
        gather_panels(job, x, p0, width, panels);
        if (job.weight_zero) pixel_totals(job, panels, width, totals);
        conv_tile(job, panels, job.weight_zero ? totals : nullptr, image, group * channels + c0,
                  group * channels + c1, p0, width);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
