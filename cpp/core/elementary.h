// Elementary functions over a value type V (a SIMD vector, or float or double on CUDA):
//   exp(x) = 2^n (1 + q),  q = expm1(r),  r = x - n ln 2;    Phi(-a) = exp(-a^2/2) M(a)
// with polynomials from fit_elementary.py. Branch-free; NaN in gives NaN out, infinities give the
// limits, results underflow gradually.
//
// V offers V(scalar), + - * / and unary -, < <= > >= giving a mask, and, found by
// argument-dependent lookup: fma(a, b, c), abs(v), select(mask, a, b) and
// low_bits_as_exponent(v): of v's representation the low bits, where the exponent is. float and
// double have no namespace to search: the header that overloads those four for them, in namespace
// fastnorm, must be included BEFORE this one (without it, those do not compile). Where a namespace
// has at_least(v, scalar) and at_most(v, scalar) of its own they are preferred.
//
// Largest error measured, in ulp of the exact result (float against double on 1e7 bit patterns,
// every exponent below 1e10; double against long double on 2e6 points):
//
//             tanh  logistic  logistic_rise  Phi
//   float      2.5       2.9            2.5  4.6
//   double     2.5       2.7            2.4  4.2
//
// Without fused multiply-add these stay within 0.3 ulp, but Phi(x) loses up to x^2/2 ulp for x < 0:
// relative error in a tail whose absolute error stays below an epsilon.
#pragma once

#include <type_traits>

#include "core/portable.h"

