// Arrays of fastnorm's own on CUDA devices, which export DLPack and __cuda_array_interface__.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "cuda/machine.h"
#include "fastnorm/fastnorm.hpp"

namespace fastnorm::python {

namespace py = pybind11;

// The dense layout of a view's shape in its order of dimensions; C order where it is broadcast.
TensorView dense_in_order(const TensorView& like);

// fastnorm.cuda.Array: dense memory of its own, from the device's pool.
class DeviceArray {
  public:
    // Of a view's shape, dtype and order of dimensions. op is for errors.
    DeviceArray(const char* op, const TensorView& like, cuda::Stream stream);

    const TensorView& view() const { return view_; }
    cuda::Stream stream() const { return stream_; }
    std::shared_ptr<char> memory() const { return memory_; }
    std::int64_t bytes() const;

  private:
    TensorView view_;  // strides in bytes
    cuda::Stream stream_;
    std::shared_ptr<char> memory_;
};

}  // namespace fastnorm::python
