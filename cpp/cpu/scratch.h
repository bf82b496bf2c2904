// The scratch memory of a call: where its partial results and its coefficients lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/dtypes.h"
#include "core/stats.h"
#include "cpu/driver.h"
#include "cpu/plan.h"

namespace fastnorm {

// Two partial results per (chunk, statistic), and the coefficients; under features weights and
// biases, and backward the sums of their gradients; and places for g of a unit, where that is kept.
struct Scratch {
    static constexpr std::int64_t line = 16;  // a cache line of floats

    double* first;
    double* second;
    char* coefficients;
    std::int64_t coefficients_stride;
    char* weights;
    char* biases;
    double* sums_of_g;
    double* sums_of_gx;
    char* kept;
    std::int64_t kept_scalar, kept_bytes;  // of an element, and of one place

    Scratch(const Execution& execution, const Problem& problem, const Schedule& schedule,
            int coefficients_count) {
        const View& view = problem.tensors.view;
        coefficients_stride = stride_of(view);
        const std::int64_t partials = partial_results(schedule);
        auto* memory = static_cast<char*>(execution.workspace.reserve(
            execution.workspace.context,
            static_cast<std::size_t>(bytes(problem, schedule, coefficients_count))));
        first = reinterpret_cast<double*>(memory);
        second = first + partials;
        coefficients = memory + 2 * partials * 8;
        weights = coefficients + coefficients_count * coefficients_stride * scalar_bytes(problem);
        biases = weights + parameters(view) * scalar_bytes(problem);
        sums_of_g = reinterpret_cast<double*>(biases + parameters(view) * scalar_bytes(problem));
        sums_of_gx = sums_of_g + sums(schedule, coefficients_count);
        kept = reinterpret_cast<char*>(sums_of_gx + sums(schedule, coefficients_count));
        kept_scalar = scalar_bytes(problem);
        kept_bytes = bytes_of_place(problem, schedule);
    }

    static std::int64_t bytes(const Problem& problem, const Schedule& schedule,
                              int coefficients_count) {
        const View& view = problem.tensors.view;
        const std::int64_t scalars = coefficients_count * stride_of(view) + 2 * parameters(view);
        return 2 * partial_results(schedule) * 8 + scalars * scalar_bytes(problem) +
               2 * sums(schedule, coefficients_count) * 8 +
               schedule.shares() * bytes_of_place(problem, schedule);
    }

    void attach(KernelArgs& args) const {
        args.coefficients = coefficients;
        args.coefficients_stride = coefficients_stride;
    }

    static std::int64_t bytes_of_place(const Problem& problem, const Schedule& schedule) {
        return divide_up(schedule.kept * scalar_bytes(problem), 64) * 64;
    }

    // The place of one share of the units, for a unit of statistics from stat0 on.
    Operand place_of(const Schedule& schedule, std::int64_t share, std::int64_t stat0) const {
        const Plan& plan = schedule.plan;
        Operand place;
        place.stat_stride = plan.view.inner * kept_scalar;
        std::int64_t stride = plan.unit_stats * place.stat_stride;
        for (int d = plan.view.outer_dims - 1; d >= 0; --d) {
            place.outer_stride[d] = stride;
            stride *= plan.view.outer_extent[d];
        }
        place.data = kept + share * kept_bytes - stat0 * place.stat_stride;
        return place;
    }

    static std::int64_t scalar_bytes(const Problem& problem) {
        return problem.dtype == DType::float64 ? 8 : 4;
    }

    // Of each of the two under features, in whole cache lines.
    static std::int64_t parameters(const View& view) {
        return view.traversal == Traversal::features ? divide_up(view.inner, line) * line : 0;
    }
    static std::int64_t sums(const Schedule& schedule, int coefficients_count) {
        const View& view = schedule.plan.view;
        const bool any =
            view.traversal == Traversal::features && coefficients_count == backward_coefficients;
        return any ? divide_up(schedule.plan.sums() * view.inner, 8) * 8 : 0;
    }

    // From one coefficient's array to the next: an odd number of lines, for lines that lie a
    // multiple of 4 KiB apart displace each other in L1.
    static std::int64_t stride_of(const View& view) {
        return (divide_up(view.coefficients(), line) | 1) * line;
    }

    // Of each of the two, in whole cache lines.
    static std::int64_t partial_results(const Schedule& schedule) {
        if (!schedule.reduces) return 0;
        return divide_up(schedule.plan.chunks() * schedule.plan.view.stats(), 8) * 8;
    }

    // Sets one coefficient of statistics [from, from + count), for every lane that they have.
    template <class A>
    void set(const View& view, int which, std::int64_t from, std::int64_t count,
             const A* values) const {
        A* const to = reinterpret_cast<A*>(coefficients) + which * coefficients_stride;
        if (view.traversal != Traversal::columns) {
            std::copy_n(values, count, to + from);
            return;
        }
        const std::int64_t rows = view.coefficient_rows();
        while (count > 0) {  // a batch index after the other
            const std::int64_t batch = from / view.stat, stat = from % view.stat;
            const std::int64_t here = std::min(count, view.stat - stat);
            A* const begin = to + batch * view.run() * rows + stat * view.inner;
            A* end = begin;
            if (view.inner == 1) {
                end = std::copy_n(values, here, end);
            } else {
                for (int i = 0; i < here; ++i) end = std::fill_n(end, view.inner, values[i]);
            }
            for (std::int64_t r = 1; r < rows; ++r) std::copy(begin, end, begin + r * view.run());
            from += here;
            values += here;
            count -= here;
        }
    }
};

}  // namespace fastnorm
