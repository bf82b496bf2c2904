// fastnorm: normalization kernels for the CPU and for CUDA devices, called on memory that the
// caller owns.
//
// Tensors are passed as views (pointer, dtype, shape, strides); nothing is copied unless a layout
// cannot be walked in place, and every result is written where the caller says.
//
//   y = activation((x - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(var + eps)
//
// Every function throws std::invalid_argument (dtype_error for a wrong dtype) when an argument is
// not what it expects; nothing has been written then. Every function may be called from many
// threads at once, on different outputs. Results do not depend on the number of threads, bit for
// bit, and are the same on every instruction set with fused multiply-add; of a NaN, that it is one,
// not its sign and payload. They can differ in the last bits between memory layouts of the same
// values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

struct CUstream_st;  // what a cudaStream_t points to

namespace fastnorm {

enum class DType : int { float32, float64, float16, bfloat16, uint8, unsupported };

enum class ActivationKind : int {
    identity,
    relu,
    leaky_relu,  // alpha: the slope below zero
    clip,        // alpha, beta: the bounds
    sigmoid,
    tanh,
    silu,
    gelu,       // x * Phi(x), by the error function
    gelu_tanh,  // its approximation by tanh
    hardswish,
};

// Parameters that an activation does not have are 0.
struct Activation {
    ActivationKind kind = ActivationKind::identity;
    double alpha = 0.0;
    double beta = 0.0;

    static constexpr Activation relu() { return {ActivationKind::relu, 0.0, 0.0}; }
    static constexpr Activation leaky_relu(double negative_slope = 0.01) {
        return {ActivationKind::leaky_relu, negative_slope, 0.0};
    }
    static constexpr Activation clip(double min = 0.0, double max = 6.0) {
        return {ActivationKind::clip, min, max};
    }
    // An activation with its default parameters, by its name ("relu", "gelu_tanh", ...).
    // Throws std::invalid_argument for a name that is none.
    static Activation named(const std::string& name);
};

// Whether the forward pass can save a mask of it (relu, leaky_relu, clip), for the backward pass.
bool saves_mask(const Activation& activation);

// Where memory is. The tensors of one call are all in one place, which computes it.
enum class DeviceKind : int { cpu, cuda };
struct Device {
    DeviceKind kind = DeviceKind::cpu;
    int index = 0;

    static constexpr Device cuda(int index = 0) { return {DeviceKind::cuda, index}; }
    friend constexpr bool operator==(const Device& a, const Device& b) {
        return a.kind == b.kind && a.index == b.index;
    }
    friend constexpr bool operator!=(const Device& a, const Device& b) { return !(a == b); }
};

inline constexpr int max_dims = 5;

// A tensor in the caller's memory. Strides are in BYTES, may be negative, and are 0 along a
// broadcast dimension. A default-constructed view, without data and dimensions, means "not given".
struct TensorView {
    void* data = nullptr;
    DType dtype = DType::float32;
    int ndim = 0;
    std::int64_t shape[max_dims] = {};
    std::int64_t strides[max_dims] = {};
    bool writable = true;
    Device device{};

    TensorView() = default;

    // Extents and strides known at run time; without strides a dense tensor in C order. 16-bit data
    // is any pointer with its dtype. Throws std::invalid_argument for dimensions outside
    // 0 to max_dims.
    TensorView(void* values, DType type, int dimensions, const std::int64_t* extents,
               const std::int64_t* steps = nullptr);

    // A dense tensor in C order.
    TensorView(void* values, DType type, std::initializer_list<std::int64_t> extents);
    TensorView(const void* values, DType type, std::initializer_list<std::int64_t> extents);
    template <class T, std::enable_if_t<std::is_same_v<std::remove_const_t<T>, float> ||
                                            std::is_same_v<std::remove_const_t<T>, double> ||
                                            std::is_same_v<std::remove_const_t<T>, std::uint8_t>,
                                        int> = 0>
    TensorView(T* values, std::initializer_list<std::int64_t> extents)
        : TensorView(
              static_cast<std::conditional_t<std::is_const_v<T>, const void*, void*>>(values),
              std::is_same_v<std::remove_const_t<T>, float>    ? DType::float32
              : std::is_same_v<std::remove_const_t<T>, double> ? DType::float64
                                                               : DType::uint8,
              extents) {}

    bool given() const { return ndim != 0 || data != nullptr; }

