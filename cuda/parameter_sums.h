// dweight and dbias under features: for each element of inner the sums over rows of g and of
// g * (x - mean) * rstd.
//
// Rows make parts, whose sums are added up in order in a last launch (addends.h). A part's rows are
// dealt to sets in turn. Every 32 rows, a lap, the sets add what they have to the part's sums, one
// after the other: a set adds up its rows of a lap in A, all else is added in double. This follows
// from the shape alone, and so do the bits, whether the sums are made by the kernel here or beside
// the map of rows on chip (on_chip.h).
#pragma once

#include "cuda/backward.h"
#include "cuda/share.h"

namespace fastnorm::cuda {

// Rows of a part, from the lap's first one to behind its last one.
struct Lap {
    std::int64_t part, first, last;
    bool begins;  // the part

    FASTNORM_DEVICE Lap(const Rows& rows, const RowParts& parts, std::int64_t part,
                        std::int64_t number)
        : part(part), first(part * parts.rows + number * parts.rows_of_lap()), begins(number == 0) {
        const std::int64_t end = (part + 1) * parts.rows;
        last = end < rows.stats ? end : rows.stats;
        if (first + parts.rows_of_lap() < last) last = first + parts.rows_of_lap();
    }
};

// Where a lane's pack lies in its row, and where its bits lie in the row's mask.
template <class T>
struct Place {
    std::int64_t pack, chunk;
    int elements, lane, pack_of_lane;

    FASTNORM_DEVICE Place(const Arguments& args, std::int64_t number) : pack(number) {
        constexpr int values = pack_elements<T>;
        const Rows& rows = args.rows;
        const std::int64_t rest = rows.inner - pack * values;
        elements = rest <= 0 ? 0 : rest < values ? static_cast<int>(rest) : values;
        const std::int64_t packs_of_chunk =
            rows.chunks_of_run > 0 ? rows.packs_of_piece : warp_size * lane_packs<T>;
        chunk = pack / packs_of_chunk;
        const auto within = static_cast<int>(pack - chunk * packs_of_chunk);
        lane = within % warp_size;
        pack_of_lane = within / warp_size;
    }
};

// What turns centred(x) into (x - mean) * rstd.
template <class D, class A>
FASTNORM_DEVICE D unit_of(const Arguments& args, const Coefficients<A>& of) {
    const double unscaled = args.weights_scale == nullptr ? 1.0 : 1.0 / *args.weights_scale;
    return static_cast<D>(of.z.scale) * static_cast<D>(unscaled);
}

// x, dy and what else of one pack of a row; centred(x) and g of it.
template <class Pass>
struct PackOfRow {
    using A = typename Pass::A;
    typename Pass::Packs packs;
    A centred[Pass::values], g[Pass::values];

    FASTNORM_DEVICE PackOfRow(const Block& block, const Pass& pass, const typename Pass::Own& own,
                              const Place<typename Pass::T>& place, const Coefficients<A>& of,
                              std::int64_t row, Reuse reuse) {
        const Arguments& args = pass.args;
        const auto load = [&](const Operand& operand) {
            const char* const p =
                operand.data + offset_of<false>(args.rows, operand, row, 0) + place.pack * 16;
            return load_pack<typename Pass::T, Pass::whole>(block, p, place.elements, reuse);
        };
        packs.x = load(args.x);
        packs.dy = load(args.dy);
        packs.residual = pass.needs_residual ? load(args.residual) : Pack<typename Pass::T>{};
        const auto gate = pass.gate_of(block, row * args.rows.chunks + place.chunk, place.lane);
        pass.gradients(gate, &of, own, packs, place.pack_of_lane, centred, g);
    }
};

// What a lane has added up of a lap, of so many packs of a row, a warp's width apart.
template <class Pass, int packs>
class LapSums {
  public:
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr int values = Pass::values;

    // Of element e of pack i.
    FASTNORM_DEVICE void add(int i, int e, A g, A normalized) {
        g_[i][e] += g;
        gx_[i][e] = fma(g, normalized, gx_[i][e]);
    }

    // Adds them to those of the part when it is the set's turn, and begins anew. The whole block
    // takes part.
    FASTNORM_DEVICE void leave(const Block& block, const Pass& pass, const Lap& lap, int set,
                               std::int64_t first_pack) {
        const int sets = pass.args.row_parts.sets;
        for (int turn = 0; turn < sets; ++turn) {
            if (turn == set) leave_in_turn(block, pass, lap, set, first_pack);
            block.sync();
        }
    }

