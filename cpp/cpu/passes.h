// The two shapes of a call: a map alone, and reduce -> finish -> map; and how threads share either.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "cpu/scratch.h"

namespace fastnorm {

// The threads, or none where it would take longer to wake them: for so many elements, of about a
// nanosecond each, or statistics, whose divisions and roots take longer.
inline ParallelFor worth_waking(const ParallelFor& parallel_for, std::int64_t elements) {
    return elements <= 1 << 15 ? ParallelFor() : parallel_for;
}
inline ParallelFor worth_waking_for_stats(const ParallelFor& parallel_for, const View& view) {
    constexpr std::int64_t elements_of_stat = 32;
    return worth_waking(parallel_for, view.stats() * elements_of_stat);
}

// Calls f(first, how many) for pieces of stats [from, to), whole groups of them, a task each.
template <class F>
void for_stats(const ParallelFor& parallel_for, std::int64_t group, std::int64_t from,
               std::int64_t to, F&& f) {
    const std::int64_t most = std::max<std::int64_t>(stats_block / group, 1) * group;
    parallel_for(divide_up(to - from, most), [&](std::int64_t task) {
        const std::int64_t first = from + task * most;
        f(first, std::min(most, to - first));
    });
}

// Each thread takes a contiguous share of [0, count): the same one every time. f(from, to), or
// f(share, from, to).
template <class F>
void for_shares(const ParallelFor& parallel_for, std::int64_t count, F&& f) {
    const std::int64_t shares = std::min<std::int64_t>(parallel_for.threads, count);
    parallel_for(shares, [&](std::int64_t share) {
        const std::int64_t from = count * share / shares, to = count * (share + 1) / shares;
        if constexpr (std::is_invocable_v<F&, std::int64_t, std::int64_t, std::int64_t>) {
            f(share, from, to);
        } else {
            f(from, to);
        }
    });
}

inline void map_only(const ParallelFor& parallel_for, const KernelArgs& args, const Plan& plan,
                     Map map, void (*fence)()) {
    for_shares(parallel_for, plan.units() * plan.chunks(), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) map(args, plan.unit_in_memory_order(i));
        fence();
    });
}

// What reduce_finish_map() calls.
struct Passes {
    Map prepare = nullptr;  // makes what is reduced
    Reduction reduce = nullptr;
    Map map = nullptr;
    MapAndReduction map_and_reduce = nullptr;  // or none
    void (*fence)() = nullptr;
};

// reduce, then finish(first, how many) for the stats, then map backwards what was reduced, so that
// the map begins with what the reduction has left in the cache; or, interleaved, map forwards while
// the next unit is reduced.
template <class Finish>
class ReduceFinishMap {
  public:
    ReduceFinishMap(const ParallelFor& parallel_for, const KernelArgs& args,
                    const KernelArgs& map_args, const Schedule& schedule, const Scratch& scratch,
                    const Passes& passes, Finish& finish)
        : parallel_for_(parallel_for),
          args_(args),
          map_args_(map_args),
          schedule_(schedule),
          plan_(schedule.plan),
          map_plan_(schedule.map),
          scratch_(scratch),
          passes_(passes),
          finish_(finish) {}

    void run() const { schedule_.shared ? share_each_unit() : share_units(); }

  private:
    bool columns() const { return plan_.view.traversal == Traversal::columns; }

    // What the units of a share are computed with: what the call has, or, where their sums leave g
    // for the map in a place of the share's own, copies that know it.
    class Arguments {
      public:
        Arguments(const ReduceFinishMap& of, std::int64_t share) : of_(of), share_(share) {
            if (of.schedule_.kept > 0) own_ = {of.args_, of.map_args_};
        }
        void begin(std::int64_t unit) {
            if (!own_) return;
            const std::int64_t stat0 = of_.plan_.unit(unit, 0).stat0;
            own_->first.g = own_->second.dy = of_.scratch_.place_of(of_.schedule_, share_, stat0);
        }
        const KernelArgs& of_reduce() const { return own_ ? own_->first : of_.args_; }
        const KernelArgs& of_map() const { return own_ ? own_->second : of_.map_args_; }

      private:
        const ReduceFinishMap& of_;
        std::int64_t share_;
        std::optional<std::pair<KernelArgs, KernelArgs>> own_;
    };

