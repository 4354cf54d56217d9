// ggml's search for the scale of values that are not negative, one block in each lane: the scales
// and the minimums of a block are such values themselves.
#pragma once

#include "encode/lanes.hpp"

namespace halfbyte {
namespace HB_ISA {

// G sets of values share their weights and run side by side.
template <int N, int Top, int G>
struct PositiveSearch {
    static constexpr int kSweeps = 5;
    const float* x;  // [G][N][W]
    const float* w;  // [N][W]
    float* codes;    // [G][N][W]
    F largest[G], inverse[G], lx[G], ll[G];

    HB_INLINE F value(int g, int i) const { return load(x + (g * N + i) * W); }

    HB_INLINE F error(int g, F trial, bool first) const {
        const F scale = div(set1(1.0f), trial);
        F sum = zero();
        for (int i = 0; i < N; ++i) {
            const F v = value(g, i), weight = load(w + i * W);
            const I whole = round_any(mul(trial, v));
            const F l = first ? to_float(iand(whole, iset1(255)))
                              : min(to_float(whole), set1(static_cast<float>(Top)));
            const F difference = sub(v, mul(scale, l));
            sum = add(sum, mul(mul(weight, difference), difference));
        }
        return sum;
    }

    HB_INLINE void choose_inverse(int g) {
        F m = zero();
        for (int i = 0; i < N; ++i) m = select(less(value(g, i), m), m, value(g, i));
        largest[g] = m;
        inverse[g] = div(set1(static_cast<float>(Top)), m);
        F best = error(g, inverse[g], true);
        for (int step = -4; step <= 4; ++step) {
            if (step == 0) continue;
            const float wanted = 0.1f * static_cast<float>(step) + static_cast<float>(Top);
            const F trial = div(set1(wanted), m), found = error(g, trial, false);
            const Mask better = less(found, best);
            best = select(better, found, best);
            inverse[g] = select(better, trial, inverse[g]);
        }
    }

    HB_INLINE I limited(F v) const { return imin(round_any(v), iset1(Top)); }
    HB_INLINE void keep(int g, int i, F l) {
        store(codes + (g * N + i) * W, to_float(iand(truncate_int(l), iset1(255))));
    }

    HB_INLINE Mask step(int g, int i) {
        const F v = value(g, i), weight = load(w + i * W), product = mul(weight, v);
        const F old = load(codes + (g * N + i) * W);
        const F others = sub(lx[g], mul(product, old));
        const F squares = sub(ll[g], mul(mul(weight, old), old));
        const F l = to_float(limited(div(mul(v, squares), others)));
        const F new_lx = add(others, mul(product, l));
        const F new_ll = add(squares, mul(mul(weight, l), l));
        const F gain = mul(mul(new_lx, new_lx), ll[g]), bar = mul(mul(lx[g], lx[g]), new_ll);
        const Mask possible = both(less(zero(), others), less(zero(), squares));
        const Mask better = both(both(possible, less(zero(), abs(sub(l, old)))), less(bar, gain));
        keep(g, i, select(better, l, old));
        lx[g] = select(better, new_lx, lx[g]);
        ll[g] = select(better, new_ll, ll[g]);
        return better;
    }

    HB_INLINE void run(F* scales) {
        for (int g = 0; g < G; ++g) {
            choose_inverse(g);
            lx[g] = ll[g] = zero();
            for (int i = 0; i < N; ++i) {
                const F v = value(g, i), weight = load(w + i * W);
                const F l = to_float(limited(mul(inverse[g], v)));
                keep(g, i, l);
                lx[g] = add(lx[g], mul(mul(weight, v), l));
                ll[g] = add(ll[g], mul(mul(weight, l), l));
            }
        }
        for (int sweep = 0; sweep < kSweeps; ++sweep) {
            Mask moved = less(zero(), zero());
            for (int i = 0; i < N; ++i) {
                for (int g = 0; g < G; ++g) moved = either(moved, step(g, i));
            }
            if (!any(moved)) break;
        }
        for (int g = 0; g < G; ++g) {
            const Mask nothing = less(largest[g], set1(kNothing)), some = less(zero(), ll[g]);
            scales[g] = select(some, div(lx[g], ll[g]), zero());
            scales[g] = select(nothing, zero(), scales[g]);
            for (int i = 0; i < N; ++i) {
                float* at = codes + (g * N + i) * W;
                store(at, select(nothing, zero(), load(at)));
            }
        }
    }
};

template <int N, int Top, int G>
static void positive_search(const float* x, const float* w, float* codes, F* scales) {
    PositiveSearch<N, Top, G> search;
    search.x = x, search.w = w, search.codes = codes;
    search.run(scales);
}

}  // namespace HB_ISA
}  // namespace halfbyte
