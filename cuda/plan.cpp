#include "cuda/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace fastnorm::cuda {

namespace {

// The numbers of the policy. On a machine: none of them has been measured on one yet.
constexpr std::int64_t most_tasks_of_pass = 32;  // of a block
constexpr std::int64_t enough_tasks = 16;        // of a block that has several statistics
constexpr std::int64_t waves_of_pass = 8;        // blocks for each place on the machine, if there
                                                 // are tasks enough
constexpr double alone = 1.25;                   // a block that has a multiprocessor to itself:
                                                 // nothing loads while it reduces
constexpr double of_doubling_a_team = 1.02;      // what it costs to meet
// What a multiprocessor could move while
constexpr double bytes_of_a_grid = 96 << 10;   // a grid of blocks meets,
constexpr double bytes_of_a_merge = 12 << 10;  // a warp makes a statistic of its parts,
constexpr double bytes_of_a_merge_of_grid = 2 * bytes_of_a_merge;  // from the L2 cache,
constexpr double bytes_of_a_launch = 64 << 10;                     // one kernel more begins.

std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

int threads_for(std::int64_t tasks, int most_warps) {
    // As many rounds as the most warps need, and no more warps than those rounds need.
    const std::int64_t rounds = divide_up(tasks, most_warps);
    return static_cast<int>(divide_up(tasks, rounds)) * warp_size;
}

// As many have a statistic each, or a few of few parts.
std::int64_t warps_to_merge(const Rows& rows, std::int64_t groups) {
    return divide_up(groups * rows.across * rows.width * rows.lanes_of_merge, warp_size);
}

// What is kept in shared memory: slots, or images of rows that are no whole packs.
struct Costs {
    const Rows& rows;
    const KernelTable& table;
    const Work& work;

    // Runs of neighbouring groups that make this much together use all of what memory gives.
    static constexpr std::int64_t contiguous = 64;

    // The fewest groups that a unit may have, where that fits, and what its chunks are shared out
    // by: whole parts, and whole runs.
    std::int64_t least_groups(const Limits& limits) const {
        const std::int64_t least = std::lcm(work.whole ? 1 : work.granule, groups_of_mean());
        if (rows.width > 1) return least;
        const std::int64_t enough =
            std::min(round_up(divide_up(contiguous, work.bytes_of_run), least),
                     round_up(rows.groups, least));
        return bytes(enough, rows.chunks) <= limits.shared_of_block ? std::max(enough, least)
                                                                    : least;
    }
    // Groups that have all statistics of each of their means: if not by themselves, then with the
    // others of a batch index.
    std::int64_t groups_of_mean() const {
        const std::int64_t stats_of_group = std::int64_t{rows.across} * rows.width;
        const std::int64_t groups = std::lcm(stats_of_group, rows.stats_of_mean) / stats_of_group;
        return rows.groups_of_batch % groups == 0 ? groups : rows.groups_of_batch;
    }
    std::int64_t least_chunks() const {
        return work.whole ? rows.chunks_of_part : std::lcm(rows.chunks_of_part, rows.chunks_of_run);
    }
    std::int64_t chunks_in_team(std::int64_t team) const {
        return team == 1 ? rows.chunks : round_up(divide_up(rows.chunks, team), least_chunks());
    }
    // Of a group: a chunk in slots, a run in images, and a chunk in the long run.
    std::int64_t bytes_of_slots() const {
        return std::int64_t{work.arrays.of_reduction} * rows.slot_bytes();
    }
    std::int64_t bytes_of_images() const { return work.arrays.of_map * work.bytes_of_run; }
    double bytes_of_chunk() const {
        if (work.whole) return static_cast<double>(bytes_of_slots());
        return static_cast<double>(rows.runs_of_chunk * bytes_of_images()) /
               static_cast<double>(rows.chunks_of_run);
    }
    // How often the warps of a block merge parts, a few statistics at a time. It counts where means
    // are shared: else a unit has few statistics, and it is the same for all tiers.
    double merges(std::int64_t groups, std::int64_t warps) const {
        if (rows.stats_of_mean == 1) return 0;
        return static_cast<double>(divide_up(warps_to_merge(rows, groups), warps));
    }
    // In chunks, as all times of a multiprocessor.
    double time_of_bytes(double bytes) const { return bytes / bytes_of_chunk(); }
    // Of shared means: counters are cleared, then reduce, means, and map.
    double time_of_two_passes(const Limits& limits) const {
        const double chunks = static_cast<double>(rows.groups * rows.chunks);
        return 2 * chunks / limits.multiprocessors + time_of_bytes(3 * bytes_of_a_launch);
    }
    // Of a block.
    std::int64_t bytes(std::int64_t groups, std::int64_t chunks) const {
        const std::int64_t stats = groups * rows.across * rows.width;
        const std::int64_t of_stat = chunks + (rows.stats_of_mean > 1 ? 1 : 0);
        const std::int64_t partials = stats * of_stat * std::int64_t{sizeof(Partial)};
        const std::int64_t all = round_up(stats * table.bytes_of_stat, 16) + partials;
        if (work.whole) return all + groups * chunks * bytes_of_slots();
        const std::int64_t runs =
            std::min(rows.runs, divide_up(chunks * rows.runs_of_chunk, rows.chunks_of_run));
        return all + groups * runs * bytes_of_images();
    }
};

// Blocks that a multiprocessor has at a time, each with a warp at least.
std::int64_t places_of(const Rows& rows, std::int64_t shared_bytes, const Limits& limits) {
    return std::clamp<std::int64_t>(
        limits.shared_of_multiprocessor / (shared_bytes + limits.shared_reserved), 1,
        warps_on_chip(rows.width));
}

// The blocks on a multiprocessor share its warps.
int threads_on_chip(const Rows& rows, const Plan& plan, const Limits& limits) {
    const std::int64_t blocks = divide_up(plan.shape.blocks, limits.multiprocessors);
    const std::int64_t places = std::min(blocks, places_of(rows, plan.shape.shared_bytes, limits));
    const int warps = warps_on_chip(rows.width);
    const auto of_block = static_cast<int>((warps + places / 2) / places);  // to the nearest
    const std::int64_t tasks = plan.share.groups_of_unit * plan.share.chunks_of_block;
    return threads_for(std::max(tasks, warps_to_merge(rows, plan.share.groups_of_unit)), of_block);
}

// How long clusters of 2^size blocks take, in chunks of the busiest multiprocessor: blocks come in
// waves that fill all places, and what is left over at the end spreads out.
double time_of(const Costs& costs, int size, const Limits& limits) {
    const std::int64_t team = std::int64_t{1} << size;
    const std::int64_t multiprocessors = limits.in_clusters[size];
    const std::int64_t groups = costs.least_groups(limits), chunks = costs.chunks_in_team(team);
    const std::int64_t places = places_of(costs.rows, costs.bytes(groups, chunks), limits);
    const std::int64_t blocks = divide_up(costs.rows.groups, groups) * team;
    const std::int64_t waves = blocks / (multiprocessors * places);
    const std::int64_t rest = blocks % (multiprocessors * places);
    auto time =
        static_cast<double>(groups * chunks * (waves * places + divide_up(rest, multiprocessors)));
    const std::int64_t together = std::min(places, divide_up(blocks, multiprocessors));
    const std::int64_t warps = divide_up(warps_on_chip(costs.rows.width), together);
    const double merges = static_cast<double>(waves + (rest > 0 ? 1 : 0)) *
                          costs.merges(groups, warps) * costs.time_of_bytes(bytes_of_a_merge);
    if (places == 1) time *= alone;
    // Where there are several, others load while one merges.
    time = together == 1 ? time + merges : std::max(time, merges);
    for (int i = 0; i < size; ++i) time *= of_doubling_a_team;
    return time;
}

// Blocks that wait for each other, a multiprocessor each: as many teams as there is room for.
struct Grid {
    std::int64_t teams = 0;  // 0: there is no room for one
    int team = 0;
    double time = std::numeric_limits<double>::infinity();

