// Backward, as the kernels need it: with g = dy * act'(z), the sums of g and of g * centred(x) over
// a chunk, the coefficients and dweight, dbias of a statistic, and dx = (a g + b centred(x) + c)
// scale of a chunk.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/epilogue.h"
#include "cuda/parameters.h"
#include "cuda/rows.h"
#include "cuda/statistics.h"

#include "core/maps.h"

namespace fastnorm::cuda {

template <class Element, bool whole_packs, bool smooth_activation, int statistics = 1,
          bool has_features = false>
struct Backward {
    using T = Element;
    using A = accumulator_t<T>;
    static constexpr bool whole = whole_packs;
    static constexpr int width = statistics;  // of a pack
    static constexpr bool features = has_features;
    using Own = Parameters<T, whole, features>;
    using Chunk = Lane<T, whole, width>;
    using Sets = SumsOfSets;
    static constexpr int packs = lane_packs<T, width>;
    static constexpr int values = pack_elements<T>;
    // Packs of each array that a lane has at a time, of two or three arrays: what is far away
    // should be on its way together. (A smooth activation is much code for each element.)
    template <class Source>
    static constexpr int batch_of =
        !whole || smooth_activation || (Source::cheap && sizeof(T) == 2) ? 1 : 2;
    enum { x_array, dy_array, residual_array };

    const Arguments& args;
    bool recomputes_z;
    bool needs_residual;
    bool ours;

    FASTNORM_DEVICE Backward(const Block& block, const Arguments& arguments)
        : args(arguments),
          recomputes_z(fastnorm::cuda::recomputes_z(args)),
          needs_residual(fastnorm::cuda::needs_residual(args)),
          ours(mask_is_ours(block, arguments)) {}

    FASTNORM_DEVICE Arrays arrays() const { return arrays_of_backward(args); }
    FASTNORM_DEVICE const Operand& result(int k) const {
        return k == x_array ? args.dx : args.dresidual;
    }
    FASTNORM_DEVICE const Operand& array(int k) const {
        return k == x_array ? args.x : k == dy_array ? args.dy : args.residual;
    }

    static constexpr bool makes_x = false;
    FASTNORM_DEVICE void prepare(Coefficients<A>& to, std::int64_t stat) const {
        set_backward_z(to, args, stat);
    }

    // The sums over a chunk, of the own statistic.
    template <class Source>
    FASTNORM_DEVICE Partial reduce(const Block& block, const Chunk& lane, const Coefficients<A>* of,
                                   const Source& source) const {
        const auto finite = [](const Partial& sums) {
            return is_finite(sums.first) && is_finite(sums.second);
        };
        const Partial found = sums<A>(block, lane, of, source);
        // Sums that left float's range, or that have an infinity or NaN: once more in double.
        if (sizeof(A) == sizeof(double) || !block.any(!finite(found))) return found;
        const Partial exact = sums<double>(block, lane, of, source);
        return finite(found) ? found : exact;
    }

    template <class PartialOf>
    FASTNORM_DEVICE Partial merge(const Block& block, int lanes, std::int64_t parts,
                                  PartialOf&& partial) const {
        return merged_sums(block, lanes, parts, partial);
    }

    // What a statistic has with those that share its mean: its weight, if there are none.
    FASTNORM_DEVICE OfMean alone(const Partial& own, std::int64_t stat) const {
        const bool centred = !features || args.centred;
        return {{centred ? own.first : 0.0, own.second}, args.weight_of(stat)};
    }
    template <class Total>
    FASTNORM_DEVICE OfMean together(const Block& block, std::int64_t first, Total&& total) const {
        return sums_of_mean(block, args, first, total);
    }

    // The coefficients of dx, and what the statistic adds to dbias and dweight.
    FASTNORM_DEVICE void finish(Coefficients<A>& to, std::int64_t stat, const Partial& own,
                                const OfMean& of, bool store) const {
        set_backward_dx(to, args, stat, of);
        if (features || !store) return;  // the parameters of features are no statistic's
        const std::int64_t index = args.mean_of(stat);
        const double rstd = args.rstd_or_var.get(index);
        const double prescale = backward_prescale<A>(args.mean.get(index), rstd);
        const Partial shares{own.first, own.second * (rstd / prescale)};
        if (args.addends != nullptr) {
            args.addends[stat] = shares;
        } else {
            args.dbias.set(stat, shares.first);
            args.dweight.set(stat, shares.second);
        }
    }

