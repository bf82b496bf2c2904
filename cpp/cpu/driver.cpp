#include "cpu/driver.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>

#include "core/dtypes.h"
#include "core/stats.h"
#include "cpu/explain.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"

namespace fastnorm {

namespace {

ParallelFor threads_of(const Execution& execution, const Schedule& schedule) {
    ParallelFor parallel_for = execution.parallel_for;
    parallel_for.threads = schedule.threads;
    return parallel_for;
}

// One call's kernels, picked by the runtime values: this is where those end.
struct Kernels {
    Reduction moments, gradient_sums;
    Map normalize, gradient;
    MapAndReduction normalize_and_moments, gradient_and_sums;  // or null
    CoefficientKernel coefficients_of_z, coefficients_of_z_in_backward, coefficients_of_dx;
    void (*rstd_of_variances)(double* variances, std::int64_t count, double eps);
    void (*fence)();

    Kernels(const KernelTable& table, const Problem& problem) {
        const TraversalKernels& of = *table.of[static_cast<int>(problem.tensors.view.traversal)];
        const int d = static_cast<int>(problem.dtype);
        const int a = static_cast<int>(problem.activation);
        moments = of.moments[d];
        normalize = of.normalize[d][a];
        gradient_sums = of.gradient_sums[d][a];
        gradient = of.gradient[d][a];
        normalize_and_moments = of.normalize_and_moments[d][a];
        gradient_and_sums = of.gradient_and_sums[d][a];
        const int accumulator = problem.dtype == DType::float64 ? 1 : 0;
        coefficients_of_z = table.coefficients_of_z[accumulator];
        coefficients_of_z_in_backward = table.coefficients_of_z_in_backward[accumulator];
        coefficients_of_dx = table.coefficients_of_dx[accumulator];
        rstd_of_variances = table.rstd_of_variances;
        fence = table.fence;
    }
};

// Computes coefficients of statistics [from, from + count), from the given one on, and puts them
// where the maps look for them.
void set_coefficients(const Scratch& scratch, const Problem& problem, CoefficientKernel compute,
                      int first, int last, std::int64_t from, std::int64_t count,
                      const StatBlock& block) {
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

// Those of z, from mean and rstd.
void set_coefficients_of_z(const Scratch& scratch, const Problem& problem,
                           CoefficientKernel compute, std::int64_t from, std::int64_t count,
                           StatBlock& block) {
    const View& view = problem.tensors.view;
    problem.weight.load_parameters(view, from, count, block.weight, 1.0);
    problem.bias.load_parameters(view, from, count, block.bias, 0.0);
    set_coefficients(scratch, problem, compute, 0, forward_coefficients, from, count, block);
}

// Those of dx, from mean, rstd and the sums.
void set_coefficients_of_dx(const Scratch& scratch, const Problem& problem,
                            CoefficientKernel compute, std::int64_t from, std::int64_t count,
                            StatBlock& block) {
    problem.weight.load_parameters(problem.tensors.view, from, count, block.weight, 1.0);
    set_coefficients(scratch, problem, compute, forward_coefficients, backward_coefficients, from,
                     count, block);
}

// Calls f(first, how many) for pieces of statistics [from, to), a task each.
template <class F>
void for_stats(const ParallelFor& parallel_for, std::int64_t from, std::int64_t to, F&& f) {
    parallel_for(divide_up(to - from, stats_block), [&](std::int64_t task) {
        const std::int64_t first = from + task * stats_block;
        f(first, std::min(stats_block, to - first));
    });
}

// Each thread takes a contiguous share of [0, count): the same one every time.
template <class F>
void for_shares(const ParallelFor& parallel_for, std::int64_t count, F&& f) {
    const std::int64_t shares = std::min<std::int64_t>(parallel_for.threads, count);
    parallel_for(shares, [&](std::int64_t share) {
        f(count * share / shares, count * (share + 1) / shares);
    });
}

// The moments of some statistics: those of all chunks, merged in order.
void merge_chunks(const Plan& plan, const Scratch& scratch, std::int64_t from, std::int64_t count,
                  double* means, double* m2s) {
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

void map_only(const ParallelFor& parallel_for, const KernelArgs& args, const Plan& plan,
              const Kernels& kernels, Map map) {
    for_shares(parallel_for, plan.tiles(), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) map(args, plan.tile_in_memory_order(i));
        kernels.fence();
    });
}

// reduce, then finish(first, how many) for the statistics, then map backwards what was
// reduced, so that the map begins with what the reduction has left in the cache; or, interleaved,
// map forwards while the next unit is reduced.
template <class Finish>
void reduce_finish_map(const ParallelFor& parallel_for, const KernelArgs& args,
                       const Schedule& schedule, const Scratch& scratch, const Kernels& kernels,
                       Reduction reduce, Map map, MapAndReduction map_and_reduce, Finish&& finish) {
    const Plan& plan = schedule.plan;
    const std::int64_t stats = plan.view.stats();
    const std::int64_t chunks = plan.chunks();
    const auto partial_at = [&](const Tile& tile, std::int64_t chunk) {
        return chunk * stats + tile.batch * plan.view.stat + tile.stat0;
    };
    const auto reduce_tile = [&](std::int64_t unit, std::int64_t chunk) {
        const Tile tile = plan.tile(unit, chunk);
        const std::int64_t at = partial_at(tile, chunk);
        reduce(args, tile, scratch.first + at, scratch.second + at);
    };
    const auto map_and_reduce_tile = [&](std::int64_t mapped, std::int64_t reduced,
                                         std::int64_t chunk) {
        const Tile tile = plan.tile(reduced, chunk);
        const std::int64_t at = partial_at(tile, chunk);
        map_and_reduce(args, plan.tile(mapped, chunk), tile, scratch.first + at,
                       scratch.second + at);
    };
    const auto stats_of = [&](std::int64_t unit) {
        const Tile tile = plan.tile(unit, 0);
        const std::int64_t base = tile.batch * plan.view.stat;
        return std::pair{base + tile.stat0, base + tile.stat1};
    };
    const auto alike = [&](std::int64_t a, std::int64_t b) {
        const auto [a0, a1] = stats_of(a);
        const auto [b0, b1] = stats_of(b);
        return a1 - a0 == b1 - b0;
    };

    if (!schedule.shared) {
        const ParallelFor serial;
        for_shares(parallel_for, plan.units(), [&](std::int64_t first, std::int64_t last) {
            bool reduced = false;
            for (std::int64_t unit = first; unit < last; ++unit) {
                if (!reduced) {
                    for (std::int64_t c = 0; c < chunks; ++c) reduce_tile(unit, c);
                }
                const auto [from, to] = stats_of(unit);
                for_stats(serial, from, to, finish);
                reduced = schedule.interleaved && unit + 1 < last && alike(unit, unit + 1);
                if (reduced) {
                    for (std::int64_t c = 0; c < chunks; ++c) {
                        map_and_reduce_tile(unit, unit + 1, c);
                    }
                } else {
                    for (std::int64_t c = chunks; c-- > 0;) map(args, plan.tile(unit, c));
                }
            }
            kernels.fence();
        });
        return;
    }
    // Under rows the threads share one unit at a time, so that it is still in their caches for the
    // map; under columns the units of a batch index lie side by side in every row.
    const bool columns = plan.view.traversal == Traversal::columns;
    const std::int64_t together = columns ? plan.stat_tiles : 1;
    for (std::int64_t unit = 0; unit < plan.units(); unit += together) {
        const std::int64_t tiles = together * chunks;
        for_shares(parallel_for, tiles, [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t i = from; i < to; ++i) reduce_tile(unit + i % together, i / together);
        });
        for_stats(parallel_for, stats_of(unit).first, stats_of(unit + together - 1).second, finish);
        if (!columns) {
            for_shares(parallel_for, chunks, [&](std::int64_t from, std::int64_t to) {
                for (std::int64_t c = to; c-- > from;) map(args, plan.tile(unit, c));
                kernels.fence();
            });
            continue;
        }
        // Whole rows, of all the units.
        Tile rows = plan.tile(unit, 0);
        rows.stat1 = plan.tile(unit + together - 1, 0).stat1;
        for_shares(parallel_for, plan.view.outer, [&](std::int64_t from, std::int64_t to) {
            Tile tile = rows;
            for (tile.outer1 = to; tile.outer1 > from; tile.outer1 = tile.outer0) {
                tile.outer0 = std::max(from, tile.outer1 - plan.chunk_outer);
                map(args, tile);
            }
            kernels.fence();
        });
    }
}

}  // namespace

