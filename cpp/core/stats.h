// Statistics as values that merge, and what becomes of them: rstd, running statistics, and the
// coefficients of the maps. All of it in double, a few operations per statistic.
#pragma once

#include "core/portable.h"

namespace fastnorm {

FASTNORM_FN double magnitude(double x) { return x < 0 ? -x : x; }

// Count, mean and the sum of squared deviations from the mean.
struct Moments {
    double count = 0;
    double mean = 0;
    double m2 = 0;
};

// Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
// variances", eq. 2.1.
FASTNORM_FN Moments merge(const Moments& a, const Moments& b) {
    if (a.count == 0) return b;
    if (b.count == 0) return a;
    const double count = a.count + b.count;
    const double delta = b.mean - a.mean;
    const double share = b.count / count;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * (a.count * share)};
}

// Sums of d = x - pivot over count values, whatever the pivot: its error drops out.
FASTNORM_FN Moments moments_about(double pivot, double count, double sum, double square_sum) {
    const double shift = sum / count;
    return {count, pivot + shift, square_sum - sum * shift};
}

// Whether moments_about() may be trusted when the sums were rounded to the accumulator type A: the
// pivot lies within a standard deviation of the mean (so that at most a factor of two is lost to
// cancellation), and no square overflowed or vanished among the subnormals. NaN is not to be
// trusted, and an all-constant block of floats only where no difference can have been so small.
template <class A>
FASTNORM_FN bool trustworthy(const Moments& m, double pivot, double sum, double square_sum) {
    const double shift = m.mean - pivot;
    if (!(shift * shift * m.count <= m.m2)) return false;
    if constexpr (sizeof(A) == sizeof(double)) return true;
    if (square_sum > m.count * 0x1p-100 && square_sum < 0x1p126) return true;
    return sum == 0 && square_sum == 0 && magnitude(pivot) > 0x1p-38;
}

FASTNORM_FN double running_update(double running, double batch, double momentum) {
    return (1.0 - momentum) * running + momentum * batch;
}

// What the maps need of one statistic, in the type that the elements are computed in.
//   centred = (x * prescale - mean_hi) - mean_lo,   z = centred * scale + bias
// mean_hi + mean_lo is the mean (times prescale) beyond the type's own precision: y is right to a
// few units of its own scale however large mean/sigma is. prescale is a power of two, and 1 unless
// the data's scale is near the ends of float's range.
template <class A>
struct Normalization {
    A prescale, mean_hi, mean_lo, scale, bias;
};

// To float; a finite x beyond float's range becomes its largest number, not infinity.
FASTNORM_FN float bounded(double x) {
    constexpr double largest = 0x1.fffffep+127;
    constexpr double largest_double = 0x1.fffffffffffffp+1023;
    if (x > largest && x <= largest_double) return static_cast<float>(largest);
    if (x < -largest && x >= -largest_double) return static_cast<float>(-largest);
    return static_cast<float>(x);
}

template <class A>
FASTNORM_FN Normalization<A> normalization(double mean, double rstd, double weight, double bias) {
    if constexpr (sizeof(A) == sizeof(double)) {
        return {1.0, mean, 0.0, rstd * weight, bias};
    } else {
        double prescale = 1.0;
        if (rstd < 0x1p-60) prescale = 0x1p-64;
        if (rstd > 0x1p60 && magnitude(mean) < 0x1p30) prescale = 0x1p64;
        const double scaled = mean * prescale;
        const A hi = static_cast<A>(scaled);
        // Where hi is infinite or NaN so is the result; the rest must not add a NaN of its own.
        const double rest = scaled - static_cast<double>(hi);
        const A lo = magnitude(rest) < 0x1p127 ? static_cast<A>(rest) : A(0);
        return {static_cast<A>(prescale), hi, lo, bounded(rstd * weight / prescale),
                static_cast<A>(bias)};
    }
}

// dx = a * g + b * centred(x) + c, from the sums of g and of g * (x - mean) over count values:
//   dx = weight * rstd * (g - sum_g / count - (x - mean) * rstd^2 * sum_gx / count)
struct GradientCoefficients {
    double a, b, c;
};

FASTNORM_FN GradientCoefficients gradient_coefficients(double rstd, double weight, double count,
                                                       double sum_g, double sum_gx,
                                                       double prescale) {
    const double a = weight * rstd;
    return {a, -a * (rstd * rstd) * (sum_gx / count) / prescale, -a * (sum_g / count)};
}

}  // namespace fastnorm
