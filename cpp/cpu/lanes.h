// What both traversals are made of: packs of a fixed number of virtual lanes whatever the width of
// the hardware's vectors, partial packs, and the walk over outer. Compiled once per instruction
// set.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/activations.h"
#include "core/dtypes.h"
#include "core/maps.h"
#include "core/stats.h"
#include "cpu/kernels.h"

// A function into which all is inlined that it calls, lambdas too: what they add to stays in
// registers.
#if defined(__SANITIZE_ADDRESS__)  // instrumented, it would take minutes to compile
#define FASTNORM_FLAT
#define FASTNORM_INLINED
#else
#define FASTNORM_FLAT __attribute__((flatten))
// For lambdas that GCC leaves as calls nevertheless, as it does where they are large.
#define FASTNORM_INLINED __attribute__((always_inline))
#endif

namespace fastnorm::FASTNORM_ISA {

namespace {

// 32 floats or 16 doubles: element i of a row goes to lane i % lanes on every instruction set.
template <class A>
constexpr int lanes = static_cast<int>(128 / sizeof(A));

template <class A>
constexpr int vectors = lanes<A> / Vec<A>::width;

template <class F, int... v>
FASTNORM_FN void unrolled(F&& f, std::integer_sequence<int, v...>) {
    (f(std::integral_constant<int, v>{}), ...);
}

// Calls f(0), f(1), ..., f(n - 1), each with its constant.
template <int n, class F>
FASTNORM_FN void unrolled(F&& f) {
    unrolled(f, std::make_integer_sequence<int, n>{});
}

// How many rows are taken at a time.
template <int n>
using RowCount = std::integral_constant<int, n>;
using One = RowCount<1>;

// Calls f(v) for each vector of a pack.
template <class A, class F>
FASTNORM_FN void for_vectors(F&& f) {
    if constexpr (Vec<A>::unroll) {
        unrolled<vectors<A>>(f);
    } else {
        for (int v = 0; v < vectors<A>; ++v) f(v);
    }
}

// Calls f(offset, valid) for each pack of count elements; valid is a compile-time constant for the
// full packs and an int for the last, partial one.
template <class A, class F>
FASTNORM_FN void for_packs(std::int64_t count, F&& f) {
    std::int64_t i = 0;
    for (; i + lanes<A> <= count; i += lanes<A>) f(i, std::integral_constant<int, lanes<A>>{});
    if (i < count) f(i, static_cast<int>(count - i));
}

// How many of the elements of vector v are valid.
template <class A>
FASTNORM_FN int in_vector(int valid, int v) {
    const int rest = valid - v * Vec<A>::width;
    return rest < 0 ? 0 : rest > Vec<A>::width ? Vec<A>::width : rest;
}

template <class Valid>
constexpr bool is_full = !std::is_same_v<Valid, int>;

// Vector v of the pack at p.
template <class A, class T, class Valid>
FASTNORM_FN Vec<A> load(const T* p, int v, Valid valid) {
    if constexpr (is_full<Valid>) {
        return Vec<A>::load(p + v * Vec<A>::width);
    } else {
        return Vec<A>::load(p + v * Vec<A>::width, in_vector<A>(valid, v));
    }
}

template <class A, class T, class Valid>
FASTNORM_FN void store(T* p, int v, Vec<A> x, Valid valid) {
    if constexpr (is_full<Valid>) {
        x.store(p + v * Vec<A>::width);
    } else {
        x.store(p + v * Vec<A>::width, in_vector<A>(valid, v));
    }
}

// The same, if direct past the cache: of whole packs, to aligned addresses.
template <class A, class T, class Valid>
FASTNORM_FN void store(T* p, int v, Vec<A> x, Valid valid, bool direct) {
    if constexpr (is_full<Valid>) {
        if (direct) return x.stream(p + v * Vec<A>::width);
    }
    store<A>(p, v, x, valid);
}

// What is fetched into the cache beside what is at hand: the same number of bytes further on in an
// operand. Without lambdas, which are inlined later: GCC takes a function that does nothing but
// fetch for one without effects, and leaves out its calls.
struct Ahead {
    std::int64_t distance = 0;  // in bytes; 0: nothing is fetched

