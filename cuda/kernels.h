// The kernels, over a pass (forward.h, backward.h):
//   OnChip   reduce, finish, map with all that is read twice kept in shared memory: each tensor
//   moves
//            once. A statistic's chunks lie in one block, in a cluster, or in a group of blocks.
//   Reduce   the chunks' partial results into global memory; the last block that works on a
//            statistic finishes it.
//   Map      what follows a Reduce, or given statistics.
// All give the same bits: those follow from the chunks, not from who works on them.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/rows.h"
#include "cuda/statistics.h"

namespace fastnorm::cuda {

// Tasks [first, last) of one block, and the statistics that they belong to.
struct Tasks {
    std::int64_t first, last;
    std::int64_t stat0, stats;

    FASTNORM_DEVICE static Tasks of_several_stats(const Rows& rows, const Share& share,
                                                  std::int64_t unit) {
        const std::int64_t first = unit * share.tasks_of_block;
        const std::int64_t end = first + share.tasks_of_block;
        return with_stats(rows, first, end < share.tasks ? end : share.tasks);
    }
    FASTNORM_DEVICE static Tasks of_shared_stat(const Rows& rows, const Share& share,
                                                std::int64_t stat, int rank) {
        const std::int64_t from = rank * share.tasks_of_block;
        const std::int64_t to = from + share.tasks_of_block;
        const std::int64_t base = stat * rows.chunks;
        return {base + (from < rows.chunks ? from : rows.chunks),
                base + (to < rows.chunks ? to : rows.chunks), stat, 1};
    }

  private:
    FASTNORM_DEVICE static Tasks with_stats(const Rows& rows, std::int64_t first,
                                            std::int64_t last) {
        const std::int64_t group = first / rows.chunks;
        const std::int64_t stat0 = group * rows.width;
        const std::int64_t end = ((last - 1) / rows.chunks + 1) * rows.width;
        return {first, last, stat0, (end < rows.stats ? end : rows.stats) - stat0};
    }
};

// Calls f(task, the first statistic of its group, chunk) for the warp's tasks.
template <class F>
FASTNORM_DEVICE void for_tasks(const Block& block, const Rows& rows, const Tasks& tasks, F&& f) {
    for (std::int64_t task = tasks.first + block.warp(); task < tasks.last; task += block.warps()) {
        const std::int64_t group = task / rows.chunks;
        f(task, group * rows.width, task - group * rows.chunks);
    }
}

// Calls f(statistic, result) for each statistic of a group, in one lane each.
template <int width, class F>
FASTNORM_DEVICE void for_partials(const Block& block, const Rows& rows, std::int64_t stat,
                                  const Partial (&partials)[width], F&& f) {
#pragma unroll
    for (int s = 0; s < width; ++s) {
        if (block.lane() == s && stat + s < rows.stats) f(stat + s, partials[s]);
    }
}

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
template <class T>
struct FromShared {
    static constexpr bool cheap = true;
    static constexpr int pack_stride = warp_size * 16;
    static constexpr int array_stride = pack_stride * lane_packs<T>;
    const Block& block;
    const Lane<T, true, 1>& lane;
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

template <class Pass>
struct OnChip {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr const char* name = "on_chip";
    static constexpr int most_threads = 512;
    static constexpr int least_blocks = 1;  // of a multiprocessor

    // Of shared memory; slots come behind what is counted per statistic and task.
    static constexpr std::int64_t bytes_of_stat = (sizeof(Coefficients<A>) + 15) / 16 * 16;
    static constexpr std::int64_t bytes_of_task(int arrays) {
        return static_cast<std::int64_t>(sizeof(Partial)) + arrays * slot_bytes;
    }
    static constexpr std::int64_t slot_bytes = FromShared<T>::array_stride;  // an array, a task

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Pass pass(block, args);
        const int team = share.team;
        const int rank = static_cast<int>(block.index() % team);
        const std::int64_t units =
            team > 1 ? args.rows.stats
                     : (share.tasks + share.tasks_of_block - 1) / share.tasks_of_block;
        std::uint32_t meetings = 0;
        for (std::int64_t unit = block.index() / team; unit < units;
             unit += block.blocks() / team) {
            const Tasks tasks = team > 1 ? Tasks::of_shared_stat(args.rows, share, unit, rank)
                                         : Tasks::of_several_stats(args.rows, share, unit);
            one_unit(block, pass, tasks, rank, ++meetings);
        }
    }

