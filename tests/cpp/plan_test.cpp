// How reductions are cut: chunks cover the outer extent, none is empty or much smaller than the
// others, and they follow from one batch index of the view alone.
#include "cpu/plan.h"

#include <string>

#include "cpu/machine.h"
#include "cpu/scratch.h"
#include "expect.h"

namespace {

fastnorm::View columns(std::int64_t batch, std::int64_t outer, std::int64_t stat) {
    fastnorm::View view;
    view.traversal = fastnorm::Traversal::columns;
    view.batch = batch;
    view.outer = view.outer_extent[0] = outer;
    view.stat = stat;
    return view;
}

fastnorm::View planes(std::int64_t outer, std::int64_t stat, std::int64_t inner) {
    fastnorm::View view = columns(1, outer, stat);
    view.traversal = fastnorm::Traversal::rows;
    view.inner = inner;
    return view;
}

// Neighbouring planes that share a tile: what is taken together has to fit into a cache.
void test_groups_of_planes(std::int64_t side, std::int64_t group) {
    const fastnorm::Plan plan = fastnorm::reduction_plan(planes(32, 256, side * side), 4, 1, 2);
    expect(plan.tile_stats == group, "planes of side " + std::to_string(side) + ": " +
                                         std::to_string(plan.tile_stats) + " together, expected " +
                                         std::to_string(group));
}

void test_interleaving() {
    const auto interleaved = [](std::int64_t stat, std::int64_t side, int twice, int threads) {
        return fastnorm::schedule_reduction(planes(8, stat, side * side), 4, twice, 1 + twice,
                                            threads, true)
            .interleaved;
    };
    expect(interleaved(256, 56, 1, 2), "a large tensor is not interleaved");
    expect(!interleaved(4, 56, 1, 2), "what is not streamed is interleaved");
    expect(!interleaved(2048, 7, 1, 2), "short rows of one tensor are interleaved");
    expect(!interleaved(2048, 7, 2, 2), "short rows of two tensors are interleaved");
    expect(interleaved(256, 56, 2, 2), "two large tensors are not interleaved");
    expect(!interleaved(1, 512, 1, 1), "a single unit is interleaved");
    expect(!fastnorm::schedule_reduction(planes(8, 256, 56 * 56), 4, 1, 2, 2, false).interleaved,
           "interleaved without kernels for it");
}

void test_sharing() {
    const auto shared = [](const fastnorm::View& view) {
        return fastnorm::schedule_reduction(view, 4, 1, 2, 2, true).shared;
    };
    expect(!shared(planes(2, 64, 8'000'000)), "threads wait for each other in each unit");
    expect(shared(planes(2, 3, 8'000'000)), "three units for two threads are not shared");
    fastnorm::View samples = columns(2, 8'000'000, 16);
    expect(shared(samples), "what fits no thread's cache is not shared");
    samples = columns(2, 4'000, 8);
    expect(!shared(samples), "what fits each thread's cache is shared");
}

// Rows with a weight for each of their elements: forward, or backward, which reads two tensors.
void test_sharing_of_features() {
    const auto schedule = [](std::int64_t rows, std::int64_t inner, int twice, int threads) {
        fastnorm::View view = planes(1, rows, inner);
        view.traversal = fastnorm::Traversal::features;
        return fastnorm::schedule_reduction(view, 4, twice, 1 + twice, threads, false);
    };
    for (const int twice : {1, 2}) {
        const fastnorm::Schedule row = schedule(1, 262'144, twice, 2);
        expect(row.threads == 2 && row.shared && row.plan.chunks() >= 2,
               "two threads do not share a single long row");
        expect(schedule(1, 4096, twice, 2).threads == 1, "a token wakes a thread");
        const fastnorm::Schedule few = schedule(32, 4096, twice, 2);
        expect(few.threads == 2 && !few.shared && few.plan.sums() % 2 == 0,
               "each of two threads has no rows of 32");
    }
    for (const std::int64_t rows : {1, 7, 17, 31, 32, 33, 100, 512, 1024, 4096, 65'536}) {
        const fastnorm::Plan plan = schedule(rows, 1024, 2, 1).plan;
        const fastnorm::Plan other = schedule(rows, 1024, 2, 64).plan;
        expect(plan.unit_stats == other.unit_stats && plan.units_of_sums == other.units_of_sums &&
                   plan.chunk_inner == other.chunk_inner,
               "what adds up gradients depends on threads");
        expect(plan.sums() == 1 || 16 * plan.sums() <= rows, "few rows to a sum of gradients");
        expect(plan.sums() <= 8 || 64 * plan.sums() <= rows, "many sums of few rows");
    }
}

// Groups whose rows are summed as one: the map has the same units, of the rows themselves.
void test_joined_groups() {
    for (const std::int64_t group : {2, 3, 16, 40}) {
        for (const std::int64_t groups : {1, 3, 13, 33}) {
            fastnorm::View view = planes(1, group * groups, 64);
            view.batch = group == 2 ? 2 : 1;
            view.group = group;
            for (const int threads : {1, 2, 5, 64}) {
                const fastnorm::Schedule schedule =
                    fastnorm::schedule_joined_groups(view, 4, 2, threads);
                const fastnorm::Plan &sums = schedule.plan, &map = schedule.map;
                expect(sums.view.reduced() == view.reduced(), "a joined row is not a group");
                expect(sums.units() == map.units(), "units of a map are not those of its sums");
                std::int64_t covered = 0;
                for (std::int64_t u = 0; u < map.units(); ++u) {
                    const fastnorm::Tile summed = sums.unit(u, 0), mapped = map.unit(u, 0);
                    expect(mapped.batch == summed.batch && mapped.stat0 == summed.stat0 * group &&
                               mapped.stat1 == summed.stat1 * group,
                           "a map has other groups than its sums");
                    for (std::int64_t part = 0; part < map.unit_tiles; ++part) {
                        const fastnorm::Tile tile = map.tile(u, part, 0);
                        covered += tile.stat1 - tile.stat0;
                        expect(tile.stat0 <= tile.stat1 && tile.stat1 <= mapped.stat1,
                               "a tile is not of its unit");
                    }
                }
                expect(covered == view.stats(), "rows are left out");
            }
        }
    }
    fastnorm::View large = planes(1, 4, 2048 * 2048);
    large.group = 2;
    expect(fastnorm::schedule_joined_groups(large, 2, 2, 3).map.chunks() > 16,
           "threads that share a group do not share its rows");
    fastnorm::View view = planes(1, 64, 144);
    view.group = 2;
    fastnorm::Operand x;
    x.stat_stride = 144 * 4;
    expect(fastnorm::joins_groups(view, x, 4), "short rows side by side are not joined");
    x.stat_stride += 4;
    expect(!fastnorm::joins_groups(view, x, 4), "rows with gaps are joined");
    view.inner = 96 * 96;
    x.stat_stride = view.inner * 4;
    expect(!fastnorm::joins_groups(view, x, 4), "long rows are not interleaved");
    x.stat_stride = view.inner * 2;
    expect(fastnorm::joins_groups(view, x, 2), "in 16 bits long rows are not joined");
    view.group = 1;
    expect(!fastnorm::joins_groups(view, x, 2), "a row is joined with itself");
}

// Where backward keeps what its sums compute for its map.
void test_places_for_gradients() {
    const auto kept = [](const fastnorm::View& view, std::int64_t bytes, int threads) {
        fastnorm::Schedule schedule =
            fastnorm::schedule_reduction(view, bytes, 2, 3, threads, false);
        fastnorm::keep_in_scratch(schedule, 4, bytes == 4);
        return schedule;
    };
    fastnorm::View groups = planes(1, 320, 64 * 64);
    groups.batch = 2;
    groups.group = 10;
    for (const std::int64_t bytes : {2, 4}) {
        const fastnorm::Schedule schedule = kept(groups, bytes, 2);
        expect(schedule.kept == 10 * 64 * 64, "the place is not a unit's");
        expect(schedule.shares() == 2, "two threads do not have a place each");
    }
    groups.inner = 8192 * 8192;
    expect(kept(groups, 4, 2).kept == 0, "a place of gigabytes");
    expect(kept(columns(2, 100, 1280), 2, 2).kept == 128'000, "whole rows are not kept");
    expect(kept(columns(1, 100, 1312), 2, 1).kept == 0, "parts of rows are kept");
    const fastnorm::View large = columns(1, 250'000, 64);
    expect(kept(large, 2, 2).kept == large.elements(), "in 16 bits a slope is computed twice");
    expect((kept(large, 4, 2).kept == 0) == (4 * large.elements() > fastnorm::caches().l3 / 4 * 3),
           "what no cache holds is not left in dx");
}

void test_chunks_of_columns(std::int64_t outer, std::int64_t stat) {
    const std::string name = std::to_string(outer) + " rows of " + std::to_string(stat) + ": ";
    const fastnorm::Plan plan = fastnorm::reduction_plan(columns(1, outer, stat), 4, 1, 1);
    std::int64_t covered = 0;
    for (std::int64_t c = 0; c < plan.chunks(); ++c) {
        const fastnorm::Tile tile = plan.unit(0, c);
        expect(tile.outer0 == covered && tile.outer1 > covered, name + "a chunk is out of order");
        covered = tile.outer1;
    }
    expect(covered == outer, name + "chunks do not cover the rows");
    expect(16 * plan.chunk_outer * plan.chunks() <= 17 * outer + 32 * plan.chunks(),
           name + "chunks are not even");
    for (const std::int64_t batch : {2, 7}) {
        for (const int threads : {1, 5, 64}) {
            const fastnorm::Plan other =
                fastnorm::reduction_plan(columns(batch, outer, stat), 4, 1, threads);
            expect(other.chunk_outer == plan.chunk_outer && other.chunks() == plan.chunks(),
                   name + "chunks depend on the batch or on threads");
        }
    }
}

// Wide rows of columns: in tiles of one size, and as many as a group of more channels needs.
void test_tiles_of_columns() {
    for (const std::int64_t stat : {1280, 1312, 1536, 1920, 2048, 2560, 2624, 4096, 5000}) {
        for (const std::int64_t group : {std::int64_t{1}, stat / 2}) {
            fastnorm::View view = columns(2, 2000, stat);
            view.group = group;
            const fastnorm::Plan plan = fastnorm::reduction_plan(view, 4, 1, 2);
            const std::int64_t tiles =
                group > 1 ? plan.unit_tiles : fastnorm::divide_up(stat, plan.tile_stats);
            const std::string name = std::to_string(stat) + " channels: ";
            expect(plan.tile_stats <= fastnorm::columns_tile_lanes, name + "a tile is too large");
            expect((tiles > 1) == (stat > fastnorm::columns_tile_lanes), name + "tiles");
            expect(tiles * plan.tile_stats < stat + 32 * tiles, name + "tiles are not even");
        }
    }
}

// The arrays of a call's coefficients, up to nine, of floats or doubles.
void test_coefficients_do_not_displace_each_other() {
    for (std::int64_t stat = 1; stat <= 5000; ++stat) {
        const fastnorm::View view = planes(2, stat, 49);
        const std::int64_t stride = fastnorm::Scratch::stride_of(view);
        expect(stride >= view.coefficients(), std::to_string(stat) + " statistics: no room");
        for (const std::int64_t size : {4, 8}) {
            for (std::int64_t apart = 1; apart < 9; ++apart) {
                expect(apart * stride * size % 4096 != 0,
                       std::to_string(stat) + " statistics: arrays a multiple of 4 KiB apart");
            }
        }
    }
}

}  // namespace

int main() {
    test_coefficients_do_not_displace_each_other();
    for (const std::int64_t stat : {1, 3, 8, 24, 64, 256, 1000, 1024, 2048, 5000}) {
        for (std::int64_t outer = 2; outer < 2000; outer += 1 + outer / 16) {
            test_chunks_of_columns(outer, stat);
        }
        for (const std::int64_t outer : {4100, 25088, 100352, 400000}) {
            test_chunks_of_columns(outer, stat);
        }
    }
    // Four for two threads, or four: 32 images of 7x7.
    expect(fastnorm::reduction_plan(columns(1, 1568, 2048), 4, 1, 2).chunks() == 8, "1568 rows");
    expect(fastnorm::reduction_plan(columns(1, 196, 1024), 4, 1, 2).chunk_outer == 49, "196 rows");
    test_groups_of_planes(7, 32);
    test_groups_of_planes(14, 8);
    test_groups_of_planes(28, 2);
    test_groups_of_planes(56, 1);
    // Where a plane has no whole number of lines, only if few more together have.
    test_groups_of_planes(13, 16);
    test_groups_of_planes(35, 2);
    test_groups_of_planes(147, 1);
    test_interleaving();
    test_tiles_of_columns();
    test_places_for_gradients();
    test_joined_groups();
    test_sharing();
    test_sharing_of_features();
    return test_result();
}
