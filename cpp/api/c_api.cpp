// The C ABI: structs to views, exceptions to status codes. No mathematics, no shape rules.
#include "fastnorm/fastnorm.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::ActivationKind;
using fastnorm::DType;
using fastnorm::TensorView;

static_assert(FASTNORM_MAX_DIMS == fastnorm::max_dims);
static_assert(FASTNORM_FLOAT32 == static_cast<int>(DType::float32));
static_assert(FASTNORM_FLOAT64 == static_cast<int>(DType::float64));
static_assert(FASTNORM_FLOAT16 == static_cast<int>(DType::float16));
static_assert(FASTNORM_BFLOAT16 == static_cast<int>(DType::bfloat16));
static_assert(FASTNORM_UINT8 == static_cast<int>(DType::uint8));
static_assert(FASTNORM_IDENTITY == static_cast<int>(ActivationKind::identity));
static_assert(FASTNORM_RELU == static_cast<int>(ActivationKind::relu));
static_assert(FASTNORM_LEAKY_RELU == static_cast<int>(ActivationKind::leaky_relu));
static_assert(FASTNORM_CLIP == static_cast<int>(ActivationKind::clip));
static_assert(FASTNORM_SIGMOID == static_cast<int>(ActivationKind::sigmoid));
static_assert(FASTNORM_TANH == static_cast<int>(ActivationKind::tanh));
static_assert(FASTNORM_SILU == static_cast<int>(ActivationKind::silu));
static_assert(FASTNORM_GELU == static_cast<int>(ActivationKind::gelu));
static_assert(FASTNORM_GELU_TANH == static_cast<int>(ActivationKind::gelu_tanh));
static_assert(FASTNORM_HARDSWISH == static_cast<int>(ActivationKind::hardswish));

// Of a fixed place, so that a message that is looked at too late is another one, not garbage.
thread_local char last_error[1024] = "";

void keep(const char* message) noexcept {
    std::snprintf(last_error, sizeof(last_error), "%s", message);
}

// Runs f and turns what it throws into a status and a message.
template <class F>
fastnorm_status guarded(F&& f) noexcept {
    try {
        f();
        return FASTNORM_OK;
    } catch (const fastnorm::dtype_error& error) {
        keep(error.what());
        return FASTNORM_WRONG_DTYPE;
    } catch (const std::invalid_argument& error) {
        keep(error.what());
        return FASTNORM_INVALID_ARGUMENT;
    } catch (const fastnorm::cuda_error& error) {
        keep(error.what());
        return FASTNORM_CUDA_ERROR;
    } catch (const std::bad_alloc&) {
        keep("out of memory");
        return FASTNORM_OUT_OF_MEMORY;
    } catch (const std::exception& error) {
        keep(error.what());
        return FASTNORM_INTERNAL_ERROR;
    } catch (...) {
        keep("an exception that is no std::exception");
        return FASTNORM_INTERNAL_ERROR;
    }
}

// A C caller can store any number in an enum; C++ may not even read such a one as the enum.
template <class Enum>
int number_of(const Enum& value) {
    int number;
    static_assert(sizeof(value) == sizeof(number));
    std::memcpy(&number, &value, sizeof(number));
    return number;
}

TensorView view(const fastnorm_tensor* tensor) {
    TensorView result;
    if (tensor == nullptr) return result;
    const int dtype = number_of(tensor->dtype);
    result.data = tensor->data;
    result.dtype =
        dtype >= 0 && dtype <= FASTNORM_UINT8 ? static_cast<DType>(dtype) : DType::unsupported;
    result.ndim = tensor->ndim;
    // What is wrong with ndim, validation says.
    const int extents = std::clamp(tensor->ndim, 0, fastnorm::max_dims);
    std::copy_n(tensor->shape, extents, result.shape);
    std::copy_n(tensor->strides, extents, result.strides);
    if (number_of(tensor->device) != FASTNORM_CPU) {
        result.device = fastnorm::Device::cuda(tensor->device_index);
    }
    return result;
}

fastnorm::Activation activation(const fastnorm_activation& a) {
    return {static_cast<ActivationKind>(number_of(a.kind)), a.alpha, a.beta};
}

// Arguments that only C has: pointers to what is read or written.
void expect_pointer(const char* function, const char* argument, const void* pointer) {
    if (pointer != nullptr) return;
    throw std::invalid_argument(std::string(function) + ": " + argument +
                                " is null, expected a pointer");
}

