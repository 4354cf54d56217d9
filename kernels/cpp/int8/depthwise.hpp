// Convolution of bytes in which every channel has filters of its own.
#pragma once

#include "int8/conv.hpp"

namespace halfbyte {
namespace HB_ISA {

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

constexpr int64_t kBeyond = 32;  // bytes that vectors read past the last column

static Phases padded_phases(const ByteConvJob& job, const uint8_t* plane) {
    const int64_t rows = (job.oh - 1) * job.stride_h + (job.kh - 1) * job.dilation_h + 1;
    const int64_t columns = (job.ow - 1) * job.stride_w + (job.kw - 1) * job.dilation_w + 1;
    const int64_t stride = job.stride_w, length = columns / stride + 1 + kBeyond;
    const int64_t bytes = rows * stride * length;
    auto* memory = static_cast<uint8_t*>(thread_scratch(Scratch::panel, bytes + columns + kBeyond));
    const Phases found{memory, length, stride};
    uint8_t* padded = memory + bytes;
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t iy = row - job.pad_top;
        uint8_t* out = memory + row * stride * length;
        if (iy < 0 || iy >= job.h) {
            std::memset(out, job.x_zero, static_cast<size_t>(stride * length));
            continue;
        }
        if (stride == 1) {
            pad_row(job, plane + iy * job.w, columns, out);
            continue;
        }
        pad_row(job, plane + iy * job.w, columns, padded);
        for (int64_t phase = 0; phase < stride; ++phase) {
            uint8_t* to = out + phase * length;
            for (int64_t c = phase; c < columns; c += stride) *to++ = padded[c];
        }
    }
    return found;
}

// What one output channel needs besides its plane.
struct OwnFilter {
    const int8_t* weight;
    I offset, lift;
    F scale, shift;
    int64_t at;  // of the channel's first output
};

HB_INLINE void put_own(const ByteConvJob& job, const OwnFilter& own, I sum, int64_t oy,
                       int64_t ox) {
    const int64_t at = own.at + oy * job.ow + ox;
    if (job.finish.to_int) return put_sums(job.finish, sum, at, job.ow - ox);
    put_lanes(job.finish, add(mul(to_float(sum), own.scale), own.shift), at, job.ow - ox);
}

#if defined(HB_SATURATES)
// Four weights over four neighbouring bytes; `place` from the start of an output row's window.
struct TapWord {
    int64_t place;
    int8_t weights[4];
};

// Append a word; what its pairs have above 128 goes into a second one.
HB_INLINE TapWord* put_word(const TapWord& word, TapWord* to) {
    *to = word;
    TapWord over{word.place, {}};
    bool any = false;
    for (int i = 0; i < 4; i += 2) {
        const int sum = word.weights[i] + word.weights[i + 1];
        const bool same = (word.weights[i] < 0) == (word.weights[i + 1] < 0);
        if (!same || (sum <= 128 && sum >= -128)) continue;
        const int excess = sum > 0 ? sum - 128 : sum + 128;
        const bool first = word.weights[i] > word.weights[i + 1];
        const int larger = (sum > 0) == first ? i : i + 1;
        to->weights[larger] = static_cast<int8_t>(word.weights[larger] - excess);
        over.weights[larger] = static_cast<int8_t>(excess);
        any = true;
    }
    if (any) *++to = over;
    return to + 1;
}

// The filter as words: taps of one row that share a phase and lie within four columns.
static TapWord* tap_words(const ByteConvJob& job, const Phases& rows, const int8_t* weight,
                          TapWord* to) {
    for (int64_t ky = 0; ky < job.kh; ++ky) {
        for (int64_t phase = 0; phase < job.stride_w; ++phase) {
            TapWord word{-1, {}};
            int64_t first = 0;
            for (int64_t kx = 0; kx < job.kw; ++kx) {
                const int64_t column = kx * job.dilation_w;
                if (column % job.stride_w != phase) continue;
                const int64_t position = column / job.stride_w;
                if (word.place < 0 || position > first + 3) {
                    if (word.place >= 0) to = put_word(word, to);
                    const int64_t row = ky * job.dilation_h * job.stride_w + phase;
                    word = TapWord{row * rows.length + position, {}};
                    first = position;
                }
                word.weights[position - first] = weight[ky * job.kw + kx];
            }
            if (word.place >= 0) to = put_word(word, to);
        }
    }
    return to;
}

HB_INLINE I neighbours(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const I pick = _mm256_setr_epi8(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6, 4, 5, 6, 7, 5,
                                    6, 7, 8, 6, 7, 8, 9, 7, 8, 9, 10);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pick);
}

static void own_plane_by_words(const ByteConvJob& job, const Phases& rows, const OwnFilter& own) {
    const int64_t most = 2 * job.kh * job.kw * static_cast<int64_t>(sizeof(TapWord));
    auto* words = static_cast<TapWord*>(thread_scratch(Scratch::tile, most));
    const TapWord* end = tap_words(job, rows, own.weight, words);
    for (int64_t oy = 0; oy < job.oh; ++oy) {
        const uint8_t* row = rows.at(oy * job.stride_h, 0);
        for (int64_t ox = 0; ox < job.ow; ox += 2 * W) {
            I sums[2] = {own.offset, own.offset};
            for (const TapWord* word = words; word < end; ++word) {
                const I weights = broadcast_word(word->weights);
                const uint8_t* from = row + word->place + ox;
                sums[0] = narrow_dot(sums[0], neighbours(from), weights);
                sums[1] = narrow_dot(sums[1], neighbours(from + W), weights);
            }
            put_own(job, own, sums[0], oy, ox);
            if (ox + W < job.ow) put_own(job, own, sums[1], oy, ox + W);
        }
    }
}
#endif

static void own_plane(const ByteConvJob& job, const Phases& rows, const OwnFilter& own) {
    const int64_t taps = job.kh * job.kw;
    for (int64_t oy = 0; oy < job.oh; ++oy) {
        for (int64_t ox = 0; ox < job.ow; ox += W) {
            I sum = own.offset;
            for (int64_t k = 0; k < taps; ++k) {
                const uint8_t* from = rows.at(oy * job.stride_h + k / job.kw * job.dilation_h,
                                              k % job.kw * job.dilation_w);
                const I factor = isub(iset1(own.weight[k]), own.lift);
                sum = iadd(sum, imul(widened(from + ox), factor));
            }
            put_own(job, own, sum, oy, ox);
        }
    }
}

// One plane per task; weights are [channels, kh * kw] here.
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
    const int32_t lift = job.weight_zero ? job.weight_zero[channel] : 0;
    const OwnFilter own{weight,
                        iset1(job.offset[channel] - kShift * weights),
                        iset1(lift),
                        set1(job.finish.scale[channel]),
                        set1(job.finish.shift ? job.finish.shift[channel] : 0.0f),
                        (image * job.out_channels + channel) * job.oh * job.ow};
#if defined(HB_SATURATES)
    if (!lift) return own_plane_by_words(job, rows, own);
#endif
    own_plane(job, rows, own);
}

}  // namespace HB_ISA
}  // namespace halfbyte
