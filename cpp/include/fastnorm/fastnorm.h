/* fastnorm for C99: the functions of fastnorm.hpp over plain structs.
 *
 * Every function returns a status; on anything but FASTNORM_OK nothing has been written (but by a
 * device before it failed: FASTNORM_CUDA_ERROR) and fastnorm_last_error() says what was wrong
 * ("batch_norm: weight has shape (3,), expected (4,)"). What the arguments mean, and their shapes
 * and dtypes, is said in fastnorm.hpp.
 */
#ifndef FASTNORM_FASTNORM_H
#define FASTNORM_FASTNORM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTNORM_MAX_DIMS 5

typedef enum fastnorm_status {
    FASTNORM_OK = 0,
    FASTNORM_INVALID_ARGUMENT = 1,
    FASTNORM_WRONG_DTYPE = 2,
    FASTNORM_OUT_OF_MEMORY = 3,
    FASTNORM_INTERNAL_ERROR = 4,
    FASTNORM_CUDA_ERROR = 5 /* what the CUDA runtime says, or that there is no such device */
} fastnorm_status;

typedef enum fastnorm_dtype {
    FASTNORM_FLOAT32 = 0,
    FASTNORM_FLOAT64 = 1,
    FASTNORM_FLOAT16 = 2,
    FASTNORM_BFLOAT16 = 3,
    FASTNORM_UINT8 = 4
} fastnorm_dtype;

typedef enum fastnorm_activation_kind {
    FASTNORM_IDENTITY = 0,
    FASTNORM_RELU = 1,
    FASTNORM_LEAKY_RELU = 2, /* alpha: the slope below zero */
    FASTNORM_CLIP = 3,       /* alpha, beta: the bounds */
    FASTNORM_SIGMOID = 4,
    FASTNORM_TANH = 5,
    FASTNORM_SILU = 6,
    FASTNORM_GELU = 7,
    FASTNORM_GELU_TANH = 8,
    FASTNORM_HARDSWISH = 9
} fastnorm_activation_kind;

/* Parameters that an activation does not have are 0. */
typedef struct fastnorm_activation {
    fastnorm_activation_kind kind;
    double alpha;
    double beta;
} fastnorm_activation;

/* An activation with its default parameters, by its name ("relu", "clip", "gelu_tanh", ...). */
fastnorm_status fastnorm_activation_named(const char* name, fastnorm_activation* activation);

/* Where a tensor's memory is. The tensors of one call are all in one place. */
typedef enum fastnorm_device_kind { FASTNORM_CPU = 0, FASTNORM_CUDA = 1 } fastnorm_device_kind;

/* A tensor in the caller's memory; strides in bytes. Functions take pointers to tensors; a null
 * pointer, or a tensor without data and dimensions, means "not given". Inputs are never written. */
typedef struct fastnorm_tensor {
    void* data;
    fastnorm_dtype dtype;
    int ndim;
    int64_t shape[FASTNORM_MAX_DIMS];
    int64_t strides[FASTNORM_MAX_DIMS];
    fastnorm_device_kind device; /* FASTNORM_CPU is 0 */
    int device_index;            /* of a CUDA device */
} fastnorm_tensor;

/* A dense tensor in C order over data. ndim must be 0 to FASTNORM_MAX_DIMS; with 0, as the mean of
 * a layer norm over all axes has it, shape may be null. */
fastnorm_tensor fastnorm_dense(const void* data, fastnorm_dtype dtype, int ndim,
                               const int64_t* shape);

/* The same tensor, said to be on a CUDA device. */
fastnorm_tensor fastnorm_on_cuda(fastnorm_tensor tensor, int device_index);

/* The options of all norms, as fastnorm.hpp has them; fill it with fastnorm_defaults() first. One
 * that a function does not have is an error if it is set, but that backward passes over what only
 * the forward pass uses: eps, running statistics, cast_before_weight. */
typedef struct fastnorm_options {
    double eps;
    int channel_axis; /* batch, group and instance norm */
    int axis;         /* layer and RMS norm: the first of a row's axes */
    fastnorm_activation activation;
    const fastnorm_tensor* residual;
    const fastnorm_tensor* running_mean; /* batch and instance norm, training: updated in place */
    const fastnorm_tensor* running_var;  /* the same */
    double momentum;                     /* the weight of the new batch in them */
    int unbiased;                        /* training */
    int training;                   /* batch norm, backward: 0 if mean and rstd are constants */
    const fastnorm_tensor* mask;    /* training: written; backward: read */
    double weight_offset;           /* layer and RMS norm */
    int cast_before_weight;         /* RMS norm */
    const fastnorm_tensor* sum_out; /* layer and RMS norm: prenorm's x + residual, written */
    const fastnorm_tensor* dsum;    /* the same, backward: its gradient; no residual beside it */
    void* stream;                   /* a cudaStream_t: where a call on a device does its work */
    const fastnorm_tensor* scratch; /* memory for its partial results, else from a pool */
    int64_t* scratch_bytes; /* if given: receives how much of it is needed, and nothing is done */
} fastnorm_options;

fastnorm_options fastnorm_defaults(void);