    // The same tensor, said to be on a device.
    TensorView on(Device where) const {
        TensorView view = *this;
        view.device = where;
        return view;
    }
};

// A wrong dtype; everything else that is wrong with an argument is a std::invalid_argument.
class dtype_error : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

// What the CUDA runtime says of a launch or of memory, or that there is no device: "op: what".
class cuda_error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// What a call would do: the decisions that its speed follows from. An op whose options have one
// checks its arguments as ever, fills it, and does nothing else. Without elements there is nothing
// to do, and all of it is empty.
struct Explanation {
    std::string isa;
    // How vectors lie on x, which the kernels see as [batch, outer, stat, inner]: sums are over
    // outer and inner, kept per batch and stat. "rows": along inner. "columns": along stat and
    // inner. "features": along inner, whose elements have weights of their own.
    std::string traversal;
    std::int64_t batch = 0, outer = 0, stat = 0, inner = 0;
    std::int64_t group = 0;  // so many stats side by side have one mean and one variance
    // What one call of the map covers, at most. A unit is all of some statistics; it is mapped in
    // chunks, of one tile or of some side by side. The sums' may be larger.
    std::int64_t tile_stat = 0, tile_outer = 0, tile_inner = 0;
    std::int64_t units = 0, chunks = 0;
    bool reduces = false;  // each unit is summed, then mapped; else every tile is mapped once
    int threads = 0;
    bool shared = false;       // all threads work on the same units; else each has units of its own
    bool interleaved = false;  // a unit's results are written while the next one is summed
    bool stream = false;       // results are written past the cache
    int reads = 0;  // how often inputs come from memory: 2 where a unit exceeds the L2 cache
    std::int64_t least_bytes = 0;  // every tensor of x's size, and the mask, once
    // For partial results and coefficients, and in the gradient of a smooth activation what the
    // sums leave for dx (64 MB at most), kept by the calling thread; on a device see the options.
    std::int64_t scratch_bytes = 0;
    // On a device, what is launched: kernels, blocks, threads, shared memory. There a unit is the
    // statistics that a warp has at a time, a chunk what it reduces at a time, reads says how
    // many kernels read the inputs, and of tile, threads, shared, interleaved and stream nothing is
    // said.
    std::vector<std::string> launches;
    std::vector<std::string> copied;  // arguments that are copied to dense memory, or from it
};

// ---------------------------------------------------------------------------------------------
// What holds for every norm.
//
// x, dy, out and the tensors of x's size in options and gradients have one shape, of as many
// dimensions as the norm says, and one dtype: float32, float64, float16 or bfloat16. Weight and
// bias, their gradients and the statistics have the shapes of its NormSizes, each any of these
// dtypes.
// Of a forward pass for training, mean, rstd and mask are optional outputs: mean and rstd best of
// the dtype that the sizes have (NaN without elements), and mask (uint8, one-dimensional,
// contiguous, of their bytes), which is for activations with saves_mask() only: one bit an element,
// set where the activation's slope is 1. A backward pass takes the forward's x, mean, rstd, weight
// and bias; bias and residual matter only where the activation's input is recomputed.
// out may be exactly x (backward: exactly dy), and sum_out exactly the residual; any other overlap
// of an output, with an input, with another output or of its own elements, is an error.
// Sizes are 64-bit; tensors without elements are valid, and need no memory.
// On a device, all tensors are on the same one, each aligned to its elements; a call puts its work
// into a stream and returns, so that it can be captured in a CUDA graph (but for a first one, which
// prepares the device and its kernels): it does not wait, and what memory it needs is the scratch
// of the options, or from a pool in the stream's order (as that for copies of tensors which are not
// dense always is). Results have the same bits in every run and on every device; they can differ
// from the CPU's in the last ones. A mask of another call, for whose signature nobody waits, makes
// all results NaN.
// Variances are float64: float64 values with a standard deviation below 1e-154 or beyond 1e154 have
// one of 0 or infinity.
// ---------------------------------------------------------------------------------------------

// What every norm's forward pass takes.
struct NormOptions {
    // >= 0, inside the square root. 0 leaves nothing to divide by where a variance is 0: NaN (or an
    // infinity, for an x that is not the mean).
    double eps = 1e-5;
    Activation activation{};
    TensorView residual{};  // added before the activation
    Explanation* explanation = nullptr;
    // Of tensors on a device: where the call does its work, and memory for partial results: uint8,
    // one-dimensional, contiguous, aligned to 16 bytes, of Explanation::scratch_bytes at least.
    CUstream_st* stream = nullptr;
    TensorView scratch{};
};

// What every norm's backward pass takes.
struct NormBackwardOptions {
    Activation activation{};
    TensorView residual{};  // the forward's; needed only to recompute the activation's input
    // The forward's, for an x of the same shape, order of dimensions in memory, and axes, and the
    // same activation; without it the activation's input is recomputed.
    TensorView mask{};
    Explanation* explanation = nullptr;
    CUstream_st* stream = nullptr;
    TensorView scratch{};
};

// What a backward pass writes; all but out are optional.
struct NormGradients {
    TensorView out;        // dx
    TensorView dweight;    // sum of g * (x - mean) * rstd
    TensorView dbias;      // sum of g
    TensorView dresidual;  // g
};

struct Extents {
    int ndim = 0;
    std::int64_t extent[max_dims] = {};
};

// Of what a norm of x has beside tensors of x's shape.
struct NormSizes {
    Extents parameters;  // weight and bias
    Extents statistics;  // mean and rstd
    // The dtype of mean and rstd that loses nothing of them: one step wider than the data, float32
    // for 16-bit x, else float64.
    DType statistics_dtype = DType::float64;
    // Of the mask: a signature of x's shape, the norm's axes, the order of x's dimensions in memory
    // and the activation, by which the backward pass knows its own mask; and then a row per
    // contiguous run of x, padded to whole bytes (on a device 32 words for what a warp reduces at a
    // time: where a channel has but a few elements, more than a bit for each).
    std::int64_t mask_bytes = 0;
};

// ---------------------------------------------------------------------------------------------
// Batch normalization (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167). x has 2 to
// max_dims dimensions; weight, bias and all statistics have one element per channel.
// ---------------------------------------------------------------------------------------------

struct BatchNormOptions : NormOptions {
    int channel_axis = 1;  // negative ones count from the end
};

// out = activation((x - mean) / sqrt(var + eps) * weight + bias + residual), mean and var given.
// weight and bias are optional.
void batch_norm(const TensorView& x, const TensorView& mean, const TensorView& var,
                const TensorView& weight, const TensorView& bias, const TensorView& out,
                const BatchNormOptions& options = {});

struct BatchNormTrainOptions : BatchNormOptions {
    // running = (1 - momentum) * running + momentum * batch, each optional, updated in place.
    TensorView running_mean{};
    TensorView running_var{};
    double momentum = 0.1;  // the weight of the new batch, in [0, 1]
    bool unbiased = true;   // running_var takes M2 / (n - 1) (else M2 / n)
};

// The same with the batch's own mean and biased variance (Algorithm 1 of the paper), for more than
// one value per channel. Without elements the running statistics stay as they are.
void batch_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                      const TensorView& out, const TensorView& mean, const TensorView& rstd,
                      const TensorView& mask, const BatchNormTrainOptions& options = {});

