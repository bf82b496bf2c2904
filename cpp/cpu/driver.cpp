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

// Statistics that one task finishes: enough to be worth a thread's waking up.
constexpr std::int64_t stats_per_task = 256;

ParallelFor threads_of(const Execution& execution, const Schedule& schedule) {
    ParallelFor parallel_for = execution.parallel_for;
    parallel_for.threads = schedule.threads;
    return parallel_for;
}

// One call's kernels, picked by the runtime values: this is where those end.
struct Kernels {
    Reduction moments, gradient_sums;
    Map normalize, gradient;
    void (*fence)();

    Kernels(const KernelTable& table, const Problem& problem) {
        const int t = static_cast<int>(problem.args.view.traversal);
        const int d = static_cast<int>(problem.dtype);
        const int a = static_cast<int>(problem.activation);
        moments = table.moments[t][d];
        normalize = table.normalize[t][d][a];
        gradient_sums = table.gradient_sums[t][d][a];
        gradient = table.gradient[t][d][a];
        fence = table.fence;
    }
};

// Calls f with a value of the problem's accumulator type.
template <class F>
void with_accumulator(const Problem& problem, F&& f) {
    if (problem.dtype == DType::float64) {
        f(double{});
    } else {
        f(float{});
    }
}

// Numbers of some statistics, a task's at most. What is computed of them goes array by array: the
// dtypes and the layout are then looked at once an array.
using StatArray = double[stats_per_task];

void load_parameters(const View& view, const PerStatistic& parameters, std::int64_t from,
                     std::int64_t count, double* to, double fallback) {
    while (count > 0) {
        const std::int64_t first = view.parameter(from);
        const std::int64_t here = std::min(count, view.parameters() - first);
        parameters.load(first, here, to, fallback);
        from += here;
        to += here;
        count -= here;
    }
}

// Sets the coefficients of the map from x to y; prescale_of(mean, rstd, weight).
template <class A, class Prescale>
void set_normalization(const Scratch& scratch, const Problem& problem, std::int64_t from,
                       std::int64_t count, const double* mean, const double* rstd,
                       Prescale&& prescale_of) {
    const View& view = problem.args.view;
    StatArray weight, bias;
    load_parameters(view, problem.weight, from, count, weight, 1.0);
    load_parameters(view, problem.bias, from, count, bias, 0.0);
    A values[forward_coefficients][stats_per_task];
    for (std::int64_t i = 0; i < count; ++i) {
        const double prescale = prescale_of(mean[i], rstd[i], weight[i]);
        const Normalization<A> n = normalization<A>(mean[i], rstd[i], weight[i], bias[i], prescale);
        values[static_cast<int>(Coefficient::prescale)][i] = n.prescale;
        values[static_cast<int>(Coefficient::mean_hi)][i] = n.mean_hi;
        values[static_cast<int>(Coefficient::mean_lo)][i] = n.mean_lo;
        values[static_cast<int>(Coefficient::scale)][i] = n.scale;
        values[static_cast<int>(Coefficient::bias)][i] = n.bias;
    }
    for (int k = 0; k < forward_coefficients; ++k) scratch.set(view, k, from, count, values[k]);
}

void set_forward(const Scratch& scratch, const Problem& problem, std::int64_t from,
                 std::int64_t count, const double* mean, const double* rstd) {
    with_accumulator(problem, [&](auto selects) {
        using A = decltype(selects);
        set_normalization<A>(
            scratch, problem, from, count, mean, rstd,
            [](double m, double r, double w) { return forward_prescale<A>(m, r, w); });
    });
}

// Sets those of the map from dy and x to dx.
template <class A>
void set_gradient(const Scratch& scratch, const Problem& problem, std::int64_t from,
                  std::int64_t count, const double* mean, const double* rstd, const double* sum_g,
                  const double* sum_centred) {
    const View& view = problem.args.view;
    const double reduced = static_cast<double>(view.reduced());
    StatArray weight;
    load_parameters(view, problem.weight, from, count, weight, 1.0);
    A values[backward_coefficients - forward_coefficients][stats_per_task];
    for (std::int64_t i = 0; i < count; ++i) {
        const GradientCoefficients g = gradient_coefficients(
            rstd[i], weight[i], reduced, sum_g[i], sum_centred[i],
            backward_prescale<A>(mean[i], rstd[i]), halfway_scale<A>(rstd[i], weight[i]));
        constexpr int first = forward_coefficients;
        values[static_cast<int>(Coefficient::grad_a) - first][i] = narrowed<A>(g.a);
        values[static_cast<int>(Coefficient::grad_b) - first][i] = narrowed<A>(g.b);
        values[static_cast<int>(Coefficient::grad_c) - first][i] = narrowed<A>(g.c);
        values[static_cast<int>(Coefficient::grad_scale) - first][i] = narrowed<A>(g.scale);
    }
    for (int k = forward_coefficients; k < backward_coefficients; ++k) {
        scratch.set(view, k, from, count, values[k - forward_coefficients]);
    }
}

