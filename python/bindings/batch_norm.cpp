// Batch normalization: arguments to views, new arrays for what the caller did not
// give, the GIL released around the call.
#include <pybind11/stl.h>

#include <optional>

#include "arrays.h"
#include "module.h"

namespace fastnorm::python {

namespace {

// The sizes of new arrays. There are none where x or channel_axis is wrong: then no array is made,
// and the op, which looks at x first, says what is wrong.
struct Sizes {
    std::int64_t channels;
    std::int64_t mask_bytes;
};
std::optional<Sizes> sizes_for(const TensorView& x, int channel_axis) {
    try {
        const std::int64_t mask_bytes = batch_norm_mask_bytes(x, channel_axis);
        return Sizes{x.shape[channel_axis < 0 ? channel_axis + x.ndim : channel_axis], mask_bytes};
    } catch (const std::invalid_argument&) {
        return std::nullopt;
    }
}

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

py::object inference(const py::object& x, const py::object& mean, const py::object& var,
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
    options.activation = activation_of(activation);
    options.residual = arrays.optional("residual", residual);
    options.explanation = explanation;
    options.stream = arrays.stream();
    const bool makes_y = out.is_none() && sizes_for(x_view, options.channel_axis);
    const py::object y = makes_y ? arrays.empty_like_x() : out;
    const TensorView y_view = arrays.optional("out", y);
    {
        py::gil_scoped_release release;
        batch_norm(x_view, mean_view, var_view, weight_view, bias_view, y_view, options);
    }
    arrays.finish();
    return out.is_none() ? arrays.handed_over(y) : y;
}

py::tuple train(const py::object& x, const py::object& weight, const py::object& bias,
                const py::object& running_mean, const py::object& running_var,
                const py::object& momentum, const py::object& unbiased, const py::object& eps,
                const py::object& channel_axis, const py::object& residual,
                const py::object& activation, const py::object& out, const py::object& stream) {
    constexpr const char* op = "batch_norm_train";
    Arrays arrays(op, x, stream);
    const TensorView& x_view = arrays.x();
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    BatchNormTrainOptions options;
    options.running_mean = arrays.optional("running_mean", running_mean);
    options.running_var = arrays.optional("running_var", running_var);
    options.momentum = number_of(op, "momentum", momentum);
    options.unbiased = flag_of(op, "unbiased", unbiased);
    options.eps = number_of(op, "eps", eps);
    options.channel_axis = integer_of(op, "channel_axis", channel_axis);
    options.residual = arrays.optional("residual", residual);
    options.activation = activation_of(activation);
    options.explanation = explanation;
    options.stream = arrays.stream();
    py::object y = out;
    py::object mean = py::none();
    py::object rstd = py::none();
    py::object mask = py::none();
    if (const auto sizes = sizes_for(x_view, options.channel_axis)) {
        if (out.is_none()) y = arrays.empty_like_x();
        const DType dtype = batch_norm_statistics_dtype(x_view.dtype);
        mean = arrays.empty(dtype, sizes->channels);
        rstd = arrays.empty(dtype, sizes->channels);
        if (saves_mask(options.activation)) mask = arrays.empty(DType::uint8, sizes->mask_bytes);
    }
    const TensorView y_view = arrays.optional("out", y);
    const TensorView mean_view = arrays.optional("mean", mean);
    const TensorView rstd_view = arrays.optional("rstd", rstd);
    const TensorView mask_view = arrays.optional("mask", mask);
    {
        py::gil_scoped_release release;
        batch_norm_train(x_view, weight_view, bias_view, y_view, mean_view, rstd_view, mask_view,
                         options);
    }
    arrays.finish();
    return py::make_tuple(out.is_none() ? arrays.handed_over(y) : y, arrays.handed_over(mean),
                          arrays.handed_over(rstd), arrays.handed_over(mask));
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
    options.activation = activation_of(activation);
    options.mask = arrays.optional("mask", mask);
    options.explanation = explanation;
    options.stream = arrays.stream();

    // True: the forward had a residual, whose values are not needed here.
    const bool residual_without_values = py::isinstance<py::bool_>(residual);
    const bool had_residual = residual_without_values ? residual.cast<bool>() : !residual.is_none();
    if (!residual_without_values) options.residual = arrays.optional("residual", residual);
    const bool recomputes =
        options.activation.kind != ActivationKind::identity && !options.mask.given();
    if (residual_without_values && had_residual && recomputes) {
        throw py::value_error(std::string(op) +
                              ": residual is True, expected the array: without a mask, the "
                              "activation's input is recomputed from it");
    }

    py::object dx = out;
    py::object dweight = py::none();
    py::object dbias = py::none();
    py::object dresidual = py::none();
    if (const auto sizes = sizes_for(x_view, options.channel_axis)) {
        if (out.is_none()) dx = arrays.empty_like_x();
        dweight = arrays.empty(gradient_dtype(weight_view, bias_view, x_view), sizes->channels);
        dbias = arrays.empty(gradient_dtype(bias_view, weight_view, x_view), sizes->channels);
        if (had_residual) dresidual = arrays.empty_like_x();
    }
    const BatchNormGradients gradients{
        arrays.optional("out", dx), arrays.optional("dweight", dweight),
        arrays.optional("dbias", dbias), arrays.optional("dresidual", dresidual)};
    {
        py::gil_scoped_release release;
        batch_norm_backward(dy_view, x_view, mean_view, rstd_view, weight_view, bias_view,
                            gradients, options);
    }
    arrays.finish();
    return py::make_tuple(out.is_none() ? arrays.handed_over(dx) : dx, arrays.handed_over(dweight),
                          arrays.handed_over(dbias), arrays.handed_over(dresidual));
}

}  // namespace

void register_batch_norm(py::module_& module) {
    using py::arg;
    module.def("explain", &explain, arg("call"));
    module.def("batch_norm", &inference, arg("x"), arg("mean"), arg("var"), arg("weight"),
               arg("bias"), arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"),
               arg("out"), arg("stream"));
    module.def("batch_norm_train", &train, arg("x"), arg("weight"), arg("bias"),
               arg("running_mean"), arg("running_var"), arg("momentum"), arg("unbiased"),
               arg("eps"), arg("channel_axis"), arg("residual"), arg("activation"), arg("out"),
               arg("stream"));
    module.def("batch_norm_backward", &backward, arg("dy"), arg("x"), arg("mean"), arg("rstd"),
               arg("weight"), arg("bias"), arg("training"), arg("channel_axis"), arg("residual"),
               arg("activation"), arg("mask"), arg("out"), arg("stream"));
}

}  // namespace fastnorm::python
