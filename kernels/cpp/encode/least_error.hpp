// Of many scales (and minimums) for a group of values, the pair that leaves the least weighted
// squared error. 8 pairs side by side in lanes; each error is summed value by value.
#pragma once

#include "encode/iq4.hpp"

namespace halfbyte {
namespace HB_ISA {

// Nearest of the levels low, low + 1 ... high; halves to even.
struct PlainLevels {
    F8 low, high;

    HB_INLINE explicit PlainLevels(const LeastErrorJob& job)
        : low(all8(job.levels[0])), high(all8(job.levels[job.level_count - 1])) {}
    HB_INLINE F8 nearest(F8 step) const {
        return to_float8(nearest8(smaller(larger(step, low), high)));
    }
};

// Nearest of any ascending levels; a value in the middle of two belongs to the upper one.
struct AnyLevels {
    const LeastErrorJob& job;

    HB_INLINE explicit AnyLevels(const LeastErrorJob& j) : job(j) {}
    HB_INLINE F8 nearest(F8 step) const {
        F8 level = all8(job.levels[0]);
        for (int64_t k = 1; k < job.level_count; ++k) {
            const F8 middle = all8((job.levels[k - 1] + job.levels[k]) * 0.5f);
            level = choose(middle <= step, all8(job.levels[k]), level);
        }
        return level;
    }
};

// The levels of IQ4.
struct Iq4Levels {
    Iq4Tree tree;

    HB_INLINE explicit Iq4Levels(const LeastErrorJob&) {}
    HB_INLINE F8 nearest(F8 step) const { return tree.value(step); }
};

template <class Levels>
HB_INLINE F8 grid_errors(const LeastErrorJob& job, const Levels& levels, const float* x,
                         const float* w, F8 scale, F8 minimum) {
    const F8 none = all8(0.0f);
    const F8 inverse = choose(scale == none, none, all8(1.0f) / scale);
    F8 error = none;
    for (int64_t i = 0; i < job.values; ++i) {
        const F8 value = all8(x[i]);
        const F8 level = levels.nearest((value - minimum) * inverse);
        const F8 gap = value - (scale * level + minimum);
        error = error + all8(w[i]) * (gap * gap);
    }
    return error;
}

// The candidates' scales are given, or are consecutive float16 numbers from `first` on, of both
// signs in turn if asked. The first of equal errors wins.
template <class Levels>
static void least_error_groups(const LeastErrorJob& job, int64_t from, int64_t to) {
    const Levels levels(job);
    const int64_t signs = job.first && job.both_signs ? 2 : 1;
    for (int64_t g = from; g < to; ++g) {
        const float *x = job.x + g * job.values, *w = job.w + g * job.values;
        float best = bits_to_float(0x7F800000u);
        int32_t chosen = 0;
        for (int64_t c = 0; c < signs * job.candidates; c += 8) {
            float scales[8], minimums[8] = {};
            const int64_t left = signs * job.candidates - c, count = left < 8 ? left : 8;
            for (int64_t i = 0; i < 8; ++i) {
                const int64_t at = c + (i < count ? i : count - 1);
                if (job.first) {
                    const int64_t place = at % job.candidates;
                    const float size =
                        half_bits_to_float(static_cast<uint16_t>(job.first[g] + place));
                    scales[i] = at < job.candidates ? size : -size;
                } else {
                    scales[i] = job.scale[g * job.candidates + at];
                }
                if (job.minimum) minimums[i] = job.minimum[g * job.candidates + at];
            }
            float errors[8];
            store8(errors, grid_errors(job, levels, x, w, load8(scales), load8(minimums)));
            for (int64_t i = 0; i < count; ++i) {
                if (errors[i] < best) best = errors[i], chosen = static_cast<int32_t>(c + i);
            }
        }
        job.chosen[g] = chosen;
        job.error[g] = best;
    }
}

static void least_error(const LeastErrorJob& job, int64_t from, int64_t to) {
    if (job.plain_levels) return least_error_groups<PlainLevels>(job, from, to);
    const bool iq4 = job.level_count == 16 && job.levels[0] == -127.0f && job.levels[15] == 113.0f;
    return iq4 ? least_error_groups<Iq4Levels>(job, from, to)
               : least_error_groups<AnyLevels>(job, from, to);
}

}  // namespace HB_ISA
}  // namespace halfbyte