// Fails for an option that the op does not have: whoever sets it expects something that would not
// happen. eps and how running statistics are updated say nothing where there is none of that, and a
// backward pass may be given its forward pass's options.
template <class Options, bool writes_mask>
void expect_own_options(const char* op, const fastnorm_options& from) {
    const fastnorm_options defaults = fastnorm_defaults();
    constexpr bool backward = requires(Options o) { o.mask; };
    constexpr bool running = backward || requires(Options o) { o.running_mean; };
    constexpr bool casts = backward || requires(Options o) { o.cast_before_weight; };
    const auto given = [](const fastnorm_tensor* tensor) { return view(tensor).given(); };
    const std::pair<const char*, bool> options[] = {
        {"channel_axis",
         !requires(Options o) { o.channel_axis; } && from.channel_axis != defaults.channel_axis},
        {"axis", !requires(Options o) { o.axis; } && from.axis != defaults.axis},
        {"running_mean", !running && given(from.running_mean)},
        {"running_var", !running && given(from.running_var)},
        {"training", !requires(Options o) { o.training; } && from.training == 0},
        {"mask", !backward && !writes_mask && given(from.mask)},
        {"weight_offset", !requires(Options o) { o.weight_offset; } && from.weight_offset != 0},
        {"cast_before_weight", !casts && from.cast_before_weight != 0},
        {"sum_out", !requires(Options o) { o.sum_out; } && given(from.sum_out)},
        {"dsum", !requires(Options o) { o.dsum; } && given(from.dsum)},
    };
    for (const auto& [option, is_wrong] : options) {
        if (!is_wrong) continue;
        throw std::invalid_argument(std::string(op) + ": " + option +
                                    " is set, expected its default: the op does not have it");
    }
}

// Runs f(options), or f(options, mask) of an op that writes one, with what the options of the op
// are told; or asks for its scratch.
template <class Options, class F>
void with_options(const char* op, const fastnorm_options* given, F&& f) {
    const fastnorm_options from = given != nullptr ? *given : fastnorm_defaults();
    constexpr bool writes_mask = std::is_invocable_v<F, const Options&, const TensorView&>;
    expect_own_options<Options, writes_mask>(op, from);
    fastnorm::Explanation explanation;
    Options to;
    to.activation = activation(from.activation);
    to.residual = view(from.residual);
    to.stream = static_cast<CUstream_st*>(from.stream);
    to.scratch = view(from.scratch);
    if constexpr (requires { to.eps; }) to.eps = from.eps;
    if constexpr (requires { to.channel_axis; }) to.channel_axis = from.channel_axis;
    if constexpr (requires { to.axis; }) to.axis = from.axis;
    if constexpr (requires { to.mask; }) to.mask = view(from.mask);
    if constexpr (requires { to.training; }) to.training = from.training != 0;
    if constexpr (requires { to.running_mean; }) {
        to.running_mean = view(from.running_mean);
        to.running_var = view(from.running_var);
        to.momentum = from.momentum;
        to.unbiased = from.unbiased != 0;
    }
    if constexpr (requires { to.weight_offset; }) to.weight_offset = from.weight_offset;
    if constexpr (requires { to.cast_before_weight; }) {
        to.cast_before_weight = from.cast_before_weight != 0;
    }
    if constexpr (requires { to.sum_out; }) to.sum_out = view(from.sum_out);
    if constexpr (requires { to.dsum; }) to.dsum = view(from.dsum);
    if (from.scratch_bytes != nullptr) to.explanation = &explanation;
    if constexpr (writes_mask) {
        f(to, view(from.mask));
    } else {
        f(to);
    }
    if (from.scratch_bytes == nullptr) return;
    // On the CPU each thread keeps its own.
    *from.scratch_bytes = explanation.launches.empty() ? 0 : explanation.scratch_bytes;
}

fastnorm_norm_sizes sizes_of(const fastnorm::NormSizes& from) {
    fastnorm_norm_sizes to = {};
    to.parameters_ndim = from.parameters.ndim;
    std::copy_n(from.parameters.extent, from.parameters.ndim, to.parameters);
    to.statistics_ndim = from.statistics.ndim;
    std::copy_n(from.statistics.extent, from.statistics.ndim, to.statistics);
    to.statistics_dtype = static_cast<fastnorm_dtype>(from.statistics_dtype);
    to.mask_bytes = from.mask_bytes;
    return to;
}

}  // namespace

