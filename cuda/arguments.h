// What the kernels of one call are given, by value: tensors under their view, parameters and
// results per statistic, the epilogue, and where partial results meet.
#pragma once

#include <cstdint>

#include "core/per_statistic.h"
#include "core/view.h"
#include "cuda/pack.h"

namespace fastnorm::cuda {

// A view as the kernels take it. Statistics are numbered through all batch indices.
//   rows      inner > 1: a statistic's elements are runs of `inner` contiguous ones; each lane's
//             packs are of one statistic.
//   columns   inner = 1: element e of a pack belongs to the e-th of neighbouring statistics, a
//   group,
//             and a lane's packs are of one group, a run each.
struct Rows {
    std::int64_t inner = 0;     // elements of a run
    std::int64_t runs = 0;      // of a statistic
    std::int64_t elements = 0;  // of a statistic
    std::int64_t packs = 0;     // of a run, the last one perhaps partial
    std::int64_t chunks = 0;    // of a statistic
    std::int64_t stat = 0;      // statistics of a batch index, and so parameters
    std::int64_t stats = 0;
    std::int64_t run_step = 0, pack_step = 0;  // from a pack to the 32nd behind it
    int width = 1;                             // statistics of a group
    std::int64_t groups = 0;                   // of statistics
    int outer_dims = 1;
    std::int64_t outer_extent[max_outer_dims] = {};
};

// What a chunk adds to its statistic: mean and M2, or the sums of g and of g * centred(x).
struct alignas(16) Partial {
    double first, second;
};

struct Arguments {
    Rows rows;
    Operand x, residual, y, dy, dx, dresidual;

    // A signature, and then a word for each lane of each chunk of each statistic.
    std::uint32_t* mask = nullptr;
    std::uint64_t signature = 0;
    ActivationKind kind = ActivationKind::identity;
    double alpha = 0, beta = 0;

    PerStatistic weight, bias;
    PerStatistic mean;         // training writes it
    PerStatistic rstd_or_var;  // the same: rstd; inference reads var, backward rstd
    PerStatistic running_mean, running_var;
    PerStatistic dweight, dbias;
    double eps = 0, momentum = 0;
    bool unbiased = true;
    bool frozen = false;  // mean and rstd are constants of backward

    // Of a reduction whose blocks meet in global memory: a place for each chunk's partial result,
    // for each statistic's, and a counter, 0 at first, for each statistic (or group of blocks).
    Partial* partials = nullptr;
    Partial* totals = nullptr;
    std::uint32_t* counters = nullptr;
};

// What of the tasks (the chunks of all groups of statistics, one group's after the other's) each
// block does. A statistic's chunks are shared by `team` blocks, or a block has those of several.
struct Share {
    std::int64_t tasks = 0;           // of all blocks
    std::int64_t tasks_of_block = 0;  // at most
    int team = 1;                     // blocks that share a statistic
    bool in_global = false;           // where those meet; else they are a cluster
    std::int64_t soon_from = 0;  // the tasks from here on the next kernel will find in the cache
};

}  // namespace fastnorm::cuda
