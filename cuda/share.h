// What the kernels have in common: what of the work a block has, and where a pass has its packs
// from.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/rows.h"
#include "cuda/statistics.h"

namespace fastnorm::cuda {

// What a block has of a unit: some chunks of some groups.
struct Tile {
    std::int64_t group0, groups, chunk0, chunks;

    // Of what a team has in a round.
    FASTNORM_DEVICE Tile(const Rows& rows, const Share& share, std::int64_t team,
                         std::int64_t teams, int round, int rank)
        : chunk0(rank * share.chunks_of_block),
          chunks_of_block_(share.chunks_of_block),
          sets_(share.sets) {
        std::int64_t end = rows.groups;
        if (share.groups_of_team > 0) {
            group0 = team * share.groups_of_team + round * share.groups_of_unit;
            if ((team + 1) * share.groups_of_team < end) end = (team + 1) * share.groups_of_team;
        } else {
            group0 = (round * teams + team) * share.groups_of_unit;
        }
        groups = end - group0 < share.groups_of_unit ? end - group0 : share.groups_of_unit;
        if (groups < 0 || round >= share.rounds) groups = 0;
        chunks = rows.chunks - chunk0 < chunks_of_block_ ? rows.chunks - chunk0 : chunks_of_block_;
        if (chunks < 0) chunks = 0;
    }

    // Calls f(group, chunk, their number in the tile) for the warp's.
    template <class F>
    FASTNORM_DEVICE void each(const Block& block, F&& f) const {
        std::int64_t first = block.warp(), step = block.warps();
        if (sets_ > 0) {
            const std::int64_t set = first / chunks_of_block_, chunk = first % chunks_of_block_;
            if (chunk >= chunks) return;
            first = set * chunks + chunk;
            step = sets_ * chunks;
        }
        for (std::int64_t task = first; task < groups * chunks; task += step) {
            const std::int64_t group = task / chunks;
            f(group0 + group, chunk0 + task - group * chunks, task);
        }
    }

  private:
    std::int64_t chunks_of_block_;
    int sets_;
};

// Where the coefficients of a block's statistics lie, at the start of its shared memory.
template <class Pass>
struct OfBlock {
    using Own = Coefficients<typename Pass::A>;
    Own* coefficients;
    std::int64_t group0, slot0, stats;  // those of a batch index's last group may be too many
    std::int64_t room;                  // for so many of them
    int stats_of_group;

    // Tasks: anything that has groups, so many at most.
    template <class Tasks>
    FASTNORM_DEVICE OfBlock(const Block& block, const Rows& rows, const Tasks& tasks,
                            std::int64_t most_groups)
        : coefficients(reinterpret_cast<Own*>(block.shared())),
          stats_of_group(fastnorm::cuda::stats_of_group<Pass::width>(rows)) {
        group0 = tasks.group0;
        slot0 = group0 * stats_of_group;
        stats = tasks.groups * stats_of_group;
        room = most_groups * stats_of_group;
    }
    // Behind them.
    FASTNORM_DEVICE char* rest(const Block& block) const {
        return block.shared() + (room * static_cast<std::int64_t>(sizeof(Own)) + 15) / 16 * 16;
    }
    FASTNORM_DEVICE Own* of(const typename Pass::Chunk& lane) const {
        return coefficients + (lane.slot() - slot0);
    }
    // The number of the block's s-th statistic, or -1.
    FASTNORM_DEVICE std::int64_t stat_at(const Rows& rows, std::int64_t s) const {
        const std::int64_t group = s / stats_of_group;
        return stat_of<Pass::width>(rows, group0 + group, s - group * stats_of_group);
    }
    // Calls f(coefficients, statistic, its number in the block) for the thread's statistics.
    template <class F>
    FASTNORM_DEVICE void each(const Block& block, const Rows& rows, F&& f) const {
        for (std::int64_t s = block.thread(); s < stats; s += block.threads()) {
            const std::int64_t stat = stat_at(rows, s);
            if (stat >= 0) f(coefficients[s], stat, s);
        }
    }
    // Calls leave(coefficients, statistic, its number in the block, its parts merged) for those
    // that are wanted(number), from partial(statistic, number, part): a warp has several
    // statistics of few parts at a time.
    template <class Wanted, class PartialOf, class Leave>
    FASTNORM_DEVICE void merge(const Block& block, const Rows& rows, const Pass& pass,
                               Wanted&& wanted, PartialOf&& partial, Leave&& leave) const {
        const int lanes = rows.lanes_of_merge;
        const std::int64_t of_warp = warp_size / lanes;
        for (std::int64_t first = block.warp() * of_warp; first < stats;
             first += block.warps() * of_warp) {
            const std::int64_t s = first + block.lane() / lanes;
            const std::int64_t stat = s < stats ? stat_at(rows, s) : -1;
            const bool is_wanted = stat >= 0 && wanted(s);
            if (!block.any(is_wanted)) continue;
            const Partial merged =
                pass.merge(block, lanes, is_wanted ? rows.parts : 0,
                           [&](std::int64_t part) { return partial(stat, s, part); });
            if (is_wanted && block.lane() % lanes == 0) leave(coefficients[s], stat, s, merged);
        }
    }
    // Calls f(the first statistic of a mean, its number in the block) for the warp's means, all of
    // whose statistics the block has, side by side.
    template <class F>
    FASTNORM_DEVICE void each_mean_of_warp(const Block& block, const Rows& rows, F&& f) const {
        const std::int64_t slots = rows.groups_of_batch * stats_of_group;  // of a batch index
        const std::int64_t means = rows.stat / rows.stats_of_mean;
        const std::int64_t batch0 = slot0 / slots;
        const std::int64_t mean0 = batch0 * means + (slot0 - batch0 * slots) / rows.stats_of_mean;
        for (std::int64_t mean = mean0 + block.warp();; mean += block.warps()) {
            const std::int64_t batch = mean / means;
            const std::int64_t s =
                batch * slots + (mean - batch * means) * rows.stats_of_mean - slot0;
            if (s >= stats) return;
            f(mean * rows.stats_of_mean, s);
        }
    }
};

// A pass has its packs from a Source, which its results go to:
//   pack(operand, array, i, position, elements)   pack i of what the reduction reads, by its number
//   more(operand, array, position, elements)      of what the map reads besides
//   put(operand, array, position, elements, pack) a result, in the place of an array if need be
// cheap: so near that a pack can as well be read twice.

// Packs in global memory.
template <class T, bool whole, int width>
struct FromGlobal {
    static constexpr bool cheap = false;
    const Block& block;
    const Lane<T, whole, width>& lane;
    Reuse reuse;

    FASTNORM_DEVICE Pack<T> pack(const Operand& operand, int, int, const Position& at,
                                 int elements) const {
        return lane.load(block, operand, at, elements, reuse);
    }
    FASTNORM_DEVICE Pack<T> more(const Operand& operand, int, const Position& at,
                                 int elements) const {
        return lane.load(block, operand, at, elements, reuse);
    }
    FASTNORM_DEVICE void put(const Operand& operand, int, const Position& at, int elements,
                             const Pack<T>& pack) const {
        lane.store(block, operand, at, elements, pack);
    }
};

}  // namespace fastnorm::cuda
