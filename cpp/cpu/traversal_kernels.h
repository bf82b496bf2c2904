// The table of a traversal's kernels: where dtypes and activations become types and constants.
// Compiled once per instruction set.
#pragma once

#include <utility>

#include "cpu/kernels.h"

namespace fastnorm::FASTNORM_ISA {

extern const TraversalKernels rows_kernels, columns_kernels, features_kernels;

namespace {

// For what most networks are trained with; of all activations they would take as long to compile
// as everything else.
constexpr bool interleaves(ActivationKind kind) {
    return kind == ActivationKind::identity || kind == ActivationKind::relu;
}

template <template <class T, ActivationKind kind> class Kernels, class T, ActivationKind kind>
constexpr void fill_interleaved(TraversalKernels& table, int d) {
    using Of = Kernels<T, kind>;
    if constexpr (interleaves(kind) && requires { &Of::normalize_and_moments; }) {
        table.normalize_and_moments[d][static_cast<int>(kind)] = Of::normalize_and_moments;
    }
    if constexpr (interleaves(kind) && requires { &Of::gradient_and_sums; }) {
        table.gradient_and_sums[d][static_cast<int>(kind)] = Of::gradient_and_sums;
    }
}

template <template <class T, ActivationKind kind> class Kernels, class T, int... kind>
constexpr void fill(TraversalKernels& table, DType dtype, std::integer_sequence<int, kind...>) {
    const int d = static_cast<int>(dtype);
    using Any = Kernels<T, ActivationKind::identity>;
    table.moments[d] = Any::moments;
    if constexpr (requires { &Any::add; }) table.add[d] = Any::add;
    using A = accumulator_t<T>;
    if constexpr (requires { &Any::template gradient<A>; }) {
        table.gradient_of_kept[d] = Any::template gradient<A>;
    }
    ((table.normalize[d][kind] = Kernels<T, static_cast<ActivationKind>(kind)>::normalize), ...);
    ((table.gradient_sums[d][kind] = Kernels<T, static_cast<ActivationKind>(kind)>::gradient_sums),
     ...);
    ((table.gradient[d][kind] = Kernels<T, static_cast<ActivationKind>(kind)>::gradient), ...);
    (fill_interleaved<Kernels, T, static_cast<ActivationKind>(kind)>(table, d), ...);
}

template <template <class T, ActivationKind kind> class Kernels>
constexpr TraversalKernels traversal_kernels() {
    TraversalKernels table{};
    const auto kinds = std::make_integer_sequence<int, activations>{};
    fill<Kernels, float>(table, DType::float32, kinds);
    fill<Kernels, double>(table, DType::float64, kinds);
    fill<Kernels, Half>(table, DType::float16, kinds);
    fill<Kernels, BFloat16>(table, DType::bfloat16, kinds);
    return table;
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
