// The kernels of one element type as functions that launch them: runtime values pick one here. Each
// table_<dtype>.cu makes its type's table.
#pragma once

#include "cuda/arguments.h"
#include "cuda/machine.h"

namespace fastnorm::cuda {

enum class Direction : int { forward, backward };

struct KernelTable {
    using Launcher = void (*)(const char* op, const Arguments&, const Share&, const Shape&, Stream);

    // Of rows, by direction and whether the activation is smooth; packs are whole.
    Launcher on_chip[2][2];

    // By whether packs are whole, where either may be, and whether the activation is smooth.
    struct OfTraversal {
        Launcher staged[2];
        Launcher reduce[2][2];
        Launcher map[2][2];
    };
    // By direction, of rows and of columns.
    OfTraversal of[2][2];

    // Shared memory of OnChip.
    std::int64_t bytes_of_stat, slot_bytes;
    // Of the others, for each statistic of a block.
    std::int64_t bytes_of_coefficients;
};

extern const KernelTable table_float32, table_float64, table_float16, table_bfloat16;

}  // namespace fastnorm::cuda
