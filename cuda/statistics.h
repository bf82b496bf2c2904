// From the chunks' partial results to statistics, and from those to the coefficients of the maps.
// Chunk q belongs to lane q % 32 of one warp; a lane adds up its chunks in order, and the lanes'
// sums meet in a butterfly: an order that follows from the number of chunks alone.
#pragma once

#include "core/stats.h"
#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/scalar.h"

#include "core/maps.h"

namespace fastnorm::cuda {

// The sum of all lanes' values, the same in each.
template <class A>
FASTNORM_DEVICE A sum_of_warp(const Block& block, A value) {
#pragma unroll
    for (int mask = warp_size / 2; mask > 0; mask /= 2) value += block.exchange(value, mask);
    return value;
}

// The sum of V values that one lane has.
template <int count, class A>
FASTNORM_DEVICE A sum_of(const A (&values)[count]) {
    A folded[count];
#pragma unroll
    for (int i = 0; i < count; ++i) folded[i] = values[i];
#pragma unroll
    for (int half = count / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) folded[i] += folded[i + half];
    }
    return folded[0];
}

// Calls use(chunk, partial(chunk)) for the lane's chunks, in order; a few of them are on their way
// together.
template <class PartialOf, class Use>
FASTNORM_DEVICE void for_partials_of_lane(const Block& block, std::int64_t chunks,
                                          PartialOf&& partial, Use&& use) {
    constexpr int together = 4;
#pragma unroll 1
    for (std::int64_t q = block.lane(); q < chunks; q += together * warp_size) {
        Partial found[together];
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (q + i * warp_size < chunks) found[i] = partial(q + i * warp_size);
        }
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (q + i * warp_size < chunks) use(q + i * warp_size, found[i]);
        }
    }
}

// The moments of a statistic from those of its chunks, partial(q) each of count(q) values: Chan,
// Golub and LeVeque's merge for any number of sets at once, about a mean that one of them has. As
// that lies no further from the whole's mean than sqrt(chunks) standard deviations, double has
// digits to spare.
template <class PartialOf, class CountOf>
FASTNORM_DEVICE Moments merged_moments(const Block& block, std::int64_t chunks, double count,
                                       PartialOf&& partial, CountOf&& count_of) {
    const double some_mean = partial(0).first;
    const double origin = is_finite(some_mean) ? some_mean : 0.0;
    double sum = 0, square_sum = 0;
    for_partials_of_lane(block, chunks, partial, [&](std::int64_t chunk, const Partial& of) {
        const double delta = of.first - origin;
        const double weighted = delta * count_of(chunk);
        sum += weighted;
        square_sum += fma(weighted, delta, of.second);
    });
    sum = sum_of_warp(block, sum);
    square_sum = sum_of_warp(block, square_sum);
    return moments_about(origin, count, 1.0 / count, sum, square_sum);
}

template <class PartialOf>
FASTNORM_DEVICE Partial merged_sums(const Block& block, std::int64_t chunks, PartialOf&& partial) {
    Partial sums{0, 0};
    for_partials_of_lane(block, chunks, partial, [&](std::int64_t, const Partial& of) {
        sums.first += of.first;
        sums.second += of.second;
    });
    return {sum_of_warp(block, sums.first), sum_of_warp(block, sums.second)};
}

FASTNORM_DEVICE void publish(const Block& block, Partial* to, const Partial& partial) {
    block.publish(&to->first, partial.first);
    block.publish(&to->second, partial.second);
}
FASTNORM_DEVICE Partial fresh(const Block& block, const Partial* from) {
    return {block.fresh(&from->first), block.fresh(&from->second)};
}

// What the maps need of one statistic: see core/maps.h.
template <class A>
struct Coefficients {
    Normalization<A> z;
    A grad_a, grad_b, grad_c, grad_scale;  // backward alone
};

template <class A>
FASTNORM_DEVICE NormalizeMap<A> normalize_map(const Coefficients<A>& of) {
    return {of.z.prescale, of.z.mean_hi, of.z.mean_lo, of.z.scale, of.z.bias};
}

template <class A>
FASTNORM_DEVICE void set_forward(Coefficients<A>& to, const Arguments& args, std::int64_t stat,
                                 double mean, double rstd) {
    const std::int64_t parameter = stat % args.rows.stat;
    const double weight = args.weight.get(parameter, 1.0);
    to.z = normalization<A>(mean, rstd, weight, args.bias.get(parameter, 0.0),
                            forward_prescale<A>(mean, rstd, weight));
}

template <class A>
FASTNORM_DEVICE void set_backward_z(Coefficients<A>& to, const Arguments& args, std::int64_t stat) {
    const std::int64_t parameter = stat % args.rows.stat;
    const double mean = args.mean.get(stat), rstd = args.rstd_or_var.get(stat);
    to.z = normalization<A>(mean, rstd, args.weight.get(parameter, 1.0),
                            args.bias.get(parameter, 0.0), backward_prescale<A>(mean, rstd));
}

template <class A>
FASTNORM_DEVICE void set_backward_dx(Coefficients<A>& to, const Arguments& args, std::int64_t stat,
                                     const Partial& sums) {
    const double mean = args.mean.get(stat), rstd = args.rstd_or_var.get(stat);
    const double weight = args.weight.get(stat % args.rows.stat, 1.0);
    const GradientCoefficients g = gradient_coefficients(
        rstd, weight, static_cast<double>(args.rows.elements), sums.first, sums.second,
        backward_prescale<A>(mean, rstd), halfway_scale<A>(rstd, weight));
    to.grad_a = narrowed<A>(g.a);
    to.grad_b = narrowed<A>(g.b);
    to.grad_c = narrowed<A>(g.c);
    to.grad_scale = narrowed<A>(g.scale);
}

}  // namespace fastnorm::cuda