  private:
    FASTNORM_DEVICE void leave_in_turn(const Block& block, const Pass& pass, const Lap& lap,
                                       int set, std::int64_t first_pack) {
        const bool begins = lap.begins && set == 0;
        std::uint32_t out_of_range = 0;  // a bit for each element
        static_assert(packs * values <= 32);
#pragma unroll
        for (int i = 0; i < packs; ++i) {
            const Place<T> place(pass.args, first_pack + i * warp_size);
            Partial* const to = place_of(pass.args, lap, place);
#pragma unroll
            for (int e = 0; e < values; ++e) {
                if (e < place.elements) {
                    const bool fine = sizeof(A) == sizeof(double) ||
                                      (is_finite(g_[i][e]) && is_finite(gx_[i][e]));
                    out_of_range |= std::uint32_t{!fine} << (i * values + e);
                    add_to(block, to + e, begins,
                           {fine ? static_cast<double>(g_[i][e]) : 0.0,
                            fine ? static_cast<double>(gx_[i][e]) : 0.0});
                }
                g_[i][e] = gx_[i][e] = A(0);
            }
        }
        if (out_of_range != 0) add_exact(block, pass, lap, set, first_pack, out_of_range);
    }

    // Off the hot path: in double, of rows that are read once more.
    FASTNORM_DEVICE void add_exact(const Block& block, const Pass& pass, const Lap& lap, int set,
                                   std::int64_t first_pack, std::uint32_t wanted) const {
        const Arguments& args = pass.args;
#pragma unroll 1
        for (int i = 0; i < packs; ++i) {
            const std::uint32_t of_pack = wanted >> (i * values) & ((1u << values) - 1);
            if (of_pack == 0) continue;
            const Place<T> place(args, first_pack + i * warp_size);
            const typename Pass::Own own(block, args, place.pack, place.elements);
            double g[values] = {}, gx[values] = {};
#pragma unroll 1
            for (std::int64_t row = lap.first + set; row < lap.last; row += args.row_parts.sets) {
                Coefficients<A> of;
                pass.prepare(of, row);
                const PackOfRow<Pass> at(block, pass, own, place, of, row, Reuse::none);
                const double unit = unit_of<double>(args, of);
#pragma unroll
                for (int e = 0; e < values; ++e) {
                    const auto g_of_row = static_cast<double>(at.g[e]);
                    g[e] += g_of_row;
                    gx[e] = fma(g_of_row, Pass::wide_centred(at.packs.x, &of, e) * unit, gx[e]);
                }
            }
            Partial* const to = place_of(args, lap, place);
#pragma unroll
            for (int e = 0; e < values; ++e) {
                if (of_pack >> e & 1) add_to(block, to + e, false, {g[e], gx[e]});
            }
        }
    }

    FASTNORM_DEVICE static Partial* place_of(const Arguments& args, const Lap& lap,
                                             const Place<T>& place) {
        return args.addends + lap.part * args.rows.inner + place.pack * values;
    }
    FASTNORM_DEVICE static void add_to(const Block& block, Partial* to, bool begins,
                                       const Partial& sums) {
        const Partial before =
            begins ? Partial{0, 0}
                   : Partial{block.load_element(&to->first), block.load_element(&to->second)};
        block.store_element(&to->first, before.first + sums.first);
        block.store_element(&to->second, before.second + sums.second);
    }

    A g_[packs][values] = {}, gx_[packs][values] = {};
};

// A block has some stripes of 32 packs of a part's rows, each with a warp for every set.
template <class Pass>
struct ParameterSums {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr const char* name = "parameter_sums";
    static constexpr int warps = warps_of_features;
    static constexpr int most_threads = warps * warp_size;
    static constexpr int least_blocks = 1;
    static constexpr int values = Pass::values;

    Arguments args;
    Share share;

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const RowParts& parts = args.row_parts;
        const int stripes_of_block = warps / parts.sets;
        const std::int64_t stripes = divide_up(args.rows.packs, warp_size);
        const std::int64_t blocks_of_part = divide_up(stripes, stripes_of_block);
        const std::int64_t part = block.index() / blocks_of_part;
        const std::int64_t stripe = (block.index() - part * blocks_of_part) * stripes_of_block +
                                    block.warp() % stripes_of_block;
        const int set = block.warp() / stripes_of_block;
        const Pass pass(block, args);
        const Place<T> place(args, stripe * warp_size + block.lane());
        const typename Pass::Own own(block, args, place.pack, place.elements);
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        LapSums<Pass, 1> sums;
        for (std::int64_t number = 0;; ++number) {
            const Lap lap(args.rows, parts, part, number);
            if (lap.first >= lap.last) break;
            const auto count = static_cast<int>(lap.last - lap.first);
            for (int r = block.thread(); r < count; r += block.threads()) {
                pass.prepare(coefficients[r], lap.first + r);
            }
            block.sync();
            if (place.elements > 0) {
#pragma unroll 2
                for (int r = set; r < count; r += parts.sets) {
                    const Coefficients<A>& of = coefficients[r];
                    const std::int64_t row = lap.first + r;
                    const PackOfRow<Pass> at(block, pass, own, place, of, row,
                                             row < share.soon_from ? Reuse::none : Reuse::soon);
                    const A unit = unit_of<A>(args, of);
#pragma unroll
                    for (int e = 0; e < values; ++e) {
                        sums.add(0, e, at.g[e], at.centred[e] * unit);
                    }
                }
            }
            sums.leave(block, pass, lap, set, place.pack);
        }
    }
};

}  // namespace fastnorm::cuda
