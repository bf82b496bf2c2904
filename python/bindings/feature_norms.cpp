// The norms of rows, by their mean and variance or by their mean square: arguments to views and
// options.
#include "api/validate.h"
#include "module.h"
#include "norm_results.h"

namespace fastnorm::python {

namespace {

// The options of a forward pass; sum: the array that prenorm's s goes to, None without.
template <class Options>
py::object set_forward(const char* op, Arrays& arrays, Options& options, const py::object& axis,
                       const py::object& eps, const py::object& residual, const py::object& prenorm,
                       const py::object& weight_offset, const py::object& activation,
                       const py::object& sum_out) {
    options.axis = integer_of(op, "axis", axis);
    options.eps = number_of(op, "eps", eps);
    options.weight_offset = number_of(op, "weight_offset", weight_offset);
    set_common(arrays, options, residual, activation);
    const bool adds = flag_of(op, "prenorm", prenorm);
    Validation(op).sum_needs_prenorm(!sum_out.is_none(), adds);
    const auto sizes = [&] { return layer_norm_sizes(arrays.x(), options.axis); };
    const bool makes = adds && sum_out.is_none() && sizes_if_valid(sizes);
    const py::object sum = makes ? arrays.empty_like_x() : sum_out;
    options.sum_out = arrays.optional("sum_out", sum);
    return sum;
}

py::object handed_over(const Arrays& arrays, const py::object& made, const py::object& given) {
    return given.is_none() ? arrays.handed_over(made) : given;
}

// call(out) writes y.
template <class Options, class Call>
py::object only(Arrays& arrays, const Options& options, const py::object& sum,
                const py::object& out, const py::object& sum_out, Call&& call) {
    py::object y = normalize_only(
        arrays, out, [&] { return layer_norm_sizes(arrays.x(), options.axis); },
        std::forward<Call>(call));
    if (sum.is_none()) return y;
    return py::make_tuple(std::move(y), handed_over(arrays, sum, sum_out));
}

// call(out, mean, rstd, mask) writes what is returned.
template <class Options, class Call>
py::tuple saving(Arrays& arrays, const Options& options, const py::object& sum,
                 const py::object& out, const py::object& sum_out, Call&& call) {
    const py::tuple saved = normalize(
        arrays, options.activation, out, [&] { return layer_norm_sizes(arrays.x(), options.axis); },
        std::forward<Call>(call));
    return py::make_tuple(saved[0], saved[1], saved[2], saved[3],
                          sum.is_none() ? sum : handed_over(arrays, sum, sum_out));
}

py::object layer_norm_only(const py::object& x, const py::object& weight, const py::object& bias,
                           const py::object& axis, const py::object& eps,
                           const py::object& residual, const py::object& prenorm,
                           const py::object& weight_offset, const py::object& activation,
                           const py::object& out, const py::object& sum_out,
                           const py::object& stream) {
    constexpr const char* op = "layer_norm";
    Arrays arrays(op, x, stream);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    LayerNormOptions options;
    const py::object sum = set_forward(op, arrays, options, axis, eps, residual, prenorm,
                                       weight_offset, activation, sum_out);
    return only(arrays, options, sum, out, sum_out, [&](const TensorView& y) {
        layer_norm(arrays.x(), weight_view, bias_view, y, options);
    });
}

py::tuple layer_norm_saving(const py::object& x, const py::object& weight, const py::object& bias,
                            const py::object& axis, const py::object& eps,
                            const py::object& residual, const py::object& prenorm,
                            const py::object& weight_offset, const py::object& activation,
                            const py::object& out, const py::object& sum_out,
                            const py::object& stream) {
    constexpr const char* op = "layer_norm_train";
    Arrays arrays(op, x, stream);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    LayerNormOptions options;
    const py::object sum = set_forward(op, arrays, options, axis, eps, residual, prenorm,
                                       weight_offset, activation, sum_out);
    return saving(arrays, options, sum, out, sum_out,
                  [&](const TensorView& y, const TensorView& mean, const TensorView& rstd,
                      const TensorView& mask) {
                      layer_norm_train(arrays.x(), weight_view, bias_view, y, mean, rstd, mask,
                                       options);
                  });
}

py::object rms_norm_only(const py::object& x, const py::object& weight, const py::object& bias,
                         const py::object& axis, const py::object& eps, const py::object& residual,
                         const py::object& prenorm, const py::object& weight_offset,
                         const py::object& cast_before_weight, const py::object& activation,
                         const py::object& out, const py::object& sum_out,
                         const py::object& stream) {
    constexpr const char* op = "rms_norm";
    Arrays arrays(op, x, stream);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    RMSNormOptions options;
    options.cast_before_weight = flag_of(op, "cast_before_weight", cast_before_weight);
    const py::object sum = set_forward(op, arrays, options, axis, eps, residual, prenorm,
                                       weight_offset, activation, sum_out);
    return only(arrays, options, sum, out, sum_out, [&](const TensorView& y) {
        rms_norm(arrays.x(), weight_view, bias_view, y, options);
    });
}

py::tuple rms_norm_saving(const py::object& x, const py::object& weight, const py::object& bias,
                          const py::object& axis, const py::object& eps, const py::object& residual,
                          const py::object& prenorm, const py::object& weight_offset,
                          const py::object& cast_before_weight, const py::object& activation,
                          const py::object& out, const py::object& sum_out,
                          const py::object& stream) {
    constexpr const char* op = "rms_norm_train";
    Arrays arrays(op, x, stream);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    RMSNormOptions options;
    options.cast_before_weight = flag_of(op, "cast_before_weight", cast_before_weight);
    const py::object sum = set_forward(op, arrays, options, axis, eps, residual, prenorm,
                                       weight_offset, activation, sum_out);
    py::tuple saved =
        saving(arrays, options, sum, out, sum_out,
               [&](const TensorView& y, const TensorView&, const TensorView& rstd,
                   const TensorView& mask) {
                   rms_norm_train(arrays.x(), weight_view, bias_view, y, rstd, mask, options);
               });
    return py::make_tuple(saved[0], saved[2], saved[3], saved[4]);
}

template <class Call>
py::tuple gradients_of(const char* op, Arrays& arrays, LayerNormBackwardOptions& options,
                       const TensorView& weight, const TensorView& bias, bool has_dbias,
                       const py::object& axis, const py::object& residual, const py::object& dsum,
                       const py::object& weight_offset, const py::object& activation,
                       const py::object& mask, const py::object& out, Call&& call) {
    options.axis = integer_of(op, "axis", axis);
    options.weight_offset = number_of(op, "weight_offset", weight_offset);
    options.dsum = arrays.optional("dsum", dsum);
    return differentiate(
        op, arrays, options, weight, bias, has_dbias, residual, activation, mask, out,
        [&] { return layer_norm_sizes(arrays.x(), options.axis); }, std::forward<Call>(call));
}

py::tuple layer_norm_gradients(const py::object& dy, const py::object& x, const py::object& mean,
                               const py::object& rstd, const py::object& weight,
                               const py::object& bias, const py::object& axis,
                               const py::object& residual, const py::object& dsum,
                               const py::object& weight_offset, const py::object& activation,
                               const py::object& mask, const py::object& out,
                               const py::object& stream) {
    constexpr const char* op = "layer_norm_backward";
    Arrays arrays(op, x, stream);
    const TensorView dy_view = arrays.view("dy", dy);
    const TensorView mean_view = arrays.view("mean", mean);
    const TensorView rstd_view = arrays.view("rstd", rstd);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    LayerNormBackwardOptions options;
    return gradients_of(op, arrays, options, weight_view, bias_view, true, axis, residual, dsum,
                        weight_offset, activation, mask, out, [&](const NormGradients& gradients) {
                            layer_norm_backward(dy_view, arrays.x(), mean_view, rstd_view,
                                                weight_view, bias_view, gradients, options);
                        });
}

py::tuple rms_norm_gradients(const py::object& dy, const py::object& x, const py::object& rstd,
                             const py::object& weight, const py::object& bias,
                             const py::object& axis, const py::object& residual,
                             const py::object& dsum, const py::object& weight_offset,
                             const py::object& activation, const py::object& mask,
                             const py::object& out, const py::object& stream) {
    constexpr const char* op = "rms_norm_backward";
    Arrays arrays(op, x, stream);
    const TensorView dy_view = arrays.view("dy", dy);
    const TensorView rstd_view = arrays.view("rstd", rstd);
    const TensorView weight_view = arrays.optional("weight", weight);
    const TensorView bias_view = arrays.optional("bias", bias);
    LayerNormBackwardOptions options;
    return gradients_of(op, arrays, options, weight_view, bias_view, bias_view.given(), axis,
                        residual, dsum, weight_offset, activation, mask, out,
                        [&](const NormGradients& gradients) {
                            rms_norm_backward(dy_view, arrays.x(), rstd_view, weight_view,
                                              bias_view, gradients, options);
                        });
}

}  // namespace

void register_feature_norms(py::module_& module) {
    using py::arg;
    module.def("layer_norm", &layer_norm_only, arg("x"), arg("weight"), arg("bias"), arg("axis"),
               arg("eps"), arg("residual"), arg("prenorm"), arg("weight_offset"), arg("activation"),
               arg("out"), arg("sum_out"), arg("stream"));
    module.def("layer_norm_train", &layer_norm_saving, arg("x"), arg("weight"), arg("bias"),
               arg("axis"), arg("eps"), arg("residual"), arg("prenorm"), arg("weight_offset"),
               arg("activation"), arg("out"), arg("sum_out"), arg("stream"));
    module.def("layer_norm_backward", &layer_norm_gradients, arg("dy"), arg("x"), arg("mean"),
               arg("rstd"), arg("weight"), arg("bias"), arg("axis"), arg("residual"), arg("dsum"),
               arg("weight_offset"), arg("activation"), arg("mask"), arg("out"), arg("stream"));
    module.def("rms_norm", &rms_norm_only, arg("x"), arg("weight"), arg("bias"), arg("axis"),
               arg("eps"), arg("residual"), arg("prenorm"), arg("weight_offset"),
               arg("cast_before_weight"), arg("activation"), arg("out"), arg("sum_out"),
               arg("stream"));
    module.def("rms_norm_train", &rms_norm_saving, arg("x"), arg("weight"), arg("bias"),
               arg("axis"), arg("eps"), arg("residual"), arg("prenorm"), arg("weight_offset"),
               arg("cast_before_weight"), arg("activation"), arg("out"), arg("sum_out"),
               arg("stream"));
    module.def("rms_norm_backward", &rms_norm_gradients, arg("dy"), arg("x"), arg("rstd"),
               arg("weight"), arg("bias"), arg("axis"), arg("residual"), arg("dsum"),
               arg("weight_offset"), arg("activation"), arg("mask"), arg("out"), arg("stream"));
}

}  // namespace fastnorm::python
