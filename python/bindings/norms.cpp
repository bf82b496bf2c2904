// The norms: arguments to views, new arrays for what the caller did not give, the GIL released
// around the call.
#include <pybind11/stl.h>

#include <optional>

#include "arrays.h"
#include "module.h"

namespace fastnorm::python {

namespace {

// What the ops of this thread should explain instead of doing, if anything.
thread_local Explanation* explanation = nullptr;

// (what call() would do as a dict; call is of ops)
py::dict explain(const py::object& call) {
    Explanation e;
    struct Scope {
        explicit Scope(Explanation* given) { explanation = given; }
        ~Scope() { explanation = nullptr; }
    };
    {
        const Scope scope(&e);
        call();
    }
    py::dict result;
    result["isa"] = e.isa;
    result["traversal"] = e.traversal;
    result["view"] = py::make_tuple(e.batch, e.outer, e.stat, e.inner);
    result["tile"] = py::make_tuple(e.tile_stat, e.tile_outer, e.tile_inner);
    result["units"] = e.units;
    result["chunks"] = e.chunks;
    result["reduces"] = e.reduces;
    result["threads"] = e.threads;
    result["shared"] = e.shared;
    result["interleaved"] = e.interleaved;
    result["stream"] = e.stream;
    result["reads"] = e.reads;
    result["least_bytes"] = e.least_bytes;
    result["scratch_bytes"] = e.scratch_bytes;
    result["launches"] = py::tuple(py::cast(e.launches));
    result["copied"] = py::tuple(py::cast(e.copied));
    return result;
}

// The sizes of new arrays. There are none where x or an axis is wrong: then no array is made, and
// the op, which looks at those first, says what is wrong.
template <class SizesOf>
std::optional<NormSizes> sizes_if_valid(SizesOf&& sizes_of) {
    try {
        return sizes_of();
    } catch (const std::invalid_argument&) {
        return std::nullopt;
    }
}

template <class Options>
void set_common(Arrays& arrays, Options& options, const py::object& residual,
                const py::object& activation) {
    options.residual = arrays.optional("residual", residual);
    options.activation = activation_of(activation);
    options.explanation = explanation;
    options.stream = arrays.stream();
}

// What a forward pass by x's own statistics returns: call(out, mean, rstd, mask) writes it.
template <class SizesOf, class Call>
py::tuple normalize(Arrays& arrays, const Activation& activation, const py::object& out,
                    SizesOf&& sizes_of, Call&& call) {
    py::object y = out;
    py::object mean = py::none();
    py::object rstd = py::none();
    py::object mask = py::none();
    if (const auto sizes = sizes_if_valid(sizes_of)) {
        if (out.is_none()) y = arrays.empty_like_x();
        mean = arrays.empty(sizes->statistics_dtype, sizes->statistics);
        rstd = arrays.empty(sizes->statistics_dtype, sizes->statistics);
        if (saves_mask(activation)) mask = arrays.empty(DType::uint8, {1, {sizes->mask_bytes}});
    }
    const TensorView y_view = arrays.optional("out", y);
    const TensorView mean_view = arrays.optional("mean", mean);
    const TensorView rstd_view = arrays.optional("rstd", rstd);
    const TensorView mask_view = arrays.optional("mask", mask);
    {
        py::gil_scoped_release release;
        call(y_view, mean_view, rstd_view, mask_view);
    }
    arrays.finish();
    return py::make_tuple(out.is_none() ? arrays.handed_over(y) : y, arrays.handed_over(mean),
                          arrays.handed_over(rstd), arrays.handed_over(mask));
}

// The same of one that saves nothing: call(out).
template <class SizesOf, class Call>
py::object normalize_only(Arrays& arrays, const py::object& out, SizesOf&& sizes_of, Call&& call) {
    const bool makes_y = out.is_none() && sizes_if_valid(sizes_of);
    const py::object y = makes_y ? arrays.empty_like_x() : out;
    const TensorView y_view = arrays.optional("out", y);
    {
        py::gil_scoped_release release;
        call(y_view);
    }
    arrays.finish();
    return out.is_none() ? arrays.handed_over(y) : y;
}

// The dtype of a parameter's gradient: the parameter's, or the other one's, or what x suggests.
DType gradient_dtype(const TensorView& own, const TensorView& other, const TensorView& x) {
    if (own.given()) return own.dtype;
    if (other.given()) return other.dtype;
    return x.dtype == DType::float64 ? DType::float64 : DType::float32;
}

// What a backward pass returns: call(gradients) writes it.
template <class Options, class SizesOf, class Call>
py::tuple differentiate(const char* op, Arrays& arrays, Options& options,
                        const TensorView& weight, const TensorView& bias,
                        const py::object& residual, const py::object& activation,
                        const py::object& mask, const py::object& out, SizesOf&& sizes_of,
                        Call&& call) {
    // True: the forward had a residual, whose values are not needed here.
    const bool without_values = py::isinstance<py::bool_>(residual);
    const bool had_residual = without_values ? residual.cast<bool>() : !residual.is_none();
    options.mask = arrays.optional("mask", mask);
    set_common(arrays, options, without_values ? py::none() : residual, activation);
    const bool recomputes =
        options.activation.kind != ActivationKind::identity && !options.mask.given();
    if (without_values && had_residual && recomputes) {
        throw py::value_error(std::string(op) +
                              ": residual is True, expected the array: without a mask, the "
                              "activation's input is recomputed from it");
    }

    const TensorView& x = arrays.x();
    py::object dx = out;
    py::object dweight = py::none();
    py::object dbias = py::none();
    py::object dresidual = py::none();
    if (const auto sizes = sizes_if_valid(sizes_of)) {
        if (out.is_none()) dx = arrays.empty_like_x();
        dweight = arrays.empty(gradient_dtype(weight, bias, x), sizes->parameters);
        dbias = arrays.empty(gradient_dtype(bias, weight, x), sizes->parameters);
        if (had_residual) dresidual = arrays.empty_like_x();
    }
    const NormGradients gradients{
        arrays.optional("out", dx), arrays.optional("dweight", dweight),
        arrays.optional("dbias", dbias), arrays.optional("dresidual", dresidual)};
    {
        py::gil_scoped_release release;
        call(gradients);
    }
    arrays.finish();
    return py::make_tuple(out.is_none() ? arrays.handed_over(dx) : dx, arrays.handed_over(dweight),
                          arrays.handed_over(dbias), arrays.handed_over(dresidual));
}

py::object batch_norm_given(const py::object& x, const py::object& mean, const py::object& var,
                            const py::object& weight, const py::object& bias,
                            const py::object& eps, const py::object& channel_axis,
                            const py::object& residual, const py::object& activation,
                            const py::object& out, const py::object& stream) {
    constexpr const char* op = "batch_norm";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView mean_view = arrays.view("mean", mean);
    const TensorView var_view = arrays.view("var", var);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    BatchNormOptions options;
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    set_common(arrays, options, residual, activation);
    return normalize_only(
        arrays, out, [&] { return batch_norm_sizes(x_view, options.channel_axis); },
        [&](const TensorView& y) {
            batch_norm(x_view, mean_view, var_view, weight_view, bias_view, y, options);
        });
}

// Those of a norm that keeps running statistics.
template <class Options>
void set_running(const char* op, Arrays& arrays, Options& options, const py::object& running_mean,
                 const py::object& running_var, const py::object& momentum,
                 const py::object& unbiased, const py::object& eps,
                 const py::object& channel_axis) {
    options.running_mean = arrays.optional("running_mean", running_mean);
    options.running_var = arrays.optional("running_var", running_var);
    options.momentum = number_of(op, "momentum", momentum);
    options.unbiased = flag_of(op, "unbiased", unbiased);
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
}

py::tuple batch_norm_by_own(const py::object& x, const py::object& weight, const py::object& bias,
                            const py::object& running_mean, const py::object& running_var,
                            const py::object& momentum, const py::object& unbiased,
                            const py::object& eps, const py::object& channel_axis,
                            const py::object& residual, const py::object& activation,
                            const py::object& out, const py::object& stream) {
    constexpr const char* op = "batch_norm_train";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    BatchNormTrainOptions options;
    set_running(op, arrays, options, running_mean, running_var, momentum, unbiased, eps,
                channel_axis);
    set_common(arrays, options, residual, activation);
    return normalize(
        arrays, options.activation, out,
        [&] { return batch_norm_sizes(x_view, options.channel_axis); },
        [&](const TensorView& y, const TensorView& mean, const TensorView& rstd,
            const TensorView& mask) {
            batch_norm_train(x_view, weight_view, bias_view, y, mean, rstd, mask, options);
        });
}

py::tuple batch_norm_gradients(const py::object& dy, const py::object& x, const py::object& mean,
                               const py::object& rstd, const py::object& weight,
                               const py::object& bias, const py::object& training,
                               const py::object& channel_axis, const py::object& residual,
                               const py::object& activation, const py::object& mask,
                               const py::object& out, const py::object& stream) {
    constexpr const char* op = "batch_norm_backward";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView dy_view = arrays.view("dy", dy);
    const TensorView mean_view = arrays.view("mean", mean);
    const TensorView rstd_view = arrays.view("rstd", rstd);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    BatchNormBackwardOptions options;
    options.training = flag_of(op, "training", training);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    return differentiate(
        op, arrays, options, weight_view, bias_view, residual, activation, mask, out,
        [&] { return batch_norm_sizes(x_view, options.channel_axis); },
        [&](const NormGradients& gradients) {
            batch_norm_backward(dy_view, x_view, mean_view, rstd_view, weight_view, bias_view,
                                gradients, options);
        });
}

py::object group_norm_only(const py::object& x, const py::object& groups, const py::object& weight,
                           const py::object& bias, const py::object& eps,
                           const py::object& channel_axis, const py::object& residual,
                           const py::object& activation, const py::object& out,
                           const py::object& stream) {
    constexpr const char* op = "group_norm";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const std::int64_t group_count = integer64_of(op, "groups", groups);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    GroupNormOptions options;
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    set_common(arrays, options, residual, activation);
    return normalize_only(
        arrays, out, [&] { return group_norm_sizes(x_view, group_count, options.channel_axis); },
        [&](const TensorView& y) {
            group_norm(x_view, group_count, weight_view, bias_view, y, options);
        });
}

py::tuple group_norm_by_own(const py::object& x, const py::object& groups,
                            const py::object& weight, const py::object& bias,
                            const py::object& eps, const py::object& channel_axis,
                            const py::object& residual, const py::object& activation,
                            const py::object& out, const py::object& stream) {
    constexpr const char* op = "group_norm_train";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const std::int64_t group_count = integer64_of(op, "groups", groups);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    GroupNormOptions options;
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    set_common(arrays, options, residual, activation);
    return normalize(
        arrays, options.activation, out,
        [&] { return group_norm_sizes(x_view, group_count, options.channel_axis); },
        [&](const TensorView& y, const TensorView& mean, const TensorView& rstd,
            const TensorView& mask) {
            group_norm_train(x_view, group_count, weight_view, bias_view, y, mean, rstd, mask,
                             options);
        });
}

py::tuple group_norm_gradients(const py::object& dy, const py::object& x, const py::object& groups,
                               const py::object& mean, const py::object& rstd,
                               const py::object& weight, const py::object& bias,
                               const py::object& channel_axis, const py::object& residual,
                               const py::object& activation, const py::object& mask,
                               const py::object& out, const py::object& stream) {
    constexpr const char* op = "group_norm_backward";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView dy_view = arrays.view("dy", dy);
    const std::int64_t group_count = integer64_of(op, "groups", groups);
    const TensorView mean_view = arrays.view("mean", mean);
    const TensorView rstd_view = arrays.view("rstd", rstd);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    GroupNormBackwardOptions options;
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    return differentiate(
        op, arrays, options, weight_view, bias_view, residual, activation, mask, out,
        [&] { return group_norm_sizes(x_view, group_count, options.channel_axis); },
        [&](const NormGradients& gradients) {
            group_norm_backward(dy_view, x_view, group_count, mean_view, rstd_view, weight_view,
                                bias_view, gradients, options);
        });
}

py::object instance_norm_only(const py::object& x, const py::object& weight,
                              const py::object& bias, const py::object& eps,
                              const py::object& channel_axis, const py::object& residual,
                              const py::object& activation, const py::object& out,
                              const py::object& stream) {
    constexpr const char* op = "instance_norm";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    GroupNormOptions options;
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    set_common(arrays, options, residual, activation);
    return normalize_only(
        arrays, out, [&] { return instance_norm_sizes(x_view, options.channel_axis); },
        [&](const TensorView& y) { instance_norm(x_view, weight_view, bias_view, y, options); });
}

py::tuple instance_norm_by_own(const py::object& x, const py::object& weight,
                               const py::object& bias, const py::object& running_mean,
                               const py::object& running_var, const py::object& momentum,
                               const py::object& unbiased, const py::object& eps,
                               const py::object& channel_axis, const py::object& residual,
                               const py::object& activation, const py::object& out,
                               const py::object& stream) {
    constexpr const char* op = "instance_norm_train";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    InstanceNormOptions options;
    set_running(op, arrays, options, running_mean, running_var, momentum, unbiased, eps,
                channel_axis);
    set_common(arrays, options, residual, activation);
    return normalize(
        arrays, options.activation, out,
        [&] { return instance_norm_sizes(x_view, options.channel_axis); },
        [&](const TensorView& y, const TensorView& mean, const TensorView& rstd,
            const TensorView& mask) {
            instance_norm_train(x_view, weight_view, bias_view, y, mean, rstd, mask, options);
        });
}

py::tuple instance_norm_gradients(const py::object& dy, const py::object& x,
                                  const py::object& mean, const py::object& rstd,
                                  const py::object& weight, const py::object& bias,
                                  const py::object& channel_axis, const py::object& residual,
                                  const py::object& activation, const py::object& mask,
                                  const py::object& out, const py::object& stream) {
    constexpr const char* op = "instance_norm_backward";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView dy_view = arrays.view("dy", dy);
    const TensorView mean_view = arrays.view("mean", mean);
    const TensorView rstd_view = arrays.view("rstd", rstd);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    GroupNormBackwardOptions options;
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    return differentiate(
        op, arrays, options, weight_view, bias_view, residual, activation, mask, out,
        [&] { return instance_norm_sizes(x_view, options.channel_axis); },
        [&](const NormGradients& gradients) {
            instance_norm_backward(dy_view, x_view, mean_view, rstd_view, weight_view, bias_view,
                                   gradients, options);
        });
}

}  // namespace

void register_norms(py::module_& module) {
    using py::arg;
    module.def("explain", &explain, arg("call"));
    module.def("batch_norm", &batch_norm_given, arg("x"), arg("mean"), arg("var"), arg("weight"),
               arg("bias"), arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"),
               arg("out"), arg("stream"));
    module.def("batch_norm_train", &batch_norm_by_own, arg("x"), arg("weight"), arg("bias"),
               arg("running_mean"), arg("running_var"), arg("momentum"), arg("unbiased"),
               arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"), arg("out"),
               arg("stream"));
    module.def("batch_norm_backward", &batch_norm_gradients, arg("dy"), arg("x"), arg("mean"),
               arg("rstd"), arg("weight"), arg("bias"), arg("training"), arg("channel_axis"),
               arg("residual"), arg("activation"), arg("mask"), arg("out"), arg("stream"));
    module.def("group_norm", &group_norm_only, arg("x"), arg("groups"), arg("weight"), arg("bias"),
               arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"), arg("out"),
               arg("stream"));
    module.def("group_norm_train", &group_norm_by_own, arg("x"), arg("groups"), arg("weight"),
               arg("bias"), arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"),
               arg("out"), arg("stream"));
    module.def("group_norm_backward", &group_norm_gradients, arg("dy"), arg("x"), arg("groups"),
               arg("mean"), arg("rstd"), arg("weight"), arg("bias"), arg("channel_axis"),
               arg("residual"), arg("activation"), arg("mask"), arg("out"), arg("stream"));
    module.def("instance_norm", &instance_norm_only, arg("x"), arg("weight"), arg("bias"),
               arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"), arg("out"),
               arg("stream"));
    module.def("instance_norm_train", &instance_norm_by_own, arg("x"), arg("weight"), arg("bias"),
               arg("running_mean"), arg("running_var"), arg("momentum"), arg("unbiased"),
               arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"), arg("out"),
               arg("stream"));
    module.def("instance_norm_backward", &instance_norm_gradients, arg("dy"), arg("x"),
               arg("mean"), arg("rstd"), arg("weight"), arg("bias"), arg("channel_axis"),
               arg("residual"), arg("activation"), arg("mask"), arg("out"), arg("stream"));
}

}  // namespace fastnorm::python
