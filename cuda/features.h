// What happens to features before their kernels: weights and biases as those take them, and the sum
// of prenorm.
#pragma once

#include <functional>

#include "core/problem.h"
#include "cuda/arguments.h"
#include "cuda/driver.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

// Weights and biases of features as the kernels take them: as they are, if they can be, else
// converted.
class FeatureParameters {
  public:
    FeatureParameters() = default;
    // Sets those of args.
    FeatureParameters(const Problem& problem, Direction direction, Arguments& args);

    // Of memory that convert() needs, aligned to 16 bytes.
    std::int64_t bytes() const;

    // step(what, launch): does or only explains it.
    using Step = std::function<void(const char* what, const std::function<void()>& launch)>;
    void convert(const Execution& execution, char* memory, Arguments& args, const Step& step) const;

  private:
    DType dtype_ = DType::float32;
    Direction direction_ = Direction::forward;
    PerStatistic weights_, biases_;
    std::int64_t count_ = 0;
    double offset_ = 0;
    bool converts_weights_ = false, converts_biases_ = false;
};

// to = a + b, rounded to the dtype. whole: packs are. to may be a or b.
void add_rows(const Execution& execution, DType dtype, const Rows& rows, bool whole,
              const Operand& a, const Operand& b, const Operand& to);

}  // namespace fastnorm::cuda
