// What the tests of the C++ and C API have on a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/machine.h"
#include "fastnorm/fastnorm.hpp"

// A copy on device 0, for as long as it lives.
class Copy {
  public:
    template <class T>
    Copy(const std::vector<T>& values)
        : bytes_(values.size() * sizeof(T)), on_("test", 0), memory_(bytes_, nullptr) {
        fastnorm::cuda::upload(memory_.data(), values.data(), bytes_, nullptr);
    }
    template <class T>
    void get(std::vector<T>& values) const {
        fastnorm::cuda::download(values.data(), memory_.data(), bytes_, nullptr);
    }
    // The first of so many values.
    template <class T>
    void set(const std::vector<T>& values) const {
        fastnorm::cuda::upload(memory_.data(), values.data(),
                               std::min(bytes_, values.size() * sizeof(T)), nullptr);
    }
    void* data() const { return memory_.data(); }
    std::size_t bytes_count() const { return bytes_; }
    fastnorm::TensorView bytes() const {
        return fastnorm::TensorView(reinterpret_cast<std::uint8_t*>(memory_.data()),
                                    {static_cast<std::int64_t>(bytes_)})
            .on(fastnorm::Device::cuda());
    }

  private:
    std::size_t bytes_;
    fastnorm::cuda::OnDevice on_;
    fastnorm::cuda::Memory memory_;
};
