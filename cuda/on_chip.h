// The kernel that moves each tensor once: reduce, finish and map, with all that is read twice kept
// in shared memory, in a store (slots.h, images.h). The chunks of a unit of statistics lie in one
// block, in a cluster, or in several blocks that wait for each other.
#pragma once

#include "cuda/images.h"
#include "cuda/parameter_sums.h"
#include "cuda/slots.h"

namespace fastnorm::cuda {

// adds_up: backward under features, without an activation, adds up what belongs to the parameters,
// too: a team's groups are the rows of a part, and a warp has one chunk of a set's rows. As a
// multiprocessor has registers for one such block alone, it loads a unit while it works on another.
template <class Pass, template <class> class StoreOf, bool adds_up = false>
struct OnChip {
    using T = typename Pass::T;
    using A = typename Pass::A;
    using Chunk = typename Pass::Chunk;
    using Store = StoreOf<Pass>;
    static constexpr int width = Pass::width;
    static constexpr const char* name = adds_up ? "on_chip_with_parameters" : Store::name;
    static constexpr int most_threads =
        (adds_up ? warps_of_features : warps_on_chip(width)) * warp_size;
    static constexpr int least_blocks = 1;  // of a multiprocessor

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Pass pass(block, args);
        const int rank = static_cast<int>(block.index() % share.team);
        const std::int64_t team = block.index() / share.team, teams = block.blocks() / share.team;
        const auto tile_of = [&](int round) {
            return Tile(args.rows, share, team, teams, round, rank);
        };
        OwnSums sums;
        // All teams of a grid meet at once: in the last round some have a unit of nothing.
        Tile tile = tile_of(0);
        for (int round = 0; round < share.rounds; ++round) {
            const Tile next = tile_of(round + 1);
            one_unit(block, pass, tile, next, round, rank, sums);
            if constexpr (adds_up) leave_at_end_of_lap(block, pass, tile, team, sums);
            tile = next;
        }
    }

  private:
    static constexpr int buffers = adds_up ? 2 : 1;
    struct NoSums {};
    template <bool adds, class P>
    struct SumsOf {
        using Type = NoSums;
    };
    template <class P>
    struct SumsOf<true, P> {
        using Type = LapSums<P, P::packs>;
    };
    using OwnSums = typename SumsOf<adds_up, Pass>::Type;

    FASTNORM_DEVICE void one_unit(const Block& block, const Pass& pass, const Tile& tile,
                                  const Tile& next, int round, int rank, OwnSums& sums) const {
        const Rows& rows = args.rows;
        const bool cluster = share.team > 1 && !share.in_global;
        // Units of fewer groups have the same room, so that everything has its place: in a team's
        // blocks, which find the others' partial results there, and for the next unit.
        const OfBlock<Pass> own(block, rows, tile, share.groups_of_unit);
        auto* const partials = reinterpret_cast<Partial*>(own.rest(block));
        Partial* const totals = partials + share.chunks_of_block * own.room;
        char* const memory = reinterpret_cast<char*>(totals + (shares_means() ? own.room : 0));
        const auto buffer = [&](int of_round) {
            if constexpr (buffers == 1) {
                return memory;
            } else {
                return memory + of_round % buffers * share.groups_of_unit * share.chunks_of_block *
                                    pass.arrays().of_reduction * rows.slot_bytes();
            }
        };
        const Store store(block, rows, pass, tile, own, buffer(round));
        // The place of a partial result, by the chunk's number in its block.
        const auto place = [&](std::int64_t group, std::int64_t chunk, std::int64_t s) {
            return partials +
                   ((group - tile.group0) * share.chunks_of_block + chunk) * own.stats_of_group + s;
        };

        if (round == 0 || !Store::of_lanes) store.load(rows, tile);
        own.each(block, rows,
                 [&](auto& of, std::int64_t stat, std::int64_t) { pass.prepare(of, stat); });
        block.wait_for_copies();
        block.sync();
        if constexpr (buffers > 1) {
            Store(block, rows, pass, next, own, buffer(round + 1)).load(rows, next);
        }

        tile.each(block, [&](std::int64_t group, std::int64_t chunk, std::int64_t task) {
            const Chunk lane(block, rows, group, chunk);
            if constexpr (Pass::makes_x) {
                if (args.addends_of_x[0]) pass.make_x(lane, store.source(lane, task));
            }
            const Partial partial =
                pass.reduce(block, lane, own.of(lane), store.source(lane, task));
            if (!owns_stat<width>(block, rows)) return;
            *place(group, chunk - tile.chunk0, own_stat<width>(block, rows)) = partial;
        });
        if (rows.chunks_of_part > 1 || share.in_global) {
            block.sync();
            gather(block, tile, own, place);
        }
        // Until all partial results of the unit are there to be read.
        if (share.in_global) {
            block.sync_grid();
        } else if (cluster) {
            block.arrive_at_cluster();
            block.wait_for_cluster();
        } else {
            block.sync();
        }

        // What is returned is left by one of the blocks that find the same.
        const bool stores = rank == 0;
        own.merge(
            block, rows, pass, [](std::int64_t) { return true; },
            [&](std::int64_t stat, std::int64_t s, std::int64_t part) -> Partial {
                if (share.in_global) {
                    return fresh(block, args.partials + stat * rows.parts + part);
                }
                const std::int64_t group = s / own.stats_of_group;
                const std::int64_t chunk = part * rows.chunks_of_part;
                const std::int64_t owner = cluster ? chunk / share.chunks_of_block : 0;
                const Partial* const at =
                    place(tile.group0 + group, chunk - owner * share.chunks_of_block,
                          s - group * own.stats_of_group);
                return cluster ? *block.of_peer(at, static_cast<int>(owner)) : *at;
            },
            [&](auto& of, std::int64_t stat, std::int64_t s, const Partial& merged) {
                if (shares_means()) {
                    totals[s] = merged;
                } else {
                    pass.finish(of, stat, merged, pass.alone(merged, stat), stores);
                }
            });
        if constexpr (!Pass::features) {
            if (shares_means()) finish_together(block, pass, own, totals, stores);
        }
        if (cluster) block.arrive_at_cluster();  // nothing of the others is needed from here on
        block.sync();

        tile.each(block, [&](std::int64_t group, std::int64_t chunk, std::int64_t task) {
            const Chunk lane(block, rows, group, chunk);
            if constexpr (adds_up) {
                const auto* const of = own.of(lane);
                pass.map_identity(block, lane, of, store.source_of_map(lane, task),
                                  unit_of<A>(args, *of), sums);
            } else {
                pass.map(block, lane, own.of(lane), store.source_of_map(lane, task));
            }
        });
        store.store(rows, tile);
        // Into what only the lane itself has read.
        if (buffers == 1 && Store::of_lanes) store.load(rows, next);
        if (cluster) block.wait_for_cluster();
        block.sync();
    }

