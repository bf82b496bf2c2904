// Statistics as values that merge, and what becomes of them: rstd, running statistics, and the
// coefficients of the maps. All of it in double, a few operations per statistic.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/dtypes.h"
#include "core/portable.h"

namespace fastnorm {

FASTNORM_FN double magnitude(double x) { return x < 0 ? -x : x; }

template <class A>
FASTNORM_FN bool is_finite(A x) {
    return x - x == A(0);
}

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

// The same of sets that have a count each, and it is the same one: the mean of the means, and their
// deviations from it. for_own(f) calls f(mean, m2) for some of the sets, of which first is a mean,
// and total() makes the sum over all of them from that over those.
template <class ForOwn, class Total>
FASTNORM_FN Moments merge_equal(double first, double sets, double each, ForOwn&& for_own,
                                Total&& total) {
    const double share = 1.0 / sets;
    double sum = 0;
    for_own([&](double mean, double) { sum += (mean - first) * share; });
    double mean = first + total(sum);
    if (!is_finite(mean)) {  // an infinity, or a difference of the largest numbers
        sum = 0;
        for_own([&](double of, double) { sum += of * share; });
        mean = total(sum);
    }
    double deviations = 0, squares = 0, m2 = 0;
    for_own([&](double of, double m2_of) {
        const double d = of - mean;
        deviations += d;
        squares += d * d;
        m2 += m2_of;
    });
    deviations = total(deviations);
    squares = total(squares);
    m2 = total(m2);
    const double shift = deviations * share;  // what rounding has cost
    return {sets * each, is_finite(shift) ? mean + shift : mean,
            m2 + each * (squares - deviations * shift)};
}

// Sums of d = x - pivot over count values, whatever the pivot: its error drops out. shift is
// sum / count, or, of many at a time, sum times 1 / count: of that a mean of 0 may be 1e-19.
FASTNORM_FN Moments moments_about(double pivot, double count, double shift, double sum,
                                  double square_sum) {
    return {count, pivot + shift, square_sum - sum * shift};
}

// Whether no square of count values, summed in A, overflowed or vanished among the subnormals.
template <class A>
FASTNORM_FN bool in_range(double count, double square_sum) {
    if constexpr (sizeof(A) == sizeof(double)) return true;
    return (square_sum > count * 0x1p-100) & (square_sum < 0x1p126);
}

// Whether moments_about() may be trusted when the sums were rounded to the accumulator type A: the
// pivot lies within a standard deviation of the mean (so that at most a factor of two is lost to
// cancellation), and no square overflowed or vanished among the subnormals. NaN is not to be
// trusted, and an all-constant block of floats only where no difference can have been so small.
template <class A>
FASTNORM_FN bool trustworthy(const Moments& m, double pivot, double sum, double square_sum) {
    const double shift = m.mean - pivot;
    const bool near = shift * shift * m.count <= 4.0 * m.m2;
    if constexpr (sizeof(A) == sizeof(double)) return near;
    // No branches: the compiler makes vectors of it.
    const bool constant = (sum == 0) & (square_sum == 0) & (magnitude(pivot) > 0x1p-38);
    return near & (in_range<A>(m.count, square_sum) | constant);
}

FASTNORM_FN double rstd_of_variance(double var, double eps) { return 1.0 / ::sqrt(var + eps); }

// Of a batch of more than one value, for the running one: of the population, or of the batch.
FASTNORM_FN double batch_variance(double m2, double count, bool unbiased) {
    return m2 / (unbiased ? count - 1.0 : count);
}

FASTNORM_FN double running_update(double running, double batch, double momentum) {
    return (1.0 - momentum) * running + momentum * batch;
}

// Powers of two by which the maps keep intermediate numbers in range, however small or large the
// data and the weight are: multiplying by them rounds nothing.
//
// floor(log2(|x|)), as far as normal numbers go: -1023 for 0. 0 for infinity and NaN, of which it
// says nothing.
FASTNORM_FN int exponent_of(double x) {
    const int biased = static_cast<int>((bit_copy<std::uint64_t>(x) >> 52) & 0x7ff);
    return biased == 0x7ff ? 0 : biased - 1023;
}

template <class A>
constexpr int largest_exponent = sizeof(A) == sizeof(double) ? 1023 : 127;

// 2^exponent, as far as A has it.
template <class A>
FASTNORM_FN double power_of_two(int exponent) {
    constexpr int most = largest_exponent<A> - 1;
    const int within = exponent < -most ? -most : exponent > most ? most : exponent;
    return bit_copy<double>(static_cast<std::uint64_t>(within + 1023) << 52);
}

// The largest exponent of a prescale that leaves the mean, and its difference to any x, in range.
template <class A>
FASTNORM_FN int exponent_that_spares(double mean) {
    return largest_exponent<A> - 2 - exponent_of(mean);
}

// A power of two above weights of which this is the largest: relative to it they leave g * weight
// in range.
template <class A>
FASTNORM_FN double scale_above(double largest) {
    return largest > 0 ? power_of_two<A>(exponent_of(largest) + 1) : 1.0;
}

// About sqrt(rstd * |weight|). Half of the way from x to y: what overflows or vanishes there does
// so in y too.
template <class A>
FASTNORM_FN double halfway_scale(double rstd, double weight) {
    return power_of_two<A>((exponent_of(rstd) + exponent_of(weight)) / 2);
}

// The prescale of the forward pass.
template <class A>
FASTNORM_FN double forward_prescale(double mean, double rstd, double weight) {
    const double halfway = halfway_scale<A>(rstd, weight);
    const double most = power_of_two<A>(exponent_that_spares<A>(mean));
    return halfway < most ? halfway : most;
}

// The prescale of the backward pass: about rstd, which makes x - mean of the order of 1, and so a
// sum of g * (x - mean) that of dweight.
template <class A>
FASTNORM_FN double backward_prescale(double mean, double rstd) {
    const int unit = exponent_of(rstd);
    const int most = exponent_that_spares<A>(mean);
    return power_of_two<A>(unit < most ? unit : most);
}

// x in A. A finite one stays finite: it is a factor, which may meet a 0.
template <class A>
FASTNORM_FN A narrowed(double x) {
    const A nearest = static_cast<A>(x);
    if (is_finite(nearest) || !is_finite(x)) return nearest;
    return x < 0 ? std::numeric_limits<A>::lowest() : std::numeric_limits<A>::max();
}

// What the maps need of one statistic, in the type that the elements are computed in.
//   centred = (x * prescale - mean_hi) - mean_lo,   z = centred * scale + bias
// mean_hi + mean_lo is the mean (times prescale) beyond the type's own precision: y is right to a
// few units of its own scale however large mean/sigma is. prescale is a power of two.
template <class A>
struct Normalization {
    A prescale, mean_hi, mean_lo, scale, bias;
};

template <class A>
FASTNORM_FN Normalization<A> normalization(double mean, double rstd, double weight, double bias,
                                           double prescale) {
    const double scaled = mean * prescale;
    const A hi = static_cast<A>(scaled);
    // Where hi is infinite or NaN so is the result; the rest must not add a NaN of its own.
    const double rest = scaled - static_cast<double>(hi);
    const A lo = is_finite(rest) ? static_cast<A>(rest) : A(0);
    return {static_cast<A>(prescale), hi, lo, narrowed<A>(rstd / prescale * weight),
            static_cast<A>(bias)};
}

// dx = (a * g + b * centred + c) * scale, from the sums of weight * g and of weight * g * centred
// over count values, both divided by weight_of_sums (which is the weight where there is but one):
//   dx = rstd * (weight * g - sum(weight * g) / count
//                - (x - mean) * rstd^2 * sum(weight * g * (x - mean)) / count)
struct GradientCoefficients {
    double a, b, c, scale;
};

FASTNORM_FN GradientCoefficients gradient_coefficients(double rstd, double weight,
                                                       double weight_of_sums, double count,
                                                       double sum_g, double sum_centred,
                                                       double prescale, double scale) {
    const double of_sums = rstd / scale * weight_of_sums;
    const double unit = rstd / prescale;
    return {rstd / scale * weight, -of_sums * (unit * (unit * (sum_centred / count))),
            -of_sums * (sum_g / count), scale};
}

}  // namespace fastnorm
