// The kernels of one element type as functions that launch them: runtime values pick one here. Each
// table_<dtype>.cu makes its type's table.
#pragma once

#include "cuda/arguments.h"
#include "cuda/machine.h"

namespace fastnorm::cuda {

enum class Direction : int { forward, backward };

struct KernelTable {
    using OnChip = void (*)(const char* op, const Arguments&, const Share&, bool in_global,
                            const Shape&, Stream);
    using Reduce = void (*)(const char* op, const Arguments&, const Share&, std::int64_t soon_from,
                            const Shape&, Stream);
    using Map = void (*)(const char* op, const Arguments&, const Share&, const Shape&, Stream);

    // By direction, whether packs are whole, and whether the activation is smooth.
    OnChip on_chip[2][2];
    Reduce reduce[2][2][2];
    Map map[2][2][2];
    // By direction, and whether the activation is smooth.
    Map staged[2][2];

    // Shared memory of OnChip.
    std::int64_t bytes_of_stat, slot_bytes;
    // Of the others, for each statistic of a block.
    std::int64_t bytes_of_coefficients;
};

extern const KernelTable table_float32, table_float64, table_float16, table_bfloat16;

}  // namespace fastnorm::cuda