    Grid(const Costs& costs, std::int64_t groups, const Limits& limits) {
        std::int64_t blocks = 1;
        while (costs.bytes(groups, costs.chunks_in_team(blocks)) > limits.shared_of_block) {
            if (++blocks > limits.multiprocessors) return;
        }
        const std::int64_t units = divide_up(costs.rows.groups, groups);
        teams = std::min(limits.multiprocessors / blocks, units);
        team = static_cast<int>(limits.multiprocessors / teams);
        const std::int64_t rounds = divide_up(units, teams);
        const std::int64_t chunks = groups * costs.chunks_in_team(team) * rounds;
        const double merges = costs.merges(groups, warps_on_chip(costs.rows.width));
        time = alone * static_cast<double>(chunks) +
               costs.time_of_bytes(bytes_of_a_grid +
                                   static_cast<double>(rounds) * merges * bytes_of_a_merge_of_grid);
    }
};

Plan on_chip(const Costs& costs, const Limits& limits) {
    const Rows& rows = costs.rows;
    const std::int64_t least = costs.least_groups(limits);
    const auto fits = [&](std::int64_t groups, std::int64_t chunks) {
        return costs.bytes(groups, chunks) <= limits.shared_of_block;
    };
    const Grid grid(costs, least, limits);
    double best = grid.time;
    int team = 0;
    for (int size = 0; size < Limits::cluster_sizes; ++size) {
        const int candidate = 1 << size;
        if (limits.in_clusters[size] == 0 || candidate > rows.chunks) continue;
        if (!fits(least, costs.chunks_in_team(candidate))) continue;
        const double time = time_of(costs, size, limits);
        if (time >= best) continue;
        best = time;
        team = candidate;
    }
    Plan plan;
    plan.tier = Tier::two_passes;
    if (rows.stats_of_mean > 1 && costs.time_of_two_passes(limits) < best) return plan;
    Share& share = plan.share;
    share.groups_of_unit = least;
    std::int64_t units = divide_up(rows.groups, least);
    if (team == 1) {
        plan.tier = Tier::block;
        // Several units' groups to a block, as long as every multiprocessor has blocks.
        std::int64_t more =
            std::min(units / (4 * limits.multiprocessors), enough_tasks / (least * rows.chunks));
        while (more > 1 && !fits(more * least, rows.chunks)) more /= 2;
        if (more > 1) share.groups_of_unit = more * least;
        units = divide_up(rows.groups, share.groups_of_unit);
        share.chunks_of_block = rows.chunks;
        plan.shape.blocks = units;
    } else if (team > 1) {
        plan.tier = Tier::cluster;
        share.team = plan.shape.cluster = team;
        share.chunks_of_block = costs.chunks_in_team(team);
        plan.shape.blocks = units * team;
    } else {
        if (grid.teams == 0) return plan;
        plan.tier = Tier::grid;
        share.in_global = true;
        share.team = grid.team;
        share.chunks_of_block = costs.chunks_in_team(grid.team);
        share.rounds = static_cast<int>(divide_up(units, grid.teams));
        plan.shape.blocks = grid.teams * grid.team;
        plan.shape.resident = true;
    }
    plan.shape.shared_bytes = costs.bytes(share.groups_of_unit, share.chunks_of_block);
    plan.shape.threads = threads_on_chip(rows, plan, limits);
    return plan;
}

}  // namespace