Workspace thread_workspace() {
    struct Memory {
        void* data = nullptr;
        std::size_t bytes = 0;
        ~Memory() { ::operator delete(data, std::align_val_t{64}); }
    };
    thread_local Memory memory;
    return {&memory, [](void* context, std::size_t bytes) {
                auto& m = *static_cast<Memory*>(context);
                if (m.bytes < bytes) {
                    ::operator delete(m.data, std::align_val_t{64});
                    m.data = nullptr;
                    m.bytes = 0;
                    m.data = ::operator new(bytes, std::align_val_t{64});
                    m.bytes = bytes;
                }
                return m.data;
            }};
}

void normalize(const Execution& execution, const Problem& problem, const PerStatistic& mean,
               const PerStatistic& var, double eps) {
    KernelArgs args(problem.tensors);
    const Schedule schedule = schedule_map(args.view, size_of(problem.dtype), tensors_of(args),
                                           execution.parallel_for.threads);
    if (explains(execution, problem, schedule, forward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Scratch scratch(execution, problem, schedule, forward_coefficients);
    scratch.attach(args);
    args.stream = schedule.stream;
    const Kernels kernels(execution.kernels, problem);
    for_stats(parallel_for, 0, args.view.stats(), [&](std::int64_t from, std::int64_t count) {
        StatBlock block;
        mean.load(from, count, block.mean);
        var.load(from, count, block.rstd);
        kernels.rstd_of_variances(block.rstd, count, eps);
        set_coefficients_of_z(scratch, problem, kernels.coefficients_of_z, from, count, block);
    });
    map_only(parallel_for, args, schedule.plan, kernels, kernels.normalize);
}

void normalize_by_own_statistics(const Execution& execution, const Problem& problem, double eps,
                                 const PerStatistic& mean, const PerStatistic& rstd,
                                 const RunningStatistics& running) {
    KernelArgs args(problem.tensors);
    const View& view = args.view;
    const std::int64_t size = size_of(problem.dtype);
    const Kernels kernels(execution.kernels, problem);
    const Schedule schedule =
        schedule_reduction(view, size, 1, tensors_of(args), execution.parallel_for.threads,
                           kernels.normalize_and_moments != nullptr);
    if (explains(execution, problem, schedule, forward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Plan& plan = schedule.plan;
    const Scratch scratch(execution, problem, schedule, forward_coefficients);
    scratch.attach(args);
    args.stream = schedule.stream;
    const double count = static_cast<double>(view.reduced());

    const auto finish = [&](std::int64_t from, std::int64_t stats) {
        StatBlock block;
        StatBlock::Array m2, running_mean, running_var;
        merge_chunks(plan, scratch, from, stats, block.mean, m2);
        running.mean.load(from, stats, running_mean);
        running.var.load(from, stats, running_var);
        for (std::int64_t i = 0; i < stats; ++i) {
            const double var = batch_variance(m2[i], count, running.unbiased);
            running_mean[i] = running_update(running_mean[i], block.mean[i], running.momentum);
            running_var[i] = running_update(running_var[i], var, running.momentum);
            block.rstd[i] = m2[i] / count;
        }
        kernels.rstd_of_variances(block.rstd, stats, eps);
        if (size == 2) {  // what is returned is what is used: backward computes from it
            for (std::int64_t i = 0; i < stats; ++i) {
                block.mean[i] = static_cast<float>(block.mean[i]);
                block.rstd[i] = static_cast<float>(block.rstd[i]);
            }
        }
        mean.store(from, stats, block.mean);
        rstd.store(from, stats, block.rstd);
        running.mean.store(from, stats, running_mean);
        running.var.store(from, stats, running_var);
        set_coefficients_of_z(scratch, problem, kernels.coefficients_of_z, from, stats, block);
    };
    reduce_finish_map(parallel_for, args, schedule, scratch, kernels, kernels.moments,
                      kernels.normalize, kernels.normalize_and_moments, finish);
}

void normalize_backward(const Execution& execution, const Problem& problem,
                        const PerStatistic& mean, const PerStatistic& rstd, bool frozen,
                        const PerStatistic& dweight, const PerStatistic& dbias) {
    KernelArgs args(problem.tensors);
    const View& view = args.view;
    const std::int64_t size = size_of(problem.dtype);
    const bool reduces = !frozen || dweight || dbias;
    const int inputs = count_given({&args.dy, &args.x, &args.residual});
    const int threads = execution.parallel_for.threads;
    const Kernels kernels(execution.kernels, problem);
    const Schedule schedule =
        reduces ? schedule_reduction(view, size, inputs, tensors_of(args), threads,
                                     kernels.gradient_and_sums != nullptr)
                : schedule_map(view, size, tensors_of(args), threads);
    if (explains(execution, problem, schedule, backward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Plan& plan = schedule.plan;
    const Scratch scratch(execution, problem, schedule, backward_coefficients);
    scratch.attach(args);
    args.frozen = frozen;
    args.stream = schedule.stream;

    const auto prescale =
        problem.dtype == DType::float64 ? backward_prescale<double> : backward_prescale<float>;
    const auto load = [&](std::int64_t from, std::int64_t stats, StatBlock& block) {
        mean.load(from, stats, block.mean);
        rstd.load(from, stats, block.rstd);
    };
    for_stats(parallel_for, 0, view.stats(), [&](std::int64_t from, std::int64_t stats) {
        StatBlock block;
        load(from, stats, block);
        set_coefficients_of_z(scratch, problem, kernels.coefficients_of_z_in_backward, from, stats,
                              block);
        if (reduces) return;
        std::fill_n(block.sum_g, stats, 0.0);
        std::fill_n(block.sum_centred, stats, 0.0);
        set_coefficients_of_dx(scratch, problem, kernels.coefficients_of_dx, from, stats, block);
    });
    if (!reduces) {
        map_only(parallel_for, args, plan, kernels, kernels.gradient);
        return;
    }
    // Leaves the statistics' shares of dbias and dweight where their first partial sums were.
    const auto finish = [&](std::int64_t from, std::int64_t stats) {
        StatBlock block;
        load(from, stats, block);
        double* const sum_g = scratch.first + from;
        double* const sum_centred = scratch.second + from;
        for (std::int64_t c = 1; c < plan.chunks(); ++c) {
            for (std::int64_t i = 0; i < stats; ++i) {
                sum_g[i] += sum_g[c * view.stats() + i];
                sum_centred[i] += sum_centred[c * view.stats() + i];
            }
        }
        std::copy_n(sum_g, stats, block.sum_g);
        std::copy_n(sum_centred, stats, block.sum_centred);
        set_coefficients_of_dx(scratch, problem, kernels.coefficients_of_dx, from, stats, block);
        for (std::int64_t i = 0; i < stats; ++i) {
            sum_centred[i] *= block.rstd[i] / prescale(block.mean[i], block.rstd[i]);
        }
    };
    reduce_finish_map(parallel_for, args, schedule, scratch, kernels, kernels.gradient_sums,
                      kernels.gradient, kernels.gradient_and_sums, finish);
    // A parameter's gradients are those of its statistic under every batch index.
    for_stats(parallel_for, 0, view.parameters(), [&](std::int64_t from, std::int64_t count) {
        double* const sum_g = scratch.first + from;
        double* const sum_gx = scratch.second + from;
        for (std::int64_t b = 1; b < view.batch; ++b) {
            for (std::int64_t i = 0; i < count; ++i) {
                sum_g[i] += sum_g[b * view.stat + i];
                sum_gx[i] += sum_gx[b * view.stat + i];
            }
        }
        dbias.store(from, count, sum_g);
        dweight.store(from, count, sum_gx);
    });
}

}  // namespace fastnorm
