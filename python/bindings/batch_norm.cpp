// Batch normalization on NumPy arrays: arguments to views, new arrays for what the caller did not
// give, the GIL released around the call.
#include "api/staging.h"
#include "api/validate.h"
#include "arrays.h"
#include "core/activations.h"
#include "module.h"

namespace fastnorm::python {

namespace {

bool saves_mask(const Activation& activation) {
    return kActivations[static_cast<int>(activation.kind)].piecewise;
}

// Statistics are one step wider than the data.
DType statistics_dtype(DType x) {
    return x == DType::float16 || x == DType::bfloat16 ? DType::float32 : DType::float64;
}

// The array to write: the caller's, or a new one like x.
py::object output_or_new(const py::object& out, const py::object& x) {
    return out.is_none() ? py::object(empty_like(py::reinterpret_borrow<py::array>(x))) : out;
}

py::object inference(const py::object& x, const py::object& mean, const py::object& var,
                     const py::object& weight, const py::object& bias, const py::object& eps,
                     const py::object& channel_axis, const py::object& residual,
                     const py::object& activation, const py::object& out) {
    constexpr const char* op = "batch_norm";
    const TensorView x_view = view_of(op, "x", x);
    const TensorView mean_view = view_of(op, "mean", mean);
    const TensorView var_view = view_of(op, "var", var);
    const TensorView weight_view = optional_view_of(op, "weight", weight);
    const TensorView bias_view = optional_view_of(op, "bias", bias);
    BatchNormOptions options;
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    options.activation = activation_of(activation);
    options.residual = optional_view_of(op, "residual", residual);
    const py::object y = output_or_new(out, x);
    const TensorView y_view = view_of(op, "out", y);
    {
        py::gil_scoped_release release;
        batch_norm(x_view, mean_view, var_view, weight_view, bias_view, y_view, options);
    }
    return y;
}

py::tuple train(const py::object& x, const py::object& weight, const py::object& bias,
                const py::object& running_mean, const py::object& running_var,
                const py::object& momentum, const py::object& unbiased, const py::object& eps,
                const py::object& channel_axis, const py::object& residual,
                const py::object& activation, const py::object& out) {
    constexpr const char* op = "batch_norm_train";
    const TensorView x_view = view_of(op, "x", x);
    const TensorView weight_view = optional_view_of(op, "weight", weight);
    const TensorView bias_view = optional_view_of(op, "bias", bias);
    BatchNormTrainOptions options;
    options.running_mean = optional_view_of(op, "running_mean", running_mean);
    options.running_var = optional_view_of(op, "running_var", running_var);
    options.momentum = number_of(op, "momentum", momentum);
    options.unbiased = flag_of(op, "unbiased", unbiased);
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    options.residual = optional_view_of(op, "residual", residual);
    options.activation = activation_of(activation);
    const py::object y = output_or_new(out, x);
    const TensorView y_view = view_of(op, "out", y);

    // The new arrays need shapes that only a valid x has.
    Validation check(op);
    const int axis = check.data(x_view, options.channel_axis);
    const py::array mean = empty(statistics_dtype(x_view.dtype), {check.channels()});
    const py::array rstd = empty(statistics_dtype(x_view.dtype), {check.channels()});
    py::object mask = py::none();
    if (saves_mask(options.activation)) {
        const MaskShape shape = Staging(x_view, axis).mask_shape();
        mask = empty(DType::uint8, {shape.rows, shape.bytes});
    }
    const TensorView mean_view = view_of(op, "mean", mean);
    const TensorView rstd_view = view_of(op, "rstd", rstd);
    const TensorView mask_view = optional_view_of(op, "mask", mask);
    {
        py::gil_scoped_release release;
        batch_norm_train(x_view, weight_view, bias_view, y_view, mean_view, rstd_view, mask_view,
                         options);
    }
    return py::make_tuple(y, mean, rstd, mask);
}

// The dtype of a parameter's gradient: the parameter's, or the other one's, or what x suggests.
DType gradient_dtype(const TensorView& own, const TensorView& other, const TensorView& x) {
    if (own.given()) return own.dtype;
    if (other.given()) return other.dtype;
    return x.dtype == DType::float64 ? DType::float64 : DType::float32;
}

py::tuple backward(const py::object& dy, const py::object& x, const py::object& mean,
                   const py::object& rstd, const py::object& weight, const py::object& bias,
                   const py::object& training, const py::object& channel_axis,
                   const py::object& residual, const py::object& activation, const py::object& mask,
                   const py::object& out) {
    constexpr const char* op = "batch_norm_backward";
    const TensorView dy_view = view_of(op, "dy", dy);
    const TensorView x_view = view_of(op, "x", x);
    const TensorView mean_view = view_of(op, "mean", mean);
    const TensorView rstd_view = view_of(op, "rstd", rstd);
    const TensorView weight_view = optional_view_of(op, "weight", weight);
    const TensorView bias_view = optional_view_of(op, "bias", bias);
    BatchNormBackwardOptions options;
    options.training = flag_of(op, "training", training);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    options.activation = activation_of(activation);
    options.mask = optional_view_of(op, "mask", mask);

    // True: the forward had a residual, whose values are not needed here.
    const bool residual_without_values = py::isinstance<py::bool_>(residual);
    const bool had_residual = residual_without_values ? residual.cast<bool>() : !residual.is_none();
    if (!residual_without_values) options.residual = optional_view_of(op, "residual", residual);
    const bool recomputes =
        options.activation.kind != ActivationKind::identity && !options.mask.given();
    if (residual_without_values && had_residual && recomputes) {
        throw py::value_error(std::string(op) +
                              ": residual is True, expected the array: without a mask, the "
                              "activation's input is recomputed from it");
    }

    const py::object dx = output_or_new(out, x);
    const TensorView dx_view = view_of(op, "out", dx);
    Validation check(op);
    check.data(x_view, options.channel_axis);
    const py::array dweight =
        empty(gradient_dtype(weight_view, bias_view, x_view), {check.channels()});
    const py::array dbias =
        empty(gradient_dtype(bias_view, weight_view, x_view), {check.channels()});
    py::object dresidual = py::none();
    if (had_residual) dresidual = empty_like(py::reinterpret_borrow<py::array>(x));
    const BatchNormGradients gradients{dx_view, view_of(op, "dweight", dweight),
                                       view_of(op, "dbias", dbias),
                                       optional_view_of(op, "dresidual", dresidual)};
    {
        py::gil_scoped_release release;
        batch_norm_backward(dy_view, x_view, mean_view, rstd_view, weight_view, bias_view,
                            gradients, options);
    }
    return py::make_tuple(dx, dweight, dbias, dresidual);
}

}  // namespace

void register_batch_norm(py::module_& module) {
    using py::arg;
    module.def("batch_norm", &inference, arg("x"), arg("mean"), arg("var"), arg("weight"),
               arg("bias"), arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"),
               arg("out"));
    module.def("batch_norm_train", &train, arg("x"), arg("weight"), arg("bias"),
               arg("running_mean"), arg("running_var"), arg("momentum"), arg("unbiased"),
               arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"), arg("out"));
    module.def("batch_norm_backward", &backward, arg("dy"), arg("x"), arg("mean"), arg("rstd"),
               arg("weight"), arg("bias"), arg("training"), arg("channel_axis"), arg("residual"),
               arg("activation"), arg("mask"), arg("out"));
}

}  // namespace fastnorm::python
