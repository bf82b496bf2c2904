// The activations of the epilogue, y = act(z), each once: value, derivative, name and parameters.
// A new one is a struct here and a member of ActivationKind; every list, name and default that
// validation and the bindings need follows from kActivations.
//
// At infinities the limits are taken (silu(-inf) = gelu(-inf) = hardswish(-inf) = 0, slopes 0 or
// 1), never inf * 0. The slope at a kink is 0 for relu, for clip and for hardswish at -3, alpha for
// leaky_relu, 1 for hardswish at 3. NaN gives NaN; only the slope of a piecewise activation is 1
// there, so that a gradient passes through.
//
// Error of every value and slope: below 2 epsilon * max(1, |result|). Relative to the result,
// sigmoid, tanh, their slopes, silu and gelu are within 6 ulp until a factor turns subnormal (gelu:
// with fused multiply-add); slopes lose that near their zeros, gelu_tanh in its tail for z < 0.
#pragma once

#include "core/elementary.h"
#include "core/portable.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm {

template <class Scalar>
struct ActParams {
    Scalar alpha{};
    Scalar beta{};
};

struct ActivationParameter {
    const char* name = nullptr;
    double fallback = 0.0;  // its value where the user gives none
};

// Act<kind> holds
//   name, parameters (how many of alpha and beta are used), alpha, beta;
//   expected(alpha, beta): what parameters there may be, or null if these are fine;
//   value(z, p);
//   piecewise: whether the slope takes two values only, so that one bit an element is enough for
//   backward: then is_unit(z, p), where it is 1, and slope_else(p), what it is elsewhere;
//   otherwise slope(z, p).
template <ActivationKind kind>
struct Act;

struct SmoothAct {
    static constexpr int parameters = 0;
    static constexpr ActivationParameter alpha{}, beta{};
    static constexpr bool piecewise = false;
    static constexpr const char* expected(double, double) { return nullptr; }
};
struct PiecewiseAct : SmoothAct {
    static constexpr bool piecewise = true;
};

template <>
struct Act<ActivationKind::identity> : SmoothAct {
    static constexpr const char* name = "identity";

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        return z;
    }
    template <class V>
    static FASTNORM_FN V slope(V, ActParams<scalar_t<V>>) {
        return V(1);
    }
};

template <>
struct Act<ActivationKind::relu> : PiecewiseAct {
    static constexpr const char* name = "relu";

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        return select(z <= V(0), V(0), z);
    }
    template <class V>
    static FASTNORM_FN auto is_unit(V z, ActParams<scalar_t<V>>) {
        return !(z <= V(0));
    }
    template <class Scalar>
    static FASTNORM_FN Scalar slope_else(ActParams<Scalar>) {
        return Scalar(0);
    }
};

template <>
struct Act<ActivationKind::leaky_relu> : PiecewiseAct {
    static constexpr const char* name = "leaky_relu";
    static constexpr int parameters = 1;
    static constexpr ActivationParameter alpha{"negative_slope", 0.01};
    static constexpr const char* expected(double alpha, double) {
        return alpha - alpha == 0 ? nullptr : "a finite negative_slope";
    }

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>> p) {
        return select(z <= V(0), V(p.alpha) * z, z);
    }
    template <class V>
    static FASTNORM_FN auto is_unit(V z, ActParams<scalar_t<V>>) {
        return !(z <= V(0));
    }
    template <class Scalar>
    static FASTNORM_FN Scalar slope_else(ActParams<Scalar> p) {
        return p.alpha;
    }
};

template <>
struct Act<ActivationKind::clip> : PiecewiseAct {
    static constexpr const char* name = "clip";
    static constexpr int parameters = 2;
    static constexpr ActivationParameter alpha{"min", 0.0}, beta{"max", 6.0};
    static constexpr const char* expected(double alpha, double beta) {
        return alpha <= beta ? nullptr : "min <= max";
    }

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>> p) {
        return select(z <= V(p.alpha), V(p.alpha), select(z >= V(p.beta), V(p.beta), z));
    }
    template <class V>
    static FASTNORM_FN auto is_unit(V z, ActParams<scalar_t<V>> p) {
        return !((z <= V(p.alpha)) | (z >= V(p.beta)));
    }
    template <class Scalar>
    static FASTNORM_FN Scalar slope_else(ActParams<Scalar>) {
        return Scalar(0);
    }
};

// 1 / (1 + exp(-z))
template <>
struct Act<ActivationKind::sigmoid> : SmoothAct {
    static constexpr const char* name = "sigmoid";

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        return logistic_rise(logistic_bounded(z));
    }
    template <class V>
    static FASTNORM_FN V slope(V z, ActParams<scalar_t<V>>) {
        const Logistic<V> s = logistic_v(z);
        return s.rise * s.fall;
    }
};

template <>
struct Act<ActivationKind::tanh> : SmoothAct {
    static constexpr const char* name = "tanh";

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        return tanh_v(z);
    }
    // 1 - tanh(z)^2 without its cancellation.
    template <class V>
    static FASTNORM_FN V slope(V z, ActParams<scalar_t<V>>) {
        const Logistic<V> s = logistic_v(z + z);
        return V(4) * s.rise * s.fall;
    }
};

