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

// G blocks per lane, a multiple of 2: two run side by side, so that their sums do not wait for
// themselves, and the pairs take turns, so that nothing waits for divisions and decisions.
// Absolute: errors are |difference|, else squares.
template <int N, int Top, bool Absolute, int G>
struct MinimumSearch {
    const float* x;  // [G][N][W]
    const float* w;
    MinimumFit fit[G];
    F lowest[G], high[G], sum_w[G], sum_x[G], best[G];
    F scale[G], low[G], inverse[G], determinant[G];  // of the trial
    Mask flat[G];
    alignas(64) float codes[G * N * W];

    void start(int g) {
        const float *values = x + g * N * W, *weights = w + g * N * W;
        F least = load(values), most = least, total = load(weights), moment = mul(total, least);
        for (int i = 1; i < N; ++i) {
            const F v = load(values + i * W), weight = load(weights + i * W);
            least = first_least(least, v);
            most = max(most, v);
            total = add(total, weight);
            moment = add(moment, mul(weight, v));
        }
        lowest[g] = least;
        least = select(less(zero(), least), zero(), least);
        flat[g] = either(less(most, least), equal_to(most, least));
        high[g] = most, sum_w[g] = total, sum_x[g] = moment;
        fit[g].low = fit[g].base = least;
    }

    HB_INLINE F span(int g) const { return select(flat[g], set1(1.0f), sub(high[g], fit[g].low)); }

    struct Sums {
        F l, ll, xl;
    };

    // Small: every |inverse * (x - low)| is at most 4194303. Low, High: some code may pass 0 or
    // Top.
    template <bool Small, bool Low, bool High>
    void weigh(int pair, Sums* sums) {
        const float *values = x + pair * N * W, *weights = w + pair * N * W;
        float* to = codes + pair * N * W;
        const F top = set1(static_cast<float>(Top));
        F l[2], ll[2], xl[2], from[2], factor[2];
        for (int g = 0; g < 2; ++g) {
            l[g] = ll[g] = xl[g] = zero();
            from[g] = fit[pair + g].low, factor[g] = inverse[pair + g];
        }
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < 2; ++g) {
                const int at = (g * N + i) * W;
                const F v = load(values + at), scaled = mul(factor[g], sub(v, from[g]));
                F code = Small ? round_small(scaled) : round_any_float(scaled);
                if (Low) code = max(code, zero());
                if (High) code = min(code, top);
                const F weighted = mul(load(weights + at), code);
                store(to + at, code);
                l[g] = add(l[g], weighted);
                ll[g] = add(ll[g], mul(weighted, code));
                xl[g] = add(xl[g], mul(weighted, v));
            }
        }
        for (int g = 0; g < 2; ++g) sums[g] = {l[g], ll[g], xl[g]};
    }

    // Rounding is monotone, so the extremes bound every inverse * (x - low).
    void fill(int pair, Sums* sums) {
        const Mask none = less(zero(), zero());
        Mask wild = none, below = none, above = none;
        for (int g = pair; g < pair + 2; ++g) {
            const F a = mul(inverse[g], sub(lowest[g], fit[g].low));
            const F b = mul(inverse[g], sub(high[g], fit[g].low));
            const F least = min(a, b), most = max(a, b), size = max(abs(a), abs(b));
            wild = either(wild, either(unordered(add(a, b)), less(set1(4194303.0f), size)));
            below = either(below, less(least, set1(-0.5f)));
            above = either(above, less(set1(static_cast<float>(Top) + 0.499f), most));
        }
        if (any(wild)) return weigh<false, true, true>(pair, sums);
        if (any(above)) {
            if (any(below)) return weigh<true, true, true>(pair, sums);
            return weigh<true, false, true>(pair, sums);
        }
        if (any(below)) return weigh<true, true, false>(pair, sums);
        weigh<true, false, false>(pair, sums);
    }

    void errors(int pair, F* error) const {
        const float *values = x + pair * N * W, *weights = w + pair * N * W;
        const float* from = codes + pair * N * W;
        F sum[2], factor[2], base[2];
        for (int g = 0; g < 2; ++g) {
            sum[g] = zero(), factor[g] = scale[pair + g], base[g] = low[pair + g];
        }
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < 2; ++g) {
                const int at = (g * N + i) * W;
                const F value = add(mul(factor[g], load(from + at)), base[g]);
                const F difference = sub(value, load(values + at));
                const F term = Absolute ? abs(difference) : mul(difference, difference);
                sum[g] = add(sum[g], mul(load(weights + at), term));
            }
        }
        for (int g = 0; g < 2; ++g) error[g] = sum[g];
    }

    HB_INLINE void first_trial(int pair) {
        Sums unused[2];
        for (int g = pair; g < pair + 2; ++g) {
            inverse[g] = div(set1(static_cast<float>(Top)), span(g));
            scale[g] = div(set1(1.0f), inverse[g]);
            low[g] = fit[g].low;
        }
        weigh<false, true, true>(pair, unused);
        errors(pair, best + pair);
        for (int g = pair; g < pair + 2; ++g) {
            // A flat lane takes no trial: no error is below its own.
            fit[g].scale = select(flat[g], zero(), scale[g]);
            fit[g].inverse = select(flat[g], zero(), inverse[g]);
            best[g] = select(flat[g], set1(-1.0f), best[g]);
        }
    }

    HB_INLINE void solve(int pair, float wanted) {
        Sums sums[2];
        for (int g = pair; g < pair + 2; ++g) inverse[g] = div(set1(wanted), span(g));
        fill(pair, sums);
        for (int g = pair; g < pair + 2; ++g) {
            const Sums& s = sums[g - pair];
            const F d = sub(mul(sum_w[g], s.ll), mul(s.l, s.l));
            const F fitted = div(sub(mul(sum_w[g], s.xl), mul(sum_x[g], s.l)), d);
            const F fitted_low = div(sub(mul(s.ll, sum_x[g]), mul(s.l, s.xl)), d);
            const Mask above = less(zero(), fitted_low);
            determinant[g] = d;
            scale[g] = any(above) ? select(above, div(s.xl, s.ll), fitted) : fitted;
            low[g] = select(above, zero(), fitted_low);
        }
    }

    HB_INLINE void decide(int pair) {
        F error[2];
        errors(pair, error);
        for (int g = pair; g < pair + 2; ++g) {
            const F found = error[g - pair];
            const Mask better = both(less(zero(), determinant[g]), less(found, best[g]));
            best[g] = select(better, found, best[g]);
            fit[g].scale = select(better, scale[g], fit[g].scale);
            fit[g].inverse = select(better, inverse[g], fit[g].inverse);
            fit[g].base = select(better, fit[g].low, fit[g].base);
            fit[g].low = select(better, low[g], fit[g].low);  // the next trials start from it
        }
    }

    HB_INLINE void run(Trials trials) {
        for (int g = 0; g < G; ++g) start(g);
        for (int pair = 0; pair < G; pair += 2) first_trial(pair);
        for (int step = 0; step <= trials.last; ++step) {
            const float offset = trials.start + trials.delta * static_cast<float>(step);
            for (int pair = 0; pair < G; pair += 2) solve(pair, offset + static_cast<float>(Top));
            for (int pair = 0; pair < G; pair += 2) decide(pair);
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
