// What a library that is built without CUDA has in place of the backend.
#include "cuda/driver.h"

#include "fastnorm/fastnorm.hpp"

namespace fastnorm::cuda {

namespace {

[[noreturn]] void unavailable(const std::string& op) {
    throw cuda_error(op + ": " + why_unavailable());
}

}  // namespace

int device_count() { return 0; }
std::string why_unavailable() {
    return "this fastnorm is built without CUDA; one built where there is an nvcc of CUDA 13 has "
           "it";
}
int device_of(const void*) { unavailable("cuda"); }
void order(Stream, Stream) { unavailable("cuda"); }
void upload(void*, const void*, std::size_t, Stream) { unavailable("cuda"); }
void download(void*, const void*, std::size_t, Stream) { unavailable("cuda"); }

OnDevice::OnDevice(const char* op, int) { unavailable(op); }
OnDevice::~OnDevice() = default;
const Limits& OnDevice::limits() const { unavailable("cuda"); }
Memory::Memory(std::size_t, Stream) { unavailable("cuda"); }
Memory::~Memory() = default;
Event::Event(Stream) { unavailable("cuda"); }
Event::~Event() = default;
bool Event::has_passed() const { return true; }
void clear(char*, std::size_t, Stream) {}

void normalize(const Execution& execution, const Problem&, const PerStatistic&, const PerStatistic&,
               double) {
    unavailable(execution.op);
}
void normalize_by_own_statistics(const Execution& execution, const Problem&, double,
                                 const PerStatistic&, const PerStatistic&,
                                 const RunningStatistics&) {
    unavailable(execution.op);
}
void normalize_backward(const Execution& execution, const Problem&, const PerStatistic&,
                        const PerStatistic&, bool, const PerStatistic&, const PerStatistic&) {
    unavailable(execution.op);
}
std::int64_t mask_bytes(const View&, DType) { unavailable("norm_sizes"); }
std::shared_ptr<char> allocate(const Execution& execution, std::size_t) {
    unavailable(execution.op);
}
void copy_elements(const Execution& execution, const TensorView&, const TensorView&) {
    unavailable(execution.op);
}
void fill(const Execution& execution, const PerStatistic&, std::int64_t, double) {
    unavailable(execution.op);
}
void rstd_of(const Execution& execution, const PerStatistic&, const PerStatistic&, std::int64_t,
             double) {
    unavailable(execution.op);
}

}  // namespace fastnorm::cuda
