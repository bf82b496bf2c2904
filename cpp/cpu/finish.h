// Between a reduction and its map: the partial sums of stats to their means, those to the
// coefficients of the maps, and what is updated once per channel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/dtypes.h"
#include "core/stats.h"
#include "cpu/kernels.h"
#include "cpu/passes.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"

namespace fastnorm {

// A piece of a call's stats, all of some means: stats [from, from + count), means
// [first, first + means).
struct Piece {
    std::int64_t group, from, count, first, means;

    Piece(const View& view, std::int64_t from_stat, std::int64_t stats)
        : group(view.group),
          from(from_stat),
          count(stats),
          first(from_stat / group),
          means(stats / group) {}

    // Calls f(at, how many) for blocks of its stats, counted from the piece's first.
    template <class F>
    void for_blocks(F&& f) const {
        for (std::int64_t at = 0; at < count; at += stats_block) {
            f(at, std::min(stats_block, count - at));
        }
    }

    // Calls f(m, i, j) for all of [at, at + n), where stats [at + i, at + j) have mean m of the
    // piece.
    template <class F>
    void for_means(std::int64_t at, std::int64_t n, F&& f) const {
        std::int64_t m = at / group, end = (m + 1) * group - at;
        for (std::int64_t i = 0; i < n; i = end, end += group) f(m++, i, std::min(end, n));
    }

