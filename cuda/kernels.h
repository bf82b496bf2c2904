// The kernels of two passes, over a pass (forward.h, backward.h), for what is too large to be kept
// on chip (on_chip.h), and for what is not reduced:
//   Reduce   the parts' partial results into global memory; the last block that works on a group
//            of statistics merges them.
//   Map      what follows a Reduce, whose statistics it finishes, or given statistics. So the
//            results are a Map's: where it cannot be launched they have not been written (but for
//            prenorm's sum; and what is added up over samples or parts comes in a last launch).
// All kernels give the same bits: those follow from the chunks, not from who works on them.
#pragma once

#include "cuda/share.h"

namespace fastnorm::cuda {

// Tasks [first, last) of one block, so many of them a group, and the groups that they belong to.
struct Tasks {
    std::int64_t first, last, of_group;
    std::int64_t group0, groups;

    FASTNORM_DEVICE Tasks(std::int64_t of_group, const Share& share, std::int64_t block)
        : first(block * share.tasks_of_block),
          last(first + share.tasks_of_block < share.tasks ? first + share.tasks_of_block
                                                          : share.tasks),
          of_group(of_group),
          group0(first / of_group),
          groups((last - 1) / of_group + 1 - group0) {}

    // Whether they have a group's first one.
    FASTNORM_DEVICE bool begins(std::int64_t group) const { return first <= group * of_group; }

    // Calls f(group, which of its tasks) for the warp's tasks.
    template <class F>
    FASTNORM_DEVICE void each(const Block& block, F&& f) const {
        for (std::int64_t task = first + block.warp(); task < last; task += block.warps()) {
            const std::int64_t group = task / of_group;
            f(group, task - group * of_group);
        }
    }
};

template <class Pass>
struct Reduce {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr int width = Pass::width;
    static constexpr const char* name = "reduce";
    static constexpr int most_threads = most_warps_of_pass * warp_size;
    static constexpr int least_blocks =
        sizeof(A) == sizeof(double) || width > 1 || !Pass::whole || Pass::features ? 1 : 2;

    Arguments args;
    Share share;  // of parts

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const Tasks tasks(rows.parts, share, block.index());
        const OfBlock<Pass> own(block, rows, tasks, tasks.groups);
        auto* const last_of_group = reinterpret_cast<bool*>(own.rest(block));
        own.each(block, rows,
                 [&](auto& of, std::int64_t stat, std::int64_t) { pass.prepare(of, stat); });
        block.sync();

        tasks.each(block, [&](std::int64_t group, std::int64_t part) {
            const Reuse reuse =
                group * rows.parts + part >= share.soon_from ? Reuse::soon : Reuse::none;
            const Partial partial = of_part(block, pass, own, group, part, reuse);
            const std::int64_t stat = stat_of<width>(rows, group, own_stat<width>(block, rows));
            if (owns_stat<width>(block, rows) && stat >= 0) {
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
        own.merge(
            block, rows, pass,
            [&](std::int64_t s) { return last_of_group[s / own.stats_of_group]; },
            [&](std::int64_t stat, std::int64_t, std::int64_t part) {
                return fresh(block, args.partials + stat * rows.parts + part);
            },
            [&](auto&, std::int64_t stat, std::int64_t, const Partial& merged) {
                args.totals[stat] = merged;
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
        if (rows.chunks_of_part == 1) return partial;
        return sets.together(
            elements_of_chunks<T, Pass::whole, width>(rows, first, rows.chunks_of_part));
    }
};

template <class Pass>
struct Map {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr const char* name = "map";
    static constexpr int most_threads = most_warps_of_pass * warp_size;
    static constexpr int least_blocks = Pass::width > 1 ? 1 : 2;

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        // Backwards: what a reduction has read last is in the cache still.
        const Tasks tasks(rows.chunks, share, block.blocks() - 1 - block.index());
        const OfBlock<Pass> own(block, rows, tasks, tasks.groups);
        own.each(block, rows, [&](auto& of, std::int64_t stat, std::int64_t s) {
            if (args.totals == nullptr) {
                pass.set_given(of, stat);
            } else {
                pass.prepare(of, stat);
                const bool store = tasks.begins(own.group0 + s / own.stats_of_group);
                const Partial own_total = args.totals[stat];
                pass.finish(of, stat, own_total,
                            args.of_means == nullptr ? pass.alone(own_total, stat)
                                                     : args.of_means[args.mean_of(stat)],
                            store);
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
