// What the public header offers beside the ops: tensor views, activations by name, threads,
// instruction sets.
#include <algorithm>
#include <string>

#include "core/activations.h"
#include "core/dtypes.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace fastnorm {

TensorView::TensorView(void* values, DType type, int dimensions, const std::int64_t* extents,
                       const std::int64_t* steps)
    : data(values), dtype(type), ndim(dimensions) {
    if (ndim < 0 || ndim > max_dims) {
        throw std::invalid_argument("TensorView: ndim is " + std::to_string(ndim) +
                                    ", expected 0 to " + std::to_string(max_dims));
    }
    std::int64_t stride = size_of(dtype);
    for (int i = ndim - 1; i >= 0; --i) {
        shape[i] = extents[i];
        strides[i] = steps != nullptr ? steps[i] : stride;
        __builtin_mul_overflow(stride, extents[i], &stride);  // the op says that it is too large
    }
}

TensorView::TensorView(void* values, DType type, std::initializer_list<std::int64_t> extents)
    : TensorView(values, type, static_cast<int>(extents.size()), extents.begin()) {}

TensorView::TensorView(const void* values, DType type, std::initializer_list<std::int64_t> extents)
    : TensorView(const_cast<void*>(values), type, extents) {
    writable = false;
}

Activation Activation::named(const std::string& name) {
    for (const ActivationInfo& info : kActivations) {
        if (name == info.name) return {info.kind, info.alpha.fallback, info.beta.fallback};
    }
    std::string expected;
    for (const ActivationInfo& info : kActivations) {
        expected += (expected.empty() ? "" : ", ") + std::string(info.name);
    }
    throw std::invalid_argument("activation is '" + name + "', expected one of " + expected);
}

const char* version() { return FASTNORM_VERSION; }

void set_num_threads(int threads) {
    if (threads < 1) {
        throw std::invalid_argument("set_num_threads: n is " + std::to_string(threads) +
                                    ", expected a number >= 1");
    }
    set_default_threads(threads);
}
int get_num_threads() { return default_threads(); }
const char* openmp_runtime() { return openmp_version(); }

const char* isa() { return active_kernels().name; }
std::vector<std::string> isas() { return available_isas(); }
void set_isa(const std::string& name) { activate_isa(name); }

}  // namespace fastnorm