    // Of frozen statistics, where no sum is wanted.
    FASTNORM_DEVICE void set_given(Coefficients<A>& to, std::int64_t stat) const {
        set_backward_z(to, args, stat);
        set_backward_dx(to, args, stat, {{0, 0}, args.weight_of(stat)});
    }

    template <class Source>
    FASTNORM_DEVICE void map(const Block& block, const Chunk& lane, const Coefficients<A>* of,
                             const Source& source) const {
        const Gate gate = gate_of(block, lane.task(), block.lane());
        constexpr int batch = batch_of<Source>;
        Packs packs[batch];
        lane.template in_batches<batch>(
            [&](int b, int i, const Position& at, int elements) {
                packs[b] = load(source, i, at, elements);
            },
            [&](int b, int i, const Position& at, int elements) {
                const Own own(block, args, at.pack, elements);
                A centred[values], g[values];
                gradients(gate, of, own, packs[b], i, centred, g);
                put_results(of, own, source, at, elements, centred, g);
            });
    }

    // The same where g is dy, under features: sums.add(pack of the lane, element, g, (x - mean) *
    // rstd) for each element.
    template <class Source, class Sums>
    FASTNORM_DEVICE void map_identity(const Block& block, const Chunk& lane,
                                      const Coefficients<A>* of, const Source& source, A unit,
                                      Sums& sums) const {
        lane.each([&](int i, const Position& at, int elements) {
            if (elements == 0) return;
            const Pack<T> x = source.pack(args.x, x_array, i, at, elements);
            const Pack<T> dy = source.pack(args.dy, dy_array, i, at, elements);
            const Own own(block, args, at.pack, elements);
            A centred[values], g[values];
#pragma unroll
            for (int e = 0; e < values; ++e) {
                centred[e] = normalize_map(*of).centred(widen(x.element[e]));
                g[e] = widen(dy.element[e]);
                sums.add(i, e, g[e], centred[e] * unit);
            }
            put_results(of, own, source, at, elements, centred, g);
        });
    }

    // For each statistic the bits of the lane's elements, and the slope where they are 0.
    struct Gate {
        ActParams<A> params;
        std::uint32_t bits[width] = {};
        A slope = A(0);
    };
    FASTNORM_DEVICE Gate gate_of(const Block& block, std::int64_t task, int lane) const {
        Gate gate{params_of<A>(args)};
        if constexpr (!smooth_activation) {
            with_activation<false>(args.kind, [&](auto activation) {
                if constexpr (!is_identity<decltype(activation)>) {
                    gate.slope = decltype(activation)::slope_else(gate.params);
                }
            });
            if (args.mask != nullptr && ours) {
#pragma unroll
                for (int s = 0; s < width; ++s) {
                    gate.bits[s] = block.load_element(mask_word<width>(args, task, s, lane));
                }
            } else if (args.mask != nullptr) {
                gate.slope = std::numeric_limits<A>::quiet_NaN();
            }
        }
        return gate;
    }

    // A pack of each array.
    struct Packs {
        Pack<T> x, dy, residual;
    };

    // Of one pack, whose elements have bits of the gate from pack i's on: centred(x) and g.
    FASTNORM_DEVICE void gradients(const Gate& gate, const Coefficients<A>* of, const Own& own,
                                   const Packs& packs, int i, A (&centred)[values],
                                   A (&g)[values]) const {
#pragma unroll
        for (int e = 0; e < values; ++e) {
            centred[e] = normalize_map(of[width > 1 ? e : 0]).centred(widen(packs.x.element[e]));
        }
        with_activation<smooth_activation>(args.kind, [&](auto activation) {
#pragma unroll
            for (int e = 0; e < values; ++e) {
                const int s = width > 1 ? e : 0;
                const auto z = [&] {
                    const A affine = own.z(normalize_map(of[s]), centred[e], e);
                    return needs_residual ? affine + widen(packs.residual.element[e]) : affine;
                };
                g[e] = gradient<decltype(activation)>(gate, widen(packs.dy.element[e]), z, s,
                                                      width > 1 ? i : i * values + e);
            }
        });
    }