Plan plan_reduction(const Rows& rows, const KernelTable& table, const Work& work,
                    const Limits& limits) {
    if (work.whole || (work.granule > 0 && rows.chunks_of_run > 0)) {
        const Plan plan = on_chip({rows, table, work}, limits);
        if (plan.tier != Tier::two_passes) return plan;
    }
    return plan_pass(rows, rows.parts, table, limits);
}

Plan plan_pass(const Rows& rows, std::int64_t tasks_of_group, const KernelTable& table,
               const Limits& limits) {
    Plan plan;
    plan.tier = Tier::two_passes;
    Share& share = plan.share;
    share.tasks = rows.groups * tasks_of_group;
    const std::int64_t places = std::int64_t{limits.multiprocessors} * waves_of_pass;
    share.tasks_of_block = std::clamp<std::int64_t>(share.tasks / places, 1, most_tasks_of_pass);
    plan.shape.threads = threads_for(share.tasks_of_block, most_warps_of_pass);
    plan.shape.blocks = divide_up(share.tasks, share.tasks_of_block);
    // Groups of a block at most, each with a flag.
    const std::int64_t groups = divide_up(share.tasks_of_block - 1, tasks_of_group) + 1;
    plan.shape.shared_bytes =
        round_up(groups * rows.across * rows.width * table.bytes_of_stat, 16) + groups;
    return plan;
}

Plan plan_with_parameters(const Rows& rows, const RowParts& parts, const KernelTable& table,
                          const Work& work, const Limits& limits) {
    Plan plan;
    plan.tier = Tier::two_passes;
    // A team of as many blocks as the chunks of a row need, each of which has all of a lane's sums.
    int size = 0;
    while (divide_up(rows.chunks, std::int64_t{1} << size) > warps_of_features) ++size;
    if (size >= Limits::cluster_sizes || limits.in_clusters[size] == 0) return plan;
    Share& share = plan.share;
    share.team = plan.shape.cluster = 1 << size;
    plan.shape.blocks = parts.count * share.team;
    if (2 * plan.shape.blocks < limits.multiprocessors) return plan;
    const Costs costs{rows, table, work};
    share.sets = parts.sets;
    share.chunks_of_block = costs.chunks_in_team(share.team);
    share.groups_of_team = parts.rows;
    // As many rows as there is room for, twice, and no more than a lap; all sets have as many.
    const auto bytes = [&](std::int64_t groups) {
        return costs.bytes(groups, share.chunks_of_block) +
               groups * share.chunks_of_block * costs.bytes_of_slots();
    };
    share.groups_of_unit = parts.sets;
    if (bytes(share.groups_of_unit) > limits.shared_of_block) return plan;
    while (2 * share.groups_of_unit <= std::min(parts.rows, parts.rows_of_lap()) &&
           bytes(2 * share.groups_of_unit) <= limits.shared_of_block) {
        share.groups_of_unit *= 2;
    }
    plan.tier = size == 0 ? Tier::block : Tier::cluster;
    share.rounds = static_cast<int>(divide_up(parts.rows, share.groups_of_unit));
    plan.shape.shared_bytes = bytes(share.groups_of_unit);
    plan.shape.threads = static_cast<int>(share.chunks_of_block * parts.sets) * warp_size;
    return plan;
}

Plan plan_parameter_sums(const Rows& rows, const RowParts& parts, const KernelTable& table,
                         std::int64_t bytes_of_rows, const Limits& limits) {
    const std::int64_t stripes = divide_up(rows.packs, warp_size);
    Plan plan;
    plan.share.soon_from = bytes_of_rows > limits.cache / 2 ? rows.stats : 0;  // all or none
    plan.shape.threads = warps_of_features * warp_size;
    plan.shape.blocks = parts.count * divide_up(stripes, warps_of_features / parts.sets);
    plan.shape.shared_bytes = std::min(parts.rows, parts.rows_of_lap()) * table.bytes_of_stat;
    return plan;
}

}  // namespace fastnorm::cuda
