// oneDNN's batch normalization by its C++ API: primitives, memory objects and argument lists are
// made once, so that a call is nothing but execution.
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using dnnl::memory;
using Arguments = std::unordered_map<int, memory>;
using Forward = dnnl::batch_normalization_forward::primitive_desc;
using Backward = dnnl::batch_normalization_backward::primitive_desc;
using Flags = dnnl::normalization_flags;

enum Op { inference, training, backward };
enum Format { nchw, nhwc, blocked };

constexpr memory::data_type types[] = {memory::data_type::f32, memory::data_type::bf16,
                                       memory::data_type::f16};

memory::format_tag tag_of(Format format) {
    if (format == nchw) return memory::format_tag::nchw;
    if (format == nhwc) return memory::format_tag::nhwc;
    // As many channels as a register holds floats.
    const int avx512 = dnnl_cpu_isa_avx512_core;
    const bool wide = (dnnl_get_effective_cpu_isa() & avx512) == avx512;
    return wide ? memory::format_tag::nChw16c : memory::format_tag::nChw8c;
}

struct Problem {
    Op op;
    Format format;
    memory::data_type type;
    memory::dims dims;
    bool relu, residual;
    float eps;
};

// A primitive, and the scratchpad that all its calls share.
struct Kernel {
    dnnl::primitive primitive;
    memory scratchpad;
};

// A primitive on the arrays of a set.
struct Step {
    dnnl::primitive primitive;
    Arguments arguments;
};

class Plan {
  public:
    Plan(const Problem& p, const float* weight, const float* bias, const float* mean,
         const float* var)
        : p_(p) {
        vectors_ = {{DNNL_ARG_SCALE, vector(weight)},
                    {DNNL_ARG_SHIFT, vector(bias)},
                    {DNNL_ARG_MEAN, vector(mean)},
                    {DNNL_ARG_VARIANCE, vector(var)}};
        attributes_.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        Flags flags = Flags::use_scale | Flags::use_shift;
        if (p.op == inference) flags |= Flags::use_global_stats;
        // On the CPU there is no fuse_norm_add_relu: a residual is added by a second primitive.
        if (p.relu && !p.residual) flags |= Flags::fuse_norm_relu;
        const auto kind = p.op == inference ? dnnl::prop_kind::forward_inference
                                            : dnnl::prop_kind::forward_training;
        const Forward forward(engine_, kind, data_, data_, p.eps, flags, attributes_);
        forward_ = kernel(forward);
        workspace_ = forward.workspace_desc();
        if (p.residual) make_add();
        if (p.op != backward) return;
        if (p.residual) make_gate();
        vectors_[DNNL_ARG_DIFF_SCALE] = vector(nullptr);
        vectors_[DNNL_ARG_DIFF_SHIFT] = vector(nullptr);
        backward_ = kernel(Backward(engine_, dnnl::prop_kind::backward, data_, data_, data_, p.eps,
                                    flags, forward, attributes_));
    }

    // One more set of the caller's arrays; for backward, its forward pass as well.
    void add(void* x_at, void* out_at, void* dy_at, void* residual_at, void* dresidual_at) {
        const memory x = tensor(x_at, true), dy = tensor(dy_at, true);
        const memory residual = tensor(residual_at, true);
        const memory out = tensor(out_at, false), dresidual = tensor(dresidual_at, false);
        // Backward's gate is y itself if there is a residual, else the workspace.
        const memory y = p_.op == backward && p_.residual ? memory(data_, engine_) : out;
        const memory workspace(workspace_, engine_);
        std::vector<Step> steps;
        const auto step = [&](const Kernel& kernel, Arguments arguments) {
            arguments[DNNL_ARG_SCRATCHPAD] = kernel.scratchpad;
            steps.push_back({kernel.primitive, std::move(arguments)});
        };
        Arguments norm = vectors_;
        norm.insert({{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, y}, {DNNL_ARG_WORKSPACE, workspace}});
        step(forward_, norm);
        if (p_.residual) {
            step(add_, {{DNNL_ARG_SRC_0, y}, {DNNL_ARG_SRC_1, residual}, {DNNL_ARG_DST, y}});
        }
        if (p_.op == backward) {
            execute(steps);
            steps.clear();
            if (p_.residual) {
                step(gate_,
                     {{DNNL_ARG_DST, y}, {DNNL_ARG_DIFF_DST, dy}, {DNNL_ARG_DIFF_SRC, dresidual}});
            }
            norm.erase(DNNL_ARG_DST);
            norm.erase(DNNL_ARG_SHIFT);  // refused, not only superfluous
            norm[DNNL_ARG_DIFF_DST] = p_.residual ? dresidual : dy;
            norm[DNNL_ARG_DIFF_SRC] = out;
            step(backward_, norm);
        }
        outs_.push_back(out);
        sets_.push_back(std::move(steps));
    }

