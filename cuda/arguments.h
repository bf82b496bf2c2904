// What the kernels of one call are given, by value: tensors under their view, parameters and
// results per statistic, the epilogue, and where partial results meet.
#pragma once

#include <cstdint>

#include "core/per_statistic.h"
#include "core/view.h"
#include "cuda/pack.h"

namespace fastnorm::cuda {

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// A view as the kernels take it. Statistics are numbered through all batch indices.
//   rows      inner > 1: a statistic's elements are runs of `inner` contiguous ones, and a warp has
//             packs of one statistic at a time.
//   columns   inner = 1: the elements of a pack belong to `width` neighbouring statistics, a run
//             each, and a warp has packs of `across` neighbours, each in `lanes` of its lanes.
// A group is the statistics that a warp has at a time. Their elements are cut into chunks, which a
// warp reduces at once, and chunks make parts, which are what partial results are kept of. Packs
// that fill runs are cut without regard to these. Where they do not, a chunk is of whole runs, or a
// piece of one, so that blocks can share a statistic run by run.
struct Rows {
    std::int64_t inner = 0;     // elements of a run
    std::int64_t runs = 0;      // of a statistic
    std::int64_t elements = 0;  // of a statistic
    std::int64_t packs = 0;     // of a run, the last one perhaps partial
    std::int64_t chunks = 0;    // of a statistic
    std::int64_t parts = 0;     // of a statistic, the last one perhaps of fewer chunks
    std::int64_t chunks_of_part = 1;
    int lanes_of_merge = 1;  // so many of a warp merge a statistic's parts
    std::int64_t stat = 0;   // statistics of a batch index, and so parameters
    std::int64_t stats = 0;
    std::int64_t stats_of_mean = 1;  // neighbours that have one mean and one variance
    std::int64_t groups = 0;
    std::int64_t groups_of_batch = 0;                   // the last one perhaps of fewer statistics
    std::int64_t runs_of_chunk = 0, chunks_of_run = 0;  // one of them is 1; 0: without regard
    std::int64_t packs_of_piece = 0;
    int packs_of_lane = 1;                     // that a lane has of a chunk at most
    std::int64_t run_step = 0, pack_step = 0;  // from a lane's pack to its next
    int width = 1, across = 1, lanes = warp_size;
    int outer_dims = 1;
    std::int64_t outer_extent[max_outer_dims] = {};

    // Of shared memory, for a chunk of an array.
    FASTNORM_FN int slot_bytes() const { return packs_of_lane * warp_size * 16; }
};

// How rows are shared out for what is added up over them, under features: parts, which leave a sum
// for each element of inner, and of a part sets of rows that take turns.
struct RowParts {
    std::int64_t rows = 1;  // of the last one perhaps fewer
    std::int64_t count = 0;
    int sets = 1;

    // Rows after which the sets' sums meet.
    FASTNORM_FN std::int64_t rows_of_lap() const { return std::int64_t{rows_of_set} * sets; }
    static constexpr int rows_of_set = 32;
};

// What some elements add to their statistic: mean and M2, or the sums of g and of g * centred(x).
struct alignas(16) Partial {
    double first, second;
};

// What statistics of one mean have together. Sums are those of weight * g and of weight * g *
// centred(x), all of them divided by a power of two, which is the weight of the sums.
struct OfMean {
    Partial together;
    double weight_of_sums;
};

struct Arguments {
    Rows rows;
    Operand x, residual, y, dy, dx, dresidual, dsum;
    Operand addends_of_x[2];  // if given, under features: x is a result, too, which is their sum

    // A signature, and then for each chunk of each group `width` words for each lane.
    std::uint32_t* mask = nullptr;
    std::uint64_t signature = 0;
    ActivationKind kind = ActivationKind::identity;
    double alpha = 0, beta = 0;

