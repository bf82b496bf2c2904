// Which kernel a call takes, and how its tasks are shared out: the launch policy. It may look at
// the machine, since no result depends on it.
#pragma once

#include <cstdint>

#include "cuda/arguments.h"
#include "cuda/machine.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

enum class Tier {
    block,       // on chip, a statistic or several in a block
    cluster,     // on chip, a statistic in a cluster of blocks
    group,       // on chip, a statistic in a group of blocks that wait for each other
    two_passes,  // a reduction, and then a map
};

struct Plan {
    Tier tier = Tier::block;
    Share share;
    Shape shape;
};

// Of a reduction and its map. arrays: how many tensors are read by both.
Plan plan_reduction(const Rows& rows, const KernelTable& table, int arrays, bool whole,
                    const Limits& limits);

// Of a Reduce or a Map alone.
Plan plan_pass(const Rows& rows, const KernelTable& table, const Limits& limits);

}  // namespace fastnorm::cuda