extern "C" {

fastnorm_tensor fastnorm_dense(const void* data, fastnorm_dtype dtype, int ndim,
                               const int64_t* shape) {
    fastnorm_tensor tensor = {};
    tensor.data = const_cast<void*>(data);
    tensor.dtype = dtype;
    tensor.ndim = ndim;
    if (ndim < 0 || ndim > FASTNORM_MAX_DIMS) return tensor;  // the op says that it is wrong
    int64_t stride = dtype == FASTNORM_FLOAT64   ? 8
                     : dtype == FASTNORM_FLOAT32 ? 4
                     : dtype == FASTNORM_UINT8   ? 1
                                                 : 2;
    for (int i = ndim - 1; i >= 0; --i) {
        tensor.shape[i] = shape[i];
        tensor.strides[i] = stride;
        __builtin_mul_overflow(stride, shape[i], &stride);  // the op says that it is too large
    }
    return tensor;
}

fastnorm_tensor fastnorm_on_cuda(fastnorm_tensor tensor, int device_index) {
    tensor.device = FASTNORM_CUDA;
    tensor.device_index = device_index;
    return tensor;
}

fastnorm_status fastnorm_activation_named(const char* name, fastnorm_activation* activation) {
    return guarded([&] {
        expect_pointer("fastnorm_activation_named", "name", name);
        expect_pointer("fastnorm_activation_named", "activation", activation);
        const fastnorm::Activation a = fastnorm::Activation::named(name);
        *activation = {static_cast<fastnorm_activation_kind>(a.kind), a.alpha, a.beta};
    });
}

fastnorm_options fastnorm_defaults(void) {
    const fastnorm::BatchNormTrainOptions defaults;
    const fastnorm::LayerNormOptions of_rows;
    fastnorm_options options = {};
    options.eps = defaults.eps;
    options.channel_axis = defaults.channel_axis;
    options.axis = of_rows.axis;
    options.momentum = defaults.momentum;
    options.unbiased = defaults.unbiased;
    options.training = 1;
    return options;
}

fastnorm_status fastnorm_batch_norm(const fastnorm_tensor* x, const fastnorm_tensor* mean,
                                    const fastnorm_tensor* var, const fastnorm_tensor* weight,
                                    const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                    const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::BatchNormOptions>("batch_norm", options, [&](const auto& o) {
            fastnorm::batch_norm(view(x), view(mean), view(var), view(weight), view(bias),
                                 view(out), o);
        });
    });
}

fastnorm_status fastnorm_batch_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::BatchNormTrainOptions>(
            "batch_norm_train", options, [&](const auto& o, const TensorView& mask) {
                fastnorm::batch_norm_train(view(x), view(weight), view(bias), view(out), view(mean),
                                           view(rstd), mask, o);
            });
    });
}

fastnorm_status fastnorm_batch_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::BatchNormBackwardOptions>(
            "batch_norm_backward", options, [&](const auto& o) {
                fastnorm::batch_norm_backward(
                    view(dy), view(x), view(mean), view(rstd), view(weight), view(bias),
                    {view(dx), view(dweight), view(dbias), view(dresidual)}, o);
            });
    });
}

fastnorm_status fastnorm_batch_norm_sizes(const fastnorm_tensor* x, int channel_axis,
                                          fastnorm_norm_sizes* sizes) {
    return guarded([&] {
        expect_pointer("batch_norm_sizes", "sizes", sizes);
        *sizes = sizes_of(fastnorm::batch_norm_sizes(view(x), channel_axis));
    });
}

fastnorm_status fastnorm_group_norm(const fastnorm_tensor* x, int64_t groups,
                                    const fastnorm_tensor* weight, const fastnorm_tensor* bias,
                                    const fastnorm_tensor* out, const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::GroupNormOptions>("group_norm", options, [&](const auto& o) {
            fastnorm::group_norm(view(x), groups, view(weight), view(bias), view(out), o);
        });
    });
}

fastnorm_status fastnorm_group_norm_train(const fastnorm_tensor* x, int64_t groups,
                                          const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::GroupNormOptions>(
            "group_norm_train", options, [&](const auto& o, const TensorView& mask) {
                fastnorm::group_norm_train(view(x), groups, view(weight), view(bias), view(out),
                                           view(mean), view(rstd), mask, o);
            });
    });
}

fastnorm_status fastnorm_group_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, int64_t groups,
    const fastnorm_tensor* mean, const fastnorm_tensor* rstd, const fastnorm_tensor* weight,
    const fastnorm_tensor* bias, const fastnorm_tensor* dx, const fastnorm_tensor* dweight,
    const fastnorm_tensor* dbias, const fastnorm_tensor* dresidual,
    const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::GroupNormBackwardOptions>(
            "group_norm_backward", options, [&](const auto& o) {
                fastnorm::group_norm_backward(
                    view(dy), view(x), groups, view(mean), view(rstd), view(weight), view(bias),
                    {view(dx), view(dweight), view(dbias), view(dresidual)}, o);
            });
    });
}