/* out = activation((x - mean) / sqrt(var + eps) * weight + bias + residual). weight and bias may be
 * null, and so may options (the defaults). */
fastnorm_status fastnorm_batch_norm(const fastnorm_tensor* x, const fastnorm_tensor* mean,
                                    const fastnorm_tensor* var, const fastnorm_tensor* weight,
                                    const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                    const fastnorm_options* options);

/* The same with the batch's own statistics, which mean and rstd receive unless they are null. */
fastnorm_status fastnorm_batch_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_options* options);

/* dx, dweight, dbias and dresidual are written; all but dx may be null. */
fastnorm_status fastnorm_batch_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_options* options);

/* Of what a norm of x has beside tensors of x's shape. */
typedef struct fastnorm_norm_sizes {
    int parameters_ndim; /* weight and bias */
    int64_t parameters[FASTNORM_MAX_DIMS];
    int statistics_ndim; /* mean and rstd */
    int64_t statistics[FASTNORM_MAX_DIMS];
    fastnorm_dtype statistics_dtype; /* that loses nothing of them */
    int64_t mask_bytes;              /* of the one-dimensional uint8 mask */
} fastnorm_norm_sizes;

/* x needs no memory here. */
fastnorm_status fastnorm_batch_norm_sizes(const fastnorm_tensor* x, int channel_axis,
                                          fastnorm_norm_sizes* sizes);

/* Group norm: each sample, along the first axis, in groups of neighbouring channels. */
fastnorm_status fastnorm_group_norm(const fastnorm_tensor* x, int64_t groups,
                                    const fastnorm_tensor* weight, const fastnorm_tensor* bias,
                                    const fastnorm_tensor* out, const fastnorm_options* options);
fastnorm_status fastnorm_group_norm_train(const fastnorm_tensor* x, int64_t groups,
                                          const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_options* options);
fastnorm_status fastnorm_group_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, int64_t groups,
    const fastnorm_tensor* mean, const fastnorm_tensor* rstd, const fastnorm_tensor* weight,
    const fastnorm_tensor* bias, const fastnorm_tensor* dx, const fastnorm_tensor* dweight,
    const fastnorm_tensor* dbias, const fastnorm_tensor* dresidual,
    const fastnorm_options* options);
fastnorm_status fastnorm_group_norm_sizes(const fastnorm_tensor* x, int64_t groups,
                                          int channel_axis, fastnorm_norm_sizes* sizes);

/* Instance norm: each channel of each sample. */
fastnorm_status fastnorm_instance_norm(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                       const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                       const fastnorm_options* options);
fastnorm_status fastnorm_instance_norm_train(
    const fastnorm_tensor* x, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* out, const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
    const fastnorm_options* options);
fastnorm_status fastnorm_instance_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_options* options);
fastnorm_status fastnorm_instance_norm_sizes(const fastnorm_tensor* x, int channel_axis,
                                             fastnorm_norm_sizes* sizes);

/* Layer norm and RMS norm: each row, all axes from options->axis on; RMS norm has no mean. */
fastnorm_status fastnorm_layer_norm(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                    const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                    const fastnorm_options* options);
fastnorm_status fastnorm_layer_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                          const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                          const fastnorm_tensor* mean, const fastnorm_tensor* rstd,
                                          const fastnorm_options* options);
fastnorm_status fastnorm_layer_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* mean,
    const fastnorm_tensor* rstd, const fastnorm_tensor* weight, const fastnorm_tensor* bias,
    const fastnorm_tensor* dx, const fastnorm_tensor* dweight, const fastnorm_tensor* dbias,
    const fastnorm_tensor* dresidual, const fastnorm_options* options);
fastnorm_status fastnorm_rms_norm(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                  const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                  const fastnorm_options* options);
fastnorm_status fastnorm_rms_norm_train(const fastnorm_tensor* x, const fastnorm_tensor* weight,
                                        const fastnorm_tensor* bias, const fastnorm_tensor* out,
                                        const fastnorm_tensor* rstd,
                                        const fastnorm_options* options);
fastnorm_status fastnorm_rms_norm_backward(
    const fastnorm_tensor* dy, const fastnorm_tensor* x, const fastnorm_tensor* rstd,
    const fastnorm_tensor* weight, const fastnorm_tensor* bias, const fastnorm_tensor* dx,
    const fastnorm_tensor* dweight, const fastnorm_tensor* dbias, const fastnorm_tensor* dresidual,
    const fastnorm_options* options);
fastnorm_status fastnorm_layer_norm_sizes(const fastnorm_tensor* x, int axis,
                                          fastnorm_norm_sizes* sizes);

/* What was wrong with the last call of this thread that did not return FASTNORM_OK: one place in
 * memory a thread, which the next such call writes over. */
const char* fastnorm_last_error(void);

const char* fastnorm_version(void);
fastnorm_status fastnorm_set_num_threads(int threads);
int fastnorm_get_num_threads(void);
/* The instruction set in use, or null (and an error) if FASTNORM_ISA names none. */
const char* fastnorm_isa(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTNORM_FASTNORM_H */