    // What stats [at, at + n) of the piece have, of one value for each mean.
    void spread(const double* values, std::int64_t at, std::int64_t n, double* to) const {
        if (group == 1) {
            std::copy_n(values + at, n, to);
            return;
        }
        for_means(at, n, [&](std::int64_t m, std::int64_t i, std::int64_t j) {
            std::fill(to + i, to + j, values[m]);
        });
    }
};

// Computes coefficients of stats [from, from + count), from the given one on, and puts them where
// the maps look for them.
inline void set_coefficients(const Scratch& scratch, const Problem& problem,
                             CoefficientKernel compute, int first, int last, std::int64_t from,
                             std::int64_t count, const StatBlock& block) {
    const View& view = problem.tensors.view;
    alignas(64) unsigned char memory[backward_coefficients * stats_block * sizeof(double)];
    compute(block, count, static_cast<double>(view.reduced()), memory);
    const auto set = [&](const auto* values) {
        for (int k = first; k < last; ++k, values += stats_block) {
            scratch.set(view, k, from, count, values);
        }
    };
    problem.dtype == DType::float64 ? set(reinterpret_cast<const double*>(memory))
                                    : set(reinterpret_cast<const float*>(memory));
}

// Those of z, for a piece, from the mean and rstd of each of its means.
inline void set_coefficients_of_z(const Scratch& scratch, const Problem& problem,
                                  CoefficientKernel compute, const Piece& piece, const double* mean,
                                  const double* rstd, double weights_scale = 1.0) {
    const View& view = problem.tensors.view;
    piece.for_blocks([&](std::int64_t at, std::int64_t n) {
        StatBlock block;
        piece.spread(mean, at, n, block.mean);
        piece.spread(rstd, at, n, block.rstd);
        problem.weight.load_parameters(view, piece.from + at, n, block.weight, weights_scale);
        problem.bias.load_parameters(view, piece.from + at, n, block.bias, 0.0);
        set_coefficients(scratch, problem, compute, 0, forward_coefficients, piece.from + at, n,
                         block);
    });
}

// The moments of stats [from, from + count): those of all chunks, merged in order.
inline void merge_chunks(const Plan& plan, const Scratch& scratch, std::int64_t from,
                         std::int64_t count, double* means, double* m2s) {
    std::copy_n(scratch.first + from, count, means);
    std::copy_n(scratch.second + from, count, m2s);
    double merged = plan.chunk_count(0);
    for (std::int64_t c = 1; c < plan.chunks(); ++c) {
        const std::int64_t at = c * plan.view.stats() + from;
        const double added = plan.chunk_count(c);
        for (std::int64_t i = 0; i < count; ++i) {
            const Moments m = merge({merged, means[i], m2s[i]},
                                    {added, scratch.first[at + i], scratch.second[at + i]});
            means[i] = m.mean;
            m2s[i] = m.m2;
        }
        merged += added;
    }
}

// The same of a piece's means: those of the plan's stats, or, where each of a group has a count,
// and it is the same one, merged.
inline void merge_moments(const Plan& plan, const Scratch& scratch, const Piece& piece,
                          double* means, double* m2s) {
    if (plan.view.group == 1) {
        return merge_chunks(plan, scratch, piece.first, piece.means, means, m2s);
    }
    double* const mean_of = scratch.first + piece.from;
    double* const m2_of = scratch.second + piece.from;
    piece.for_blocks([&](std::int64_t at, std::int64_t n) {
        StatBlock block;
        merge_chunks(plan, scratch, piece.from + at, n, block.mean, block.rstd);
        std::copy_n(block.mean, n, mean_of + at);
        std::copy_n(block.rstd, n, m2_of + at);
    });
    const double each = static_cast<double>(plan.view.outer * plan.view.inner);
    for (std::int64_t g = 0; g < piece.means; ++g) {
        const std::int64_t first = g * piece.group;
        const Moments m = merge_equal(
            mean_of[first], static_cast<double>(piece.group), each,
            [&](auto&& use) {
                for (std::int64_t i = first; i < first + piece.group; ++i)
                    use(mean_of[i], m2_of[i]);
            },
            [](double all) { return all; });
        means[g] = m.mean;
        m2s[g] = m.m2;
    }
}

// The sums of all chunks, in the place of the first one's.
inline void merge_sums(const Plan& plan, const Scratch& scratch, std::int64_t from,
                       std::int64_t count) {
    for (double* const sums : {scratch.first + from, scratch.second + from}) {
        for (std::int64_t c = 1; c < plan.chunks(); ++c) {
            for (std::int64_t i = 0; i < count; ++i) sums[i] += sums[c * plan.view.stats() + i];
        }
    }
}

// What dx needs of a piece's merged sums: those of each stat itself, or of its group, where each
// stat's count by its weight. That is taken relative to a power of two, the group's weight.
class SumsOfMeans {
  public:
    SumsOfMeans(const Problem& problem, const Piece& piece, const Scratch& scratch)
        : piece_(piece), sum_g_(scratch.first + piece.from), sum_gx_(scratch.second + piece.from) {
        if (piece.group == 1) return;
        const View& view = problem.tensors.view;
        const auto for_weights = [&](auto&& use) {
            piece.for_blocks([&](std::int64_t at, std::int64_t n) {
                StatBlock::Array weight;
                problem.weight.load_parameters(view, piece.from + at, n, weight, 1.0);
                piece.for_means(at, n, [&](std::int64_t m, std::int64_t i, std::int64_t j) {
                    for (; i < j; ++i) use(at + i, m, weight[i]);
                });
            });
        };
        for (std::int64_t m = 0; m < piece.means; ++m) weight_[m] = group_g_[m] = group_gx_[m] = 0;
        for_weights([&](std::int64_t, std::int64_t m, double weight) {
            weight_[m] = std::max(weight_[m], magnitude(weight));
        });
        for (std::int64_t m = 0; m < piece.means; ++m) {
            weight_[m] = power_of_two<double>(exponent_of(weight_[m]));
        }
        for_weights([&](std::int64_t i, std::int64_t m, double weight) {
            group_g_[m] += weight / weight_[m] * sum_g_[i];
            group_gx_[m] += weight / weight_[m] * sum_gx_[i];
        });
    }

