// Weights and biases of a pack, as the maps apply them: those of its statistic, which are among the
// coefficients, or, under features, those of its elements.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/rows.h"
#include "cuda/scalar.h"

#include "core/maps.h"

namespace fastnorm::cuda {

template <class T, bool whole, bool features>
class Parameters {
  public:
    using A = accumulator_t<T>;

    FASTNORM_DEVICE Parameters(const Block&, const Arguments&, std::int64_t, int) {}

    FASTNORM_DEVICE A z(const NormalizeMap<A>& map, A centred, int) const {
        return map.affine(centred);
    }
    FASTNORM_DEVICE A weighted(A g, int) const { return g; }
};

template <class T, bool whole>
class Parameters<T, whole, true> {
  public:
    using A = accumulator_t<T>;
    static constexpr int values = pack_elements<T>;

    // pack: its number in the row, of which so many elements are the row's.
    FASTNORM_DEVICE Parameters(const Block& block, const Arguments& args, std::int64_t pack,
                               int elements)
        : casts_(args.cast_before_weight) {
        load(block, args, args.weights, pack, elements, A(1), weight_);
        load(block, args, args.biases, pack, elements, A(0), bias_);
        if (args.weights == nullptr || args.weight_offset == 0) return;
#pragma unroll
        for (int e = 0; e < values; ++e) weight_[e] += static_cast<A>(args.weight_offset);
    }

    // From centred(x) and the map of the element's row.
    FASTNORM_DEVICE A z(const NormalizeMap<A>& map, A centred, int e) const {
        if constexpr (sizeof(T) == 2) {
            if (casts_) {
                T rounded;
                narrow(centred * map.scale, rounded);
                return fma(widen(rounded), weight_[e], bias_[e]);
            }
        }
        // In this order: scale * weight may be too large where the result is not.
        return fma(centred * map.scale, weight_[e], bias_[e]);
    }
    FASTNORM_DEVICE A weighted(A g, int e) const { return g * weight_[e]; }

  private:
    FASTNORM_DEVICE static void load(const Block& block, const Arguments& args, const char* from,
                                     std::int64_t pack, int elements, A absent, A (&to)[values]) {
#pragma unroll
        for (int e = 0; e < values; ++e) to[e] = absent;
        if (from == nullptr || elements == 0) return;
        if (sizeof(T) == sizeof(A) || args.wide_parameters) {
            load_as<A>(block, from, pack, elements, to);
        } else {
            load_as<T>(block, from, pack, elements, to);
        }
    }
    template <class P>
    FASTNORM_DEVICE static void load_as(const Block& block, const char* from, std::int64_t pack,
                                        int elements, A (&to)[values]) {
        constexpr int count = pack_elements<P>;
        const char* p = from + pack * values * static_cast<std::int64_t>(sizeof(P));
#pragma unroll
        for (int first = 0; first < values; first += count, p += 16) {
            const int left = elements - first;
            const int here = left < 0 ? 0 : left < count ? left : count;
            const Pack<P> found = load_pack<P, whole>(block, p, here, Reuse::soon);
#pragma unroll
            for (int e = 0; e < count; ++e) to[first + e] = widen(found.element[e]);
        }
    }

    bool casts_;
    A weight_[values], bias_[values];
};

}  // namespace fastnorm::cuda
