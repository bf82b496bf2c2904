// The C ABI: structs to views, exceptions to status codes. No mathematics, no shape rules.
#include "fastnorm/fastnorm.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "fastnorm/fastnorm.hpp"

namespace {

using fastnorm::DType;
using fastnorm::TensorView;

static_assert(FASTNORM_MAX_DIMS == fastnorm::max_dims);
static_assert(FASTNORM_FLOAT32 == static_cast<int>(DType::float32));
static_assert(FASTNORM_FLOAT64 == static_cast<int>(DType::float64));
static_assert(FASTNORM_FLOAT16 == static_cast<int>(DType::float16));
static_assert(FASTNORM_BFLOAT16 == static_cast<int>(DType::bfloat16));
static_assert(FASTNORM_UINT8 == static_cast<int>(DType::uint8));
static_assert(FASTNORM_IDENTITY == static_cast<int>(fastnorm::ActivationKind::identity));
static_assert(FASTNORM_HARDSWISH == static_cast<int>(fastnorm::ActivationKind::hardswish));

thread_local std::string last_error;

// Runs f and turns what it throws into a status and a message.
template <class F>
fastnorm_status guarded(F&& f) noexcept {
    try {
        try {
            f();
            return FASTNORM_OK;
        } catch (const fastnorm::dtype_error& error) {
            last_error = error.what();
            return FASTNORM_WRONG_DTYPE;
        } catch (const std::invalid_argument& error) {
            last_error = error.what();
            return FASTNORM_INVALID_ARGUMENT;
        } catch (const std::bad_alloc&) {
            last_error = "out of memory";
            return FASTNORM_OUT_OF_MEMORY;
        } catch (const std::exception& error) {
            last_error = error.what();
            return FASTNORM_INTERNAL_ERROR;
        }
    } catch (...) {  // no memory for the message either
        last_error.clear();
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
    if (tensor->ndim < 1 || tensor->ndim > fastnorm::max_dims) {
        throw std::invalid_argument("fastnorm_tensor: ndim is " + std::to_string(tensor->ndim) +
                                    ", expected 1 to " + std::to_string(fastnorm::max_dims));
    }
    const int dtype = number_of(tensor->dtype);
    result.data = tensor->data;
    result.dtype =
        dtype >= 0 && dtype <= FASTNORM_UINT8 ? static_cast<DType>(dtype) : DType::unsupported;
    result.ndim = tensor->ndim;
    std::copy_n(tensor->shape, tensor->ndim, result.shape);
    std::copy_n(tensor->strides, tensor->ndim, result.strides);
    return result;
}

fastnorm::Activation activation(const fastnorm_activation& a) {
    return {static_cast<fastnorm::ActivationKind>(number_of(a.kind)), a.alpha, a.beta};
}

fastnorm_batch_norm_options or_defaults(const fastnorm_batch_norm_options* options) {
    return options != nullptr ? *options : fastnorm_batch_norm_defaults();
}

}  // namespace

extern "C" {

fastnorm_tensor fastnorm_dense(const void* data, fastnorm_dtype dtype, int ndim,
                               const int64_t* shape) {
    fastnorm_tensor tensor = {};
    tensor.data = const_cast<void*>(data);
    tensor.dtype = dtype;
    tensor.ndim = ndim;
    if (ndim < 1 || ndim > FASTNORM_MAX_DIMS) return tensor;  // the op says that it is wrong
    int64_t stride = dtype == FASTNORM_FLOAT64   ? 8
                     : dtype == FASTNORM_FLOAT32 ? 4
                     : dtype == FASTNORM_UINT8   ? 1
                                                 : 2;
    for (int i = ndim - 1; i >= 0; --i) {
        tensor.shape[i] = shape[i];
        tensor.strides[i] = stride;
        stride *= shape[i];
    }
    return tensor;
}

fastnorm_batch_norm_options fastnorm_batch_norm_defaults(void) {
    const fastnorm::BatchNormTrainOptions defaults;
    fastnorm_batch_norm_options options = {};
    options.eps = defaults.eps;
    options.channel_axis = defaults.channel_axis;
    options.momentum = defaults.momentum;
    options.unbiased = defaults.unbiased;
    options.training = 1;
    return options;
}

fastnorm_status fastnorm_batch_norm(const fastnorm_tensor* x, const fastnorm_tensor* mean,
                                    const fastnorm_tensor* var, const fastnorm_tensor* weight,
                                    const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                    const fastnorm_batch_norm_options* options) {
    return guarded([&] {
        const fastnorm_batch_norm_options o = or_defaults(options);
        fastnorm::batch_norm(view(x), view(mean), view(var), view(weight), view(bias), view(out),
                             {o.eps, o.channel_axis, activation(o.activation), view(o.residual)});
    });
}

fastnorm_status fastnorm_batch_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_batch_norm_options* options) {
    return guarded([&] {
        const fastnorm_batch_norm_options o = or_defaults(options);
        fastnorm::BatchNormTrainOptions t;
        t.eps = o.eps;
        t.channel_axis = o.channel_axis;
        t.activation = activation(o.activation);
        t.residual = view(o.residual);
        t.running_mean = view(o.running_mean);
        t.running_var = view(o.running_var);
        t.momentum = o.momentum;
        t.unbiased = o.unbiased != 0;
        fastnorm::batch_norm_train(view(x), view(weight), view(bias), view(out), view(mean),
                                   view(rstd), view(o.mask), t);
    });
}

fastnorm_status fastnorm_batch_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_batch_norm_options* options) {
    return guarded([&] {
        const fastnorm_batch_norm_options o = or_defaults(options);
        fastnorm::BatchNormBackwardOptions b;
        b.training = o.training != 0;
        b.channel_axis = o.channel_axis;
        b.activation = activation(o.activation);
        b.residual = view(o.residual);
        b.mask = view(o.mask);
        fastnorm::batch_norm_backward(view(dy), view(x), view(mean), view(rstd), view(weight),
                                      view(bias),
                                      {view(dx), view(dweight), view(dbias), view(dresidual)}, b);
    });
}

fastnorm_status fastnorm_batch_norm_mask_shape(const fastnorm_tensor* x, int channel_axis,
                                               int64_t* rows, int64_t* bytes) {
    return guarded([&] {
        const fastnorm::MaskShape shape = fastnorm::batch_norm_mask_shape(view(x), channel_axis);
        *rows = shape.rows;
        *bytes = shape.bytes;
    });
}

const char* fastnorm_last_error(void) { return last_error.c_str(); }

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
