// Where a tile's lanes lie under the columns traversal, what belongs to them, and the orders in
// which its rows are walked: row by row, several side by side as one, or from cache line to cache
// line. Compiled once per instruction set.
#pragma once

#include <initializer_list>

#include "cpu/spans.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
struct ColumnsLayout {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    // Lanes of a tile within a row, or within several rows side by side: [first, first + count).
    struct Lanes {
        std::int64_t first, count, rows, batch_offset;
        FASTNORM_FN Lanes(const KernelArgs& args, const Tile& tile, std::int64_t rows_together)
            : first(tile.stat0 * args.view.inner),
              count((tile.stat1 - tile.stat0) * args.view.inner * rows_together),
              rows(rows_together),
              batch_offset(tile.batch * (args.view.coefficients() / args.view.batch)) {}

        FASTNORM_FN Lanes part(std::int64_t from, std::int64_t length) const {
            Lanes lanes = *this;
            lanes.first = from;
            lanes.count = length;
            return lanes;
        }
    };

    // A tile's rows: as many as can be taken together, and the rest one by one.
    struct Halves {
        bool side_by_side;  // lie_side_by_side()
        Lanes wide, narrow;
        std::int64_t begin, middle, end;
        FASTNORM_FN Halves(const KernelArgs& args, const Tile& tile, bool together)
            : side_by_side(together),
              wide(args, tile, together ? args.view.rows_together() : 1),
              narrow(args, tile, 1),
              begin(tile.outer0),
              middle(tile.outer0 + (tile.outer1 - tile.outer0) / wide.rows * wide.rows),
              end(tile.outer1) {}

        // How many rows lane j of the wide ones has.
        FASTNORM_FN double rows_of(std::int64_t j) const {
            const std::int64_t rest = j < narrow.count ? end - middle : 0;
            return static_cast<double>((middle - begin) / wide.rows + rest);
        }

        // The lanes that all of the first rows have.
        FASTNORM_FN const Lanes& sampled() const { return middle > begin ? wide : narrow; }

        // Whether a lane is a statistic.
        FASTNORM_FN bool one_lane_each(const View& view) const {
            return wide.rows == 1 && view.inner == 1;
        }
    };

    using Results = std::initializer_list<const Operand*>;
    using Operands = std::initializer_list<Sized<T>>;

    // Whether rows follow each other without gaps in all of these tensors, and in the mask, as far
    // as they are there. It must not depend on whether there is a mask: a reduction's result would.
    static FASTNORM_FN bool lie_side_by_side(const KernelArgs& args, Operands operands) {
        const View& view = args.view;
        if (Act<kind>::piecewise && view.run() % 8 != 0 && !view.mask_is_ragged()) return false;
        for (const auto& [operand, bytes] : operands) {
            if (!*operand) continue;
            std::int64_t dense = view.run() * bytes;
            for (int d = view.outer_dims - 1; d >= 0; --d) {
                if (operand->outer_stride[d] != dense) return false;
                dense *= view.outer_extent[d];
            }
        }
        return true;
    }

