#include "cuda/plan.h"

#include <algorithm>
#include <limits>

namespace fastnorm::cuda {

namespace {

// The numbers of the policy. On a machine: none of them has been measured on one yet.
constexpr int warps_of_rows = 12;    // on chip, of a multiprocessor: as its registers suffice for
constexpr int warps_of_columns = 8;  // the same
constexpr int most_warps_of_pass = 8;
constexpr std::int64_t most_tasks_of_pass = 32;  // of a block
constexpr std::int64_t enough_tasks = 16;        // of a block that has several statistics
constexpr std::int64_t waves_of_pass = 8;        // blocks for each place on the machine, if there
                                                 // are tasks enough
constexpr double alone = 1.25;                   // a block that has a multiprocessor to itself:
                                                 // nothing loads while it reduces
constexpr double of_doubling_a_team = 1.02;      // what it costs to meet

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

int threads_for(std::int64_t tasks, int most_warps) {
    // As many rounds as the most warps need, and no more warps than those rounds need.
    const std::int64_t rounds = divide_up(tasks, most_warps);
    return static_cast<int>(divide_up(tasks, rounds)) * warp_size;
}

struct Costs {
    const Rows& rows;
    const KernelTable& table;
    int arrays;

    std::int64_t bytes_of_task() const {
        return std::int64_t{rows.across} * rows.width * std::int64_t{sizeof(Partial)} +
               arrays * table.slot_bytes[rows.width > 1];
    }
    std::int64_t bytes_of_groups(std::int64_t groups) const {
        return round_up(groups * rows.across * rows.width * table.bytes_of_stat, 16);
    }
    std::int64_t bytes(std::int64_t groups, std::int64_t tasks) const {
        return bytes_of_groups(groups) + tasks * bytes_of_task();
    }
    std::int64_t most_tasks(std::int64_t bytes_of_block) const {
        return (bytes_of_block - bytes_of_groups(1)) / bytes_of_task();
    }
};

// A block's tasks where a team has a group's: whole parts.
std::int64_t tasks_in_team(const Rows& rows, std::int64_t team) {
    return round_up(divide_up(rows.chunks, team), rows.chunks_of_part);
}

// Blocks that a multiprocessor has at a time, each with a warp at least.
std::int64_t places_of(const Rows& rows, std::int64_t shared_bytes, const Limits& limits) {
    return std::clamp<std::int64_t>(
        limits.shared_of_multiprocessor / (shared_bytes + limits.shared_reserved), 1,
        rows.width > 1 ? warps_of_columns : warps_of_rows);
}

// The blocks on a multiprocessor share its warps.
int threads_on_chip(const Rows& rows, const Plan& plan, const Limits& limits) {
    const std::int64_t blocks = divide_up(plan.shape.blocks, limits.multiprocessors);
    const std::int64_t places = places_of(rows, plan.shape.shared_bytes, limits);
    const int warps = rows.width > 1 ? warps_of_columns : warps_of_rows;
    return threads_for(plan.share.tasks_of_block,
                       warps / static_cast<int>(std::min(blocks, places)));
}

// How long it takes, in tasks of the busiest multiprocessor: blocks come in waves that fill all
// places, and what is left over at the end spreads out.
double time_of(const Costs& costs, const Rows& rows, int team, const Limits& limits) {
    const std::int64_t tasks = team > 1 ? tasks_in_team(rows, team) : rows.chunks;
    const std::int64_t places = places_of(rows, costs.bytes(1, tasks), limits);
    const std::int64_t blocks = rows.groups * team;
    const std::int64_t waves = blocks / (limits.multiprocessors * places);
    const std::int64_t rest = blocks % (limits.multiprocessors * places);
    auto time =
        static_cast<double>(tasks * (waves * places + divide_up(rest, limits.multiprocessors)));
    if (places == 1) time *= alone;
    for (int t = team; t > 1; t /= 2) time *= of_doubling_a_team;
    return time;
}

Plan on_chip(const Costs& costs, const Rows& rows, const Limits& limits) {
    Plan plan;
    plan.tier = Tier::two_passes;
    const std::int64_t most_tasks = costs.most_tasks(limits.shared_of_block);
    if (most_tasks < 1) return plan;
    double best = std::numeric_limits<double>::infinity();
    int team = 0;
    for (int candidate = 1; candidate <= limits.cluster && candidate <= rows.parts;
         candidate *= 2) {
        if (tasks_in_team(rows, candidate) > most_tasks) continue;
        const double time = time_of(costs, rows, candidate, limits);
        if (time >= best) continue;
        best = time;
        team = candidate;
    }
    Share& share = plan.share;
    share.tasks = rows.groups * rows.chunks;
    if (team == 1) {
        plan.tier = Tier::block;
        // Several groups to a block, as long as every multiprocessor has blocks.
        const std::int64_t fit = limits.shared_of_block / costs.bytes(1, rows.chunks);
        const std::int64_t enough = std::max<std::int64_t>(enough_tasks / rows.chunks, 1);
        const std::int64_t groups = std::clamp<std::int64_t>(
            rows.groups / (4 * limits.multiprocessors), 1, std::min(fit, enough));
        share.tasks_of_block = groups * rows.chunks;
        plan.shape.blocks = divide_up(share.tasks, share.tasks_of_block);
        plan.shape.shared_bytes = costs.bytes(groups, share.tasks_of_block);
    } else if (team > 1) {
        plan.tier = Tier::cluster;
        share.team = plan.shape.cluster = team;
        share.tasks_of_block = tasks_in_team(rows, team);
        plan.shape.blocks = rows.groups * team;
        plan.shape.shared_bytes = costs.bytes(1, share.tasks_of_block);
    } else {
        // A multiprocessor a block; as many teams as there is room for.
        const std::int64_t whole_parts = most_tasks / rows.chunks_of_part * rows.chunks_of_part;
        if (whole_parts == 0) return plan;
        const std::int64_t blocks = divide_up(rows.chunks, whole_parts);
        if (blocks > limits.multiprocessors) return plan;
        const std::int64_t teams =
            std::min<std::int64_t>(limits.multiprocessors / blocks, rows.groups);
        share.team = static_cast<int>(limits.multiprocessors / teams);
        share.tasks_of_block = tasks_in_team(rows, share.team);
        plan.tier = Tier::grid;
        share.in_global = true;
        plan.shape.blocks = teams * share.team;
        plan.shape.resident = true;
        plan.shape.shared_bytes = costs.bytes(1, share.tasks_of_block);
    }
    plan.shape.threads = threads_on_chip(rows, plan, limits);
    return plan;
}

// As few statistics to a block as make whole packs, but some work for its warps.
Plan staged(const Rows& rows, const KernelTable& table, const Work& work, const Limits& limits) {
    Plan plan;
    plan.tier = Tier::two_passes;
    const auto bytes = [&](std::int64_t stats) {
        return round_up(stats * table.bytes_of_stat, 16) +
               stats * rows.chunks * static_cast<std::int64_t>(sizeof(Partial)) +
               work.arrays_of_map * stats * work.bytes_of_stat;
    };
    if (bytes(work.granule) > limits.shared_of_block) return plan;
    const std::int64_t granules = rows.stats / work.granule;
    std::int64_t of_block = 1;
    // A quarter of a multiprocessor's memory, so that blocks load while others compute.
    while (of_block * 2 * work.granule * rows.chunks <= enough_tasks &&
           granules >= of_block * 2 * 4 * limits.multiprocessors &&
           bytes(of_block * 2 * work.granule) <= limits.shared_of_multiprocessor / 4) {
        of_block *= 2;
    }
    const std::int64_t stats = of_block * work.granule;
    plan.tier = Tier::staged;
    plan.share.tasks = rows.stats * rows.chunks;
    plan.share.tasks_of_block = stats * rows.chunks;
    plan.shape.blocks = divide_up(rows.stats, stats);
    plan.shape.shared_bytes = bytes(stats);
    plan.shape.threads = threads_on_chip(rows, plan, limits);
    return plan;
}

}  // namespace

Plan plan_reduction(const Rows& rows, const KernelTable& table, const Work& work,
                    const Limits& limits) {
    Plan plan;
    plan.tier = Tier::two_passes;
    if (work.whole) {
        plan = on_chip({rows, table, work.arrays}, rows, limits);
    } else if (work.granule > 0) {
        plan = staged(rows, table, work, limits);
    }
    return plan.tier == Tier::two_passes ? plan_pass(rows, rows.parts, table, limits) : plan;
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

}  // namespace fastnorm::cuda