struct BatchNormBackwardOptions : NormBackwardOptions {
    bool training = true;  // false: mean and rstd are constants
    int channel_axis = 1;
};

// With g = dy * activation'(z):
//   training:   dx = weight * rstd * (g - avg(g) - (x - mean) * rstd^2 * avg(g * (x - mean)))
//   otherwise:  dx = weight * rstd * g
// (Section 3 of the paper, the chain rule after Alg. 1.)
void batch_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                         const TensorView& rstd, const TensorView& weight, const TensorView& bias,
                         const NormGradients& gradients,
                         const BatchNormBackwardOptions& options = {});

// x needs no memory here.
NormSizes batch_norm_sizes(const TensorView& x, int channel_axis = 1);

// ---------------------------------------------------------------------------------------------
// Group normalization (Wu and He 2018, https://arxiv.org/abs/1803.08494): each sample, along the
// first axis, by itself, in `groups` groups of neighbouring channels. x has 2 to max_dims
// dimensions; mean and rstd are (N, groups); weight and bias have one element per channel. A group
// of one value has a variance of 0.
// ---------------------------------------------------------------------------------------------

struct GroupNormOptions : NormOptions {
    int channel_axis = 1;  // any but the first
};
struct GroupNormBackwardOptions : NormBackwardOptions {
    int channel_axis = 1;
};

// groups divides the number of channels. weight and bias are optional.
void group_norm(const TensorView& x, std::int64_t groups, const TensorView& weight,
                const TensorView& bias, const TensorView& out,
                const GroupNormOptions& options = {});
void group_norm_train(const TensorView& x, std::int64_t groups, const TensorView& weight,
                      const TensorView& bias, const TensorView& out, const TensorView& mean,
                      const TensorView& rstd, const TensorView& mask,
                      const GroupNormOptions& options = {});

// With g = dy * activation'(z), and averages over a group:
//   dx = rstd * (weight * g - avg(weight * g) - (x - mean) * rstd^2 * avg(weight * g * (x - mean)))
void group_norm_backward(const TensorView& dy, const TensorView& x, std::int64_t groups,
                         const TensorView& mean, const TensorView& rstd, const TensorView& weight,
                         const TensorView& bias, const NormGradients& gradients,
                         const GroupNormBackwardOptions& options = {});

