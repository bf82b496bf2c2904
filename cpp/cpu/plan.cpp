#include "cpu/plan.h"

#include <algorithm>
#include <numeric>

#include "cpu/machine.h"

namespace fastnorm {

namespace {

// Values per statistic of a chunk under rows: large against a block, small against a cache.
constexpr std::int64_t rows_chunk = 4 * rows_block;
// Elements of a chunk under columns, and its number of rows where those are long: a chunk costs 16
// bytes of partial results a lane, and where it ends a walk through memory does. More elements
// where there are still many chunks.
constexpr std::int64_t least_chunk_elements = 65536;
constexpr std::int64_t most_chunk_elements = 262144;
constexpr std::int64_t many_chunks = 64;
constexpr std::int64_t columns_chunk_rows = 4 * columns_block;
// But they are cut in fours, many of them in sixteens, for as many threads, down to about so many
// rows: each batch index for itself, so that its results do not depend on those beside it.
constexpr std::int64_t least_chunk_rows = 32;
// A tile's statistics come in this many: whole bytes of a mask, whole packs.
constexpr std::int64_t columns_stats = 32;
// Elements of a tile of a map that stands alone. Where a tile ends, stores past the cache wait for
// each other.
constexpr std::int64_t map_tile = 262144;
constexpr std::int64_t least_map_tile = 32768;
// Contiguous bytes that a group of neighbouring small rows should reach.
constexpr std::int64_t group_bytes = 6144;
constexpr std::int64_t line_bytes = 64;
// Below so many elements a thread costs more to wake than it saves: half as many where threads have
// statistics of their own, and do not wait for each other before the end.
constexpr std::int64_t elements_for_threads = 32768;
// Results of a call that touches more bytes will hardly be in a cache near to who needs them, and
// stores that first read each line cost as much as the rest of the call.
constexpr std::int64_t most_cached_bytes = 1 << 22;
// What a call may take of memory for g of the units at hand. Even from memory it is read in less
// time than a slope is computed in.
constexpr std::int64_t most_kept_bytes = 1 << 26;

// Bytes from which on it takes less time to write a group's results while the next one's rows are
// summed than to sum these as one. In 16 bits, which are computed with rather than waited for,
// none.
constexpr std::int64_t least_interleaved_row_of_group = 16384;

// Under features, bytes of a tile, which its map should find in the L2 cache while it has the next
// one fetched, and how many rows backward takes at a time at least: what they add up in registers'
// precision costs a fold.
constexpr std::int64_t features_tile_bytes = 131072;
constexpr std::int64_t least_backward_rows = 4;
// How many sums of the parameters' gradients there are at most, and of about how many rows at
// least. To clear and merge one costs what two or three rows do: of fewer rows only as long as
// there are few of them, so that there is one for each thread.
constexpr std::int64_t most_sums = 64;
constexpr std::int64_t rows_of_sums = 64;
constexpr std::int64_t few_sums = 8;
constexpr std::int64_t rows_of_few_sums = 16;

void cut_inner(Plan& plan, std::int64_t most) {
    const std::int64_t inner = plan.view.inner;
    const std::int64_t pieces = divide_up(inner, most);
    // Starts at multiples of 64 elements: whole bytes of a mask, whole packs.
    plan.chunk_inner = pieces == 1 ? inner : divide_up(divide_up(inner, pieces), 64) * 64;
    plan.inner_chunks = divide_up(inner, plan.chunk_inner);
}

void cut_outer(Plan& plan, std::int64_t most) {
    plan.chunk_outer = std::clamp<std::int64_t>(most, 1, plan.view.outer);
    plan.outer_chunks = divide_up(plan.view.outer, plan.chunk_outer);
}

// Units of at most so many statistics, but of whole groups, in tiles of at most so many.
void cut_stat(Plan& plan, std::int64_t most_of_unit, std::int64_t most_of_tile) {
    const View& view = plan.view;
    const std::int64_t groups = std::max<std::int64_t>(most_of_unit / view.group, 1);
    plan.unit_stats = std::min(groups * view.group, view.stat);
    plan.stat_units = divide_up(view.stat, plan.unit_stats);
    plan.tile_stats = std::clamp<std::int64_t>(most_of_tile, 1, plan.unit_stats);
    plan.unit_tiles = divide_up(plan.unit_stats, plan.tile_stats);
}

void cut_stat(Plan& plan, std::int64_t most) { cut_stat(plan, most, most); }

// Enough neighbouring rows for a good run of memory, and a whole number of cache lines if few more
// make one.
std::int64_t rows_group(std::int64_t row_bytes) {
    const std::int64_t whole_lines = line_bytes / std::gcd(row_bytes, line_bytes);
    const std::int64_t group = divide_up(group_bytes, row_bytes);
    const std::int64_t even = divide_up(group, whole_lines) * whole_lines;
    return std::min(even * row_bytes <= 2 * group_bytes ? even : group, rows_tile_stats);
}

// Fewer statistics a tile where there would not be a tile for every thread.
void share_stats(Plan& plan, int threads) {
    while (plan.units() * plan.chunks() < threads && plan.unit_stats > plan.view.group) {
        cut_stat(plan, divide_up(plan.unit_stats, 2), rows_tile_stats);
    }
}

// What does not depend on the plan.
Schedule schedule_of(const View& view, std::int64_t element_bytes, int tensors, int threads,
                     std::int64_t least_elements = elements_for_threads) {
    const std::int64_t bytes = tensors * view.elements() * element_bytes;
    Schedule schedule;
    schedule.threads = view.elements() < least_elements ? 1 : threads;
    schedule.stream = bytes > std::min(caches().l3, most_cached_bytes);
    return schedule;
}

}  // namespace

Tile Plan::unit(std::int64_t unit, std::int64_t chunk) const {
    Tile tile;
    tile.batch = unit / stat_units;
    tile.stat0 = unit % stat_units * unit_stats;
    tile.stat1 = std::min(tile.stat0 + unit_stats, view.stat);
    tile.outer0 = chunk / inner_chunks * chunk_outer;
    tile.outer1 = std::min(tile.outer0 + chunk_outer, view.outer);
    tile.inner0 = chunk % inner_chunks * chunk_inner;
    tile.inner1 = std::min(tile.inner0 + chunk_inner, view.inner);
    return tile;
}

Tile Plan::tile(std::int64_t unit, std::int64_t part, std::int64_t chunk) const {
    Tile tile = this->unit(unit, chunk);
    tile.stat0 = std::min(tile.stat0 + part * tile_stats, tile.stat1);
    tile.stat1 = std::min(tile.stat0 + tile_stats, tile.stat1);
    return tile;
}

Tile Plan::unit_in_memory_order(std::int64_t index) const {
    const std::int64_t inner = index % inner_chunks;
    const std::int64_t stats = index / inner_chunks % stat_units;
    const std::int64_t outer = index / (inner_chunks * stat_units) % outer_chunks;
    const std::int64_t batch = index / (inner_chunks * stat_units * outer_chunks);
    return unit(batch * stat_units + stats, outer * inner_chunks + inner);
}

double Plan::chunk_count(std::int64_t chunk) const {
    const Tile t = unit(0, chunk);
    return static_cast<double>((t.outer1 - t.outer0) * (t.inner1 - t.inner0));
}

Plan reduction_plan(const View& view, std::int64_t element_bytes, int twice, int threads) {
    Plan plan;
    plan.view = view;
    plan.chunk_inner = view.inner;
    if (view.traversal == Traversal::features) {
        // The same with a residual and without: backward's tiles are part of what makes its bits.
        const bool backward = twice > 1;
        const std::int64_t row_bytes = view.inner * element_bytes * (backward ? 2 : 1);
        cut_stat(plan, std::clamp(features_tile_bytes / row_bytes,
                                  backward ? least_backward_rows : 1, rows_tile_stats));
        cut_inner(plan, rows_chunk);
        cut_outer(plan, 1);
        if (!backward) {
            share_stats(plan, threads);
        } else {
            const std::int64_t few = std::min(view.stats() / rows_of_few_sums, few_sums);
            const std::int64_t sums =
                std::clamp<std::int64_t>(std::max(view.stats() / rows_of_sums, few), 1, most_sums);
            plan.units_of_sums = divide_up(plan.units(), sums);
        }
    } else if (view.traversal == Traversal::rows) {
        cut_stat(plan, rows_group(view.inner * element_bytes), rows_tile_stats);
        cut_inner(plan, rows_chunk);
        cut_outer(plan, rows_chunk / plan.chunk_inner);
        share_stats(plan, threads);
    } else {
        const std::int64_t elements = view.stat * view.outer * view.inner;
        const std::int64_t rows =
            divide_up(std::clamp(elements / many_chunks, least_chunk_elements, most_chunk_elements),
                      view.stat * view.inner);
        std::int64_t chunks = divide_up(view.outer, std::max(rows, columns_chunk_rows));
        if (elements >= elements_for_threads) {
            const std::int64_t shares = chunks > 16 ? 16 : 4;
            chunks = std::min(divide_up(chunks, shares) * shares,
                              divide_up(view.outer, least_chunk_rows));
        }
        // Tiles of one size, as threads may share them.
        const std::int64_t most = columns_tile_lanes / view.inner / columns_stats * columns_stats;
        const std::int64_t share = divide_up(view.stat, divide_up(view.stat, most));
        const std::int64_t stats = divide_up(share, columns_stats) * columns_stats;
        cut_stat(plan, view.group > 1 ? view.stat : stats, stats);
        // Whole groups of rows where there are many: what is left of them is taken row by row.
        const std::int64_t each = divide_up(view.outer, chunks);
        const std::int64_t group = columns_rows_at_a_time * view.rows_together();
        cut_outer(plan, each < 16 * group ? each : divide_up(each, group) * group);
    }
    return plan;
}

Plan map_plan(const View& view, int threads) {
    const std::int64_t tile = std::clamp(view.elements() / (4 * threads), least_map_tile, map_tile);
    // As many to each thread, and of one size: small tensors have two or four.
    const auto evenly = [&](std::int64_t extent, std::int64_t most) {
        const std::int64_t pieces = divide_up(extent, std::max<std::int64_t>(most, 1));
        return pieces == 1 ? extent : divide_up(extent, divide_up(pieces, threads) * threads);
    };
    Plan plan;
    plan.view = view;
    plan.chunk_inner = view.inner;
    if (view.traversal != Traversal::columns) {
        cut_inner(plan, tile);
        cut_stat(plan, evenly(view.stat, tile / plan.chunk_inner));
    } else {
        const std::int64_t most = tile / view.inner / columns_stats * columns_stats;
        cut_stat(plan, view.stat < 2 * most ? view.stat : most);
    }
    cut_outer(plan, evenly(view.outer, tile / (plan.unit_stats * plan.chunk_inner)));
    return plan;
}

Schedule schedule_map(const View& view, std::int64_t element_bytes, int tensors, int threads) {
    Schedule schedule = schedule_of(view, element_bytes, tensors, threads);
    schedule.plan = map_plan(view, schedule.threads);
    return schedule;
}

Schedule schedule_reduction(const View& view, std::int64_t element_bytes, int twice, int tensors,
                            int threads, bool can_interleave) {
    const bool rows = view.traversal != Traversal::columns;
    Schedule schedule = schedule_of(view, element_bytes, tensors, threads,
                                    rows ? elements_for_threads / 2 : elements_for_threads);
    schedule.reduces = true;
    schedule.plan = reduction_plan(view, element_bytes, twice, schedule.threads);
    Plan& plan = schedule.plan;
    const bool balanced =
        plan.sums() >= 4 * schedule.threads || plan.sums() % schedule.threads == 0;
    // Units side by side in a row meet in cache lines: threads of their own would wait for each
    // other.
    const bool meet = !rows && plan.stat_units * plan.unit_tiles > 1;
    const auto unit_bytes = [&] {
        return plan.unit_stats * view.outer * view.inner * element_bytes * twice;
    };
    // Under columns a unit that is too large for one thread's cache may fit into that of all. Under
    // rows threads lose more by waiting for each other than by reading twice, but for where there
    // would be too few units.
    const bool too_large = !rows && unit_bytes() > caches().l2;
    schedule.shared = schedule.threads > 1 && (!balanced || meet || too_large);
    // Threads share rows by their chunks: where there is but one, some of the threads have all.
    if (view.traversal == Traversal::features && plan.chunks() == 1) schedule.shared = false;
    if (schedule.shared && view.elements() < elements_for_threads) {
        return schedule_reduction(view, element_bytes, twice, tensors, 1, can_interleave);
    }
    schedule.interleaved = can_interleave && !schedule.shared && schedule.stream &&
                           plan.units() > schedule.threads &&
                           view.inner * element_bytes >= least_interleaved_bytes;
    // Under columns threads that share take whole rows.
    if (schedule.shared && !rows) cut_stat(plan, view.stat, plan.tile_stats);
    const std::int64_t cache = caches().l2 * (schedule.shared ? schedule.threads : 1);
    // Interleaved, two units pass through the cache between a unit's sums and its results.
    const std::int64_t passing = schedule.interleaved ? 2 : 1;
    schedule.reads = unit_bytes() * passing > cache ? 2 : 1;
    schedule.map = plan;
    return schedule;
}

bool joins_groups(const View& view, const Operand& x, std::int64_t element_bytes) {
    const std::int64_t row_bytes = view.inner * element_bytes;
    const bool side_by_side = view.traversal == Traversal::rows && view.group > 1 &&
                              view.outer == 1 && x.stat_stride == row_bytes;
    return side_by_side && (element_bytes < 4 || row_bytes < least_interleaved_row_of_group);
}

Schedule schedule_joined_groups(const View& view, std::int64_t element_bytes, int tensors,
                                int threads) {
    View joined = view;
    joined.inner *= view.group;
    joined.stat /= view.group;
    joined.group = 1;
    Schedule schedule = schedule_reduction(joined, element_bytes, 1, tensors, threads, false);
    Plan& map = schedule.map;
    map.view = view;
    map.unit_stats *= view.group;
    // A thread maps a unit of its own in the order of memory; pieces are for who share one.
    map.tile_stats = schedule.shared ? rows_group(view.inner * element_bytes) : map.unit_stats;
    map.unit_tiles = divide_up(map.unit_stats, map.tile_stats);
    cut_inner(map, schedule.shared ? rows_chunk : view.inner);
    return schedule;
}

void keep_in_scratch(Schedule& schedule, std::int64_t accumulator_bytes, bool dx_can_hold_it) {
    const Plan& plan = schedule.plan;
    const View& view = plan.view;
    const bool columns = view.traversal == Traversal::columns;
    // Of parts of rows g would not lie side by side as the tensors do.
    if (columns && plan.unit_stats < view.stat) return;
    const std::int64_t elements = plan.unit_stats * view.outer * view.inner;
    const std::int64_t bytes = elements * accumulator_bytes;
    // From a place that stays in the cache dx goes past it. Where nothing stays there, dx's own
    // place takes less time.
    if (columns && dx_can_hold_it && bytes > caches().l3 / 4 * 3) return;
    if (bytes * schedule.shares() > most_kept_bytes) return;
    schedule.kept = elements;
}

}  // namespace fastnorm
