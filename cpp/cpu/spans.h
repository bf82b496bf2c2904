// The inner loops: a contiguous span, whatever the traversal, or the same span of several rows that
// lie pitch elements apart in every tensor. Where a vector's coefficients come from (one set a row,
// or one a lane) is the caller's: map_at(offset, v, valid) gives them, by reference where there is
// one set: GCC copies structs of vectors in halves, and loading such a copy stalls. Compiled once
// per instruction set.
#pragma once

#include "cpu/lockstep.h"
#include "cpu/mask_row.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class V, class T>
concept HasPairs = requires(T* p, V v) { V::store_pair(p, v, v); };

// store() of the vectors of packs, of which each comes in its turn: in pairs, where there are such;
// and so for each of several rows.
template <class A, class T, int rows = 1>
class PackStore {
  public:
    using V = Vec<A>;

    template <class Valid>
    FASTNORM_FN void operator()(T* p, int v, V x, Valid valid, bool direct, int row = 0) {
        if constexpr (HasPairs<V, T> && is_full<Valid>) {
            if (v % 2 == 0) {
                even_.of[row] = x;
                return;
            }
            T* const to = p + (v - 1) * V::width;
            direct ? V::stream_pair(to, even_.of[row], x) : V::store_pair(to, even_.of[row], x);
        } else {
            store<A>(p, v, x, valid, direct);
        }
    }

  private:
    Lockstep<V, rows> even_;
};

// How far ahead a map fetches what it reads: a bit further on in memory (for nothing, perhaps, at
// the end of a plane), or, where several rows are taken at a time, those that come next.
constexpr Ahead further_on{3072};
template <class T>
FASTNORM_FN Ahead ahead_of_rows(int rows, std::int64_t pitch) {
    if (rows == 1) return further_on;
    return {rows * pitch * static_cast<std::int64_t>(sizeof(T))};
}

// And the lines that it writes, which the cache has to have before, unless they are streamed.
FASTNORM_FN Ahead ahead_of_results(bool stream) { return {stream ? 0 : 1024}; }

// y = act(affine(centred(x)) + residual), and the mask's bits where there is a mask.
template <class T, ActivationKind kind>
struct Forward {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    const T* x;
    const T* residual;  // or null
    MaskRow mask;
    ActParams<A> params;
    bool stream;                 // results go past the cache
    Ahead ahead_x = further_on;  // where rows are taken one by one

    FASTNORM_FN void advance(std::int64_t count) {
        x += count;
        if (residual != nullptr) residual += count;
        mask.advance(count);
    }

    // The activation's input, of vector v of the pack at i.
    template <class Valid, class Map>
    FASTNORM_FN V z(std::int64_t i, int v, Valid valid, const Map& map) const {
        const V affine = map.affine(map.centred(load<A>(x + i, v, valid)));
        return residual == nullptr ? affine : affine + load<A>(residual + i, v, valid);
    }

    // direct: past the cache from registers; a constant where the loop is to know it.
    template <class Direct, class MapAt, int rows = 1>
    FASTNORM_FN void write(T* y, std::int64_t count, Direct direct, MapAt&& map_at,
                           RowCount<rows> = {}, std::int64_t pitch = 0) const {
        const Ahead ahead = ahead_of_rows<T>(rows, pitch);
        const Ahead ahead_x = rows == 1 ? this->ahead_x : ahead;
        const Ahead ahead_y = ahead_of_results(stream);
        for_packs<A>(count, [&](std::int64_t i, auto valid) {
            unsigned pack_bits[rows] = {};
            PackStore<A, T, rows> store;
            for (int r = 0; r < rows; ++r) {
                if (residual != nullptr) ahead.fetch<A>(residual + i + r * pitch);
                ahead_y.fetch_to_write<A>(y + i + r * pitch);
            }
            const auto input_at = [&](std::int64_t at, int v, const auto& map) {
                ahead_x.fetch<A>(x + at, v);
                return z(at, v, valid, map);
            };
            if constexpr (in_lockstep<kind, A, decltype(valid)> && rows == 1) {
                Pack<A> values;
                for_vectors<A>([&](auto v) { values.of[v] = input_at(i, v, map_at(i, v, valid)); });
                values = Act<kind>::value(values, params);
                for_vectors<A>([&](auto v) { store(y + i, v, values.of[v], valid, direct); });
            } else if constexpr (in_lockstep<kind, A, decltype(valid)>) {
                for_vectors<A>([&](auto v) {
                    const auto& map = map_at(i, v, valid);
                    Lockstep<V, rows> values;
                    unrolled<rows>([&](auto r) { values.of[r] = input_at(i + r * pitch, v, map); });
                    values = Act<kind>::value(values, params);
                    unrolled<rows>([&](auto r) {
                        store(y + i + r * pitch, v, values.of[r], valid, direct, r);
                    });
                });
            } else {
                for_vectors<A>([&](auto v) {
                    const auto& map = map_at(i, v, valid);
                    unrolled<rows>([&](auto r) {
                        const std::int64_t at = i + r * pitch;
                        const V input = input_at(at, v, map);
                        if constexpr (Act<kind>::piecewise) {
                            if (mask) {
                                pack_bits[r] |= bits(Act<kind>::is_unit(input, params))
                                                << (v * V::width);
                            }
                        }
                        store(y + at, v, Act<kind>::value(input, params), valid, direct, r);
                    });
                });
                if constexpr (Act<kind>::piecewise) {
                    if (!mask) return;
                    for (int r = 0; r < rows; ++r) {
                        mask.store(i + r * pitch, pack_bits[r], valid, rows > 1);
                    }
                }
            }
        });
    }
};

