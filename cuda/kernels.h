// The kernels, over a pass (forward.h, backward.h):
//   OnChip   reduce, finish, map with all that is read twice kept in shared memory: each tensor
//            moves once. The chunks of a group of statistics lie in one block, in a cluster, or in
//            several blocks that wait for each other.
//   Reduce   the parts' partial results into global memory; the last block that works on a group
//            of statistics finishes them.
//   Map      what follows a Reduce, or given statistics.
// All give the same bits: those follow from the chunks, not from who works on them.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/rows.h"
#include "cuda/statistics.h"

namespace fastnorm::cuda {

// Tasks [first, last) of one block, so many of them a group, and the groups that they belong to.
struct Tasks {
    std::int64_t first, last, of_group;
    std::int64_t group0, groups;

    FASTNORM_DEVICE static Tasks of_several_groups(std::int64_t of_group, const Share& share,
                                                   std::int64_t unit) {
        const std::int64_t first = unit * share.tasks_of_block;
        const std::int64_t end = first + share.tasks_of_block;
        const std::int64_t last = end < share.tasks ? end : share.tasks;
        const std::int64_t group0 = first / of_group;
        return {first, last, of_group, group0, (last - 1) / of_group + 1 - group0};
    }
    FASTNORM_DEVICE static Tasks of_shared_group(std::int64_t of_group, const Share& share,
                                                 std::int64_t group, int rank) {
        const std::int64_t from = rank * share.tasks_of_block;
        const std::int64_t to = from + share.tasks_of_block;
        const std::int64_t base = group * of_group;
        return {base + (from < of_group ? from : of_group), base + (to < of_group ? to : of_group),
                of_group, group, 1};
    }

    // Calls f(group, which of its tasks) for the warp's tasks.
    template <class F>
    FASTNORM_DEVICE void each(const Block& block, F&& f) const {
        for (std::int64_t task = first + block.warp(); task < last; task += block.warps()) {
            const std::int64_t group = task / of_group;
            f(group, task - group * of_group);
        }
    }
};

// Where the coefficients of a block's statistics lie, at the start of its shared memory.
template <class Pass>
struct OfBlock {
    using Own = Coefficients<typename Pass::A>;
    Own* coefficients;
    std::int64_t stat0, stats;  // those of the last group may be too many
    int stats_of_group;

    FASTNORM_DEVICE OfBlock(const Block& block, const Rows& rows, const Tasks& tasks)
        : coefficients(reinterpret_cast<Own*>(block.shared())),
          stats_of_group(fastnorm::cuda::stats_of_group<Pass::width>(rows)) {
        stat0 = tasks.group0 * stats_of_group;
        stats = tasks.groups * stats_of_group;
    }
    // Behind them.
    FASTNORM_DEVICE char* rest(const Block& block) const {
        return block.shared() + (stats * static_cast<std::int64_t>(sizeof(Own)) + 15) / 16 * 16;
    }
    FASTNORM_DEVICE Own* of(const typename Pass::Chunk& lane) const {
        return coefficients + (lane.stat() - stat0);
    }
    // Calls f(coefficients, statistic) for the thread's statistics.
    template <class F>
    FASTNORM_DEVICE void each(const Block& block, const Rows& rows, F&& f) const {
        for (std::int64_t s = block.thread(); s < stats; s += block.threads()) {
            if (stat0 + s < rows.stats) f(coefficients[s], stat0 + s);
        }
    }
    // Calls f(coefficients, statistic, its number in the block) for the warp's statistics.
    template <class F>
    FASTNORM_DEVICE void each_of_warp(const Block& block, const Rows& rows, F&& f) const {
        for (std::int64_t s = block.warp(); s < stats; s += block.warps()) {
            if (stat0 + s < rows.stats) f(coefficients[s], stat0 + s, s);
        }
    }
};

// Where a pass has its packs from, and where its results go:
//   pack(operand, array, i, position, elements)   pack i of what the reduction reads, by its number
//   more(operand, array, position, elements)      of what the map reads besides
//   put(operand, array, position, elements, pack) a result, in the place of an array if need be
// cheap: so near that a pack can as well be read twice.
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

// What each lane has copied to shared memory for itself.
template <class T, int width>
struct FromShared {
    static constexpr bool cheap = true;
    static constexpr int pack_stride = warp_size * 16;
    static constexpr int array_stride = pack_stride * lane_packs<T, width>;
    const Block& block;
    const Lane<T, true, width>& lane;
    char* slots;  // of the lane: for each array, its packs

