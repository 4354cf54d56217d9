// ggml's joint search for scale and minimum, one block in each lane.
#pragma once

#include "encode/lanes.hpp"

namespace halfbyte {
namespace HB_ISA {

// The accepted trial: codes are clamp(round(inverse * (x - base)), 0, top).
struct MinimumFit {
    F scale, low, inverse, base;

    HB_INLINE F code(F x, F top) const {
        return clamp(round_any_float(mul(inverse, sub(x, base))), zero(), top);
    }
};

struct Trials {
    float start, delta;
    int last;  // trials 0..last
};
constexpr Trials kWeightedTrials = {-0.9f, 0.05f, 36};

// G blocks per lane side by side, so that their sums do not wait for themselves.
// Absolute: errors are |difference|, else squares.
template <int N, int Top, bool Absolute, int G>
struct MinimumSearch {
    const float* x;  // [G][N][W]
    const float* w;
    MinimumFit fit[G];
    F lowest[G], high[G], sum_w[G], sum_x[G], best[G];
    Mask flat[G];
    alignas(64) float codes[G * N * W];

    HB_INLINE void start(int g) {
        const float *values = x + g * N * W, *weights = w + g * N * W;
        F low = load(values), top = low, total = load(weights), moment = mul(total, low);
        for (int i = 1; i < N; ++i) {
            const F v = load(values + i * W), weight = load(weights + i * W);
            low = select(less(v, low), v, low);
            top = select(less(top, v), v, top);
            total = add(total, weight);
            moment = add(moment, mul(weight, v));
        }
        lowest[g] = low;
        low = select(less(zero(), low), zero(), low);
        // A flat lane takes no trial: its error is below any.
        flat[g] = either(less(top, low), equal_to(top, low));
        high[g] = top, sum_w[g] = total, sum_x[g] = moment;
        fit[g].low = fit[g].base = low;
    }

    HB_INLINE F span(int g) const { return select(flat[g], set1(1.0f), sub(high[g], fit[g].low)); }

    // Rounding is monotone, so the extremes bound every |inverse * (x - low)|.
    HB_INLINE bool all_small(const F* inverse) const {
        bool small = true;
        for (int g = 0; g < G; ++g) {
            const F a = abs(mul(inverse[g], sub(lowest[g], fit[g].low)));
            const F b = abs(mul(inverse[g], sub(high[g], fit[g].low)));
            const F limit = set1(4194304.0f);
            const Mask good = both(less(a, limit), less(b, limit));
            small = small && !any(less(select(good, set1(1.0f), zero()), set1(0.5f)));
        }
        return small;
    }

    struct Sums {
        F l, ll, xl;
    };

    template <bool Small>
    HB_INLINE void weigh(const F* inverse, Sums* sums) {
        const F top = set1(static_cast<float>(Top));
        F l[G], ll[G], xl[G], low[G];
        for (int g = 0; g < G; ++g) l[g] = ll[g] = xl[g] = zero(), low[g] = fit[g].low;
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int at = (g * N + i) * W;
                const F v = load(x + at), scaled = mul(inverse[g], sub(v, low[g]));
                const F whole = Small ? round_small(scaled) : round_any_float(scaled);
                const F code = clamp(whole, zero(), top), weighted = mul(load(w + at), code);
                store(codes + at, code);
                l[g] = add(l[g], weighted);
                ll[g] = add(ll[g], mul(weighted, code));
                xl[g] = add(xl[g], mul(weighted, v));
            }
        }
        for (int g = 0; g < G; ++g) sums[g] = {l[g], ll[g], xl[g]};
    }

    HB_INLINE void errors(const F* scale, const F* low, F* error) const {
        F sum[G];
        for (int g = 0; g < G; ++g) sum[g] = zero();
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int at = (g * N + i) * W;
                const F value = add(mul(scale[g], load(codes + at)), low[g]);
                const F difference = sub(value, load(x + at));
                const F term = Absolute ? abs(difference) : mul(difference, difference);
                sum[g] = add(sum[g], mul(load(w + at), term));
            }
        }
        for (int g = 0; g < G; ++g) error[g] = sum[g];
    }

    HB_INLINE void fill(const F* inverse, Sums* sums) {
        if (all_small(inverse)) {
            weigh<true>(inverse, sums);
        } else {
            weigh<false>(inverse, sums);
        }
    }

    HB_INLINE void first_trial() {
        F inverse[G], low[G], scale[G];
        Sums unused[G];
        for (int g = 0; g < G; ++g) {
            inverse[g] = div(set1(static_cast<float>(Top)), span(g));
            scale[g] = div(set1(1.0f), inverse[g]);
            low[g] = fit[g].low;
        }
        fill(inverse, unused);
        errors(scale, low, best);
        for (int g = 0; g < G; ++g) {
            fit[g].scale = select(flat[g], zero(), scale[g]);
            fit[g].inverse = select(flat[g], zero(), inverse[g]);
            best[g] = select(flat[g], set1(-1.0f), best[g]);
        }
    }

    HB_INLINE void trial(float wanted) {
        F inverse[G], scale[G], low[G], determinant[G], error[G];
        Sums sums[G];
        for (int g = 0; g < G; ++g) inverse[g] = div(set1(wanted), span(g));
        fill(inverse, sums);
        for (int g = 0; g < G; ++g) {
            const Sums& s = sums[g];
            const F d = sub(mul(sum_w[g], s.ll), mul(s.l, s.l));
            const F fitted = div(sub(mul(sum_w[g], s.xl), mul(sum_x[g], s.l)), d);
            const F fitted_low = div(sub(mul(s.ll, sum_x[g]), mul(s.l, s.xl)), d);
            const Mask above = less(zero(), fitted_low);
            determinant[g] = d;
            scale[g] = select(above, div(s.xl, s.ll), fitted);
            low[g] = select(above, zero(), fitted_low);
        }
        errors(scale, low, error);
        for (int g = 0; g < G; ++g) {
            const Mask better = both(less(zero(), determinant[g]), less(error[g], best[g]));
            best[g] = select(better, error[g], best[g]);
            fit[g].scale = select(better, scale[g], fit[g].scale);
            fit[g].inverse = select(better, inverse[g], fit[g].inverse);
            fit[g].base = select(better, fit[g].low, fit[g].base);
            fit[g].low = select(better, low[g], fit[g].low);  // the next trials start from it
        }
    }

    HB_INLINE void run(Trials trials) {
        for (int g = 0; g < G; ++g) start(g);
        first_trial();
        for (int step = 0; step <= trials.last; ++step) {
            const float offset = trials.start + trials.delta * static_cast<float>(step);
            trial(offset + static_cast<float>(Top));
        }
    }
};

template <int N, int Top, bool Absolute, int G>
static void minimum_search(const float* x, const float* w, Trials trials, MinimumFit* fits) {
    MinimumSearch<N, Top, Absolute, G> search;
    search.x = x, search.w = w;
    search.run(trials);
    for (int g = 0; g < G; ++g) fits[g] = search.fit[g];
}

}  // namespace HB_ISA
}  // namespace halfbyte
