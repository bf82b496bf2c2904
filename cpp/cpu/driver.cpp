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

// Statistics that one task finishes: enough to be worth a task.
constexpr std::int64_t stats_per_task = 64;

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

template <class A>
void set(const Scratch& scratch, const View& view, std::int64_t stat, const Normalization<A>& n) {
    scratch.set<A>(view, Coefficient::prescale, stat, n.prescale);
    scratch.set<A>(view, Coefficient::mean_hi, stat, n.mean_hi);
    scratch.set<A>(view, Coefficient::mean_lo, stat, n.mean_lo);
    scratch.set<A>(view, Coefficient::scale, stat, n.scale);
    scratch.set<A>(view, Coefficient::bias, stat, n.bias);
}

template <class A>
void set(const Scratch& scratch, const View& view, std::int64_t stat,
         const GradientCoefficients& g) {
    scratch.set<A>(view, Coefficient::grad_a, stat, g.a);
    scratch.set<A>(view, Coefficient::grad_b, stat, g.b);
    scratch.set<A>(view, Coefficient::grad_c, stat, g.c);
    scratch.set<A>(view, Coefficient::grad_scale, stat, g.scale);
}

template <class A>
void set_forward(const Scratch& scratch, const Problem& problem, std::int64_t stat, double mean,
                 double rstd) {
    const View& view = problem.args.view;
    const double weight = problem.weight.get(view.parameter(stat), 1.0);
    const double bias = problem.bias.get(view.parameter(stat), 0.0);
    set(scratch, view, stat,
        normalization<A>(mean, rstd, weight, bias, forward_prescale<A>(mean, rstd, weight)));
}

// Calls f(from, to) over [0, count) in pieces of at most stats_per_task.
template <class F>
void for_stats(const ParallelFor& parallel_for, std::int64_t count, F&& f) {
    parallel_for(divide_up(count, stats_per_task), [&](std::int64_t task) {
        const std::int64_t from = task * stats_per_task;
        f(from, std::min(from + stats_per_task, count));
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

void map_only(const ParallelFor& parallel_for, const KernelArgs& args, const Plan& plan,
              const Kernels& kernels, Map map) {
    for_shares(parallel_for, plan.tiles(), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) map(args, plan.tile_in_memory_order(i));
        kernels.fence();
    });
}

// reduce, then finish(from, to) for the statistics, then map over the same tiles backwards, so that
// the map begins with what the reduction has left in the cache.
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
        for_shares(parallel_for, plan.units(), [&](std::int64_t first, std::int64_t last) {
            for (std::int64_t unit = first; unit < last; ++unit) {
                for (std::int64_t c = 0; c < chunks; ++c) reduce_tile(unit, c);
                const auto [from, to] = stats_of(unit);
                finish(from, to);
                for (std::int64_t c = chunks; c-- > 0;) map(args, plan.tile(unit, c));
            }
            kernels.fence();
        });
        return;
    }
    // Under rows the threads share one unit at a time, so that it is still in their caches for the
    // map; under columns the units of a batch index lie side by side in every row.
    const std::int64_t together = plan.view.traversal == Traversal::rows ? 1 : plan.stat_tiles;
    for (std::int64_t unit = 0; unit < plan.units(); unit += together) {
        const std::int64_t tiles = together * chunks;
        for_shares(parallel_for, tiles, [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t i = from; i < to; ++i) reduce_tile(unit + i % together, i / together);
        });
        const std::int64_t first_stat = stats_of(unit).first;
        const std::int64_t last_stat = stats_of(unit + together - 1).second;
        for_stats(parallel_for, last_stat - first_stat, [&](std::int64_t from, std::int64_t to) {
            finish(first_stat + from, first_stat + to);
        });
        for_shares(parallel_for, chunks, [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t c = to; c-- > from;) {
                Tile tile = plan.tile(unit, c);  // of all the units: whole rows
                tile.stat1 = plan.tile(unit + together - 1, c).stat1;
                map(args, tile);
            }
            kernels.fence();
        });
    }
}

}  // namespace

double PerStatistic::get(std::int64_t i) const {
    return with_dtype(dtype, [&](auto element) {
        std::memcpy(&element, data + i * stride, sizeof(element));
        return static_cast<double>(to_float(element));
    });
}