    PerStatistic weight, bias;
    PerStatistic mean;         // of each mean; training writes it
    PerStatistic rstd_or_var;  // the same: rstd; inference reads var, backward rstd
    PerStatistic running_mean, running_var;
    PerStatistic dweight, dbias;
    double eps = 0, momentum = 0;
    bool unbiased = true;
    bool frozen = false;  // mean and rstd are constants of backward
    bool centred = true;  // else the mean counts as 0, and the variance is the mean square

    // Under features, instead of weight and bias: those of the elements of inner, in the
    // accumulator type or in x's, 16-byte aligned where packs are whole. Null: all 1, all 0.
    const char* weights = nullptr;
    const char* biases = nullptr;
    bool wide_parameters = true;  // of the accumulator type
    RowParts row_parts;
    double weight_offset = 0;               // still to be added to the weights
    const double* weights_scale = nullptr;  // by which they are divided, or null
    bool cast_before_weight = false;

    // Of a reduction whose blocks meet in global memory: a place for each part's partial result;
    // and for a Reduce, one for each statistic's, and a counter, 0 at first, for each group of
    // them.
    Partial* partials = nullptr;
    Partial* totals = nullptr;
    std::uint32_t* counters = nullptr;

    // If given, what is added up later (addends.h): of several batch indices, where a statistic
    // leaves its moments, or its shares of dbias and dweight; of features, where parts leave
    // theirs.
    Partial* addends = nullptr;
    // Of statistics that share means, behind a Reduce: what the totals make together (means.h).
    OfMean* of_means = nullptr;

    // Which mean is that of a statistic.
    FASTNORM_FN std::int64_t mean_of(std::int64_t stat) const {
        return rows.stats_of_mean == 1 ? stat : stat / rows.stats_of_mean;
    }
    // The weight of a statistic.
    FASTNORM_FN double weight_of(std::int64_t stat) const {
        return weight.get(stat % rows.stat, weights_scale == nullptr ? 1.0 : *weights_scale);
    }
    // Of each, so many values.
    FASTNORM_FN double values_of_mean() const {
        return static_cast<double>(rows.elements * rows.stats_of_mean);
    }
};

// The tensors that a reduction reads, and those that the map after it reads: what is kept on chip.
struct Arrays {
    int of_reduction, of_map;
};
FASTNORM_FN Arrays arrays_of_forward(const Arguments& args) {
    if (args.addends_of_x[0]) return {2, 2};
    return {1, args.residual ? 2 : 1};
}

// Whether backward computes the activation's input anew, and so has to know the residual.
FASTNORM_FN bool recomputes_z(const Arguments& args) {
    return args.mask == nullptr && args.kind != ActivationKind::identity;
}
FASTNORM_FN bool needs_residual(const Arguments& args) {
    return recomputes_z(args) && static_cast<bool>(args.residual);
}
FASTNORM_FN Arrays arrays_of_backward(const Arguments& args) {
    const int arrays = needs_residual(args) ? 3 : 2;
    return {arrays, arrays};
}

// Who does what. On chip units of groups are shared out, each to a team of blocks that have some of
// its chunks each. In two passes blocks have tasks, the chunks of all groups, one group's after the
// other's (or the parts, for Reduce), wherever a group ends.
struct Share {
    std::int64_t groups_of_unit = 1;   // of the last one perhaps fewer
    std::int64_t chunks_of_block = 0;  // of each group
    int team = 1;
    int rounds = 1;          // units that each team has, one after the other
    bool in_global = false;  // where a team meets; else it is a cluster
    // If given, a team has so many groups, one unit after the other; else teams take units in turn.
    std::int64_t groups_of_team = 0;
    // If given, groups are dealt to so many sets of warps in turn, of a warp for each chunk; else
    // warps take chunks as they come.
    int sets = 0;

    std::int64_t tasks = 0, tasks_of_block = 0;
    std::int64_t soon_from = 0;  // the tasks from here on the next kernel will find in the cache
};

}  // namespace fastnorm::cuda
