// ggml's scale searches for codes on both sides of zero, one block in each lane.
#pragma once

#include "encode/lanes.hpp"

namespace halfbyte {
namespace HB_ISA {

// Codes are clamp(round(inverse * x), -half, half - 1) + shift.
struct SymmetricFit {
    F scale, inverse, shift;

    HB_INLINE F code(F x, F half) const {
        const F whole = round_any_float(mul(inverse, x));
        const F high = sub(half, set1(1.0f));
        return add(clamp(whole, sub(zero(), half), high), shift);
    }
};

// The value of largest magnitude in each lane, the first of equals.
struct Peak {
    F magnitude = zero(), value = zero();

    HB_INLINE void see(F v) {
        const F size = abs(v);
        const Mask larger = less(magnitude, size);
        magnitude = select(larger, size, magnitude);
        value = select(larger, v, value);
    }
    HB_INLINE Mask nothing() const { return less(magnitude, set1(kNothing)); }
};

// Finite: no value is infinite or NaN.
template <int N, bool Finite>
struct SymmetricSearch {
    const float* x;
    const float* w;
    float half;
    alignas(64) float wx[N * W];
    F peak, scale, best, inverse;

    // Low, High: whether codes can pass -half or half - 1.
    template <int T, bool Low, bool High>
    HB_INLINE void sums(const F* inverses, F* lx, F* ll) const {
        const F low = set1(-half), high = set1(half - 1.0f);
        for (int t = 0; t < T; ++t) lx[t] = ll[t] = zero();
        for (int i = 0; i < N; ++i) {
            const F v = load(x + i * W), weight = load(w + i * W), product = load(wx + i * W);
            for (int t = 0; t < T; ++t) {
                const F scaled = mul(inverses[t], v);
                F l = Finite ? round_small(scaled) : round_any_float(scaled);
                if (Low || !Finite) l = max(l, low);
                if (High || !Finite) l = min(l, high);
                lx[t] = add(lx[t], mul(product, l));
                ll[t] = add(ll[t], mul(mul(weight, l), l));
            }
        }
    }

    // Three trials: their sums do not depend on which are taken.
    template <bool Low, bool High>
    void try_three(int step) {
        F inverses[3], lx[3], ll[3];
        for (int t = 0; t < 3; ++t) {
            const float top = half + 0.1f * static_cast<float>(step + t);
            inverses[t] = div(set1(-top), peak);
        }
        sums<3, Low, High>(inverses, lx, ll);
        for (int t = 0; t < 3; ++t) {
            const Mask better =
                both(less(zero(), ll[t]), less(mul(best, ll[t]), mul(lx[t], lx[t])));
            const F fitted = div(lx[t], ll[t]);
            scale = select(better, fitted, scale);
            best = select(better, mul(fitted, lx[t]), best);
            inverse = select(better, inverses[t], inverse);
        }
    }

    // |inverse * x| <= half + 0.1 step: where that rounds to the last code there is no clamp.
    template <bool High>
    HB_INLINE void try_all() {
        try_three<false, false>(-9);
        try_three<false, High>(-6);
        try_three<false, High>(-3);
        try_three<false, High>(1);
        try_three<true, High>(4);
        try_three<true, High>(7);
    }

    HB_INLINE SymmetricFit run() {
        Peak extreme;
        F least = load(x), most = least;
        for (int i = 0; i < N; ++i) {
            const F v = load(x + i * W);
            extreme.see(v);
            least = min(least, v);
            most = max(most, v);
            store(wx + i * W, mul(load(w + i * W), v));
        }
        peak = extreme.value;
        // Codes above half - 1 come from large values whose sign is not the peak's.
        const F other = select(less(peak, zero()), most, sub(zero(), least));
        const F limit = mul(other, set1((half + 1.0f) / (half - 0.51f)));
        const bool clamps = any(less(extreme.magnitude, limit));
        F lx, ll;
        inverse = div(set1(-half), peak);
        sums<1, false, true>(&inverse, &lx, &ll);
        scale = select(equal_to(ll, zero()), zero(), div(lx, ll));
        best = mul(scale, lx);
        if (clamps) {
            try_all<true>();
        } else {
            try_all<false>();
        }
        const Mask nothing = extreme.nothing();
        return {select(nothing, zero(), scale), select(nothing, zero(), inverse),
                select(nothing, zero(), set1(half))};
    }
};

template <int N, bool Finite = true>
static SymmetricFit symmetric_search(const float* x, const float* w, float half) {
    SymmetricSearch<N, Finite> search;
    search.x = x, search.w = w, search.half = half;
    return search.run();
}

// Codes for weights x^2, improved one value at a time; G blocks per lane side by side, since each
// step waits for the one before while codes still move.
template <int N, int G>
struct SignedDescent {
    static constexpr int kSweeps = 5;
    const float* x;  // [G][N][W]
    float half;
    float* codes;  // [G][N][W], stored codes
    alignas(64) float squares[G * N * W];
    alignas(64) float cubes[G * N * W];
    F lx[G], ll[G];