    // centred(x) where float has no room for it.
    FASTNORM_DEVICE static double wide_centred(const Pack<T>& x, const Coefficients<A>* of, int e) {
        const Normalization<A>& z = of[width > 1 ? e : 0].z;
        const auto prescale = static_cast<double>(z.prescale);
        const double mean =
            (static_cast<double>(z.mean_hi) + static_cast<double>(z.mean_lo)) / prescale;
        return (static_cast<double>(widen(x.element[e])) - mean) * prescale;
    }

  private:
    // dx and dresidual of one pack.
    template <class Source>
    FASTNORM_DEVICE void put_results(const Coefficients<A>* of, const Own& own,
                                     const Source& source, const Position& at, int elements,
                                     const A (&centred)[values], const A (&g)[values]) const {
        Pack<T> dx, dresidual, dsum{};
        if constexpr (features) {
            if (args.dsum) dsum = source.more(args.dsum, dy_array, at, elements);
        }
#pragma unroll
        for (int e = 0; e < values; ++e) {
            const Coefficients<A>& c = of[width > 1 ? e : 0];
            const GradientMap<A> map{c.grad_a, c.grad_b, c.grad_c, c.grad_scale};
            const A weighted = own.weighted(g[e], e);
            A value = args.frozen ? map.of_frozen(weighted) : map(weighted, centred[e]);
            if constexpr (features) value = value + widen(dsum.element[e]);
            narrow(value, dx.element[e]);
            narrow(g[e], dresidual.element[e]);
        }
        source.put(args.dx, x_array, at, elements, dx);
        if (args.dresidual) source.put(args.dresidual, dy_array, at, elements, dresidual);
    }

    // g of one element. A slope of zero gives zero, also for an infinite dy.
    template <class Activation, class Z>
    FASTNORM_DEVICE A gradient(const Gate& gate, A dy, Z&& z, int s, int bit) const {
        if constexpr (is_identity<Activation>) {
            return dy;
        } else {
            if constexpr (Activation::piecewise) {
                bool unit = (gate.bits[s] >> bit & 1) != 0;
                if (recomputes_z) unit = Activation::is_unit(z(), gate.params);
                return unit ? dy : gate.slope == A(0) ? A(0) : dy * gate.slope;
            } else {
                return dy * Activation::slope(z(), gate.params);
            }
        }
    }

    template <class Source>
    FASTNORM_DEVICE Packs load(const Source& source, int i, const Position& at,
                               int elements) const {
        return {source.pack(args.x, x_array, i, at, elements),
                source.pack(args.dy, dy_array, i, at, elements),
                needs_residual ? source.pack(args.residual, residual_array, i, at, elements)
                               : Pack<T>{}};
    }

    // The sums of g and of g * centred(x) in D.
    template <class D, class Source>
    FASTNORM_DEVICE Partial sums(const Block& block, const Chunk& lane, const Coefficients<A>* of,
                                 const Source& source) const {
        const Gate gate = gate_of(block, lane.task(), block.lane());
        constexpr int count = width == 1 && sizeof(D) > sizeof(A) ? 1 : sums_of_lane<T, width>;
        D first[count] = {}, second[count] = {};
        constexpr int batch = batch_of<Source>;
        Packs packs[batch];
        lane.template in_batches<batch>(
            [&](int b, int i, const Position& at, int elements) {
                packs[b] = load(source, i, at, elements);
            },
            [&](int b, int i, const Position& at, int elements) {
                const Own own(block, args, at.pack, elements);
                A centred[values], g[values];
                gradients(gate, of, own, packs[b], i, centred, g);
#pragma unroll
                for (int e = 0; e < values; ++e) {
                    if (e >= elements) continue;
                    D d = static_cast<D>(centred[e]);
                    if constexpr (sizeof(D) > sizeof(A)) d = wide_centred(packs[b].x, of, e);
                    const D weighted = static_cast<D>(own.weighted(g[e], e));
                    first[e % count] += weighted;
                    second[e % count] = fma(weighted, d, second[e % count]);
                }
            });
        return {own_total(block, first), own_total(block, second)};
    }

    // A lane's values for a statistic are those of one element of every pack, or all.
    template <class D, int count>
    FASTNORM_DEVICE double own_total(const Block& block, const D (&sums)[count]) const {
        if constexpr (width > 1) {
            return static_cast<double>(own_sum(block, args.rows, sums));
        } else {
            return static_cast<double>(sum_of_warp(block, sum_of(sums)));
        }
    }
};

}  // namespace fastnorm::cuda
