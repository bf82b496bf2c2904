// The kernels of one element type as functions that launch them: runtime values pick one here. Each
// table_<dtype>.cu makes its type's table.
#pragma once

#include "cuda/arguments.h"
#include "cuda/machine.h"

namespace fastnorm::cuda {

enum class Direction : int { forward, backward };

struct KernelTable {
    using Launcher = void (*)(const char* op, const Arguments&, const Share&, const Shape&, Stream);

    // By whether packs are whole, where either may be, and whether the activation is smooth.
    struct OfTraversal {
        Launcher on_chip[2];  // in slots: whole packs
        Launcher reduce[2][2];
        Launcher map[2][2];
    };
    // By direction, of rows, of columns and of features.
    OfTraversal of[2][3];
    // By direction and whether the activation is smooth: rows that are no whole packs, in images.
    Launcher staged[2][2];
    // What features add up for their parameters: by whether packs are whole, and the activation is
    // smooth.
    Launcher parameter_sums[2][2];
    // The same beside a map on chip, in slots, without an activation; null of double, whose sums
    // have no room in registers.
    Launcher on_chip_with_parameters;

    // Shared memory, of a statistic.
    std::int64_t bytes_of_stat;
};

extern const KernelTable table_float32, table_float64, table_float16, table_bfloat16;

}  // namespace fastnorm::cuda