// What backward computes of one vector: g = dy * act'(z), and centred(x).
template <class V>
struct Gradient {
    V g, centred;

    template <class Map>
    FASTNORM_FN V dx(const Map& map, bool frozen) const {
        return frozen ? map.of_frozen(g) : map(g, centred);
    }
};

// D: the type of dy, which is A where the sums have left g there.
template <class T, ActivationKind kind, class D = T>
struct Backward {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    const D* dy;
    const T* x;
    const T* residual;  // or null
    MaskRow mask;
    ActParams<A> params;
    bool stream;                        // results go past the cache
    A* g;                               // or null: where a smooth activation's is left
    Ahead ahead_dy = {}, ahead_x = {};  // what is fetched: nothing, unless it is said

    FASTNORM_FN void advance(std::int64_t count) {
        dy += count;
        x += count;
        if (residual != nullptr) residual += count;
        if (g != nullptr) g += count;
        mask.advance(count);
    }

    // Of vector v of the pack at i; unit_bits are the mask's, where there is one.
    template <class Valid, class Map>
    FASTNORM_FN Gradient<V> vector(std::int64_t i, int v, Valid valid, const Map& map,
                                   unsigned unit_bits) const {
        Gradient<V> result;
        result.centred = map.centred(load<A>(x + i, v, valid));
        result.g = load<A>(dy + i, v, valid);
        if constexpr (kind != ActivationKind::identity) {
            result.g = gated(result, map, i, v, valid, unit_bits);
        }
        if constexpr (is_smooth(kind)) {
            if (g != nullptr) store<A>(g + i, v, result.g, valid);
        }
        return result;
    }

    // Before the vectors of the pack at i: fetches what comes later, and gives the mask's bits.
    template <class Valid>
    FASTNORM_FN unsigned begin_pack(std::int64_t i, Valid valid) const {
        ahead_dy.fetch<A>(dy + i);
        ahead_x.fetch<A>(x + i);
        return saved_bits(i, valid);
    }

    // Calls use(v, gradient) for each vector of the pack at i, of which map_of(v) is the map.
    template <class Valid, class MapOf, class Use>
    FASTNORM_FN void pack(std::int64_t i, Valid valid, unsigned pack_bits, MapOf&& map_of,
                          Use&& use) const {
        if constexpr (in_lockstep<kind, A, Valid>) {
            V centred[vectors<A>];
            Pack<A> slopes;
            for_vectors<A>([&](auto v) {
                const auto& map = map_of(v);
                centred[v] = map.centred(load<A>(x + i, v, valid));
                slopes.of[v] = z(centred[v], map, i, v, valid);
            });
            slopes = Act<kind>::slope(slopes, params);
            for_vectors<A>([&](auto v) {
                const Gradient<V> of{load<A>(dy + i, v, valid) * slopes.of[v], centred[v]};
                if (g != nullptr) store<A>(g + i, v, of.g, valid);
                use(v, of);
            });
        } else {
            for_vectors<A>([&](auto v) {
                const auto& map = map_of(v);
                use(v, vector(i, v, valid, map, pack_bits >> (v * V::width)));
            });
        }
    }

