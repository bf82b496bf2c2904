// From statistics to the coefficients of the maps: loops over arrays without branches, of which the
// compiler makes vectors (`omp simd` tells it to; that needs no OpenMP runtime). Compiled once per
// instruction set.
#pragma once

#include <cstdint>

#include "core/stats.h"
#include "cpu/kernels.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

inline void rstd_of_variances(double* variances, std::int64_t count, double eps) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
        variances[i] = rstd_of_variance(variances[i], eps);
    }
}

template <class A>
struct Coefficients {
    template <bool in_backward>
    static void of_z(const StatBlock& in, std::int64_t count, double, void* out) {
        A* const a = static_cast<A*>(out);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) {
            const double mean = in.mean[i], rstd = in.rstd[i], weight = in.weight[i];
            const double prescale = in_backward ? backward_prescale<A>(mean, rstd)
                                                : forward_prescale<A>(mean, rstd, weight);
            const Normalization<A> n = normalization<A>(mean, rstd, weight, in.bias[i], prescale);
            a[i] = n.prescale;
            a[stats_block + i] = n.mean_hi;
            a[2 * stats_block + i] = n.mean_lo;
            a[3 * stats_block + i] = n.scale;
            a[4 * stats_block + i] = n.bias;
        }
    }

    static void of_dx(const StatBlock& in, std::int64_t count, double reduced, void* out) {
        A* const a = static_cast<A*>(out);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) {
            const GradientCoefficients g = gradient_coefficients(
                in.rstd[i], in.weight[i], in.weight_of_sums[i], reduced, in.sum_g[i],
                in.sum_centred[i], backward_prescale<A>(in.mean[i], in.rstd[i]),
                halfway_scale<A>(in.rstd[i], in.weight_of_sums[i]));
            a[i] = narrowed<A>(g.a);
            a[stats_block + i] = narrowed<A>(g.b);
            a[2 * stats_block + i] = narrowed<A>(g.c);
            a[3 * stats_block + i] = narrowed<A>(g.scale);
        }
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