    FASTNORM_DEVICE bool shares_means() const {
        return !Pass::features && args.rows.stats_of_mean > 1;
    }

    // From the totals of all statistics that share a mean, which a unit has side by side.
    FASTNORM_DEVICE void finish_together(const Block& block, const Pass& pass,
                                         const OfBlock<Pass>& own, const Partial* totals,
                                         bool stores) const {
        block.sync();
        own.each_mean_of_warp(block, args.rows, [&](std::int64_t stat, std::int64_t s) {
            const OfMean together =
                pass.together(block, stat, [&](std::int64_t i) { return totals[s + i]; });
            for (std::int64_t i = block.lane(); i < args.rows.stats_of_mean; i += warp_size) {
                pass.finish(own.coefficients[s + i], stat + i, totals[s + i], together, stores);
            }
        });
    }

    FASTNORM_DEVICE void leave_at_end_of_lap(const Block& block, const Pass& pass, const Tile& tile,
                                             std::int64_t part, OwnSums& sums) const {
        const RowParts& parts = args.row_parts;
        const std::int64_t done = tile.group0 + tile.groups - part * parts.rows;
        const Lap lap(args.rows, parts, part, (done - 1) / parts.rows_of_lap());
        if (tile.groups == 0 || tile.group0 + tile.groups < lap.last) return;
        const std::int64_t chunk = tile.chunk0 + block.warp() % share.chunks_of_block;
        sums.leave(block, pass, lap, static_cast<int>(block.warp() / share.chunks_of_block),
                   chunk * (warp_size * Pass::packs) + block.lane());
    }

    // From the partial results of the block's chunks to those of parts, in the place of their first
    // chunk's, and to where other blocks find them.
    template <class Place>
    FASTNORM_DEVICE void gather(const Block& block, const Tile& tile, const OfBlock<Pass>& own,
                                Place&& place) const {
        const Rows& rows = args.rows;
        const std::int64_t parts = (tile.chunks + rows.chunks_of_part - 1) / rows.chunks_of_part;
        for (std::int64_t i = block.thread(); i < own.stats * parts; i += block.threads()) {
            const std::int64_t group = i / own.stats_of_group / parts;
            const std::int64_t part = i / own.stats_of_group % parts;
            const std::int64_t s = i % own.stats_of_group;
            const std::int64_t stat = stat_of<width>(rows, tile.group0 + group, s);
            if (stat < 0) continue;
            const std::int64_t first = part * rows.chunks_of_part;
            Partial* const of_part = place(tile.group0 + group, first, s);
            if (rows.chunks_of_part > 1) {
                typename Pass::Sets sets(*of_part);
                for (std::int64_t q = 0; q < rows.chunks_of_part && first + q < tile.chunks; ++q) {
                    sets.add(
                        of_part[q * own.stats_of_group],
                        elements_of_chunks<T, Pass::whole, width>(rows, tile.chunk0 + first + q));
                }
                *of_part = sets.together(elements_of_chunks<T, Pass::whole, width>(
                    rows, tile.chunk0 + first, rows.chunks_of_part));
            }
            if (share.in_global) {
                const std::int64_t part_of_stat = tile.chunk0 / rows.chunks_of_part + part;
                publish(block, args.partials + stat * rows.parts + part_of_stat, *of_part);
            }
        }
    }
};

}  // namespace fastnorm::cuda