NormSizes group_norm_sizes(const TensorView& x, std::int64_t groups, int channel_axis = 1);

// ---------------------------------------------------------------------------------------------
// Instance normalization (Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022):
// each channel of each sample by itself. x has 3 to max_dims dimensions; mean and rstd are (N, C);
// weight, bias and running statistics have one element per channel.
// ---------------------------------------------------------------------------------------------

// Running statistics take the average of all samples' means, and of their variances.
struct InstanceNormOptions : GroupNormOptions {
    TensorView running_mean{};
    TensorView running_var{};
    double momentum = 0.1;
    bool unbiased = true;  // then running_var needs more than one value per channel
};

void instance_norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
                   const TensorView& out, const GroupNormOptions& options = {});
void instance_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                         const TensorView& out, const TensorView& mean, const TensorView& rstd,
                         const TensorView& mask, const InstanceNormOptions& options = {});
void instance_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                            const TensorView& rstd, const TensorView& weight,
                            const TensorView& bias, const NormGradients& gradients,
                            const GroupNormBackwardOptions& options = {});

NormSizes instance_norm_sizes(const TensorView& x, int channel_axis = 1);

// ---------------------------------------------------------------------------------------------
// Layer normalization (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450) and RMS
// normalization (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467): each row, which is
// all axes from `axis` on, by itself. x has 1 to max_dims dimensions; mean and rstd are of the
// shape of x's axes before `axis`, weight and bias of that of the others.
//
// RMS normalization takes 0 for the mean, and the mean square for the variance.
// ---------------------------------------------------------------------------------------------

struct LayerNormOptions : NormOptions {
    int axis = -1;
    double weight_offset = 0.0;  // 1: y = xhat * (1 + weight)
    // Prenorm: if given, it becomes x + residual, rounded to x's dtype, which is what is
    // normalized; the residual is not added again. It may be exactly the residual.
    TensorView sum_out{};
};
struct RMSNormOptions : LayerNormOptions {
    bool cast_before_weight = false;  // xhat is rounded to x's dtype before the weight
};

struct LayerNormBackwardOptions : NormBackwardOptions {
    int axis = -1;
    double weight_offset = 0.0;
    // Prenorm: the gradient of the sum, which is added to dx. x is the sum, and dx the gradient of
    // the residual too: there is neither a residual here nor a dresidual.
    TensorView dsum{};
};

void layer_norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
                const TensorView& out, const LayerNormOptions& options = {});
void layer_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                      const TensorView& out, const TensorView& mean, const TensorView& rstd,
                      const TensorView& mask, const LayerNormOptions& options = {});

// With g = dy * activation'(z), and averages over a row:
//   dx = rstd * (weight * g - avg(weight * g) - xhat * avg(weight * g * xhat)) + dsum
void layer_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& mean,
                         const TensorView& rstd, const TensorView& weight, const TensorView& bias,
                         const NormGradients& gradients,
                         const LayerNormBackwardOptions& options = {});

void rms_norm(const TensorView& x, const TensorView& weight, const TensorView& bias,
              const TensorView& out, const RMSNormOptions& options = {});
void rms_norm_train(const TensorView& x, const TensorView& weight, const TensorView& bias,
                    const TensorView& out, const TensorView& rstd, const TensorView& mask,
                    const RMSNormOptions& options = {});

//   dx = rstd * (weight * g - xhat * avg(weight * g * xhat)) + dsum
void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& rstd,
                       const TensorView& weight, const TensorView& bias,
                       const NormGradients& gradients,
                       const LayerNormBackwardOptions& options = {});

NormSizes layer_norm_sizes(const TensorView& x, int axis = -1);  // of RMS normalization, too

// ---------------------------------------------------------------------------------------------
// The process
// ---------------------------------------------------------------------------------------------

const char* version();

// The number of threads of later calls: what was set, else FASTNORM_NUM_THREADS, else
// OMP_NUM_THREADS (values that are no positive number count as not set), else the cores that the
// process may use. Small tensors use one thread, and a child of fork() always does; no call uses
// more than 64 threads or four times the cores, whichever is more.
void set_num_threads(int threads);
int get_num_threads();
const char* openmp_runtime();

// The instruction set in use; FASTNORM_ISA in the environment forces one of isas(), and makes the
// first call throw std::invalid_argument if it is none of them.
const char* isa();
std::vector<std::string> isas();
void set_isa(const std::string& name);  // for tests: not while another thread is in a call

}  // namespace fastnorm
