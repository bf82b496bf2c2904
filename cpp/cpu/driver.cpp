#include "cpu/driver.h"

#include <algorithm>
#include <new>
#include <optional>
#include <utility>

#include "core/dtypes.h"
#include "core/stats.h"
#include "cpu/explain.h"
#include "cpu/finish.h"
#include "cpu/passes.h"
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
    Map normalize, gradient, gradient_of_kept, add;
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
        gradient_of_kept = of.gradient_of_kept[d];
        normalize_and_moments = of.normalize_and_moments[d][a];
        add = of.add[d];
        gradient_and_sums = of.gradient_and_sums[d][a];
        const int accumulator = problem.dtype == DType::float64 ? 1 : 0;
        // Under features the weight comes later: what it multiplies is to be of the order of 1.
        const bool features = problem.tensors.view.traversal == Traversal::features;
        coefficients_of_z = features ? table.coefficients_of_z_in_backward[accumulator]
                                     : table.coefficients_of_z[accumulator];
        coefficients_of_z_in_backward = table.coefficients_of_z_in_backward[accumulator];
        coefficients_of_dx = table.coefficients_of_dx[accumulator];
        rstd_of_variances = table.rstd_of_variances;
        fence = table.fence;
    }
};

// Whether rows follow each other in the one as in the other: what sums leave there does not change
// the order in which they are taken, of which their bits are made.
bool lie_alike(const View& view, const Operand& a, const Operand& b) {
    return std::equal(a.outer_stride, a.outer_stride + view.outer_dims, b.outer_stride);
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
    const View& view = args.view;
    const Schedule schedule = schedule_map(view, size_of(problem.dtype), tensors_of(args),
                                           execution.parallel_for.threads);
    if (explains(execution, problem, schedule, forward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Scratch scratch(execution, problem, schedule, forward_coefficients);
    scratch.attach(args);
    args.stream = schedule.stream;
    const Kernels kernels(execution.kernels, problem);
    const ParallelFor of_stats = worth_waking_for_stats(parallel_for, view);
    for_stats(of_stats, 1, 0, view.stats(), [&](std::int64_t from, std::int64_t count) {
        StatBlock::Array means, rstds;
        mean.load(from, count, means);
        var.load(from, count, rstds);
        kernels.rstd_of_variances(rstds, count, eps);
        set_coefficients_of_z(scratch, problem, kernels.coefficients_of_z, Piece(view, from, count),
                              means, rstds);
    });
    map_only(parallel_for, args, schedule.plan, kernels.normalize, kernels.fence);
}

void normalize_by_own_statistics(const Execution& execution, const Problem& problem, double eps,
                                 const PerStatistic& mean, const PerStatistic& rstd,
                                 const RunningStatistics& running) {
    KernelArgs args(problem.tensors);
    const View& view = args.view;
    const std::int64_t size = size_of(problem.dtype);
    const Kernels kernels(execution.kernels, problem);
    const int threads = execution.parallel_for.threads;
    const bool joined = joins_groups(view, args.x, size);
    const Schedule schedule = joined ? schedule_joined_groups(view, size, tensors_of(args), threads)
                                     : schedule_reduction(view, size, 1, tensors_of(args), threads,
                                                          kernels.normalize_and_moments != nullptr);
    if (explains(execution, problem, schedule, forward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Scratch scratch(execution, problem, schedule, forward_coefficients);
    scratch.attach(args);
    if (view.traversal == Traversal::features) {
        set_parameters_of_features(parallel_for, execution.kernels, problem, scratch, false, args);
    }
    args.stream = args.from_memory = schedule.stream;
    const double values = static_cast<double>(view.reduced());
    const bool runs = running.mean || running.var;

    const auto finish = [&](std::int64_t from, std::int64_t count) {
        const Piece piece(view, from, count);
        StatBlock::Array means, m2s;
        merge_moments(schedule.plan, scratch, piece, means, m2s);
        if (runs) {  // which only ops without groups have
            std::copy_n(means, count, scratch.first + from);
            std::copy_n(m2s, count, scratch.second + from);
        }
        double* const rstds = m2s;
        for (std::int64_t i = 0; i < piece.means; ++i) rstds[i] = m2s[i] / values;
        kernels.rstd_of_variances(rstds, piece.means, eps);
        if (size == 2) {  // what is returned is what is used: backward computes from it
            for (std::int64_t i = 0; i < piece.means; ++i) {
                means[i] = static_cast<float>(means[i]);
                rstds[i] = static_cast<float>(rstds[i]);
            }
        }
        mean.store(piece.first, piece.means, means);
        rstd.store(piece.first, piece.means, rstds);
        set_coefficients_of_z(scratch, problem, kernels.coefficients_of_z, piece, means, rstds);
    };
    Passes passes{.reduce = kernels.moments,
                  .map = kernels.normalize,
                  .map_and_reduce = kernels.normalize_and_moments,
                  .fence = kernels.fence};
    if (args.sum) {
        passes.prepare = kernels.add;
        args.addends[0] = args.x;
        args.addends[1] = std::exchange(args.residual, Operand());
        args.x = std::exchange(args.sum, Operand());
    }
    std::optional<KernelArgs> joined_args;
    if (joined) {
        joined_args = args;
        joined_args->view = schedule.plan.view;
        joined_args->x.stat_stride *= view.group;
    }
    ReduceFinishMap(parallel_for, joined ? *joined_args : args, args, schedule, scratch, passes,
                    finish)
        .run();
    update_running(parallel_for, view, scratch, running);
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
    const bool features = view.traversal == Traversal::features;
    Schedule schedule = reduces ? schedule_reduction(view, size, inputs, tensors_of(args), threads,
                                                     kernels.gradient_and_sums != nullptr)
                                : schedule_map(view, size, tensors_of(args), threads);
    // The sums leave a smooth activation's g where the map finds it: two exponentials would take
    // longer. In dx's place it is in the cache, past which dx does not go then. Features have use
    // for dy itself.
    const std::int64_t scalar = Scratch::scalar_bytes(problem);
    const bool smooth = reduces && is_smooth(problem.activation) && !features;
    const bool dx_can_hold_it =
        size == scalar && args.dx.data != args.dy.data && lie_alike(view, args.dx, args.x);
    if (smooth) keep_in_scratch(schedule, scalar, dx_can_hold_it);
    const bool keeps_in_dx = smooth && schedule.kept == 0 && dx_can_hold_it;
    args.from_memory = schedule.stream;
    if (keeps_in_dx) schedule.stream = false;
    if (explains(execution, problem, schedule, backward_coefficients)) return;
    const ParallelFor parallel_for = threads_of(execution, schedule);
    const Scratch scratch(execution, problem, schedule, backward_coefficients);
    scratch.attach(args);
    if (features) {
        set_parameters_of_features(parallel_for, execution.kernels, problem, scratch, true, args);
        if (dweight || dbias) {
            attach_sums(parallel_for, schedule.plan, scratch, bool(dweight), bool(dbias), args);
        }
    }
    args.frozen = frozen;
    args.stream = schedule.stream;

    const auto prescale =
        problem.dtype == DType::float64 ? backward_prescale<double> : backward_prescale<float>;
    const auto load = [&](const Piece& piece, double* means, double* rstds) {
        mean.load(piece.first, piece.means, means);
        rstd.load(piece.first, piece.means, rstds);
    };
    const ParallelFor of_stats = worth_waking_for_stats(parallel_for, view);
    for_stats(of_stats, view.group, 0, view.stats(), [&](std::int64_t from, std::int64_t count) {
        const Piece piece(view, from, count);
        StatBlock::Array means, rstds;
        load(piece, means, rstds);
        set_coefficients_of_z(scratch, problem, kernels.coefficients_of_z_in_backward, piece, means,
                              rstds, args.weights_scale);
        if (reduces) return;
        StatBlock block;
        std::copy_n(means, count, block.mean);
        std::copy_n(rstds, count, block.rstd);
        problem.weight.load_parameters(view, from, count, block.weight, args.weights_scale);
        std::copy_n(block.weight, count, block.weight_of_sums);
        std::fill_n(block.sum_g, count, 0.0);
        std::fill_n(block.sum_centred, count, 0.0);
        set_coefficients(scratch, problem, kernels.coefficients_of_dx, forward_coefficients,
                         backward_coefficients, from, count, block);
    });
    if (!reduces) {
        map_only(parallel_for, args, schedule.plan, kernels.gradient, kernels.fence);
        return;
    }
    // Leaves the stats' shares of dbias and dweight where their first partial sums were.
    const auto finish = [&](std::int64_t from, std::int64_t count) {
        const Piece piece(view, from, count);
        StatBlock::Array means, rstds;
        load(piece, means, rstds);
        merge_sums(schedule.plan, scratch, from, count);
        if (!args.centred) std::fill_n(scratch.first + from, count, 0.0);
        const SumsOfMeans sums(problem, piece, scratch);
        piece.for_blocks([&](std::int64_t at, std::int64_t n) {
            StatBlock block;
            piece.spread(means, at, n, block.mean);
            piece.spread(rstds, at, n, block.rstd);
            problem.weight.load_parameters(view, from + at, n, block.weight, args.weights_scale);
            sums.load(at, n, block);
            set_coefficients(scratch, problem, kernels.coefficients_of_dx, forward_coefficients,
                             backward_coefficients, from + at, n, block);
            for (std::int64_t i = 0; i < n; ++i) {
                scratch.second[from + at + i] *=
                    block.rstd[i] / prescale(block.mean[i], block.rstd[i]);
            }
        });
    };
    KernelArgs map_args = args;
    if (keeps_in_dx) args.g = map_args.dy = args.dx;
    const bool keeps_g = keeps_in_dx || schedule.kept > 0;
    if (keeps_g) map_args.residual = {};
    const Passes passes{.reduce = kernels.gradient_sums,
                        .map = keeps_g ? kernels.gradient_of_kept : kernels.gradient,
                        .map_and_reduce = kernels.gradient_and_sums,
                        .fence = kernels.fence};
    ReduceFinishMap(parallel_for, args, map_args, schedule, scratch, passes, finish).run();
    if (features) {
        store_sums(parallel_for, schedule.plan, scratch, dweight, dbias);
        return;
    }
    for_stats(of_stats, 1, 0, view.parameters(), [&](std::int64_t from, std::int64_t count) {
        sum_batches(view, scratch.first, from, count);
        sum_batches(view, scratch.second, from, count);
        dbias.store(from, count, scratch.first + from);
        dweight.store(from, count, scratch.second + from);
    });
}

}  // namespace fastnorm