    FASTNORM_DEVICE char* slot(int array, int i) const {
        return slots + array * array_stride + i * pack_stride;
    }
    FASTNORM_DEVICE Pack<T> pack(const Operand&, int array, int i, const Position&,
                                 int elements) const {
        return elements == 0 ? Pack<T>{} : *reinterpret_cast<const Pack<T>*>(slot(array, i));
    }
    FASTNORM_DEVICE Pack<T> more(const Operand& operand, int, const Position& at,
                                 int elements) const {
        return lane.load(block, operand, at, elements, Reuse::none);
    }
    FASTNORM_DEVICE void put(const Operand& operand, int, const Position& at, int elements,
                             const Pack<T>& pack) const {
        lane.store(block, operand, at, elements, pack);
    }
};

// From the partial results of a block's chunks to those of parts, in the place of their first
// chunk's, and to where other blocks find them.
template <class Pass>
FASTNORM_DEVICE void gather(const Block& block, const Arguments& args, const Share& share,
                            const Tasks& tasks, const OfBlock<Pass>& own, Partial* partials) {
    const Rows& rows = args.rows;
    const std::int64_t chunks_of_group = (tasks.last - tasks.first) / tasks.groups;
    const std::int64_t parts_of_group =
        (chunks_of_group + rows.chunks_of_part - 1) / rows.chunks_of_part;
    for (std::int64_t i = block.thread(); i < own.stats * parts_of_group; i += block.threads()) {
        const std::int64_t s = i % own.stats_of_group;
        const std::int64_t part = i / own.stats_of_group % parts_of_group;
        const std::int64_t group = i / own.stats_of_group / parts_of_group;
        const std::int64_t stat = own.stat0 + group * own.stats_of_group + s;
        if (stat >= rows.stats) continue;
        const std::int64_t task = group * chunks_of_group + part * rows.chunks_of_part;
        const std::int64_t chunk = (tasks.first + task) % rows.chunks;
        Partial* const place = partials + task * own.stats_of_group + s;
        if (rows.chunks_of_part > 1) {
            typename Pass::Sets sets(*place);
            for (std::int64_t q = 0; q < rows.chunks_of_part && chunk + q < rows.chunks; ++q) {
                sets.add(place[q * own.stats_of_group],
                         elements_of_chunks<typename Pass::T, Pass::whole, Pass::width>(rows,
                                                                                        chunk + q));
            }
            *place = sets.together();
        }
        if (share.in_global) {
            publish(block, args.partials + stat * rows.parts + chunk / rows.chunks_of_part, *place);
        }
    }
}

template <class Pass>
struct OnChip {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr int width = Pass::width;
    using Chunk = typename Pass::Chunk;
    using Held = FromShared<T, width>;
    static constexpr const char* name = "on_chip";
    static constexpr int most_threads = width > 1 ? 256 : 384;      // so that registers suffice
    static constexpr int least_blocks = 1;                          // of a multiprocessor
    static constexpr std::int64_t slot_bytes = Held::array_stride;  // an array, a task

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const int team = share.team;
        const int rank = static_cast<int>(block.index() % team);
        const std::int64_t units =
            team > 1 ? rows.groups
                     : (share.tasks + share.tasks_of_block - 1) / share.tasks_of_block;
        std::uint32_t meetings = 0;
        for (std::int64_t unit = block.index() / team; unit < units;
             unit += block.blocks() / team) {
            const Tasks tasks = team > 1 ? Tasks::of_shared_group(rows.chunks, share, unit, rank)
                                         : Tasks::of_several_groups(rows.chunks, share, unit);
            one_unit(block, pass, tasks, rank, ++meetings);
        }
    }

