// Activations by their kind: the runtime value becomes a type here. Kernels come in two classes, so
// that the piecewise linear ones, which need few registers, do not pay for the smooth ones.
#pragma once

#include <utility>

#include "cuda/arguments.h"
#include "cuda/block.h"
#include "cuda/scalar.h"

#include "core/activations.h"

namespace fastnorm::cuda {

template <class Activation>
inline constexpr bool is_identity = std::is_same_v<Activation, Act<ActivationKind::identity>>;

template <class Activation>
inline constexpr bool is_smooth = !Activation::piecewise && !is_identity<Activation>;

namespace detail {

template <bool smooth, int kind, class F>
FASTNORM_DEVICE void if_of_kind(ActivationKind wanted, F&& f) {
    using Activation = Act<static_cast<ActivationKind>(kind)>;
    if constexpr (is_smooth<Activation> == smooth) {
        if (static_cast<int>(wanted) == kind) f(Activation{});
    }
}

template <bool smooth, class F, int... kinds>
FASTNORM_DEVICE void with_activation(ActivationKind kind, F&& f,
                                     std::integer_sequence<int, kinds...>) {
    (if_of_kind<smooth, kinds>(kind, f), ...);
}

}  // namespace detail

// Calls f(Act<kind>{}).
template <bool smooth, class F>
FASTNORM_DEVICE void with_activation(ActivationKind kind, F&& f) {
    detail::with_activation<smooth>(kind, f, std::make_integer_sequence<int, kActivationCount>{});
}

template <class A>
FASTNORM_DEVICE ActParams<A> params_of(const Arguments& args) {
    return {static_cast<A>(args.alpha), static_cast<A>(args.beta)};
}

// The mask's words follow its signature.
inline constexpr int signature_words = 2;

// Whether the mask was made for this call. Nobody waits for the answer: results of another mask are
// NaN throughout.
FASTNORM_DEVICE bool mask_is_ours(const Block& block, const Arguments& args) {
    if (args.mask == nullptr) return true;
    return block.load_element(args.mask) == static_cast<std::uint32_t>(args.signature) &&
           block.load_element(args.mask + 1) == static_cast<std::uint32_t>(args.signature >> 32);
}

// Of the s-th statistic of the packs that a lane has in a task.
template <int width>
FASTNORM_DEVICE std::uint32_t* mask_word(const Arguments& args, std::int64_t task, int s,
                                         int lane) {
    return args.mask + signature_words + (task * width + s) * warp_size + lane;
}

}  // namespace fastnorm::cuda
