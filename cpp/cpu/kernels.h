// What the driver asks of the kernels: single-threaded functions over a tile of a view, one table
// of them per instruction set. A kernel allocates nothing, throws nothing and knows no threads.
#pragma once

#include <cstdint>

#include "core/activations.h"
#include "core/problem.h"

namespace fastnorm {

// A part of a view: statistics [stat0, stat1) of one batch index, over outer [outer0, outer1) and
// inner [inner0, inner1). Under columns inner is always whole.
struct Tile {
    std::int64_t batch = 0;
    std::int64_t stat0 = 0, stat1 = 0;
    std::int64_t outer0 = 0, outer1 = 0;
    std::int64_t inner0 = 0, inner1 = 0;
};

// The coefficients of the maps, one array each; under rows one element per (batch, stat), under
// columns one per (batch, row of View::coefficient_rows(), stat, inner). Their type is the view's
// accumulator type.
enum class Coefficient : int {
    prescale,
    mean_hi,
    mean_lo,
    scale,
    bias,
    grad_a,
    grad_b,
    grad_c,
    grad_scale,
};
inline constexpr int forward_coefficients = 5;
inline constexpr int backward_coefficients = 9;

// Everything that the kernels of one call read and write.
struct KernelArgs : Tensors {
    KernelArgs() = default;
    explicit KernelArgs(const Tensors& tensors) : Tensors(tensors) {}

    const void* coefficients = nullptr;
    std::int64_t coefficients_stride = 0;  // elements from one coefficient's array to the next's
    bool stream = false;                   // write past the cache
    bool from_memory = false;              // what is read is hardly in the cache
    bool frozen = false;                   // mean and rstd are constants
    Operand addends[2];                    // whose sum x is to be
    // If given, where a smooth activation's g is left as it is computed, in the accumulator type.
    Operand g;
    // Of features: a weight and, or null, a bias for each element of inner, of the accumulator
    // type; and where the sums over rows of g and of g * (x - mean) * rstd are added up, or null.
    const void* weights = nullptr;  // over weights_scale, a power of two, which the rows' have
    const void* biases = nullptr;
    double weights_scale = 1;
    double* sums_of_g = nullptr;
    double* sums_of_gx = nullptr;
    // One such array for so many units, which are tiles of the same rows: sums_at() says which.
    std::int64_t unit_rows = 1, units_of_batch = 1, units_of_sums = 1;

    std::int64_t sums_at(const Tile& tile) const {
        const std::int64_t unit = tile.batch * units_of_batch + tile.stat0 / unit_rows;
        return unit / units_of_sums * view.inner;
    }
};

// Reductions write a tile's two partial results of each statistic to first[] and second[], from
// the tile's first statistic on: mean and M2, or the sums of g and of g * centred(x).
using Reduction = void (*)(const KernelArgs& args, const Tile& tile, double* first, double* second);

// Maps write the tensors of args.
using Map = void (*)(const KernelArgs& args, const Tile& tile);

// The map of one tile and the reduction of another one of the same shape, at the same time.
using MapAndReduction = void (*)(const KernelArgs& args, const Tile& mapped, const Tile& reduced,
                                 double* first, double* second);

// What a block of stats has of each.
inline constexpr std::int64_t stats_block = 256;
struct StatBlock {
    using Array = double[stats_block];
    Array mean, rstd, weight, bias;
    // Of g, and of g * centred(x), of all that has the same mean: relative to weight_of_sums.
    Array sum_g, sum_centred, weight_of_sums;
};

// Computes coefficients of the first statistics of a block, in the order of Coefficient, as arrays
// of stats_block of the accumulator type. reduced: how many values a statistic has.
using CoefficientKernel = void (*)(const StatBlock& block, std::int64_t count, double reduced,
                                   void* coefficients);

inline constexpr int traversals = 3;
inline constexpr int accumulators = 2;  // float, double
inline constexpr int dtypes = 4;
inline constexpr int activations = kActivationCount;

// The kernels of one traversal.
struct TraversalKernels {
    Reduction moments[dtypes];
    Map normalize[dtypes][activations];
    Reduction gradient_sums[dtypes][activations];
    Map gradient[dtypes][activations];
    // Null where there is none: under columns, and for activations that are not much used.
    MapAndReduction normalize_and_moments[dtypes][activations];
    MapAndReduction gradient_and_sums[dtypes][activations];
    Map gradient_of_kept[dtypes];  // or null: dx from dy of the accumulator type, without
                                   // activation
    Map add[dtypes];               // of features: the addends' sum to x
};

// Numbers of one dtype, side by side, to its accumulator type.
using Widen = void (*)(const void* from, std::int64_t count, void* to);

// All of one instruction set.
struct KernelTable {
    const char* name;
    void (*fence)();  // orders what maps have written past the cache before what follows
    const TraversalKernels* of[traversals];
    Widen widen[dtypes];
    void (*rstd_of_variances)(double* variances, std::int64_t count, double eps);  // in place
    CoefficientKernel coefficients_of_z[accumulators];
    CoefficientKernel coefficients_of_z_in_backward[accumulators];
    CoefficientKernel coefficients_of_dx[accumulators];
};

// A reduction keeps its accumulators on the stack: a tile of it holds no more than this. Under
// columns they are 52 bytes a lane in float and 64 in double, so a thread needs 100 KB of stack.
// Rows of more lanes go in parts, out of the order of memory; of 2048 the sums would leave a Zen
// 5's L1.
inline constexpr std::int64_t rows_tile_stats = 32;
inline constexpr std::int64_t columns_tile_lanes = 1280;

// Shorter rows are reduced and mapped in less time one after the other.
inline constexpr std::int64_t least_interleaved_bytes = 1024;

// Partial results are summed in the accumulator type over blocks of this many values per
// statistic, and merged in double, in order. The numbers bound the rounding error; they are part
// of what makes a result's bits, and so the same on every machine.
inline constexpr std::int64_t rows_block = 4096;
inline constexpr std::int64_t columns_block = 64;

// How many rows, or rows side by side, the sums of columns take at a time.
inline constexpr int columns_rows_at_a_time = 4;

}  // namespace fastnorm
