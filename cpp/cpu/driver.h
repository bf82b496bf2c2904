// From an op to kernels: plans, threads, scratch, the merge of partial results, and what is
// computed once per statistic. Knows neither Python nor how an error is worded: everything that
// arrives here is valid.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fastnorm {

// Scratch memory: reserve() gives bytes aligned to 64, valid until the next reserve(). An embedder
// can fill it with memory of its own; the default one belongs to the calling thread.
struct Workspace {
    void* context = nullptr;
    void* (*reserve)(void* context, std::size_t bytes) = nullptr;
};
Workspace thread_workspace();

struct Execution {
    const KernelTable& kernels;
    ParallelFor parallel_for;
    Workspace workspace;
};

// y from mean and variance that are given.
void normalize(const Execution& execution, const Problem& problem, const PerStatistic& mean,
               const PerStatistic& var, double eps);

// y, mean and rstd from the statistics of x itself; updates the running ones.
void normalize_by_own_statistics(const Execution& execution, const Problem& problem, double eps,
                                 const PerStatistic& mean, const PerStatistic& rstd,
                                 const RunningStatistics& running);

// dx, dweight, dbias (and dresidual). frozen: mean and rstd are constants.
void normalize_backward(const Execution& execution, const Problem& problem,
                        const PerStatistic& mean, const PerStatistic& rstd, bool frozen,
                        const PerStatistic& dweight, const PerStatistic& dbias);

}  // namespace fastnorm