    // Calls use(i, v, valid, gradient) for each vector of the span.
    template <class MapAt, class Use>
    FASTNORM_FN void each(std::int64_t count, MapAt&& map_at, Use&& use) const {
        for_packs<A>(count, [&](std::int64_t i, auto valid) {
            pack(
                i, valid, begin_pack(i, valid),
                [&](auto v) -> decltype(auto) { return map_at(i, v, valid); },
                [&](auto v, const Gradient<V>& of) FASTNORM_INLINED { use(i, v, valid, of); });
        });
    }

    // dx from the two maps, and dresidual = g unless it is null.
    template <class Direct, class MapAt, class GradientMapAt, int rows = 1>
    FASTNORM_FN void write(T* dx, T* dresidual, std::int64_t count, Direct direct, bool frozen,
                           MapAt&& map_at, GradientMapAt&& gradient_map_at, RowCount<rows> = {},
                           std::int64_t pitch = 0) const {
        const Ahead ahead_dx = ahead_of_results(stream);
        for_packs<A>(count, [&](std::int64_t i, auto valid) {
            unsigned pack_bits[rows];
            // One for each row: of one for all of them GCC makes code that takes 1.02 to 1.04.
            PackStore<A, T> store_dx[rows], store_dresidual[rows];
            for (int r = 0; r < rows; ++r) {
                pack_bits[r] = saved_bits(i + r * pitch, valid);
                ahead_dy.fetch<A>(dy + i + r * pitch);
                ahead_x.fetch<A>(x + i + r * pitch);
                ahead_dx.fetch_to_write<A>(dx + i + r * pitch);
                if (dresidual != nullptr) ahead_dx.fetch_to_write<A>(dresidual + i + r * pitch);
            }
            const auto leave = [&](int r, std::int64_t at, int v, const Gradient<V>& of,
                                   const auto& gradient_map) FASTNORM_INLINED {
                store_dx[r](dx + at, v, of.dx(gradient_map, frozen), valid, direct);
                if (dresidual == nullptr) return;
                store_dresidual[r](dresidual + at, v, of.g, valid, direct);
            };
            if constexpr (rows == 1 || in_lockstep<kind, A, decltype(valid)>) {
                for (int r = 0; r < rows; ++r) {
                    const std::int64_t at = i + r * pitch;
                    pack(
                        at, valid, pack_bits[r],
                        [&](auto v) -> decltype(auto) { return map_at(i, v, valid); },
                        [&](auto v, const Gradient<V>& of) FASTNORM_INLINED {
                            leave(r, at, v, of, gradient_map_at(i, v, valid));
                        });
                }
            } else {
                for_vectors<A>([&](auto v) {
                    const auto& map = map_at(i, v, valid);
                    const auto& gradient_map = gradient_map_at(i, v, valid);
                    unrolled<rows>([&](auto r) FASTNORM_INLINED {
                        const std::int64_t at = i + r * pitch;
                        leave(r, at, v, vector(at, v, valid, map, pack_bits[r] >> (v * V::width)),
                              gradient_map);
                    });
                });
            }
        });
    }

  private:
    // What the mask says of the pack at i.
    template <class Valid>
    FASTNORM_FN unsigned saved_bits(std::int64_t i, Valid valid) const {
        if constexpr (Act<kind>::piecewise) {
            if (mask) return mask.load(i, valid);
        }
        return 0;
    }

    template <class Valid, class Map>
    FASTNORM_FN V gated(const Gradient<V>& at, const Map& map, std::int64_t i, int v, Valid valid,
                        unsigned unit_bits) const {
        if constexpr (Act<kind>::piecewise) {
            if (mask) return gate(at.g, V::mask(unit_bits));
        }
        const V input = z(at.centred, map, i, v, valid);
        if constexpr (Act<kind>::piecewise) {
            return gate(at.g, Act<kind>::is_unit(input, params));
        } else {
            return at.g * Act<kind>::slope(input, params);
        }
    }

    // The activation's input.
    template <class Valid, class Map>
    FASTNORM_FN V z(V centred, const Map& map, std::int64_t i, int v, Valid valid) const {
        const V affine = map.affine(centred);
        return residual == nullptr ? affine : affine + load<A>(residual + i, v, valid);
    }

    // A slope of zero gives zero, also for an infinite dy.
    FASTNORM_FN V gate(V dy, typename V::Mask unit) const {
        const A slope = Act<kind>::slope_else(params);
        return select(unit, dy, slope == A(0) ? V() : dy * V(slope));
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