    // p: the pack at hand.
    template <class A, class T>
    FASTNORM_FN void fetch(const T* p) const {
        each_line<A, 0, 2>(p);
    }
    // The pack at p itself, which is not read now.
    template <class A, class T>
    static FASTNORM_FN void fetch_pack(const T* p) {
        for (int i = 0; i < lanes<A>; i += 64 / static_cast<int>(sizeof(T))) {
            __builtin_prefetch(p + i, 0, 2);
        }
    }
    // For vector v of it alone: a map of one tensor has no time to lose between two lines.
    template <class A, class T>
    FASTNORM_FN void fetch(const T* p, int v) const {
        fetch_line(p + v * Vec<A>::width, v * Vec<A>::width);
    }
    // For the vector at p, i elements behind one that begins a line or stands for one that does.
    template <class T>
    FASTNORM_FN void fetch_line(const T* p, std::int64_t i) const {
        if (begins_line<T>(i)) __builtin_prefetch(at(p), 0, 2);
    }
    template <class T>
    FASTNORM_FN void fetch_line_to_write(const T* p, std::int64_t i) const {
        if (begins_line<T>(i)) __builtin_prefetch(at(p), 1, 3);
    }
    template <class A, class T>
    FASTNORM_FN void fetch_to_write(const T* p) const {
        each_line<A, 1, 3>(p);
    }

  private:
    template <class T>
    FASTNORM_FN const char* at(const T* p) const {
        return reinterpret_cast<const char*>(p) + distance;
    }
    template <class T>
    FASTNORM_FN bool begins_line(std::int64_t i) const {
        return distance != 0 && i * static_cast<std::int64_t>(sizeof(T)) % 64 == 0;
    }
    // write, locality: __builtin_prefetch()'s.
    template <class A, int write, int locality, class T>
    FASTNORM_FN void each_line(const T* p) const {
        if (distance == 0) return;
        for (int line = 0; line < lanes<A> * static_cast<int>(sizeof(T)); line += 64)
            __builtin_prefetch(at(p) + line, write, locality);
    }
};

// Bytes from the start of an operand to outer index o, where outer is a nest of dimensions: off the
// hot path, as its divisions are slow.
__attribute__((noinline)) std::int64_t nested_offset(const View& view, const Operand& operand,
                                                     std::int64_t o) {
    std::int64_t offset = 0;
    for (int d = view.outer_dims - 1; d > 0; --d) {
        offset += (o % view.outer_extent[d]) * operand.outer_stride[d];
        o /= view.outer_extent[d];
    }
    return offset + o * operand.outer_stride[0];
}

// Bytes from the start of an operand to outer index o.
FASTNORM_FN std::int64_t outer_offset(const View& view, const Operand& operand, std::int64_t o) {
    return view.outer_dims == 1 ? o * operand.outer_stride[0] : nested_offset(view, operand, o);
}

// An operand with its elements' size: T's, unless it is said.
template <class T>
struct Sized {
    const Operand* operand;
    std::int64_t bytes;

    FASTNORM_FN Sized(const Operand* of, std::int64_t size = sizeof(T))
        : operand(of), bytes(size) {}
};

// The run of an operand at outer index o, statistic s.
template <class T>
FASTNORM_FN T* run_of(const View& view, const Operand& operand, std::int64_t batch, std::int64_t o,
                      std::int64_t s) {
    if (!operand) return nullptr;
    return reinterpret_cast<T*>(operand.data + batch * operand.batch_stride +
                                outer_offset(view, operand, o) + s * operand.stat_stride);
}

template <class A>
FASTNORM_FN ActParams<A> activation_params(const KernelArgs& args) {
    return {static_cast<A>(args.alpha), static_cast<A>(args.beta)};
}

template <class A>
FASTNORM_FN const A* coefficient(const KernelArgs& args, Coefficient which) {
    return static_cast<const A*>(args.coefficients) +
           static_cast<int>(which) * args.coefficients_stride;
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