  private:
    FASTNORM_DEVICE void one_unit(const Block& block, const Pass& pass, const Tasks& tasks,
                                  int rank, std::uint32_t meetings) const {
        const Rows& rows = args.rows;
        const bool cluster = share.team > 1 && !share.in_global;
        const OfBlock<Pass> own(block, rows, tasks);
        auto* const partials = reinterpret_cast<Partial*>(own.rest(block));
        char* const slots =
            reinterpret_cast<char*>(partials + share.tasks_of_block * own.stats_of_group);
        const int arrays = pass.arrays();
        const auto held = [&](const Chunk& lane) {
            return Held{
                block, lane,
                slots + (lane.task() - tasks.first) * arrays * slot_bytes + block.lane() * 16};
        };

        tasks.each(block, [&](std::int64_t group, std::int64_t chunk) {
            const Chunk lane(block, rows, group, chunk);
            const Held to = held(lane);
            lane.template in_batches<2>(
                [&](int, int i, const Position& at, int elements) {
                    if (elements == 0) return;
                    for (int k = 0; k < arrays; ++k) {
                        block.copy(to.slot(k, i), lane.address(pass.array(k), at));
                    }
                },
                [](int, int, const Position&, int) {});
        });
        own.each(block, rows, [&](auto& of, std::int64_t stat) { pass.prepare(of, stat); });
        block.sync();
        block.wait_for_copies();

        tasks.each(block, [&](std::int64_t group, std::int64_t chunk) {
            const Chunk lane(block, rows, group, chunk);
            const Partial partial = pass.reduce(block, lane, own.of(lane), held(lane));
            if (!owns_stat<width>(block, rows)) return;
            partials[(lane.task() - tasks.first) * own.stats_of_group +
                     own_stat<width>(block, rows)] = partial;
        });
        if (rows.chunks_of_part > 1 || share.in_global) {
            block.sync();
            gather(block, args, share, tasks, own, partials);
        }
        meet(block, cluster, meetings);

        own.each_of_warp(block, rows, [&](auto& of, std::int64_t stat, std::int64_t s) {
            const std::int64_t group = s / own.stats_of_group;
            const std::int64_t s_of_group = s - group * own.stats_of_group;
            const Partial merged = pass.merge(block, [&](std::int64_t part) -> Partial {
                if (share.in_global) {
                    return fresh(block, args.partials + stat * rows.parts + part);
                }
                const std::int64_t chunk = part * rows.chunks_of_part;
                const std::int64_t owner = cluster ? chunk / share.tasks_of_block : 0;
                const std::int64_t task =
                    group * rows.chunks + chunk - owner * share.tasks_of_block;
                const Partial* const at = partials + task * own.stats_of_group + s_of_group;
                return cluster ? *block.of_peer(at, static_cast<int>(owner)) : *at;
            });
            const Partial finished = pass.finish(merged, stat, block.lane() == 0 && rank == 0);
            if (block.lane() == 0) pass.set(of, stat, finished);
        });
        if (cluster) block.arrive_at_cluster();  // nothing of the others is needed from here on
        block.sync();

        tasks.each(block, [&](std::int64_t group, std::int64_t chunk) {
            const Chunk lane(block, rows, group, chunk);
            pass.map(block, lane, own.of(lane), held(lane));
        });
        if (cluster) block.wait_for_cluster();
        block.sync();
    }

    // Until all partial results of the tasks' statistics are there to be read.
    FASTNORM_DEVICE void meet(const Block& block, bool cluster, std::uint32_t meetings) const {
        if (cluster) {
            block.arrive_at_cluster();
            block.wait_for_cluster();
            return;
        }
        block.sync();
        if (!share.in_global) return;
        if (block.thread() == 0) {
            std::uint32_t* const counter = args.counters + block.index() / share.team;
            block.add(counter, 1);
            block.wait_until(counter, meetings * static_cast<std::uint32_t>(share.team));
        }
        block.sync();
    }
};

