// Which kernel a call takes, and how its tasks are shared out: the launch policy. It may look at
// the machine, since no result depends on it.
#pragma once

#include <cstdint>

#include "cuda/arguments.h"
#include "cuda/machine.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

enum class Tier {
    block,       // on chip, a unit of statistics in a block
    cluster,     // on chip, a unit in a cluster of blocks
    grid,        // on chip, a unit in several blocks that wait for each other
    two_passes,  // a reduction, and then a map
};

struct Plan {
    Tier tier = Tier::block;
    Share share;
    Shape shape;
};

// What a reduction and its map work on.
struct Work {
    Arrays arrays;
    bool whole = false;  // packs are whole: they are 16 aligned bytes each
    // Else: how many neighbouring statistics make rows that are whole packs; 0 if none do.
    std::int64_t granule = 0;
    std::int64_t bytes_of_run = 0;
};

// Of a reduction and its map.
Plan plan_reduction(const Rows& rows, const KernelTable& table, const Work& work,
                    const Limits& limits);

// Of a Reduce or a Map alone, whose tasks are parts or chunks.
Plan plan_pass(const Rows& rows, std::int64_t tasks_of_group, const KernelTable& table,
               const Limits& limits);

// Of an OnChip that adds up what features have for their parameters; two passes where it had no
// room or too few blocks.
Plan plan_with_parameters(const Rows& rows, const RowParts& parts, const KernelTable& table,
                          const Work& work, const Limits& limits);

// Of a ParameterSums, whose tasks are rows: blocks for every stripe and part. What the machine has
// is asked only for whether the next kernel will find so many bytes in the cache.
Plan plan_parameter_sums(const Rows& rows, const RowParts& parts, const KernelTable& table,
                         std::int64_t bytes_of_rows, const Limits& limits);

}  // namespace fastnorm::cuda
