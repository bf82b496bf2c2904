// What computes a call: the place where its arrays are. Here an op ends that has checked its
// arguments and bound its tensors to a view.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/problem.h"

namespace fastnorm {

class Backend {
  public:
    virtual ~Backend() = default;

    // y from mean and variance that are given.
    virtual void normalize(const Problem& problem, const PerStatistic& mean,
                           const PerStatistic& var, double eps) const = 0;
    // y, mean and rstd from the statistics of x itself; updates the running ones.
    virtual void normalize_by_own_statistics(const Problem& problem, double eps,
                                             const PerStatistic& mean, const PerStatistic& rstd,
                                             const RunningStatistics& running) const = 0;
    // dx, dweight, dbias (and dresidual). frozen: mean and rstd are constants.
    virtual void normalize_backward(const Problem& problem, const PerStatistic& mean,
                                    const PerStatistic& rstd, bool frozen,
                                    const PerStatistic& dweight,
                                    const PerStatistic& dbias) const = 0;

    // A mask is a signature of what its bits depend on, and then the bits: so many bytes of them,
    // in an order of the backend's own, for which the signature has a salt.
    virtual std::int64_t mask_bytes(const View& view, DType dtype) const = 0;
    virtual std::uint64_t mask_salt(DType dtype) const = 0;
    // Whether the kernels write and look at signatures, since nothing else can reach them.
    virtual bool kernels_sign() const = 0;

    // Memory, a copy between two tensors of one shape and dtype, and values for all of a vector.
    virtual std::shared_ptr<char> allocate(std::size_t bytes) const = 0;
    virtual void copy(const TensorView& to, const TensorView& from,
                      const DimOrder& order) const = 0;
    virtual void fill(const PerStatistic& to, std::int64_t count, double value) const = 0;
};

// The backend of a device; op is for its errors. Throws cuda_error for a device that is not there.
std::shared_ptr<const Backend> backend_of(const char* op, const Device& device,
                                          CUstream_st* stream);

}  // namespace fastnorm