namespace fastnorm {

template <class V>
struct ScalarOf {
    using type = typename V::Scalar;
};
template <>
struct ScalarOf<float> {
    using type = float;
};
template <>
struct ScalarOf<double> {
    using type = double;
};
template <class V>
using scalar_t = typename ScalarOf<V>::type;

// Ranges and splittings. exp_lowest gives zero after rounding.
template <class Scalar>
struct ElementaryConstants;

template <>
struct ElementaryConstants<float> {
    static constexpr float integers = 0x1.8p23f;  // what is added to it is rounded to an integer
    static constexpr float exponent_bias = 127.0f;
    static constexpr float log2e = 1.44269504f;
    static constexpr float ln2_hi = 0.693145752f;  // 16 bits: n * ln2_hi is exact
    static constexpr float ln2_lo = 1.42860677e-06f;
    static constexpr float exp_lowest = -104.0f;
    static constexpr int underflow_shift = 64;          // of an exponent that would be too small
    static constexpr float underflow_scale = 0x1p-64f;  // takes it back
    static constexpr int overflow_shift = -24;          // of an exponent that would be too large
    static constexpr float overflow_scale = 0x1p-24f;   // by which it divides
    static constexpr float logistic_highest = 70.0f;    // a normal exp(-x) * overflow_scale
    static constexpr float tanh_highest = 9.1f;         // tanh is 1 from here on
    static constexpr float tiny = 0x1p-25f;             // below it tanh(x) rounds to x
    static constexpr float normal_highest = 14.5f;      // Phi(-a) is zero from here on
    static constexpr float mills_pole = 5.0f;
    static constexpr float inverse_sqrt_2pi = 0.398942280f;
};

template <>
struct ElementaryConstants<double> {
    static constexpr double integers = 0x1.8p52;
    static constexpr double exponent_bias = 1023.0;
    static constexpr double log2e = 1.4426950408889634;
    static constexpr double ln2_hi = 0.69314718055989033;  // 42 bits
    static constexpr double ln2_lo = 5.4979230187083712e-14;
    static constexpr double exp_lowest = -746.0;
    static constexpr int underflow_shift = 128;
    static constexpr double underflow_scale = 0x1p-128;
    static constexpr int overflow_shift = -54;
    static constexpr double overflow_scale = 0x1p-54;
    static constexpr double logistic_highest = 670.0;
    static constexpr double tanh_highest = 19.1;
    static constexpr double tiny = 0x1p-54;
    static constexpr double normal_highest = 38.75;
    static constexpr double mills_pole = 5.5;
    static constexpr double inverse_sqrt_2pi = 0.39894228040143268;
};

template <class V>
using constants_t = ElementaryConstants<scalar_t<V>>;

// c0 + c1 x + c2 x^2 + ..., as a polynomial in x^2 whose coefficients are pairs: half as many
// operations wait for each other.
template <class V>
FASTNORM_FN V polynomial(V, scalar_t<V> c0) {
    return V(c0);
}
template <class V, class... Scalars>
FASTNORM_FN V polynomial(V x, scalar_t<V> c0, scalar_t<V> c1, Scalars... higher) {
    const V pair = fma(x, V(c1), V(c0));
    if constexpr (sizeof...(higher) == 0) {
        return pair;
    } else {
        return fma(x * x, polynomial(x, higher...), pair);
    }
}

// Written with comparisons that are false for NaN, so that NaN passes.
template <class V>
FASTNORM_FN V at_least(V x, scalar_t<V> lowest) {
    return select(x < V(lowest), V(lowest), x);
}
template <class V>
FASTNORM_FN V at_most(V x, scalar_t<V> highest) {
    return select(x > V(highest), V(highest), x);
}

// ---------------------------------------------------------------------------------------------
// Parts of exp. A caller that knows the sign of x, or a correction to it, puts together its own.
// ---------------------------------------------------------------------------------------------

// Of exp(sign * x), sign being 1 or -1: r = sign * x - n ln 2, and 2^(n + shift), which has to be a
// normal number. NaN gives an r of NaN.
template <class V>
struct ExpParts {
    V r, scale;
};
template <int shift = 0, int sign = 1, class V>
FASTNORM_FN ExpParts<V> exp_parts(V x) {
    using C = constants_t<V>;
    // A sum whose low bits are n, as an exponent is stored.
    constexpr auto origin = C::integers + (C::exponent_bias + shift);
    const V sum = fma(x, V(sign * C::log2e), V(origin));
    const V n = sum - V(origin);
    // The first step is exact, fused or not.
    const V r = fma(n, V(-C::ln2_lo), fma(n, V(-C::ln2_hi), sign < 0 ? -x : x));
    return {r, low_bits_as_exponent(sum)};
}

// expm1(r) for |r| <= ln(2)/2.
template <class V>
FASTNORM_FN V expm1_reduced(V r) {
    V tail = V(0);
    if constexpr (std::is_same_v<scalar_t<V>, float>) {
        tail =
            polynomial(r, 0.49999997f, 0.16666542f, 0.0416675247f, 0.00836667791f, 0.00138624257f);
    } else {
        tail = polynomial(r, 0.50000000000000056, 0.16666666666666599, 0.041666666666573843,
                          0.0083333333333834945, 0.0013888888932287785, 0.00019841269731655356,
                          2.4801504559847779e-05, 2.7557396596836874e-06, 2.7626282219810606e-07,
                          2.5057147086328461e-08);
    }
    return fma(r * r, tail, r);
}

// exp(x + correction) for x <= 0, at most a few units below exp_lowest. The exponent is shifted
// into the normal range and back, so that a subnormal result is rounded once, by the last product.
template <class V>
FASTNORM_FN V exp_nonpositive_from(V r, V scale) {
    return fma(scale, expm1_reduced(r), scale) * V(constants_t<V>::underflow_scale);
}
template <class V>
FASTNORM_FN V exp_nonpositive(V x) {
    const ExpParts<V> parts = exp_parts<constants_t<V>::underflow_shift>(x);
    return exp_nonpositive_from(parts.r, parts.scale);
}
template <class V>
FASTNORM_FN V exp_nonpositive(V x, V correction) {
    const ExpParts<V> parts = exp_parts<constants_t<V>::underflow_shift>(x);
    return exp_nonpositive_from(parts.r + correction, parts.scale);
}

// ---------------------------------------------------------------------------------------------
// Functions of any x
// ---------------------------------------------------------------------------------------------

// Odd bit for bit.
template <class V>
FASTNORM_FN V tanh_v(V x) {
    using C = constants_t<V>;
    const V twice = V(-2) * at_most(abs(x), C::tanh_highest);
    const ExpParts<V> parts = exp_parts(twice);
    const V e = fma(parts.scale, expm1_reduced(parts.r), parts.scale - V(1));
    const V magnitude = -e / (e + V(2));
    return select(abs(x) < V(C::tiny), x, select(x < V(0), -magnitude, magnitude));
}

// The logistic function of x and of -x. The smaller of the two keeps its relative accuracy.
template <class V>
struct Logistic {
    V rise, fall;
};
template <class V>
FASTNORM_FN Logistic<V> logistic_v(V x) {
    const V e = exp_nonpositive(at_least(-abs(x), constants_t<V>::exp_lowest));
    const V large = V(1) / (V(1) + e);
    const V small = e * large;
    const auto negative = x < V(0);
    return {select(negative, small, large), select(negative, large, small)};
}

// x within the bounds beyond which its logistic function is 0 or 1.
template <class V>
FASTNORM_FN V logistic_bounded(V x) {
    return at_most(at_least(x, constants_t<V>::exp_lowest), constants_t<V>::logistic_highest);
}
// exp(-x), relative to overflow_scale.
template <class V>
FASTNORM_FN V logistic_exp(V x) {
    const ExpParts<V> parts = exp_parts<constants_t<V>::overflow_shift, -1>(x);
    return fma(parts.scale, expm1_reduced(parts.r), parts.scale);
}
// In fewer operations, for a bounded x: its logistic function alone, and with that of -x, which is
// right only to an accuracy relative to 1.
template <class V>
FASTNORM_FN V logistic_rise(V x) {
    const V one = V(constants_t<V>::overflow_scale);
    return one / (one + logistic_exp(x));
}
template <class V>
FASTNORM_FN Logistic<V> logistic_rise_and_fall(V x) {
    const V one = V(constants_t<V>::overflow_scale);
    const V e = logistic_exp(x);
    const V inverse = V(1) / (one + e);
    return {one * inverse, e * inverse};
}

// M(a) (a + K) as a polynomial in t = (a - K) / (a + K), K = mills_pole, M(a) = exp(a^2/2) Phi(-a).
template <class V>
FASTNORM_FN V mills_scaled(V t) {
    if constexpr (std::is_same_v<scalar_t<V>, float>) {
        return polynomial(t, 0.769193053f, -0.665382504f, 0.495306045f, -0.313533366f, 0.165010139f,
                          -0.0691190436f, 0.0208626557f, -0.00295982044f, -0.00094972871f,
                          0.000416930125f);
    } else {
        return polynomial(t, 0.77376963427640677, -0.68518342057433812, 0.53559648906249435,
                          -0.36704906529362002, 0.21787243285796912, -0.10970308995869761,
                          0.045097580814773421, -0.013923510566073062, 0.0024429826752070654,
                          0.00026960400435367611, -0.00032452265311864217, 7.1414834208163001e-05,
                          1.6319978025489437e-05, -1.2118852689768435e-05, 4.463780572162113e-07,
                          1.4837933837957118e-06, -2.678419103831176e-07, -1.7754294480962718e-07,
                          5.0327159938977764e-08, 2.2936553899907671e-08, -5.686301459589531e-09,
                          -2.591373269271379e-09);
    }
}

// The standard normal distribution: Phi(x), to relative accuracy in the lower tail, and phi(x).
template <class V>
struct Normal {
    V cdf, density;
};
template <class V>
FASTNORM_FN Normal<V> normal_v(V x) {
    using C = constants_t<V>;
    const V a = at_most(abs(x), C::normal_highest);
    const V square = a * a;
    // The rounding error of a^2, where fma is fused; exp would multiply it by up to a^2/2. Where it
    // is not, this is zero, and only the far tail (where Phi is tiny) loses digits.
    const V rest = fma(a, a, -square);
    const V e = exp_nonpositive(V(-0.5f) * square, V(-0.5f) * rest);
    const V inverse = V(1) / (a + V(C::mills_pole));
    const V t = fma(a + a, inverse, V(-1));  // so that a small a is not lost in a + K
    const V tail = e * inverse * mills_scaled(t);
    return {select(x < V(0), tail, V(1) - tail), e * V(C::inverse_sqrt_2pi)};
}

}  // namespace fastnorm
