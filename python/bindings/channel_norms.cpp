// The norms of channels, in batches, groups and samples: arguments to views and options.
#include <string>

#include "api/validate.h"
#include "module.h"
#include "norm_results.h"

namespace fastnorm::python {

namespace {

py::object batch_norm_given(const py::object& x, const py::object& mean, const py::object& var,
                            const py::object& weight, const py::object& bias, const py::object& eps,
                            const py::object& channel_axis, const py::object& residual,
                            const py::object& activation, const py::object& out,
                            const py::object& stream) {
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
        op, arrays, options, weight_view, bias_view, true, residual, activation, mask, out,
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

py::tuple group_norm_by_own(const py::object& x, const py::object& groups, const py::object& weight,
                            const py::object& bias, const py::object& eps,
                            const py::object& channel_axis, const py::object& residual,
                            const py::object& activation, const py::object& out,
                            const py::object& stream) {
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
        op, arrays, options, weight_view, bias_view, true, residual, activation, mask, out,
        [&] { return group_norm_sizes(x_view, group_count, options.channel_axis); },
        [&](const NormGradients& gradients) {
            group_norm_backward(dy_view, x_view, group_count, mean_view, rstd_view, weight_view,
                                bias_view, gradients, options);
        });
}

py::object instance_norm_only(const py::object& x, const py::object& weight, const py::object& bias,
                              const py::object& eps, const py::object& channel_axis,
                              const py::object& residual, const py::object& activation,
                              const py::object& out, const py::object& stream) {
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

py::tuple instance_norm_gradients(const py::object& dy, const py::object& x, const py::object& mean,
                                  const py::object& rstd, const py::object& weight,
                                  const py::object& bias, const py::object& channel_axis,
                                  const py::object& residual, const py::object& activation,
                                  const py::object& mask, const py::object& out,
                                  const py::object& stream) {
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
        op, arrays, options, weight_view, bias_view, true, residual, activation, mask, out,
        [&] { return instance_norm_sizes(x_view, options.channel_axis); },
        [&](const NormGradients& gradients) {
            instance_norm_backward(dy_view, x_view, mean_view, rstd_view, weight_view, bias_view,
                                   gradients, options);
        });
}

// What instance norm would say of an x that another op is to normalize.
void check_instance_norm(const std::string& op, const py::object& x,
                         const py::object& channel_axis) {
    const int axis = integer_of(op.c_str(), "channel_axis", channel_axis);
    Validation(op.c_str()).instance_norm(layout_of(op.c_str(), "x", x), axis);
}

}  // namespace

void register_channel_norms(py::module_& module) {
    using py::arg;
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
    module.def("instance_norm_backward", &instance_norm_gradients, arg("dy"), arg("x"), arg("mean"),
               arg("rstd"), arg("weight"), arg("bias"), arg("channel_axis"), arg("residual"),
               arg("activation"), arg("mask"), arg("out"), arg("stream"));
    module.def("check_instance_norm", &check_instance_norm, arg("op"), arg("x"),
               arg("channel_axis"));
}

}  // namespace fastnorm::python
