// Elementwise functions by name, alone or after a convolution or product.
#pragma once

#include <cmath>
#include <type_traits>

#include "nets.hpp"
#include "nn/map.hpp"

namespace halfbyte {
namespace HB_ISA {

// e^x - 1 without cancellation near 0.
HB_INLINE F expm1(F x) {
    F p = set1(1.0f / 5040.0f);
    p = fma(p, x, set1(1.0f / 720.0f));
    p = fma(p, x, set1(1.0f / 120.0f));
    p = fma(p, x, set1(1.0f / 24.0f));
    p = fma(p, x, set1(1.0f / 6.0f));
    p = fma(p, x, set1(0.5f));
    const F small = fma(mul(p, x), x, x);
    return select(less(abs(x), set1(0.25f)), small, sub(exp(x), set1(1.0f)));
}

template <Unary kFunction>
HB_INLINE F unary_lanes(F v, F alpha, F beta) {
    const F one = set1(1.0f), half = set1(0.5f);
    // max and min return their second operand where one is NaN.
    if constexpr (kFunction == Unary::relu) return max(zero(), v);
    if constexpr (kFunction == Unary::leaky_relu) return select(less(v, zero()), mul(v, alpha), v);
    if constexpr (kFunction == Unary::clip) return min(beta, max(alpha, v));
    if constexpr (kFunction == Unary::sigmoid) return div(one, add(one, exp(sub(zero(), v))));
    if constexpr (kFunction == Unary::hard_sigmoid)
        return min(one, max(zero(), add(mul(alpha, v), beta)));
    if constexpr (kFunction == Unary::hard_swish) {
        const F gate = add(mul(v, set1(1.0f / 6.0f)), half);
        return mul(v, min(one, max(zero(), gate)));
    }
    if constexpr (kFunction == Unary::swish)
        return div(v, add(one, exp(sub(zero(), mul(alpha, v)))));
    if constexpr (kFunction == Unary::tanh) return tanh(v);
    if constexpr (kFunction == Unary::gelu_erf)
        return mul(mul(v, half), add(one, erf(mul(v, set1(0.70710678f)))));
    if constexpr (kFunction == Unary::gelu_tanh) {
        const F cubic = fma(mul(mul(v, v), v), set1(0.044715f), v);
        return mul(mul(v, half), add(one, tanh(mul(cubic, set1(0.79788456f)))));
    }
    if constexpr (kFunction == Unary::elu) return select(less(v, zero()), mul(alpha, expm1(v)), v);
    if constexpr (kFunction == Unary::mish) {
        // tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2) for e = e^v
        const F e = exp(min(v, set1(20.0f))), s = mul(e, add(e, set1(2.0f)));
        return select(less(set1(20.0f), v), v, mul(v, div(s, add(s, set1(2.0f)))));
    }
    if constexpr (kFunction == Unary::exp) return exp(v);
    if constexpr (kFunction == Unary::erf) return erf(v);
    if constexpr (kFunction == Unary::abs) return abs(v);
    if constexpr (kFunction == Unary::neg) return mul(v, set1(-1.0f));
    if constexpr (kFunction == Unary::reciprocal) return div(one, v);
    if constexpr (kFunction == Unary::round) return nearest(v);
    return v;
}

template <class Function>
HB_INLINE void map_scalar(const float* x, int64_t n, float* out, Function function) {
    for (int64_t i = 0; i < n; ++i) out[i] = function(x[i]);
}

// function(tag) with tag.value the function; those without lanes of their own give false.
template <class Function>
HB_INLINE bool with_unary(Unary function, Function&& call) {
#define HB_CASE(name)                                       \
    case Unary::name:                                       \
        call(std::integral_constant<Unary, Unary::name>()); \
        return true;
    switch (function) {
        HB_CASE(none)
        HB_CASE(relu)
        HB_CASE(leaky_relu)
        HB_CASE(clip)
        HB_CASE(sigmoid)
        HB_CASE(hard_sigmoid)
        HB_CASE(hard_swish)
        HB_CASE(swish)
        HB_CASE(tanh)
        HB_CASE(gelu_erf)
        HB_CASE(gelu_tanh)
        HB_CASE(elu)
        HB_CASE(mish)
        HB_CASE(exp)
        HB_CASE(erf)
        HB_CASE(abs)
        HB_CASE(neg)
        HB_CASE(reciprocal)
        HB_CASE(round)
        default:
            return false;
    }
#undef HB_CASE
}

static void unary(const Finish& f, const float* x, int64_t n, float* out) {
    const F alpha = set1(f.alpha), beta = set1(f.beta);
    const bool done = with_unary(f.function, [&](auto tag) {
        map1(x, n, out, [&](F v) { return unary_lanes<decltype(tag)::value>(v, alpha, beta); });
    });
    if (done) return;
    switch (f.function) {
        case Unary::softplus:
            return map_scalar(x, n, out, [](float v) {
                return (v > 0.0f ? v : 0.0f) + std::log1p(std::exp(-std::fabs(v)));
            });
        case Unary::log:
            return map_scalar(x, n, out, [](float v) { return std::log(v); });
        case Unary::sqrt:
            return map_scalar(x, n, out, [](float v) { return std::sqrt(v); });
        case Unary::floor:
            return map_scalar(x, n, out, [](float v) { return std::floor(v); });
        case Unary::ceil:
            return map_scalar(x, n, out, [](float v) { return std::ceil(v); });
        default:
            return;
    }
}

// out = function(x + bias + residual); x may be out, residual may be null.
static void finish(const Finish& f, const float* x, float bias, const float* residual, int64_t n,
                   float* out) {
    const F alpha = set1(f.alpha), beta = set1(f.beta), shift = set1(bias);
    const bool done = with_unary(f.function, [&](auto tag) {
        constexpr Unary kFunction = decltype(tag)::value;
        if (residual) {
            map2(x, residual, n, out, [&](F v, F r) {
                return unary_lanes<kFunction>(add(add(v, shift), r), alpha, beta);
            });
        } else {
            map1(x, n, out,
                 [&](F v) { return unary_lanes<kFunction>(add(v, shift), alpha, beta); });
        }
    });
    if (done) return;
    finish({Unary::none, 0.0f, 0.0f}, x, bias, residual, n, out);
    unary(f, out, n, out);
}

// As finish, with one bias value per column; bias may be null.
static void finish_row(const Finish& f, const float* x, const float* bias, const float* residual,
                       int64_t n, float* out) {
    if (!bias) return finish(f, x, 0.0f, residual, n, out);
    const F alpha = set1(f.alpha), beta = set1(f.beta);
    const bool done = !residual && with_unary(f.function, [&](auto tag) {
        map2(x, bias, n, out,
             [&](F v, F b) { return unary_lanes<decltype(tag)::value>(add(v, b), alpha, beta); });
    });
    if (done) return;
    map2(x, bias, n, out, [](F v, F b) { return add(v, b); });
    finish(f, out, 0.0f, residual, n, out);
}

template <class Function>
HB_INLINE void map_steps(const float* a, int64_t step_a, const float* b, int64_t step_b, int64_t n,
                         float* out, Function function) {
    if (step_a && step_b) return map2(a, b, n, out, function);
    if (step_a) {
        const F right = set1(*b);
        return map1(a, n, out, [&](F v) { return function(v, right); });
    }
    const F left = set1(*a);
    if (step_b) return map1(b, n, out, [&](F v) { return function(left, v); });
    const F both = function(left, set1(*b));
    map1(out, n, out, [&](F) { return both; });
}

// NaN in either operand gives NaN.
HB_INLINE F max_nan(F a, F b) { return select(unordered(a), a, max(a, b)); }
HB_INLINE F min_nan(F a, F b) { return select(unordered(a), a, min(a, b)); }

static void binary(Binary op, const float* a, int64_t step_a, const float* b, int64_t step_b,
                   int64_t n, float* out) {
#define HB_CASE(name, function) \
    case Binary::name:          \
        return map_steps(a, step_a, b, step_b, n, out, [](F x, F y) { return function(x, y); });
    switch (op) {
        HB_CASE(add, add)
        HB_CASE(sub, sub)
        HB_CASE(mul, mul)
        HB_CASE(div, div)
        HB_CASE(max, max_nan)
        HB_CASE(min, min_nan)
        default:
            return;
    }
#undef HB_CASE
}

}  // namespace HB_ISA
}  // namespace halfbyte