fastnorm_status fastnorm_group_norm_sizes(const fastnorm_tensor* x, int64_t groups,
                                          int channel_axis, fastnorm_norm_sizes* sizes) {
    return guarded([&] {
        expect_pointer("group_norm_sizes", "sizes", sizes);
        *sizes = sizes_of(fastnorm::group_norm_sizes(view(x), groups, channel_axis));
    });
}

fastnorm_status fastnorm_instance_norm(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                       const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                       const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::GroupNormOptions>("instance_norm", options, [&](const auto& o) {
            fastnorm::instance_norm(view(x), view(weight), view(bias), view(out), o);
        });
    });
}

fastnorm_status fastnorm_instance_norm_train(
    const fastnorm_tensor* x, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* out, const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
    const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::InstanceNormOptions>(
            "instance_norm_train", options, [&](const auto& o, const TensorView& mask) {
                fastnorm::instance_norm_train(view(x), view(weight), view(bias), view(out),
                                              view(mean), view(rstd), mask, o);
            });
    });
}

fastnorm_status fastnorm_instance_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::GroupNormBackwardOptions>(
            "instance_norm_backward", options, [&](const auto& o) {
                fastnorm::instance_norm_backward(
                    view(dy), view(x), view(mean), view(rstd), view(weight), view(bias),
                    {view(dx), view(dweight), view(dbias), view(dresidual)}, o);
            });
    });
}

fastnorm_status fastnorm_instance_norm_sizes(const fastnorm_tensor* x, int channel_axis,
                                             fastnorm_norm_sizes* sizes) {
    return guarded([&] {
        expect_pointer("instance_norm_sizes", "sizes", sizes);
        *sizes = sizes_of(fastnorm::instance_norm_sizes(view(x), channel_axis));
    });
}

fastnorm_status fastnorm_layer_norm(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                    const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                    const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::LayerNormOptions>("layer_norm", options, [&](const auto& o) {
            fastnorm::layer_norm(view(x), view(weight), view(bias), view(out), o);
        });
    });
}

fastnorm_status fastnorm_layer_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::LayerNormOptions>(
            "layer_norm_train", options, [&](const auto& o, const TensorView& mask) {
                fastnorm::layer_norm_train(view(x), view(weight), view(bias), view(out), view(mean),
                                           view(rstd), mask, o);
            });
    });
}

fastnorm_status fastnorm_layer_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::LayerNormBackwardOptions>(
            "layer_norm_backward", options, [&](const auto& o) {
                fastnorm::layer_norm_backward(
                    view(dy), view(x), view(mean), view(rstd), view(weight), view(bias),
                    {view(dx), view(dweight), view(dbias), view(dresidual)}, o);
            });
    });
}

fastnorm_status fastnorm_layer_norm_sizes(const fastnorm_tensor* x, int axis,
                                          fastnorm_norm_sizes* sizes) {
    return guarded([&] {
        expect_pointer("layer_norm_sizes", "sizes", sizes);
        *sizes = sizes_of(fastnorm::layer_norm_sizes(view(x), axis));
    });
}

fastnorm_status fastnorm_rms_norm(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                  const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                  const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::RMSNormOptions>("rms_norm", options, [&](const auto& o) {
            fastnorm::rms_norm(view(x), view(weight), view(bias), view(out), o);
        });
    });
}

fastnorm_status fastnorm_rms_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                        const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                        const fastnorm_tensor* rstd,
                                        const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::RMSNormOptions>(
            "rms_norm_train", options, [&](const auto& o, const TensorView& mask) {
                fastnorm::rms_norm_train(view(x), view(weight), view(bias), view(out), view(rstd),
                                         mask, o);
            });
    });
}

fastnorm_status fastnorm_rms_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* rstd,
    const fastnorm_tensor* weight, const fastnorm_tensor* bias, const fastnorm_tensor* dx,
    const fastnorm_tensor* dweight, const fastnorm_tensor* dbias, const fastnorm_tensor* dresidual,
    const fastnorm_options* options) {
    return guarded([&] {
        with_options<fastnorm::LayerNormBackwardOptions>(
            "rms_norm_backward", options, [&](const auto& o) {
                fastnorm::rms_norm_backward(view(dy), view(x), view(rstd), view(weight), view(bias),
                                            {view(dx), view(dweight), view(dbias), view(dresidual)},
                                            o);
            });
    });
}

const char* fastnorm_last_error(void) { return last_error; }

const char* fastnorm_version(void) { return fastnorm::version(); }

fastnorm_status fastnorm_set_num_threads(int threads) {
    return guarded([&] { fastnorm::set_num_threads(threads); });
}

int fastnorm_get_num_threads(void) { return fastnorm::get_num_threads(); }

const char* fastnorm_isa(void) {
    const char* name = nullptr;
    guarded([&] { name = fastnorm::isa(); });
    return name;
}

}  // extern "C"
