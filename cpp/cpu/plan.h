// How a view is cut into tiles. Chunks, the ranges over which partial results are kept, follow from
// the view alone, so that a result's bits do not depend on the machine or on the number of threads;
// how tiles are grouped and who computes them does not change any bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"

namespace fastnorm {

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Plan {
    View view;
    // A unit is all of some statistics, whole groups of them: tiles side by side.
    std::int64_t unit_stats = 1, stat_units = 1;
    std::int64_t tile_stats = 1, unit_tiles = 1;
    std::int64_t chunk_outer = 1, outer_chunks = 1;
    std::int64_t chunk_inner = 1, inner_chunks = 1;
    // Of features: so many units add up their parameters' gradients, one after the other.
    std::int64_t units_of_sums = 1;

    std::int64_t sums() const { return divide_up(units(), units_of_sums); }
    std::int64_t units() const { return view.batch * stat_units; }
    std::int64_t chunks() const { return outer_chunks * inner_chunks; }

    // unit counts (batch, statistics); part counts a unit's tiles, of which the last unit may have
    // fewer: what is left of them is empty; chunk counts (outer, inner).
    Tile tile(std::int64_t unit, std::int64_t part, std::int64_t chunk) const;
    // All tiles of a unit as one.
    Tile unit(std::int64_t unit, std::int64_t chunk) const;
    // Units of one chunk each, in the order of memory.
    Tile unit_in_memory_order(std::int64_t index) const;
    double chunk_count(std::int64_t chunk) const;  // values per stat
};

// For reductions, and the maps that follow them; twice: how many tensors both read. Under rows the
// number of threads decides how many statistics share a tile; it never decides the chunks, nor what
// adds up gradients.
Plan reduction_plan(const View& view, std::int64_t element_bytes, int twice, int threads);

// For maps alone: tiles of a good size for one thread, contiguous wherever the tensor is.
Plan map_plan(const View& view, int threads);

// All that is decided before a call computes anything.
struct Schedule {
    Plan plan;             // of the reduction, or of the map that stands alone
    Plan map;              // of the map behind a reduction: the same units
    bool reduces = false;  // else a map stands alone
    int threads = 1;
    bool shared = false;       // all threads work on the same units; else each has units of its own
    bool stream = false;       // results are written past the cache
    bool interleaved = false;  // a unit's results are written while the next one is summed
    int reads = 1;             // how often the inputs come from memory
    // Elements of a unit, where its sums leave g for its map in a place outside the tensors, one
    // for each share of the units; else 0.
    std::int64_t kept = 0;

    // How many shares the units have.
    std::int64_t shares() const {
        return shared ? 1 : std::min<std::int64_t>(threads, plan.sums());
    }
};

// tensors: how many of the view's shape are read or written; twice: how many of them both the
// reduction and the map read; can_interleave: there are kernels for it.
Schedule schedule_map(const View& view, std::int64_t element_bytes, int tensors, int threads);
Schedule schedule_reduction(const View& view, std::int64_t element_bytes, int twice, int tensors,
                            int threads, bool can_interleave);

// Forward, the rows of a group that lie side by side in x can be summed as one. Whether they are
// follows from how x lies alone: it is part of what makes a result's bits. The schedule is one of a
// view in which each group is a statistic; its map is the given view's.
bool joins_groups(const View& view, const Operand& x, std::int64_t element_bytes);
Schedule schedule_joined_groups(const View& view, std::int64_t element_bytes, int tensors,
                                int threads);

// Sets Schedule::kept where a place outside the tensors is the best one for g, in the accumulator
// type, which dx itself could hold if its elements are as large.
void keep_in_scratch(Schedule& schedule, std::int64_t accumulator_bytes, bool dx_can_hold_it);

}  // namespace fastnorm