    // Calls f(rows, lanes, outer, times, direct) for all that a map writes: lanes from the row at
    // outer on, of so many rows at a time, and so many times, each of them where the one before
    // has ended. Those written past the cache are cut as for_segments() cuts them; where rows lie
    // side by side these are taken from one start of a cache line of the first result to the next
    // one, and several at a time: their coefficients are most of what is loaded.
    template <class Several, class F>
    static FASTNORM_FN void for_map_pieces(const KernelArgs& args, const Tile& tile,
                                           Operands operands, Results results, Several several,
                                           F&& f) {
        const bool together = lie_side_by_side(args, operands);
        const Halves halves(args, tile, together);
        const std::int64_t run = args.view.run();
        const bool dense = together && whole_rows(args.view, halves);
        const auto result_at = [&](std::size_t which, std::int64_t o) -> T* {
            if (which >= results.size()) return nullptr;
            return row_of(args, *results.begin()[which], tile, o);
        };
        if (dense && !args.stream) {
            f(One{}, halves.wide, halves.begin, (halves.middle - halves.begin) / halves.wide.rows,
              false);
            f(One{}, halves.narrow, halves.middle, halves.end - halves.middle, false);
            return;
        }
        const auto segments_of = [&](const Lanes& at, std::int64_t o) {
            for_segments<T>(args.stream, result_at(0, o), result_at(1, o), at.first,
                            at.first + at.count,
                            [&](std::int64_t i, std::int64_t count, bool direct) {
                                f(One{}, at.part(i, count), o, 1, direct);
                            });
        };
        const std::int64_t head = head_of_line(result_at(0, tile.outer0));
        const bool repeats = args.view.coefficient_rows() > args.view.rows_together();
        if (!dense || !repeats || head > halves.wide.count) {
            for_rows(halves, segments_of);
            return;
        }
        const std::int64_t group = halves.wide.count;
        std::int64_t o = tile.outer0;
        std::int64_t first = 0;  // of the row at o, and how much is left from there on:
        std::int64_t rest = (tile.outer1 - tile.outer0) * run;
        const auto pass = [&](std::int64_t count) {
            o += (first + count) / run;
            first = (first + count) % run;
            rest -= count;
        };
        const auto segments_from_here = [&](std::int64_t count) {
            segments_of(halves.wide.part(first, count), o);
            pass(count);
        };
        // Of both results, as they lie where the first line begins.
        const T* const second = result_at(1, o);
        const bool alike = second == nullptr || head_of_line(second) == head;
        if (head > 0) segments_from_here(head < rest ? head : rest);
        const auto repeat = [&](auto rows) {
            const std::int64_t times = rest / (rows * group);
            f(rows, halves.wide.part(first, group), o, times, std::true_type{});
            pass(times * rows * group);
        };
        if (alike && group % lanes<A> == 0) {
            // The rows of a ragged mask are stored in order: each clears what follows in its byte.
            if (args.mask == nullptr || !args.view.mask_is_ragged()) repeat(several);
            repeat(One{});
        }
        // What is left of them, and groups that are no whole packs: as many packs as there are
        // coefficients for.
        while (alike && group > lanes<A> && rest >= lanes<A>) {
            const std::int64_t most = group + run - first;
            const std::int64_t count = (rest < most ? rest : most) / lanes<A> * lanes<A>;
            f(One{}, halves.wide.part(first, count), o, 1, std::true_type{});
            pass(count);
        }
        while (rest > 0) segments_from_here(rest < group ? rest : group);
    }

    // Calls f(lane) for each lane of the tile's statistic s.
    template <class F>
    static FASTNORM_FN void for_lanes_of(const KernelArgs& args, const Halves& halves,
                                         std::int64_t s, F&& f) {
        const std::int64_t inner = args.view.inner;
        for (std::int64_t row = 0; row < halves.wide.rows; ++row) {
            const std::int64_t first = row * halves.narrow.count + s * inner;
            for (std::int64_t j = first; j < first + inner; ++j) f(j);
        }
    }

    template <class E = T>
    static FASTNORM_FN E* row_of(const KernelArgs& args, const Operand& operand, const Tile& tile,
                                 std::int64_t o) {
        return run_of<E>(args.view, operand, tile.batch, o, 0);
    }

    // The coefficients of some lanes.
    static FASTNORM_FN auto coefficients_of(const KernelArgs& args, const Lanes& at) {
        return [&args, first = at.batch_offset + at.first](Coefficient which) {
            return coefficient<A>(args, which) + first;
        };
    }

    static FASTNORM_FN auto maps_from(const KernelArgs& args, const Lanes& at) {
        const auto of = coefficients_of(args, at);
        const A* const p = of(Coefficient::prescale);
        const A* const hi = of(Coefficient::mean_hi);
        const A* const lo = of(Coefficient::mean_lo);
        const A* const s = of(Coefficient::scale);
        const A* const b = of(Coefficient::bias);
        return [=](std::int64_t j, int v, auto valid) {
            return NormalizeMap<V>{load<A>(p + j, v, valid), load<A>(hi + j, v, valid),
                                   load<A>(lo + j, v, valid), load<A>(s + j, v, valid),
                                   load<A>(b + j, v, valid)};
        };
    }

