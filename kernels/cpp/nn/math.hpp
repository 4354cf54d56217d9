// Elementary functions on lanes, deterministic: own polynomials, no libm.
#pragma once

#include "types.hpp"

namespace halfbyte {
namespace HB_ISA {

// e^x within about 1 ulp; 0 below -104, infinity above 88.73, NaN stays.
HB_INLINE F exp(F x) {
    const F bounded = max(set1(-150.0f), min(set1(150.0f), x));
    const F n = nearest(mul(bounded, set1(1.44269504f)));
    F r = fma(n, set1(-0.693359375f), bounded);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return select(unordered(x), x, scale2(p, n));
}

// Within about 2 ulp of tanh.
HB_INLINE F tanh(F x) {
    const F a = abs(x), s = mul(x, x);
    F p = set1(-5.70498872745e-3f);
    p = fma(p, s, set1(2.06390887954e-2f));
    p = fma(p, s, set1(-5.37397155531e-2f));
    p = fma(p, s, set1(1.33314422036e-1f));
    p = fma(p, s, set1(-3.33332819422e-1f));
    const F small = fma(mul(p, s), x, x);
    const F e = exp(add(a, a));
    const F large = copysign(sub(set1(1.0f), div(set1(2.0f), add(e, set1(1.0f)))), x);
    return select(less(a, set1(0.625f)), small, large);
}

// x / (1 + e^-x)
HB_INLINE F silu_lanes(F x) {
    const F e = exp(sub(zero(), x));
    return div(x, add(set1(1.0f), e));
}

// erf as x * P(x^2) / Q(x^2) on |x| < 4, and +-1 beyond; absolute error below 3e-7.
HB_INLINE F erf(F x) {
    const F c = max(set1(-4.0f), min(set1(4.0f), x)), s = mul(c, c);
    F p = set1(-2.72614225801306e-10f);
    p = fma(p, s, set1(2.77068142495902e-08f));
    p = fma(p, s, set1(-2.10102402082508e-06f));
    p = fma(p, s, set1(-5.69250639462346e-05f));
    p = fma(p, s, set1(-7.34990630326855e-04f));
    p = fma(p, s, set1(-2.95459980854025e-03f));
    p = fma(p, s, set1(-1.60960333262415e-02f));
    F q = set1(-1.45660718464996e-05f);
    q = fma(q, s, set1(-2.13374055278905e-04f));
    q = fma(q, s, set1(-1.68282697438203e-03f));
    q = fma(q, s, set1(-7.37332916720468e-03f));
    q = fma(q, s, set1(-1.42647390514189e-02f));
    return select(unordered(x), x, div(mul(c, p), q));
}

}  // namespace HB_ISA
}  // namespace halfbyte