void PerStatistic::set(std::int64_t i, double value) const {
    if (data == nullptr) return;
    with_dtype(dtype, [&](auto element) {
        from_float(value, element);
        std::memcpy(data + i * stride, &element, sizeof(element));
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
    for_stats(parallel_for, args.view.stats(), [&](std::int64_t from, std::int64_t to) {
        with_accumulator(problem, [&](auto selects) {
            for (std::int64_t s = from; s < to; ++s) {
                const double rstd = 1.0 / std::sqrt(var.get(s) + eps);
                set_forward<decltype(selects)>(scratch, problem, s, mean.get(s), rstd);
            }
        });
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

    const auto finish = [&](std::int64_t from, std::int64_t to) {
        const std::int64_t stats = view.stats();
        Moments merged[stats_per_task];
        for (; from < to; from += stats_per_task) {
            const std::int64_t n = std::min(stats_per_task, to - from);
            double merged_count = 0;
            for (std::int64_t c = 0; c < plan.chunks(); ++c) {
                const double chunk_count = plan.chunk_count(c);
                const double* means = scratch.first + c * stats + from;
                const double* m2s = scratch.second + c * stats + from;
                for (std::int64_t i = 0; i < n; ++i) {
                    merged[i] = merge({merged_count, merged[i].mean, merged[i].m2},
                                      {chunk_count, means[i], m2s[i]});
                }
                merged_count += chunk_count;
            }
            with_accumulator(problem, [&](auto selects) {
                for (std::int64_t i = 0; i < n; ++i) {
                    const std::int64_t s = from + i;
                    // What is returned is what is used: backward recomputes from the same numbers.
                    double m = merged[i].mean;
                    double r = 1.0 / std::sqrt(merged[i].m2 / count + eps);
                    if (half) {
                        m = static_cast<float>(m);
                        r = static_cast<float>(r);
                    }
                    mean.set(s, m);
                    rstd.set(s, r);
                    set_forward<decltype(selects)>(scratch, problem, s, m, r);
                    const double var = merged[i].m2 / (running.unbiased ? count - 1.0 : count);
                    running.mean.set(s, running_update(running.mean.get(s, 0.0), merged[i].mean,
                                                       running.momentum));
                    running.var.set(s,
                                    running_update(running.var.get(s, 0.0), var, running.momentum));
                }
            });
        }
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
    const double count = static_cast<double>(view.reduced());

    const auto prescale_of = [&](auto selects, std::int64_t s) {
        return backward_prescale<decltype(selects)>(mean.get(s), rstd.get(s));
    };
    const auto set_gradient = [&](auto selects, std::int64_t s, double sum_g, double sum_centred) {
        using A = decltype(selects);
        const double r = rstd.get(s);
        const double weight = problem.weight.get(view.parameter(s), 1.0);
        set<A>(scratch, view, s,
               gradient_coefficients(r, weight, count, sum_g, sum_centred, prescale_of(selects, s),
                                     halfway_scale<A>(r, weight)));
    };
    for_stats(parallel_for, view.stats(), [&](std::int64_t from, std::int64_t to) {
        with_accumulator(problem, [&](auto selects) {
            using A = decltype(selects);
            for (std::int64_t s = from; s < to; ++s) {
                const double r = rstd.get(s);
                const double weight = problem.weight.get(view.parameter(s), 1.0);
                const double bias = problem.bias.get(view.parameter(s), 0.0);
                set(scratch, view, s,
                    normalization<A>(mean.get(s), r, weight, bias, prescale_of(selects, s)));
                if (!reduces) set_gradient(selects, s, 0.0, 0.0);
            }
        });
    });
    const Kernels kernels(execution.kernels, problem);
    if (!reduces) {
        map_only(parallel_for, args, plan, kernels, kernels.gradient);
        return;
    }
    // Leaves the statistic's shares of dbias and dweight where its first partial sums were.
    const auto finish = [&](std::int64_t from, std::int64_t to) {
        with_accumulator(problem, [&](auto selects) {
            for (std::int64_t s = from; s < to; ++s) {
                double sum_g = 0;
                double sum_centred = 0;
                for (std::int64_t c = 0; c < plan.chunks(); ++c) {
                    sum_g += scratch.first[c * view.stats() + s];
                    sum_centred += scratch.second[c * view.stats() + s];
                }
                set_gradient(selects, s, sum_g, sum_centred);
                scratch.first[s] = sum_g;
                scratch.second[s] = sum_centred * (rstd.get(s) / prescale_of(selects, s));
            }
        });
    };
    reduce_finish_map(parallel_for, args, schedule, scratch, kernels, kernels.gradient_sums,
                      kernels.gradient, finish);
    for_stats(parallel_for, view.parameters(), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t p = from; p < to; ++p) {
            double sum_g = 0;
            double sum_gx = 0;
            for (std::int64_t s = p; s < view.stats(); s += view.parameters()) {
                sum_g += scratch.first[s];
                sum_gx += scratch.second[s];
            }
            dbias.set(p, sum_g);
            dweight.set(p, sum_gx);
        }
    });
}

}  // namespace fastnorm
