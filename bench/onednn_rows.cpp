// oneDNN's layer normalization by its C++ API, as onednn_driver.cpp has its batch normalization:
// primitives, memory objects and argument lists are made once. (This version has no RMS norm and no
// group norm.)
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

namespace {

using dnnl::memory;
using Arguments = std::unordered_map<int, memory>;
using Forward = dnnl::layer_normalization_forward;
using Backward = dnnl::layer_normalization_backward;
using Flags = dnnl::normalization_flags;

constexpr memory::data_type types[] = {memory::data_type::f32, memory::data_type::bf16,
                                       memory::data_type::f16};

class Rows {
  public:
    Rows(bool backward, memory::data_type type, memory::dims dims, float eps, const float* weight,
         const float* bias)
        : backward_(backward),
          data_(dims, type, memory::format_tag::ab),
          features_({dims[1]}, memory::data_type::f32, memory::format_tag::a),
          statistics_({dims[0]}, memory::data_type::f32, memory::format_tag::a) {
        attributes_.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        const Flags flags = Flags::use_scale | Flags::use_shift;
        const auto kind =
            backward ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference;
        const Forward::primitive_desc forward(engine_, kind, data_, data_, statistics_, eps, flags,
                                              attributes_);
        forward_ = dnnl::primitive(forward);
        parameters_ = {{DNNL_ARG_SCALE, vector(weight)},
                       {DNNL_ARG_SHIFT, vector(bias)},
                       {DNNL_ARG_SCRATCHPAD, memory(forward.scratchpad_desc(), engine_)}};
        if (!backward) return;
        const Backward::primitive_desc gradients(engine_, dnnl::prop_kind::backward, data_, data_,
                                                 data_, statistics_, eps, flags, forward,
                                                 attributes_);
        gradients_ = dnnl::primitive(gradients);
        results_ = {{DNNL_ARG_SCALE, parameters_.at(DNNL_ARG_SCALE)},
                    {DNNL_ARG_SHIFT, parameters_.at(DNNL_ARG_SHIFT)},
                    {DNNL_ARG_DIFF_SCALE, vector(nullptr)},
                    {DNNL_ARG_DIFF_SHIFT, vector(nullptr)},
                    {DNNL_ARG_SCRATCHPAD, memory(gradients.scratchpad_desc(), engine_)}};
    }

    // One more set of the caller's arrays; for backward, its forward pass as well.
    void add(void* x_at, void* out_at, void* dy_at) {
        const memory x(data_, engine_, x_at), out(data_, engine_, out_at);
        Arguments arguments = parameters_;
        arguments.insert({{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, out}});
        if (!backward_) {
            sets_.push_back(arguments);
            return;
        }
        const memory mean(statistics_, engine_), variance(statistics_, engine_);
        arguments.insert({{DNNL_ARG_MEAN, mean}, {DNNL_ARG_VARIANCE, variance}});
        forward_.execute(stream_, arguments);
        stream_.wait();
        Arguments own = results_;
        own.insert({{DNNL_ARG_SRC, x},
                    {DNNL_ARG_MEAN, mean},
                    {DNNL_ARG_VARIANCE, variance},
                    {DNNL_ARG_DIFF_DST, memory(data_, engine_, dy_at)},
                    {DNNL_ARG_DIFF_SRC, out}});
        sets_.push_back(own);
    }

    void run(std::size_t i) {
        (backward_ ? gradients_ : forward_).execute(stream_, sets_[i]);
        stream_.wait();
    }

  private:
    memory vector(const float* values) const {
        const memory made(features_, engine_);
        if (values != nullptr) {
            std::memcpy(made.get_data_handle(), values, features_.get_size());
        }
        return made;
    }

    const bool backward_;
    const dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream_{engine_};
    const memory::desc data_, features_, statistics_;
    dnnl::primitive_attr attributes_;
    dnnl::primitive forward_, gradients_;
    Arguments parameters_, results_;
    std::vector<Arguments> sets_;
};

}  // namespace

extern "C" {

// As onednn_make().
int onednn_rows_make(bool backward, int type, const std::int64_t* dims, float eps,
                     const float* weight, const float* bias, int threads, Rows** rows) {
    omp_set_num_threads(threads);
    try {
        *rows = new Rows(backward, types[type], memory::dims(dims, dims + 2), eps, weight, bias);
    } catch (const dnnl::error& error) {
        return error.status;
    }
    return dnnl_success;
}

void onednn_rows_free(Rows* rows) { delete rows; }
void onednn_rows_add(Rows* rows, void* x, void* out, void* dy) { rows->add(x, out, dy); }
void onednn_rows_run(Rows* rows, std::size_t set) { rows->run(set); }
}