  private:
    FASTNORM_DEVICE void one_unit(const Block& block, const Pass& pass, const Tasks& tasks,
                                  int rank, std::uint32_t meetings) const {
        const Rows& rows = args.rows;
        const bool cluster = share.team > 1 && !share.in_global;
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        auto* const partials =
            reinterpret_cast<Partial*>(block.shared() + tasks.stats * bytes_of_stat);
        char* const slots = reinterpret_cast<char*>(partials + share.tasks_of_block);
        const int arrays = pass.arrays();
        const auto coefficients_of = [&](std::int64_t stat) -> Coefficients<A>& {
            return *reinterpret_cast<Coefficients<A>*>(reinterpret_cast<char*>(coefficients) +
                                                       (stat - tasks.stat0) * bytes_of_stat);
        };
        const auto held = [&](const Lane<T, true, 1>& lane, std::int64_t task) {
            return FromShared<T>{
                block, lane,
                slots + (task - tasks.first) * arrays * slot_bytes + block.lane() * 16};
        };

        for_tasks(block, rows, tasks,
                  [&](std::int64_t task, std::int64_t stat, std::int64_t chunk) {
                      const Lane<T, true, 1> lane(block, rows, stat, chunk);
                      const FromShared<T> to = held(lane, task);
                      lane.each([&](int i, const Position& at, int elements) {
                          if (elements == 0) return;
                          for (int k = 0; k < arrays; ++k) {
                              block.copy(to.slot(k, i), lane.address(pass.array(k), at));
                          }
                      });
                  });
        for (std::int64_t s = block.thread(); s < tasks.stats; s += block.threads()) {
            pass.prepare(coefficients_of(tasks.stat0 + s), tasks.stat0 + s);
        }
        block.sync();
        block.wait_for_copies();

        for_tasks(block, rows, tasks,
                  [&](std::int64_t task, std::int64_t stat, std::int64_t chunk) {
                      const Lane<T, true, 1> lane(block, rows, stat, chunk);
                      Partial result[1];
                      pass.reduce(block, lane, &coefficients_of(stat), stat, chunk,
                                  held(lane, task), result);
                      const Partial partial = result[0];
                      if (block.lane() != 0) return;
                      partials[task - tasks.first] = partial;
                      if (share.in_global) publish(block, args.partials + task, partial);
                  });
        meet(block, cluster, meetings);

        for (std::int64_t s = block.warp(); s < tasks.stats; s += block.warps()) {
            const std::int64_t stat = tasks.stat0 + s;
            const Partial merged = pass.merge(block, [&](std::int64_t chunk) -> Partial {
                if (share.in_global)
                    return fresh(block, args.partials + stat * rows.chunks + chunk);
                if (!cluster) return partials[stat * rows.chunks + chunk - tasks.first];
                const std::int64_t owner = chunk / share.tasks_of_block;
                return *block.of_peer(partials + (chunk - owner * share.tasks_of_block),
                                      static_cast<int>(owner));
            });
            const Partial finished = pass.finish(merged, stat, block.lane() == 0 && rank == 0);
            if (block.lane() == 0) pass.set(coefficients_of(stat), stat, finished);
        }
        if (cluster) block.arrive_at_cluster();  // nothing of the others is needed from here on
        block.sync();

        for_tasks(block, rows, tasks,
                  [&](std::int64_t task, std::int64_t stat, std::int64_t chunk) {
                      const Lane<T, true, 1> lane(block, rows, stat, chunk);
                      pass.map(block, lane, &coefficients_of(stat), stat, chunk, held(lane, task));
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
    static constexpr const char* name = "reduce";
    static constexpr int most_threads = 256;
    static constexpr int least_blocks = sizeof(A) == sizeof(double) || Pass::width > 1 ? 1 : 2;

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const Tasks tasks = Tasks::of_several_stats(rows, share, block.index());
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        for (std::int64_t s = block.thread(); s < tasks.stats; s += block.threads()) {
            pass.prepare(coefficients[s], tasks.stat0 + s);
        }
        block.sync();
        for_tasks(
            block, rows, tasks, [&](std::int64_t task, std::int64_t stat, std::int64_t chunk) {
                const typename Pass::Chunk lane(block, rows, stat, chunk);
                const Reuse reuse = task >= share.soon_from ? Reuse::soon : Reuse::none;
                Partial result[Pass::width];
                pass.reduce(block, lane, coefficients + (stat - tasks.stat0), stat, chunk,
                            FromGlobal<T, Pass::whole, Pass::width>{block, lane, reuse}, result);
                for_partials(block, rows, stat, result,
                             [&](std::int64_t s, const Partial& partial) {
                                 publish(block, args.partials + s * rows.chunks + chunk, partial);
                             });
            });
        block.sync();
        const std::int64_t groups = (tasks.stats + Pass::width - 1) / Pass::width;
        for (std::int64_t g = block.warp(); g < groups; g += block.warps()) {
            const std::int64_t group = tasks.stat0 / Pass::width + g;
            const std::int64_t base = group * rows.chunks;
            const std::int64_t from = tasks.first > base ? tasks.first : base;
            const std::int64_t end = base + rows.chunks;
            const auto mine =
                static_cast<std::uint32_t>((tasks.last < end ? tasks.last : end) - from);
            std::uint32_t before = 0;
            block.sync_warp();
            if (block.lane() == 0) before = block.add(args.counters + group, mine);
            before = block.first(before);
            block.sync_warp();
            if (before + mine != static_cast<std::uint32_t>(rows.chunks)) continue;
#pragma unroll 1
            for (int s = 0; s < Pass::width; ++s) {
                const std::int64_t stat = group * Pass::width + s;
                if (stat >= rows.stats) break;
                const Partial merged = pass.merge(block, [&](std::int64_t chunk) {
                    return fresh(block, args.partials + stat * rows.chunks + chunk);
                });
                const Partial finished = pass.finish(merged, stat, block.lane() == 0);
                if (block.lane() == 0) args.totals[stat] = finished;
            }
        }
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
            Tasks::of_several_stats(rows, share, block.blocks() - 1 - block.index());
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        for (std::int64_t s = block.thread(); s < tasks.stats; s += block.threads()) {
            const std::int64_t stat = tasks.stat0 + s;
            if (args.totals == nullptr) {
                pass.set_given(coefficients[s], stat);
            } else {
                pass.prepare(coefficients[s], stat);
                pass.set(coefficients[s], stat, args.totals[stat]);
            }
        }
        block.sync();
        for_tasks(block, rows, tasks, [&](std::int64_t, std::int64_t stat, std::int64_t chunk) {
            const typename Pass::Chunk lane(block, rows, stat, chunk);
            pass.map(block, lane, coefficients + (stat - tasks.stat0), stat, chunk,
                     FromGlobal<T, Pass::whole, Pass::width>{block, lane, Reuse::none});
        });
    }
};

}  // namespace fastnorm::cuda