    void run(std::size_t i) { execute(sets_[i]); }

    // Set i's output in the caller's layout.
    void read(std::size_t i, void* to) { reorder(outs_[i], memory(caller_, engine_, to)); }

  private:
    template <typename Description>
    Kernel kernel(const Description& description) const {
        return {dnnl::primitive(description), memory(description.scratchpad_desc(), engine_)};
    }

    // y += residual in place, and the activation: a binary primitive takes it as a post-op.
    void make_add() {
        dnnl::primitive_attr attributes;
        attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        if (p_.relu) {
            dnnl::post_ops post;
            post.append_eltwise(dnnl::algorithm::eltwise_relu, 0, 0);
            attributes.set_post_ops(post);
        }
        const auto plus = dnnl::algorithm::binary_add;
        add_ = kernel(dnnl::binary::primitive_desc(engine_, plus, data_, data_, data_, attributes));
    }

    // The activation's backward, from y: its result is the residual's gradient.
    void make_gate() {
        const auto relu = dnnl::algorithm::eltwise_relu_use_dst_for_bwd;
        const dnnl::eltwise_forward::primitive_desc hint(engine_, dnnl::prop_kind::forward_training,
                                                         relu, data_, data_, 0.0f);
        gate_ = kernel(dnnl::eltwise_backward::primitive_desc(engine_, relu, data_, data_, data_,
                                                              0.0f, hint, attributes_));
    }

    // A float for each channel.
    memory vector(const float* values) const {
        const memory made({{p_.dims[1]}, memory::data_type::f32, memory::format_tag::x}, engine_);
        const std::size_t size = made.get_desc().get_size();
        if (values != nullptr) std::memcpy(made.get_data_handle(), values, size);
        return made;
    }

    // On the caller's memory, or a copy in the blocked layout.
    memory tensor(void* at, bool input) {
        if (at == nullptr) return memory();
        const memory theirs(caller_, engine_, at);
        if (p_.format != blocked) return theirs;
        const memory own(data_, engine_);
        if (input) reorder(theirs, own);
        return own;
    }

    void reorder(memory from, memory to) {
        dnnl::reorder(from, to).execute(stream_, from, to);
        stream_.wait();
    }

    void execute(const std::vector<Step>& steps) {
        for (const Step& step : steps) step.primitive.execute(stream_, step.arguments);
        stream_.wait();
    }

    const Problem p_;
    const dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream_{engine_};
    const memory::desc data_{p_.dims, p_.type, tag_of(p_.format)};
    const memory::desc caller_{p_.dims, p_.type, tag_of(p_.format == nhwc ? nhwc : nchw)};
    Arguments vectors_;
    dnnl::primitive_attr attributes_;
    Kernel forward_, backward_, add_, gate_;
    memory::desc workspace_;  // of no size where there is none
    std::vector<memory> outs_;
    std::vector<std::vector<Step>> sets_;
};

}  // namespace

extern "C" {

// "3.2.0".
const char* onednn_version() {
    static const dnnl_version_t* v = dnnl_version();
    static const std::string text =
        std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
    return text.c_str();
}

// The status, dnnl_unimplemented for what the library does not have on this CPU, and a plan without
// sets. The vectors are copied. The number of threads is that of all OpenMP from here on.
int onednn_make(int op, int format, int type, const std::int64_t* dims, bool relu, bool residual,
                float eps, const float* weight, const float* bias, const float* mean,
                const float* var, int threads, Plan** plan) {
    omp_set_num_threads(threads);
    try {
        *plan = new Plan({static_cast<Op>(op), static_cast<Format>(format), types[type],
                          memory::dims(dims, dims + 4), relu, residual, eps},
                         weight, bias, mean, var);
    } catch (const dnnl::error& error) {
        return error.status;
    }
    return dnnl_success;
}

void onednn_free(Plan* plan) { delete plan; }

// Arrays that the operation does not have are null.
void onednn_add(Plan* plan, void* x, void* out, void* dy, void* residual, void* dresidual) {
    plan->add(x, out, dy, residual, dresidual);
}

void onednn_run(Plan* plan, std::size_t set) { plan->run(set); }

void onednn_read(Plan* plan, std::size_t set, void* to) { plan->read(set, to); }
}