// z sigmoid(z) (https://arxiv.org/abs/1702.03118)
template <>
struct Act<ActivationKind::silu> : SmoothAct {
    static constexpr const char* name = "silu";

    // Bounded where sigmoid has become 0 (or 1), lest inf * 0.
    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        z = at_least(z, constants_t<V>::exp_lowest);
        return z * logistic_rise(at_most(z, constants_t<V>::logistic_highest));
    }
    template <class V>
    static FASTNORM_FN V slope(V z, ActParams<scalar_t<V>>) {
        z = logistic_bounded(z);
        const Logistic<V> s = logistic_rise_and_fall(z);
        return s.rise * fma(z, s.fall, V(1));
    }
};

// z Phi(z) (https://arxiv.org/abs/1606.08415)
template <>
struct Act<ActivationKind::gelu> : SmoothAct {
    static constexpr const char* name = "gelu";

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        z = at_least(z, -constants_t<V>::normal_highest);
        return z * normal_v(z).cdf;
    }
    template <class V>
    static FASTNORM_FN V slope(V z, ActParams<scalar_t<V>>) {
        using C = constants_t<V>;
        z = at_most(at_least(z, -C::normal_highest), C::normal_highest);
        const Normal<V> normal = normal_v(z);
        return fma(z, normal.density, normal.cdf);
    }
};

// z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))), and (1 + tanh(u)) / 2 = sigmoid(2u)
template <>
struct Act<ActivationKind::gelu_tanh> : SmoothAct {
    static constexpr const char* name = "gelu_tanh";
    static constexpr double linear = 1.5957691216057308;  // sqrt(8/pi)
    static constexpr double cubic = 0.044715 * linear;
    static constexpr double bound = 22.0;  // sigmoid(2u) is 0 or 1 from here on, in double also

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        using S = scalar_t<V>;
        z = at_least(z, S(-bound));
        const V twice_u = z * fma(z * z, V(S(cubic)), V(S(linear)));
        return z * logistic_rise(logistic_bounded(twice_u));
    }
    template <class V>
    static FASTNORM_FN V slope(V z, ActParams<scalar_t<V>>) {
        using S = scalar_t<V>;
        z = at_most(at_least(z, S(-bound)), S(bound));
        const V square = z * z;
        const V twice_u = z * fma(square, V(S(cubic)), V(S(linear)));
        const Logistic<V> s = logistic_rise_and_fall(logistic_bounded(twice_u));
        const V inner = z * fma(square, V(S(3 * cubic)), V(S(linear)));
        return s.rise * fma(inner, s.fall, V(1));
    }
};

// z clip(z + 3, 0, 6) / 6 (https://arxiv.org/abs/1905.02244)
template <>
struct Act<ActivationKind::hardswish> : SmoothAct {
    static constexpr const char* name = "hardswish";

    template <class V>
    static FASTNORM_FN V value(V z, ActParams<scalar_t<V>>) {
        using S = scalar_t<V>;
        const V middle = z * ((z + V(3)) * V(S(1) / S(6)));
        return select(z >= V(3), z, select(z <= V(-3), V(0), middle));
    }
    template <class V>
    static FASTNORM_FN V slope(V z, ActParams<scalar_t<V>>) {
        using S = scalar_t<V>;
        const V middle = fma(z, V(S(1) / S(3)), V(0.5f));
        return select(z >= V(3), V(1), select(z <= V(-3), V(0), middle));
    }
};

// ---------------------------------------------------------------------------------------------
// The list of them, in the order of ActivationKind: kActivations[static_cast<int>(kind)].
// ---------------------------------------------------------------------------------------------

struct ActivationInfo {
    ActivationKind kind;
    const char* name;
    int parameters;
    ActivationParameter alpha, beta;
    bool piecewise;
    const char* (*expected)(double alpha, double beta);
};

template <ActivationKind which>
consteval ActivationInfo activation_info() {
    using A = Act<which>;
    return {which, A::name, A::parameters, A::alpha, A::beta, A::piecewise, &A::expected};
}

constexpr ActivationInfo kActivations[] = {
    activation_info<ActivationKind::identity>(),   activation_info<ActivationKind::relu>(),
    activation_info<ActivationKind::leaky_relu>(), activation_info<ActivationKind::clip>(),
    activation_info<ActivationKind::sigmoid>(),    activation_info<ActivationKind::tanh>(),
    activation_info<ActivationKind::silu>(),       activation_info<ActivationKind::gelu>(),
    activation_info<ActivationKind::gelu_tanh>(),  activation_info<ActivationKind::hardswish>(),
};
// Whether its slope is computed from z by an exponential, say.
constexpr bool is_smooth(ActivationKind kind) {
    return kind != ActivationKind::identity && !kActivations[static_cast<int>(kind)].piecewise;
}
constexpr int kActivationCount = sizeof(kActivations) / sizeof(kActivations[0]);

template <int kind>
concept HasAct = requires { Act<static_cast<ActivationKind>(kind)>::name; };

consteval bool activations_are_in_order() {
    for (int i = 0; i < kActivationCount; ++i) {
        if (static_cast<int>(kActivations[i].kind) != i) return false;
    }
    return true;
}
static_assert(activations_are_in_order() && !HasAct<kActivationCount>, "an Act is not listed");

}  // namespace fastnorm