// Calls f(first, how many) for pieces of statistics [from, to), a task each.
template <class F>
void for_stats(const ParallelFor& parallel_for, std::int64_t from, std::int64_t to, F&& f) {
    parallel_for(divide_up(to - from, stats_per_task), [&](std::int64_t task) {
        const std::int64_t first = from + task * stats_per_task;
        f(first, std::min(stats_per_task, to - first));
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

// reduce, then finish(first, how many) for the statistics, then map over the same tiles backwards,
// so that the map begins with what the reduction has left in the cache.
template <class Finish>
void reduce_finish_map(const ParallelFor& parallel_for, const KernelArgs& args,
                       const Schedule& schedule, const Scratch& scratch, const Kernels& kernels,
                       Reduction reduce, Map map, Finish&& finish) {
    const Plan& plan = schedule.plan;
    const std::int64_t stats = plan.view.stats();
    const std::int64_t chunks = plan.chunks();
    const auto reduce_tile = [&](std::int64_t unit, std::int64_t chunk) {
        const Tile tile = plan.tile(unit, chunk);
        const std::int64_t at = chunk * stats + tile.batch * plan.view.stat + tile.stat0;
        reduce(args, tile, scratch.first + at, scratch.second + at);
    };
    const auto stats_of = [&](std::int64_t unit) {
        const Tile tile = plan.tile(unit, 0);
        const std::int64_t base = tile.batch * plan.view.stat;
        return std::pair{base + tile.stat0, base + tile.stat1};
    };

    if (!schedule.shared) {
        const ParallelFor serial;
        for_shares(parallel_for, plan.units(), [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t unit = first; unit < last; ++unit) {
                for (std::int64_t c = 0; c < chunks; ++c) reduce_tile(unit, c);
                const auto [from, to] = stats_of(unit);
                for_stats(serial, from, to, finish);
                for (std::int64_t c = chunks; c-- > 0;) map(args, plan.tile(unit, c));
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

void PerStatistic::load(std::int64_t from, std::int64_t count, double* to, double fallback) const {
    if (data == nullptr) {
        std::fill_n(to, count, fallback);
        return;
    }
    with_dtype(dtype, [&](auto element) {
        const auto load_all = [&](std::int64_t step) {
            for (std::int64_t i = 0; i < count; ++i) {
                std::memcpy(&element, data + (from + i) * step, sizeof(element));
                to[i] = static_cast<double>(to_float(element));
            }
        };
        // A constant step makes vectors of it.
        stride == sizeof(element) ? load_all(sizeof(element)) : load_all(stride);
    });
}

void PerStatistic::store(std::int64_t from, std::int64_t count, const double* values) const {
    if (data == nullptr) return;
    with_dtype(dtype, [&](auto element) {
        for (std::int64_t i = 0; i < count; ++i) {
            from_float(values[i], element);
            std::memcpy(data + (from + i) * stride, &element, sizeof(element));
        }
    });
}

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
    KernelArgs args = problem.args;
    const Schedule schedule = schedule_map(args.view, size_of(problem.dtype), tensors_of(args),
                                           execution.parallel_for.threads);
    if (explains(execution, problem, schedule, forward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Scratch scratch(execution, problem, schedule, forward_coefficients);
    scratch.attach(args);
    args.stream = schedule.stream;
    for_stats(parallel_for, 0, args.view.stats(), [&](std::int64_t from, std::int64_t count) {
        StatArray means, rstds;
        mean.load(from, count, means);
        var.load(from, count, rstds);
        for (std::int64_t i = 0; i < count; ++i) rstds[i] = 1.0 / std::sqrt(rstds[i] + eps);
        set_forward(scratch, problem, from, count, means, rstds);
    });
    const Kernels kernels(execution.kernels, problem);
    map_only(parallel_for, args, schedule.plan, kernels, kernels.normalize);
}

void normalize_by_own_statistics(const Execution& execution, const Problem& problem, double eps,
                                 const PerStatistic& mean, const PerStatistic& rstd,
                                 const RunningStatistics& running) {
    KernelArgs args = problem.args;
    const View& view = args.view;
    const std::int64_t size = size_of(problem.dtype);
    const Schedule schedule =
        schedule_reduction(view, size, 1, tensors_of(args), execution.parallel_for.threads);
    if (explains(execution, problem, schedule, forward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Plan& plan = schedule.plan;
    const Scratch scratch(execution, problem, schedule, forward_coefficients);
    scratch.attach(args);
    args.stream = schedule.stream;
    const double count = static_cast<double>(view.reduced());
    const bool half = size == 2;

    const auto finish = [&](std::int64_t from, std::int64_t stats) {
        StatArray means, m2s, rstds, vars, running_means, running_vars;
        merge_chunks(plan, scratch, from, stats, means, m2s);
        running.mean.load(from, stats, running_means);
        running.var.load(from, stats, running_vars);
        for (std::int64_t i = 0; i < stats; ++i) {
            rstds[i] = 1.0 / std::sqrt(m2s[i] / count + eps);
            vars[i] = m2s[i] / (running.unbiased ? count - 1.0 : count);
            running_means[i] = running_update(running_means[i], means[i], running.momentum);
            running_vars[i] = running_update(running_vars[i], vars[i], running.momentum);
            // What is returned is what is used: backward recomputes from the same numbers.
            if (half) {
                means[i] = static_cast<float>(means[i]);
                rstds[i] = static_cast<float>(rstds[i]);
            }
        }
        mean.store(from, stats, means);
        rstd.store(from, stats, rstds);
        running.mean.store(from, stats, running_means);
        running.var.store(from, stats, running_vars);
        set_forward(scratch, problem, from, stats, means, rstds);
    };
    const Kernels kernels(execution.kernels, problem);
    reduce_finish_map(parallel_for, args, schedule, scratch, kernels, kernels.moments,
                      kernels.normalize, finish);
}

void normalize_backward(const Execution& execution, const Problem& problem,
                        const PerStatistic& mean, const PerStatistic& rstd, bool frozen,
                        const PerStatistic& dweight, const PerStatistic& dbias) {
    KernelArgs args = problem.args;
    const View& view = args.view;
    const std::int64_t size = size_of(problem.dtype);
    const bool reduces = !frozen || dweight || dbias;
    const int inputs = count_given({&args.dy, &args.x, &args.residual});
    const int threads = execution.parallel_for.threads;
    const Schedule schedule =
        reduces ? schedule_reduction(view, size, inputs, tensors_of(args), threads)
                : schedule_map(view, size, tensors_of(args), threads);
    if (explains(execution, problem, schedule, backward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Plan& plan = schedule.plan;
    const Scratch scratch(execution, problem, schedule, backward_coefficients);
    scratch.attach(args);
    args.frozen = frozen;
    args.stream = schedule.stream;

    for_stats(parallel_for, 0, view.stats(), [&](std::int64_t from, std::int64_t stats) {
        StatArray means, rstds;
        mean.load(from, stats, means);
        rstd.load(from, stats, rstds);
        with_accumulator(problem, [&](auto selects) {
            using A = decltype(selects);
            set_normalization<A>(
                scratch, problem, from, stats, means, rstds,
                [](double m, double r, double) { return backward_prescale<A>(m, r); });
            if (reduces) return;
            constexpr StatArray zeros = {};
            set_gradient<A>(scratch, problem, from, stats, means, rstds, zeros, zeros);
        });
    });
    const Kernels kernels(execution.kernels, problem);
    if (!reduces) {
        map_only(parallel_for, args, plan, kernels, kernels.gradient);
        return;
    }
    // Leaves the statistics' shares of dbias and dweight where their first partial sums were.
    const auto finish = [&](std::int64_t from, std::int64_t stats) {
        StatArray means, rstds;
        mean.load(from, stats, means);
        rstd.load(from, stats, rstds);
        double* const sum_g = scratch.first + from;
        double* const sum_centred = scratch.second + from;
        for (std::int64_t c = 1; c < plan.chunks(); ++c) {
            for (std::int64_t i = 0; i < stats; ++i) {
                sum_g[i] += sum_g[c * view.stats() + i];
                sum_centred[i] += sum_centred[c * view.stats() + i];
            }
        }
        with_accumulator(problem, [&](auto selects) {
            using A = decltype(selects);
            set_gradient<A>(scratch, problem, from, stats, means, rstds, sum_g, sum_centred);
            for (std::int64_t i = 0; i < stats; ++i) {
                sum_centred[i] *= rstds[i] / backward_prescale<A>(means[i], rstds[i]);
            }
        });
    };
    reduce_finish_map(parallel_for, args, schedule, scratch, kernels, kernels.gradient_sums,
                      kernels.gradient, finish);
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