    // Settled: most lanes keep their codes, so the rest of the step is a branch.
    template <bool Settled>
    HB_INLINE Mask step(int g, int i) {
        const int at = (g * N + i) * W;
        const F weight = load(squares + at), product = load(cubes + at), old = load(codes + at);
        const F others = sub(lx[g], mul(product, old));
        const F rest = sub(ll[g], mul(mul(weight, old), old));
        const F wanted = round_any_float(div(mul(load(x + at), rest), others));
        const F l = clamp(wanted, set1(-half), set1(half - 1.0f));
        const Mask moves = both(less(zero(), others), less(zero(), abs(sub(l, old))));
        if (Settled && !any(moves)) return moves;
        const F new_lx = add(others, mul(product, l));
        const F new_ll = add(rest, mul(mul(weight, l), l));
        const F gain = mul(mul(new_lx, new_lx), ll[g]), bar = mul(mul(lx[g], lx[g]), new_ll);
        const Mask better = both(both(moves, less(zero(), new_ll)), less(bar, gain));
        store(codes + at, select(better, l, old));
        lx[g] = select(better, new_lx, lx[g]);
        ll[g] = select(better, new_ll, ll[g]);
        return better;
    }

    HB_INLINE Mask start(int g) {
        Peak extreme;
        for (int i = 0; i < N; ++i) extreme.see(load(x + (g * N + i) * W));
        const F inverse = div(set1(-half), extreme.value);
        const Mask nothing = extreme.nothing();
        F sum_lx = zero(), sum_ll = zero();
        for (int i = 0; i < N; ++i) {
            const int at = (g * N + i) * W;
            const F v = load(x + at), weight = mul(v, v), product = mul(weight, v);
            const F l = min(round_small(mul(inverse, v)), set1(half - 1.0f));
            store(codes + at, select(nothing, zero(), l));
            store(squares + at, weight);
            store(cubes + at, product);
            sum_lx = add(sum_lx, mul(product, l));
            sum_ll = add(sum_ll, mul(mul(weight, l), l));
        }
        lx[g] = sum_lx, ll[g] = sum_ll;
        return nothing;
    }

    HB_INLINE void descend() {
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) step<false>(g, i);
        }
        for (int g = 0; g < G; ++g) {
            for (int sweep = 1; sweep < kSweeps; ++sweep) {
                Mask moved = less(zero(), zero());
                for (int i = 0; i < N; ++i) moved = either(moved, step<true>(g, i));
                if (!any(moved)) break;
            }
        }
    }

    // Scales to fits; codes become those that are stored: with `half` added where a lane has
    // values.
    HB_INLINE void run(F* scales) {
        Mask nothing[G];
        for (int g = 0; g < G; ++g) nothing[g] = start(g);
        descend();
        for (int g = 0; g < G; ++g) {
            const Mask some = less(zero(), ll[g]);
            scales[g] = select(some, div(lx[g], ll[g]), zero());
            scales[g] = select(nothing[g], zero(), scales[g]);
            const F shift = select(nothing[g], zero(), set1(half));
            for (int i = 0; i < N; ++i) {
                float* at = codes + (g * N + i) * W;
                store(at, add(select(nothing[g], zero(), load(at)), shift));
            }
        }
    }
};

}  // namespace HB_ISA
}  // namespace halfbyte