    static FASTNORM_FN auto gradient_maps_from(const KernelArgs& args, const Lanes& at) {
        const auto of = coefficients_of(args, at);
        const A* const a = of(Coefficient::grad_a);
        const A* const b = of(Coefficient::grad_b);
        const A* const c = of(Coefficient::grad_c);
        const A* const s = of(Coefficient::grad_scale);
        return [=](std::int64_t j, int v, auto valid) {
            return GradientMap<V>{load<A>(a + j, v, valid), load<A>(b + j, v, valid),
                                  load<A>(c + j, v, valid), load<A>(s + j, v, valid)};
        };
    }

    // Runs are numbered in the order of memory: the rows of the mask.
    static FASTNORM_FN std::int64_t run_index(const KernelArgs& args, const Tile& tile,
                                              std::int64_t o) {
        return tile.batch * args.view.outer + o;
    }

    // From some lanes of a row on. D: the type of dy.
    template <class D = T>
    static FASTNORM_FN Backward<T, kind, D> backward_at(const KernelArgs& args, const Tile& tile,
                                                        const Lanes& at, std::int64_t o) {
        const T* residual = row_of(args, args.residual, tile, o);
        A* g = row_of<A>(args, args.g, tile, o);
        return {row_of<D>(args, args.dy, tile, o) + at.first,
                row_of(args, args.x, tile, o) + at.first,
                residual == nullptr ? nullptr : residual + at.first,
                mask_at(args, run_index(args, tile, o), at.first),
                activation_params<A>(args),
                args.stream,
                g == nullptr ? nullptr : g + at.first};
    }

    // Calls f(lanes, outer0, outer1) for each block of rows of a tile: at most columns_block values
    // a lane.
    template <class F>
    static FASTNORM_FN void for_blocks(const Halves& halves, F&& f) {
        const auto each = [&](const Lanes& at, std::int64_t from, std::int64_t to) {
            const std::int64_t block = columns_block * at.rows;
            for (std::int64_t o = from; o < to; o += block) {
                f(at, o, o + block < to ? o + block : to);
            }
        };
        each(halves.wide, halves.begin, halves.middle);
        each(halves.narrow, halves.middle, halves.end);
    }

    // Calls f(lanes, outer) for each row, or rows side by side.
    template <class F>
    static FASTNORM_FN void for_rows(const Halves& halves, F&& f) {
        for (std::int64_t o = halves.begin; o < halves.middle; o += halves.wide.rows) {
            f(halves.wide, o);
        }
        for (std::int64_t o = halves.middle; o < halves.end; ++o) f(halves.narrow, o);
    }

    // From the rows at some outer index to those after them, where they lie side by side.
    static FASTNORM_FN std::int64_t pitch(const View& view, const Lanes& at) {
        return view.run() * at.rows;
    }

    // Whether a tile has all of a row.
    static FASTNORM_FN bool whole_rows(const View& view, const Halves& halves) {
        return halves.narrow.count == view.run();
    }

    // Calls f(rows, outer, times) for the rows of a reduction's block: so many from outer on, and
    // so many times, each of them where the one before has ended. in_order: one by one.
    template <class F>
    static FASTNORM_FN void for_several(bool in_order, const Halves& halves, const Lanes& at,
                                        std::int64_t outer0, std::int64_t outer1, F&& f) {
        constexpr RowCount<columns_rows_at_a_time> several;
        if (!halves.side_by_side) {
            for (std::int64_t o = outer0; o < outer1; o += at.rows) f(One{}, o, 1);
            return;
        }
        const std::int64_t all = (outer1 - outer0) / at.rows;
        const std::int64_t times = in_order ? 0 : all / several;
        f(several, outer0, times);
        f(One{}, outer0 + times * several * at.rows, all - times * several);
    }

    // What a reduction fetches while it reads some rows: a bit further on in memory, or, where
    // several rows are taken at a time or only a part of each, as many that follow.
    static FASTNORM_FN Ahead ahead_of(const KernelArgs& args, const Operand& operand,
                                      const Halves& halves, const Lanes& at, int rows,
                                      std::int64_t o) {
        const View& view = args.view;
        if (!halves.side_by_side) {
            const std::int64_t next = o + at.rows;
            if (next >= view.outer) return {};
            return {outer_offset(view, operand, next) - outer_offset(view, operand, o)};
        }
        if (rows == 1 && whole_rows(view, halves)) return {2048};
        return {rows * pitch(view, at) * static_cast<std::int64_t>(sizeof(T))};
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