    // For stats [at, at + n) of the piece.
    void load(std::int64_t at, std::int64_t n, StatBlock& block) const {
        if (piece_.group == 1) {
            std::copy_n(block.weight, n, block.weight_of_sums);
            std::copy_n(sum_g_ + at, n, block.sum_g);
            std::copy_n(sum_gx_ + at, n, block.sum_centred);
            return;
        }
        piece_.spread(weight_, at, n, block.weight_of_sums);
        piece_.spread(group_g_, at, n, block.sum_g);
        piece_.spread(group_gx_, at, n, block.sum_centred);
    }

  private:
    const Piece& piece_;
    const double *sum_g_, *sum_gx_;  // of the piece's stats
    StatBlock::Array weight_, group_g_, group_gx_;
};

// Of each stat and parameter the sum over all batch indices, in the place of the first one's.
inline void sum_batches(const View& view, double* sums, std::int64_t from, std::int64_t count) {
    for (std::int64_t b = 1; b < view.batch; ++b) {
        for (std::int64_t i = from; i < from + count; ++i) sums[i] += sums[b * view.stat + i];
    }
}

// Under features, all weights or biases in the accumulator type: the caller's own where they are
// that already. Where there are none they are 1, whatever the offset.
template <class A>
const A* values_of_features(const ParallelFor& parallel_for, const KernelTable& table,
                            const PerStatistic& values, std::int64_t count, double offset, A* to) {
    const std::int64_t size = size_of(values.dtype);
    const bool dense = values && values.stride == size &&
                       reinterpret_cast<std::uintptr_t>(values.data) % size == 0;
    if (dense && size == sizeof(A) && offset == 0) return reinterpret_cast<const A*>(values.data);
    for_stats(
        worth_waking(parallel_for, count), 1, 0, count, [&](std::int64_t from, std::int64_t n) {
            A* const block = to + from;
            if (!values) {
                std::fill_n(block, n, A(1));
                return;
            }
            if (dense && size <= 4 && sizeof(A) == 4) {
                table.widen[static_cast<int>(values.dtype)](values.data + from * size, n, block);
                if (offset == 0) return;
                for (std::int64_t i = 0; i < n; ++i) {
                    block[i] = static_cast<A>(static_cast<double>(block[i]) + offset);
                }
                return;
            }
            StatBlock::Array wide;
            values.load(from, n, wide);
            for (std::int64_t i = 0; i < n; ++i) block[i] = narrowed<A>(wide[i] + offset);
        });
    return to;
}

// Weights relative to a power of two above them all, which is what is returned.
template <class A>
double scale_weights(const A* weights, std::int64_t count, A* to) {
    constexpr int lanes = 16;  // of which compilers make vectors
    A most[lanes] = {};
    const auto keep_larger = [&](std::int64_t from, int n) {
        for (int j = 0; j < n; ++j) {
            const A weight = weights[from + j], size = weight < 0 ? -weight : weight;
            most[j] = size > most[j] ? size : most[j];
        }
    };
    const std::int64_t whole = count / lanes * lanes;
    for (std::int64_t i = 0; i < whole; i += lanes) keep_larger(i, lanes);
    keep_larger(whole, static_cast<int>(count - whole));
    const A largest = *std::max_element(most, most + lanes);
    const double scale = scale_above<A>(largest);
    const A share = static_cast<A>(1.0 / scale);
    for (std::int64_t i = 0; i < count; ++i) to[i] = weights[i] * share;
    return scale;
}

// scaled: so that g * weight stays in range; the rows' coefficients have the scale.
inline void set_parameters_of_features(const ParallelFor& parallel_for, const KernelTable& table,
                                       const Problem& problem, const Scratch& scratch, bool scaled,
                                       KernelArgs& args) {
    const std::int64_t count = args.view.inner;
    const auto set = [&](auto* weights, auto* biases) {
        const auto* const own = values_of_features(parallel_for, table, problem.weight, count,
                                                   problem.weight_offset, weights);
        args.weights = own;
        if (problem.bias) {
            args.biases = values_of_features(parallel_for, table, problem.bias, count, 0.0, biases);
        }
        if (!scaled || !problem.weight) return;
        const ParallelFor serial;  // as a task: in the default floating-point environment
        serial(1, [&](std::int64_t) { args.weights_scale = scale_weights(own, count, weights); });
        args.weights = weights;
    };
    if (problem.dtype == DType::float64) {
        set(reinterpret_cast<double*>(scratch.weights), reinterpret_cast<double*>(scratch.biases));
    } else {
        set(reinterpret_cast<float*>(scratch.weights), reinterpret_cast<float*>(scratch.biases));
    }
}

// Where maps are to add up the parameters' gradients that are wanted: sums of nothing yet.
inline void attach_sums(const ParallelFor& parallel_for, const Plan& plan, const Scratch& scratch,
                        bool dweight, bool dbias, KernelArgs& args) {
    if (dbias) args.sums_of_g = scratch.sums_of_g;
    if (dweight) args.sums_of_gx = scratch.sums_of_gx;
    args.unit_rows = plan.unit_stats;
    args.units_of_batch = plan.stat_units;
    args.units_of_sums = plan.units_of_sums;
    const std::int64_t inner = plan.view.inner;
    const ParallelFor threads = worth_waking(parallel_for, plan.sums() * inner);
    for_shares(threads, plan.sums(), [&](std::int64_t from, std::int64_t to) {
        for (double* const sums : {args.sums_of_g, args.sums_of_gx}) {
            if (sums != nullptr) std::fill(sums + from * inner, sums + to * inner, 0.0);
        }
    });
}

// All of them together, in order.
inline void store_sums(const ParallelFor& parallel_for, const Plan& plan, const Scratch& scratch,
                       const PerStatistic& dweight, const PerStatistic& dbias) {
    const std::int64_t inner = plan.view.inner;
    const auto store = [&](const double* sums, const PerStatistic& to, std::int64_t from,
                           std::int64_t count) {
        if (!to) return;
        if (plan.sums() == 1) return to.store(from, count, sums + from);  // nothing to add up
        StatBlock::Array total;
        std::copy_n(sums + from, count, total);
        for (std::int64_t k = 1; k < plan.sums(); ++k) {
            for (std::int64_t i = 0; i < count; ++i) total[i] += sums[k * inner + from + i];
        }
        to.store(from, count, total);
    };
    const ParallelFor threads = worth_waking(parallel_for, plan.sums() * inner);
    for_stats(threads, 1, 0, inner, [&](std::int64_t from, std::int64_t count) {
        store(scratch.sums_of_g, dbias, from, count);
        store(scratch.sums_of_gx, dweight, from, count);
    });
}

// Running statistics from the means and M2 that the stats were left with: what a channel has under
// all batch indices is averaged.
inline void update_running(const ParallelFor& parallel_for, const View& view,
                           const Scratch& scratch, const RunningStatistics& running) {
    if (!running.mean && !running.var) return;
    const double values = static_cast<double>(view.reduced());
    const double batches = static_cast<double>(view.batch);
    const ParallelFor of_stats = worth_waking_for_stats(parallel_for, view);
    for_stats(of_stats, 1, 0, view.stat, [&](std::int64_t from, std::int64_t count) {
        StatBlock::Array mean, var;
        running.mean.load(from, count, mean);
        running.var.load(from, count, var);
        sum_batches(view, scratch.first, from, count);
        sum_batches(view, scratch.second, from, count);
        for (std::int64_t i = 0; i < count; ++i) {
            const double batch_mean = scratch.first[from + i] / batches;
            const double m2 = scratch.second[from + i] / batches;
            const double batch_var = batch_variance(m2, values, running.unbiased);
            mean[i] = running_update(mean[i], batch_mean, running.momentum);
            var[i] = running_update(var[i], batch_var, running.momentum);
        }
        running.mean.store(from, count, mean);
        running.var.store(from, count, var);
    });
}

}  // namespace fastnorm
