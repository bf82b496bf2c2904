// Where a tile's lanes lie under the columns traversal, and the orders in which its rows are
// walked: row by row, several side by side as one, or from cache line to cache line. Compiled once
// per instruction set.
#pragma once

#include <initializer_list>

#include "cpu/lanes.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
struct ColumnsLayout {
    using A = accumulator_t<T>;

    // From rows of so many lanes on a map takes several rows at a time: five coefficients a lane
    // fill much of the L1 cache, nine of them take as long to load as all else.
    static constexpr std::int64_t wide_forward = 4096 / static_cast<std::int64_t>(sizeof(A));
    static constexpr std::int64_t wide_backward = 1024 / static_cast<std::int64_t>(sizeof(A));
    static_assert(wide_backward >= shortest_direct, "several rows are one direct piece");

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
        Lanes wide, narrow;
        std::int64_t begin, middle, end;
        FASTNORM_FN Halves(const KernelArgs& args, const Tile& tile, bool together)
            : wide(args, tile, together ? args.view.rows_together() : 1),
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

    using Operands = std::initializer_list<const Operand*>;

    // Whether rows follow each other without gaps in all of these tensors, and in the mask, as far
    // as they are there. It must not depend on whether there is a mask, nor for a reduction on
    // tensors that it does not read: its result would.
    static FASTNORM_FN bool lie_side_by_side(const KernelArgs& args, Operands operands) {
        const View& view = args.view;
        if (view.coefficient_rows() == 1) return false;
        if (Act<kind>::piecewise && view.run() % 8 != 0) return false;
        for (const Operand* operand : operands) {
            if (!*operand) continue;
            std::int64_t dense = view.run() * static_cast<std::int64_t>(sizeof(T));
            for (int d = view.outer_dims - 1; d >= 0; --d) {
                if (operand->outer_stride[d] != dense) return false;
                dense *= view.outer_extent[d];
            }
        }
        return true;
    }

    // Calls f(how many, lanes, outer) for the rows of a map. Where they lie side by side and are
    // written past the cache, they are taken from one start of a cache line of the first result to
    // the next one, and several at a time from wide lanes on.
    template <class F>
    static FASTNORM_FN void for_map_rows(const KernelArgs& args, const Tile& tile,
                                         Operands operands, Operands results, std::int64_t wide,
                                         F&& f) {
        const bool together = lie_side_by_side(args, operands);
        const Halves halves(args, tile, together);
        const std::int64_t run = args.view.run();
        std::int64_t rest = (tile.outer1 - tile.outer0) * run;
        const auto head_of = [&](const Operand& result) {
            return head_of_line(row_of(args, result, tile, tile.outer0));
        };
        const std::int64_t head = head_of(**results.begin());
        bool alike = true;
        for (const Operand* result : results) alike &= !*result || head_of(*result) == head;
        const bool repeats = args.view.coefficient_rows() > args.view.rows_together();
        const bool walks_lines =
            together && repeats && args.stream && halves.narrow.count == run && head <= run;
        if (!walks_lines) {
            for_rows(halves, [&](const Lanes& at, std::int64_t o) { f(One{}, at, o); });
            return;
        }
        if (head > 0) f(One{}, halves.wide.part(0, head), tile.outer0);
        rest -= head;
        std::int64_t o = tile.outer0;
        const std::int64_t group = halves.wide.count;
        if (alike && group >= wide && group % lanes<A> == 0) {
            for (; rest >= most_rows * group; rest -= most_rows * group) {
                f(most_rows, halves.wide.part(head, group), o);
                o += most_rows * halves.wide.rows;
            }
        }
        for (; rest > 0; o += halves.wide.rows) {
            const std::int64_t count = rest < halves.wide.count ? rest : halves.wide.count;
            f(One{}, halves.wide.part(head, count), o);
            rest -= count;
        }
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

    static FASTNORM_FN T* row_of(const KernelArgs& args, const Operand& operand, const Tile& tile,
                                 std::int64_t o) {
        return run_of<T>(args.view, operand, tile.batch, o, 0);
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

    // Calls f(how many, outer) for the rows of a block, several at a time: fewer loads and stores
    // of the sums.
    template <class F>
    static FASTNORM_FN void for_several(const Lanes& at, std::int64_t outer0, std::int64_t outer1,
                                        F&& f) {
        std::int64_t o = outer0;
        for (; o + 4 * at.rows <= outer1; o += 4 * at.rows) {
            f(std::integral_constant<int, 4>{}, o);
        }
        for (; o < outer1; o += at.rows) f(std::integral_constant<int, 1>{}, o);
    }

    // What a reduction fetches while it reads some rows: as many that follow.
    template <int rows>
    static FASTNORM_FN Ahead rows_ahead(const View& view, const Operand& operand, const Lanes& at,
                                        std::int64_t o) {
        const std::int64_t next = o + rows * at.rows;
        if (next + rows * at.rows > view.outer) return {};
        return {outer_offset(view, operand, next) - outer_offset(view, operand, o)};
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
