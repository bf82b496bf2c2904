// The kernel of dweight and dbias under features: for each element of inner the sums over rows of g
// and of g * (x - mean) * rstd. A block has a stripe of 32 packs of some rows, its warps the rows
// in turn; what it leaves for each element is added up over all of the rows' parts in order
// (addends.h). Parts follow from the shape alone, and so do the bits.
#pragma once

#include "cuda/backward.h"
#include "cuda/share.h"

namespace fastnorm::cuda {

// Share: tasks are rows, and a block's are a part.
template <class Pass>
struct ParameterSums {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr const char* name = "parameter_sums";
    static constexpr int warps = warps_of_parameter_sums;
    static constexpr int most_threads = warps * warp_size;
    static constexpr int least_blocks = 1;
    static constexpr int values = Pass::values;

    Arguments args;
    Share share;

    // Of an element of the lane's pack.
    struct Sums {
        double g[values] = {}, gx[values] = {};
    };

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const std::int64_t stripes = divide_up(rows.packs, warp_size);
        const std::int64_t part = block.index() / stripes;
        const std::int64_t stripe = block.index() - part * stripes;
        const std::int64_t first = part * share.tasks_of_block;
        const std::int64_t last =
            first + share.tasks_of_block < share.tasks ? first + share.tasks_of_block : share.tasks;
        const Pass pass(block, args);
        const Place place(args, stripe * warp_size + block.lane());
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        Sums sums;
        for (std::int64_t from = first; from < last; from += rows_together) {
            const std::int64_t left = last - from;
            const int count = static_cast<int>(left < rows_together ? left : rows_together);
            block.sync();  // nobody needs the last ones
            for (int r = block.thread(); r < count; r += block.threads()) {
                pass.prepare(coefficients[r], from + r);
            }
            block.sync();
            add<A>(block, pass, place, coefficients, from, count, sums);
        }
        block.sync();
        leave(block, place, part, sums);
    }

    static constexpr int rows_together = rows_of_parameter_sums;

  private:
    // Where a lane's pack lies in its row, and where its bits lie in the row's mask.
    struct Place {
        std::int64_t pack, chunk;
        int elements, lane, pack_of_lane;

        FASTNORM_DEVICE Place(const Arguments& args, std::int64_t number) : pack(number) {
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

    // Those of the warp's rows among [from, from + count). In D, and in double what leaves its
    // range.
    template <class D>
    FASTNORM_DEVICE void add(const Block& block, const Pass& pass, const Place& place,
                             const Coefficients<A>* coefficients, std::int64_t from, int count,
                             Sums& sums) const {
        if (place.elements == 0) return;
        const typename Pass::Own own(block, args, place.pack, place.elements);
        const double unscaled = args.weights_scale == nullptr ? 1.0 : 1.0 / *args.weights_scale;
        D g_of[values] = {}, gx_of[values] = {};
#pragma unroll 2
        for (int r = block.warp(); r < count; r += warps) {
            const Coefficients<A>& of = coefficients[r];
            const std::int64_t row = from + r;
            const auto load = [&](const Operand& operand) {
                const char* const p =
                    operand.data + offset_of<false>(args.rows, operand, row, 0) + place.pack * 16;
                return load_pack<T, Pass::whole>(block, p, place.elements,
                                                 row < share.soon_from ? Reuse::none : Reuse::soon);
            };
            const typename Pass::Packs packs{load(args.x), load(args.dy),
                                             pass.needs_residual ? load(args.residual) : Pack<T>{}};
            const auto gate = pass.gate_of(block, row * args.rows.chunks + place.chunk, place.lane);
            A centred[values], g[values];
            pass.gradients(gate, &of, own, packs, place.pack_of_lane, centred, g);
            const D unit = static_cast<D>(of.z.scale) * static_cast<D>(unscaled);
#pragma unroll
            for (int e = 0; e < values; ++e) {
                D d = static_cast<D>(centred[e]);
                if constexpr (sizeof(D) > sizeof(A)) d = Pass::wide_centred(packs.x, &of, e);
                g_of[e] += static_cast<D>(g[e]);
                gx_of[e] = fma(static_cast<D>(g[e]), d * unit, gx_of[e]);
            }
        }
        if constexpr (sizeof(D) == sizeof(float)) {
            bool finite = true;
#pragma unroll
            for (int e = 0; e < values; ++e) {
                finite =
                    finite && (e >= place.elements || (is_finite(g_of[e]) && is_finite(gx_of[e])));
            }
            if (!finite) {
                return add<double>(block, pass, place, coefficients, from, count, sums);
            }
        }
#pragma unroll
        for (int e = 0; e < values; ++e) {
            sums.g[e] += static_cast<double>(g_of[e]);
            sums.gx[e] += static_cast<double>(gx_of[e]);
        }
    }

    // The warps' sums together, one warp's after the other's.
    FASTNORM_DEVICE void leave(const Block& block, const Place& place, std::int64_t part,
                               const Sums& sums) const {
        auto* const together = reinterpret_cast<Sums*>(block.shared()) + block.lane();
        for (int warp = 0; warp < warps; ++warp) {
            if (block.warp() == warp) {
#pragma unroll
                for (int e = 0; e < values; ++e) {
                    together->g[e] = warp == 0 ? sums.g[e] : together->g[e] + sums.g[e];
                    together->gx[e] = warp == 0 ? sums.gx[e] : together->gx[e] + sums.gx[e];
                }
            }
            block.sync();
        }
        if (block.warp() != 0) return;
        Partial* const to = args.addends + part * args.rows.inner + place.pack * values;
        for (int e = 0; e < place.elements; ++e) to[e] = {together->g[e], together->gx[e]};
    }
};

}  // namespace fastnorm::cuda
