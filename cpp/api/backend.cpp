#include "api/backend.h"

#include <string>

#include "cpu/copy.h"
#include "cpu/dispatch.h"
#include "cpu/driver.h"
#include "cuda/driver.h"

namespace fastnorm {

namespace {

class Cpu final : public Backend {
  public:
    void normalize(const Problem& problem, const PerStatistic& mean, const PerStatistic& var,
                   double eps) const override {
        fastnorm::normalize(execution(), problem, mean, var, eps);
    }
    void normalize_by_own_statistics(const Problem& problem, double eps, const PerStatistic& mean,
                                     const PerStatistic& rstd,
                                     const RunningStatistics& running) const override {
        fastnorm::normalize_by_own_statistics(execution(), problem, eps, mean, rstd, running);
    }
    void normalize_backward(const Problem& problem, const PerStatistic& mean,
                            const PerStatistic& rstd, bool frozen, const PerStatistic& dweight,
                            const PerStatistic& dbias) const override {
        fastnorm::normalize_backward(execution(), problem, mean, rstd, frozen, dweight, dbias);
    }

    // A row for each run, padded to whole bytes.
    std::int64_t mask_bytes(const View& view, DType) const override {
        return view.runs() * view.mask_row_bytes();
    }
    std::uint64_t mask_salt(DType) const override { return 0; }
    bool kernels_sign() const override { return false; }

    std::shared_ptr<char> allocate(std::size_t bytes) const override {
        return {new char[bytes], std::default_delete<char[]>()};
    }
    void copy(const TensorView& to, const TensorView& from, const DimOrder& order) const override {
        copy_elements(to, from, order);
    }
    void fill(const PerStatistic& to, std::int64_t count, double value) const override {
        for (std::int64_t i = 0; i < count; ++i) to.store(i, 1, &value);
    }

  private:
    static Execution execution() {
        return {active_kernels(), openmp_parallel_for(default_threads()), thread_workspace()};
    }
};

class Cuda final : public Backend {
  public:
    explicit Cuda(const cuda::Execution& execution) : execution_(execution) {}

    void normalize(const Problem& problem, const PerStatistic& mean, const PerStatistic& var,
                   double eps) const override {
        cuda::normalize(execution_, problem, mean, var, eps);
    }
    void normalize_by_own_statistics(const Problem& problem, double eps, const PerStatistic& mean,
                                     const PerStatistic& rstd,
                                     const RunningStatistics& running) const override {
        cuda::normalize_by_own_statistics(execution_, problem, eps, mean, rstd, running);
    }
    void normalize_backward(const Problem& problem, const PerStatistic& mean,
                            const PerStatistic& rstd, bool frozen, const PerStatistic& dweight,
                            const PerStatistic& dbias) const override {
        cuda::normalize_backward(execution_, problem, mean, rstd, frozen, dweight, dbias);
    }

    // Packs lie in it in the order of the threads that have them, and so by their dtype.
    std::int64_t mask_bytes(const View& view, DType dtype) const override {
        return cuda::mask_bytes(view, dtype);
    }
    std::uint64_t mask_salt(DType dtype) const override {
        return 1 + static_cast<std::uint64_t>(dtype);
    }
    bool kernels_sign() const override { return true; }

    std::shared_ptr<char> allocate(std::size_t bytes) const override {
        return cuda::allocate(execution_, bytes);
    }
    void copy(const TensorView& to, const TensorView& from, const DimOrder&) const override {
        cuda::copy_elements(execution_, to, from);
    }
    void fill(const PerStatistic& to, std::int64_t count, double value) const override {
        cuda::fill(execution_, to, count, value);
    }

  private:
    cuda::Execution execution_;
};

}  // namespace

std::shared_ptr<const Backend> backend_of(const char* op, const Device& device,
                                          CUstream_st* stream) {
    static const Cpu cpu;
    if (device.kind == DeviceKind::cuda) {
        return std::make_shared<Cuda>(cuda::Execution{op, device.index, stream});
    }
    return {std::shared_ptr<const Backend>(), &cpu};  // which nobody owns
}

}  // namespace fastnorm