template <class Pass>
struct Reduce {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr int width = Pass::width;
    static constexpr const char* name = "reduce";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = sizeof(A) == sizeof(double) || width > 1 ? 1 : 2;

    Arguments args;
    Share share;  // of parts

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const Tasks tasks = Tasks::of_several_groups(rows.parts, share, block.index());
        const OfBlock<Pass> own(block, rows, tasks);
        auto* const last_of_group = reinterpret_cast<bool*>(own.rest(block));
        own.each(block, rows, [&](auto& of, std::int64_t stat) { pass.prepare(of, stat); });
        block.sync();

        tasks.each(block, [&](std::int64_t group, std::int64_t part) {
            const Reuse reuse =
                group * rows.parts + part >= share.soon_from ? Reuse::soon : Reuse::none;
            const Partial partial = of_part(block, pass, own, group, part, reuse);
            const std::int64_t stat = group * own.stats_of_group + own_stat<width>(block, rows);
            if (owns_stat<width>(block, rows) && stat < rows.stats) {
                publish(block, args.partials + stat * rows.parts + part, partial);
            }
        });
        block.sync();
        for (std::int64_t g = block.thread(); g < tasks.groups; g += block.threads()) {
            const std::int64_t base = (tasks.group0 + g) * rows.parts;
            const std::int64_t from = tasks.first > base ? tasks.first : base;
            const std::int64_t end = base + rows.parts;
            const std::int64_t mine = (tasks.last < end ? tasks.last : end) - from;
            const std::uint32_t before =
                block.add(args.counters + tasks.group0 + g, static_cast<std::uint32_t>(mine));
            last_of_group[g] = before + mine == rows.parts;
        }
        block.sync();
        own.each_of_warp(block, rows, [&](auto&, std::int64_t stat, std::int64_t s) {
            if (!last_of_group[s / own.stats_of_group]) return;
            const Partial merged = pass.merge(block, [&](std::int64_t part) {
                return fresh(block, args.partials + stat * rows.parts + part);
            });
            const Partial finished = pass.finish(merged, stat, block.lane() == 0);
            if (block.lane() == 0) args.totals[stat] = finished;
        });
    }

  private:
    // That of the own statistic.
    FASTNORM_DEVICE Partial of_part(const Block& block, const Pass& pass, const OfBlock<Pass>& own,
                                    std::int64_t group, std::int64_t part, Reuse reuse) const {
        const Rows& rows = args.rows;
        typename Pass::Sets sets({});
        Partial partial;
        const std::int64_t first = part * rows.chunks_of_part;
#pragma unroll 1
        for (std::int64_t q = 0; q < rows.chunks_of_part && first + q < rows.chunks; ++q) {
            const typename Pass::Chunk lane(block, rows, group, first + q);
            partial = pass.reduce(block, lane, own.of(lane),
                                  FromGlobal<T, Pass::whole, width>{block, lane, reuse});
            if (q == 0) sets = typename Pass::Sets(partial);
            sets.add(partial, elements_of_chunks<T, Pass::whole, width>(rows, first + q));
        }
        return rows.chunks_of_part > 1 ? sets.together() : partial;
    }
};

template <class Pass>
struct Map {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr const char* name = "map";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = Pass::width > 1 ? 1 : 2;

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        // Backwards: what a reduction has read last is in the cache still.
        const Tasks tasks =
            Tasks::of_several_groups(rows.chunks, share, block.blocks() - 1 - block.index());
        const OfBlock<Pass> own(block, rows, tasks);
        own.each(block, rows, [&](auto& of, std::int64_t stat) {
            if (args.totals == nullptr) {
                pass.set_given(of, stat);
            } else {
                pass.prepare(of, stat);
                pass.set(of, stat, args.totals[stat]);
            }
        });
        block.sync();
        tasks.each(block, [&](std::int64_t group, std::int64_t chunk) {
            const typename Pass::Chunk lane(block, rows, group, chunk);
            pass.map(block, lane, own.of(lane),
                     FromGlobal<T, Pass::whole, Pass::width>{block, lane, Reuse::none});
        });
    }
};

}  // namespace fastnorm::cuda