    // A thread has units of its own.
    void share_units() const {
        const auto share_of = [&](std::int64_t share, std::int64_t from, std::int64_t to) {
            const std::int64_t chunks = plan_.chunks();
            const std::int64_t first = from * plan_.units_of_sums;
            const std::int64_t last = std::min(to * plan_.units_of_sums, plan_.units());
            Arguments args(*this, share);
            bool reduced = false;
            for (std::int64_t unit = first; unit < last; ++unit) {
                args.begin(unit);
                if (!reduced) {
                    for (std::int64_t c = 0; c < chunks; ++c) {
                        for (std::int64_t part = 0; part < plan_.unit_tiles; ++part) {
                            reduce(args, unit, part, c);
                        }
                    }
                }
                finish(ParallelFor(), unit);
                reduced = schedule_.interleaved && unit + 1 < last && alike(unit, unit + 1);
                if (!reduced) {
                    for (std::int64_t c = map_plan_.chunks(); c-- > 0;)
                        map_backwards(args, unit, c);
                    continue;
                }
                for (std::int64_t c = 0; c < chunks; ++c) {
                    for (std::int64_t part = 0; part < plan_.unit_tiles; ++part) {
                        map_and_reduce(unit, unit + 1, part, c);
                    }
                }
            }
            passes_.fence();
        };
        for_shares(parallel_for_, plan_.sums(), share_of);
    }

    // All threads share one unit at a time, so that it is still in their caches for the map.
    void share_each_unit() const {
        const std::int64_t parts = plan_.unit_tiles, tiles = parts * plan_.chunks();
        Arguments args(*this, 0);
        for (std::int64_t unit = 0; unit < plan_.units(); ++unit) {
            args.begin(unit);
            for_shares(parallel_for_, tiles, [&](std::int64_t from, std::int64_t to) {
                for (std::int64_t i = from; i < to; ++i) {
                    reduce(args, unit, i % parts, i / parts);
                }
            });
            finish(parallel_for_, unit);
            columns() ? share_rows(args, unit) : share_tiles(args, unit);
        }
    }

    void share_tiles(const Arguments& args, std::int64_t unit) const {
        const std::int64_t parts = map_plan_.unit_tiles, tiles = parts * map_plan_.chunks();
        for_shares(parallel_for_, tiles, [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t i = to; i-- > from;) {
                map(args, map_plan_.tile(unit, i % parts, i / parts));
            }
            passes_.fence();
        });
    }

    // Whole rows: parts of them would meet in cache lines.
    void share_rows(const Arguments& args, std::int64_t unit) const {
        for_shares(parallel_for_, map_plan_.view.outer, [&](std::int64_t from, std::int64_t to) {
            Tile tile = map_plan_.unit(unit, 0);
            for (tile.outer1 = to; tile.outer1 > from; tile.outer1 = tile.outer0) {
                tile.outer0 = std::max(from, tile.outer1 - map_plan_.chunk_outer);
                map(args, tile);
            }
            passes_.fence();
        });
    }

    void map_backwards(const Arguments& args, std::int64_t unit, std::int64_t chunk) const {
        if (columns()) return map(args, map_plan_.unit(unit, chunk));
        for (std::int64_t part = map_plan_.unit_tiles; part-- > 0;) {
            map(args, map_plan_.tile(unit, part, chunk));
        }
    }

    void map(const Arguments& args, const Tile& tile) const {
        if (tile.stat0 < tile.stat1) passes_.map(args.of_map(), tile);
    }

    std::int64_t partial_at(const Tile& tile, std::int64_t chunk) const {
        return chunk * plan_.view.stats() + tile.batch * plan_.view.stat + tile.stat0;
    }

    void reduce(const Arguments& args, std::int64_t unit, std::int64_t part,
                std::int64_t chunk) const {
        const Tile tile = plan_.tile(unit, part, chunk);
        const std::int64_t at = partial_at(tile, chunk);
        if (passes_.prepare != nullptr) passes_.prepare(args.of_reduce(), tile);
        passes_.reduce(args.of_reduce(), tile, scratch_.first + at, scratch_.second + at);
    }

    void map_and_reduce(std::int64_t mapped, std::int64_t reduced, std::int64_t part,
                        std::int64_t chunk) const {
        const Tile tile = plan_.tile(reduced, part, chunk);
        const std::int64_t at = partial_at(tile, chunk);
        passes_.map_and_reduce(args_, plan_.tile(mapped, part, chunk), tile, scratch_.first + at,
                               scratch_.second + at);
    }

    bool alike(std::int64_t a, std::int64_t b) const {
        const Tile of_a = plan_.unit(a, 0), of_b = plan_.unit(b, 0);
        return of_a.stat1 - of_a.stat0 == of_b.stat1 - of_b.stat0;
    }

    void finish(const ParallelFor& parallel_for, std::int64_t unit) const {
        const View& view = map_plan_.view;
        const Tile tile = map_plan_.unit(unit, 0);
        const std::int64_t base = tile.batch * view.stat;
        for_stats(parallel_for, view.group, base + tile.stat0, base + tile.stat1, finish_);
    }

    const ParallelFor& parallel_for_;
    const KernelArgs &args_, &map_args_;
    const Schedule& schedule_;
    const Plan& plan_;
    const Plan& map_plan_;
    const Scratch& scratch_;
    const Passes& passes_;
    Finish& finish_;
};

}  // namespace fastnorm
