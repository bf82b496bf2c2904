// What the norms' bindings share: new arrays for what the caller did not give, and the GIL released
// around the call.
#pragma once

#include <optional>
#include <utility>

#include "api/validate.h"
#include "arrays.h"

namespace fastnorm::python {

// What the ops of this thread should explain instead of doing, if anything.
Explanation* explanation_of_thread();

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
    options.explanation = explanation_of_thread();
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
inline DType gradient_dtype(const TensorView& own, const TensorView& other, const TensorView& x) {
    if (own.given()) return own.dtype;
    if (other.given()) return other.dtype;
    return x.dtype == DType::float64 ? DType::float64 : DType::float32;
}

// What a backward pass returns: call(gradients) writes it.
template <class Options, class SizesOf, class Call>
py::tuple differentiate(const char* op, Arrays& arrays, Options& options, const TensorView& weight,
                        const TensorView& bias, bool has_dbias, const py::object& residual,
                        const py::object& activation, const py::object& mask, const py::object& out,
                        SizesOf&& sizes_of, Call&& call) {
    // True: the forward had a residual, whose values are not needed here.
    const bool without_values = py::isinstance<py::bool_>(residual);
    const bool had_residual = without_values ? residual.cast<bool>() : !residual.is_none();
    options.mask = arrays.optional("mask", mask);
    set_common(arrays, options, without_values ? py::none() : residual, activation);
    const bool recomputes =
        options.activation.kind != ActivationKind::identity && !options.mask.given();
    Validation(op).residual_needs_values(!(without_values && had_residual), recomputes);

    const TensorView& x = arrays.x();
    py::object dx = out;
    py::object dweight = py::none();
    py::object dbias = py::none();
    py::object dresidual = py::none();
    if (const auto sizes = sizes_if_valid(sizes_of)) {
        if (out.is_none()) dx = arrays.empty_like_x();
        dweight = arrays.empty(gradient_dtype(weight, bias, x), sizes->parameters);
        if (has_dbias) dbias = arrays.empty(gradient_dtype(bias, weight, x), sizes->parameters);
        if (had_residual) dresidual = arrays.empty_like_x();
    }
    const NormGradients gradients{arrays.optional("out", dx), arrays.optional("dweight", dweight),
                                  arrays.optional("dbias", dbias),
                                  arrays.optional("dresidual", dresidual)};
    {
        py::gil_scoped_release release;
        call(gradients);
    }
    arrays.finish();
    return py::make_tuple(out.is_none() ? arrays.handed_over(dx) : dx, arrays.handed_over(dweight),
                          arrays.handed_over(dbias), arrays.handed_over(dresidual));
}

}  // namespace fastnorm::python
