/* Batch norm from C99: what a C program does with fastnorm.h, and what it is told on a mistake. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fastnorm/fastnorm.h"

enum { N = 2, C = 3, S = 4, SIZE = N * C * S };

static int failures = 0;

static void expect(int holds, const char* what) {
    if (holds) return;
    ++failures;
    fprintf(stderr, "FAILED: %s (last error: %s)\n", what, fastnorm_last_error());
}

static void expect_error(fastnorm_status actual, fastnorm_status expected, const char* message) {
    expect(actual == expected, message);
    if (strcmp(fastnorm_last_error(), message) == 0) return;
    ++failures;
    fprintf(stderr, "FAILED: got: %s\n   expected: %s\n", fastnorm_last_error(), message);
}

static int close_to(double actual, double expected) { return fabs(actual - expected) < 1e-5; }

static const int64_t x_shape[3] = {N, C, S};
static const int64_t c_shape[1] = {C};

static fastnorm_tensor data_of(const float* values) {
    return fastnorm_dense(values, FASTNORM_FLOAT32, 3, x_shape);
}
static fastnorm_tensor vector_of(const double* values) {
    return fastnorm_dense(values, FASTNORM_FLOAT64, 1, c_shape);
}

/* Element i of an (N, C, S) tensor belongs to this channel. */
static int channel_of(int i) { return i / S % C; }

static void fill(float* x, float* dy) {
    int i;
    for (i = 0; i < SIZE; ++i) {
        x[i] = (float)(i * 7 % 13) / 4.0f - 1.0f;
        dy[i] = (float)(i * 5 % 11) / 8.0f - 0.5f;
    }
}

static void test_training_and_backward(void) {
    const double count = N * S;
    const double weight[C] = {1.0, 2.0, -0.5};
    const double bias[C] = {0.25, -0.5, 0.0};
    float x[SIZE], dy[SIZE], y[SIZE] = {0}, dx[SIZE] = {0};
    double mean[C] = {0}, rstd[C] = {0}, dweight[C] = {0}, dbias[C] = {0};
    double running_mean[C] = {0}, running_var[C] = {0};
    double expected_mean[C] = {0}, expected_var[C] = {0};
    double sum_g[C] = {0}, sum_g_x_hat[C] = {0};
    unsigned char bits[8 + SIZE] = {0};
    fastnorm_norm_sizes sizes;
    int i;
    fastnorm_tensor x_t, dy_t, y_t, dx_t, mean_t, rstd_t, weight_t, bias_t, dweight_t, dbias_t;
    fastnorm_tensor running_mean_t, running_var_t, mask_t;
    fastnorm_options options = fastnorm_defaults();

    fill(x, dy);
    for (i = 0; i < SIZE; ++i) expected_mean[channel_of(i)] += x[i] / count;
    for (i = 0; i < SIZE; ++i) {
        const double d = x[i] - expected_mean[channel_of(i)];
        expected_var[channel_of(i)] += d * d / count;
    }

    x_t = data_of(x);
    dy_t = data_of(dy);
    y_t = data_of(y);
    dx_t = data_of(dx);
    mean_t = vector_of(mean);
    rstd_t = vector_of(rstd);
    weight_t = vector_of(weight);
    bias_t = vector_of(bias);
    dweight_t = vector_of(dweight);
    dbias_t = vector_of(dbias);
    running_mean_t = vector_of(running_mean);
    running_var_t = vector_of(running_var);
    expect(fastnorm_batch_norm_sizes(&x_t, 1, &sizes) == FASTNORM_OK, "sizes");
    expect(sizes.parameters_ndim == 1 && sizes.parameters[0] == C, "the shape of weight");
    expect(sizes.statistics_ndim == 1 && sizes.statistics[0] == C, "the shape of mean");
    expect(sizes.statistics_dtype == FASTNORM_FLOAT64, "the dtype of mean");
    expect(sizes.mask_bytes <= (int64_t)sizeof(bits), "the mask is too large");
    mask_t = fastnorm_dense(bits, FASTNORM_UINT8, 1, &sizes.mask_bytes);
    options.activation.kind = FASTNORM_RELU;
    options.running_mean = &running_mean_t;
    options.running_var = &running_var_t;
    options.mask = &mask_t;

    expect(fastnorm_batch_norm_train(&x_t, &weight_t, &bias_t, &y_t, &mean_t, &rstd_t, &options) ==
               FASTNORM_OK,
           "batch_norm_train");
    expect(fastnorm_batch_norm_backward(&dy_t, &x_t, &mean_t, &rstd_t, &weight_t, &bias_t, &dx_t,
                                        &dweight_t, &dbias_t, NULL, &options) == FASTNORM_OK,
           "batch_norm_backward");

    for (i = 0; i < C; ++i) {
        expect(close_to(mean[i], expected_mean[i]), "mean");
        expect(close_to(rstd[i], 1 / sqrt(expected_var[i] + options.eps)), "rstd");
        expect(close_to(running_mean[i], 0.1 * expected_mean[i]), "running_mean");
        expect(close_to(running_var[i], 0.1 * expected_var[i] * count / (count - 1)),
               "running_var");
    }
    for (i = 0; i < SIZE; ++i) {
        const int c = channel_of(i);
        const double x_hat = (x[i] - mean[c]) * rstd[c];
        const double z = x_hat * weight[c] + bias[c];
        expect(close_to(y[i], z > 0 ? z : 0), "y");
        if (z > 0) {
            sum_g[c] += dy[i];
            sum_g_x_hat[c] += dy[i] * x_hat;
        }
    }
    for (i = 0; i < C; ++i) {
        expect(close_to(dbias[i], sum_g[i]), "dbias");
        expect(close_to(dweight[i], sum_g_x_hat[i]), "dweight");
    }
    for (i = 0; i < SIZE; ++i) {
        const int c = channel_of(i);
        const double x_hat = (x[i] - mean[c]) * rstd[c];
        const double g = x_hat * weight[c] + bias[c] > 0 ? dy[i] : 0;
        expect(close_to(dx[i], weight[c] * rstd[c] *
                                   (g - sum_g[c] / count - x_hat * sum_g_x_hat[c] / count)),
               "dx");
    }
}

/* No weight, no bias, no options. */
static void test_inference(void) {
    const double mean[C] = {0.5, -1.0, 0.0};
    const double var[C] = {1.0, 4.0, 0.25};
    float x[SIZE], y[SIZE];
    fastnorm_tensor x_t, y_t, mean_t, var_t;
    int i;

    fill(x, y);
    x_t = data_of(x);
    y_t = data_of(y);
    mean_t = vector_of(mean);
    var_t = vector_of(var);
    expect(fastnorm_batch_norm(&x_t, &mean_t, &var_t, NULL, NULL, &y_t, NULL) == FASTNORM_OK,
           "batch_norm");
    for (i = 0; i < SIZE; ++i) {
        const int c = channel_of(i);
        expect(close_to(y[i], (x[i] - mean[c]) / sqrt(var[c] + 1e-5)), "y of inference");
    }
}

/* Rows of S: a layer norm of (N * C) of them, and backward of what is constant: dx is 0. */
static void test_rows(void) {
    const double weight[S] = {1.0, 2.0, -0.5, 4.0};
    const int64_t s_shape[1] = {S};
    const int64_t rows_shape[2] = {N, C};
    float x[SIZE], ones[SIZE], y[SIZE] = {0}, dx[SIZE], sum[SIZE] = {0};
    double mean[N * C] = {0}, rstd[N * C] = {0}, dweight[S], dbias[S];
    fastnorm_tensor x_t, ones_t, y_t, dx_t, sum_t, mean_t, rstd_t, weight_t, dweight_t, dbias_t;
    fastnorm_options options = fastnorm_defaults();
    fastnorm_norm_sizes sizes;
    int i, row;

    fill(x, ones);
    for (i = 0; i < SIZE; ++i) ones[i] = 1.0f;
    x_t = data_of(x);
    ones_t = data_of(ones);
    y_t = data_of(y);
    dx_t = data_of(dx);
    sum_t = data_of(sum);
    mean_t = fastnorm_dense(mean, FASTNORM_FLOAT64, 2, rows_shape);
    rstd_t = fastnorm_dense(rstd, FASTNORM_FLOAT64, 2, rows_shape);
    weight_t = fastnorm_dense(weight, FASTNORM_FLOAT64, 1, s_shape);
    dweight_t = fastnorm_dense(dweight, FASTNORM_FLOAT64, 1, s_shape);
    dbias_t = fastnorm_dense(dbias, FASTNORM_FLOAT64, 1, s_shape);
    expect(fastnorm_layer_norm_sizes(&x_t, -1, &sizes) == FASTNORM_OK, "layer_norm_sizes");
    expect(sizes.parameters_ndim == 1 && sizes.parameters[0] == S, "the shape of a row's weight");
    expect(sizes.statistics_ndim == 2 && sizes.statistics[1] == C, "the shape of rows' means");
    expect(fastnorm_layer_norm_train(&x_t, &weight_t, NULL, &y_t, &mean_t, &rstd_t, NULL) ==
               FASTNORM_OK,
           "layer_norm_train");
    for (i = 0; i < SIZE; ++i) {
        row = i / S;
        expect(close_to(y[i], (x[i] - mean[row]) * rstd[row] * weight[i % S]), "y of a row");
    }
    expect(fastnorm_layer_norm_backward(&ones_t, &x_t, &mean_t, &rstd_t, NULL, NULL, &dx_t,
                                        &dweight_t, &dbias_t, NULL, NULL) == FASTNORM_OK,
           "layer_norm_backward");
    for (i = 0; i < SIZE; ++i) expect(close_to(dx[i], 0.0), "dx of a constant gradient");
    for (i = 0; i < S; ++i) expect(close_to(dbias[i], N * C), "dbias over rows");

    options.residual = &ones_t;
    options.sum_out = &sum_t;
    options.weight_offset = 1.0;
    expect(fastnorm_rms_norm_train(&x_t, &weight_t, NULL, &y_t, &rstd_t, &options) == FASTNORM_OK,
           "rms_norm_train");
    for (i = 0; i < SIZE; ++i) {
        expect(sum[i] == x[i] + 1.0f, "prenorm's sum");
        expect(close_to(y[i], sum[i] * rstd[i / S] * (1.0 + weight[i % S])), "y of its RMS norm");
    }
    options.sum_out = NULL;
    options.dsum = &ones_t;
    expect_error(fastnorm_rms_norm_backward(&ones_t, &sum_t, &rstd_t, &weight_t, NULL, &dx_t, NULL,
                                            NULL, NULL, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "rms_norm_backward: dsum is given, expected none beside a residual that is added "
                 "behind the norm: prenorm's is part of x, and dx its gradient too");
    options.residual = NULL;
    expect(fastnorm_rms_norm_backward(&ones_t, &sum_t, &rstd_t, &weight_t, NULL, &dx_t, NULL, NULL,
                                      NULL, &options) == FASTNORM_OK,
           "rms_norm_backward");
}

/* One group of all channels is the layer norm of a sample; each channel by itself an instance norm.
 */
static void test_samples(void) {
    const int64_t n_shape[2] = {N, 1};
    float x[SIZE], dy[SIZE], y[SIZE] = {0}, other[SIZE] = {0}, dx[SIZE];
    double mean[N] = {0}, rstd[N] = {0};
    fastnorm_tensor x_t, dy_t, y_t, other_t, dx_t, mean_t, rstd_t;
    fastnorm_options options = fastnorm_defaults();
    int i;

    fill(x, dy);
    x_t = data_of(x);
    dy_t = data_of(dy);
    y_t = data_of(y);
    other_t = data_of(other);
    dx_t = data_of(dx);
    mean_t = fastnorm_dense(mean, FASTNORM_FLOAT64, 2, n_shape);
    rstd_t = fastnorm_dense(rstd, FASTNORM_FLOAT64, 2, n_shape);
    expect(
        fastnorm_group_norm_train(&x_t, 1, NULL, NULL, &y_t, &mean_t, &rstd_t, NULL) == FASTNORM_OK,
        "group_norm_train");
    options.axis = 1;
    expect(fastnorm_layer_norm(&x_t, NULL, NULL, &other_t, &options) == FASTNORM_OK, "layer_norm");
    for (i = 0; i < SIZE; ++i) expect(close_to(y[i], other[i]), "a group of all channels");
    expect(fastnorm_group_norm_backward(&dy_t, &x_t, 1, &mean_t, &rstd_t, NULL, NULL, &dx_t, NULL,
                                        NULL, NULL, NULL) == FASTNORM_OK,
           "group_norm_backward");
    expect(fastnorm_group_norm(&x_t, C, NULL, NULL, &y_t, NULL) == FASTNORM_OK, "group_norm");
    expect(fastnorm_instance_norm(&x_t, NULL, NULL, &other_t, NULL) == FASTNORM_OK,
           "instance_norm");
    for (i = 0; i < SIZE; ++i) expect(y[i] == other[i], "groups of one channel");
    expect_error(fastnorm_group_norm(&x_t, 2, NULL, NULL, &y_t, NULL), FASTNORM_INVALID_ARGUMENT,
                 "group_norm: groups is 2, expected a divisor of the 3 channels that an x with "
                 "shape (2, 3, 4) has on axis 1");
}

static void test_errors(void) {
    const double four[4] = {0, 0, 0, 0};
    const int64_t four_shape[1] = {4};
    const fastnorm_tensor weight_t = fastnorm_dense(four, FASTNORM_FLOAT64, 1, four_shape);
    const fastnorm_tensor vector_t = vector_of(four);
    float x[SIZE], y[SIZE];
    fastnorm_tensor x_t, y_t;
    fastnorm_options options;
    fastnorm_norm_sizes sizes;
    int64_t bytes;
    int i;

    fill(x, y);
    for (i = 0; i < SIZE; ++i) y[i] = -7.0f;
    x_t = data_of(x);
    y_t = data_of(y);
    expect_error(fastnorm_batch_norm(&x_t, &vector_t, &vector_t, &weight_t, NULL, &y_t, NULL),
                 FASTNORM_INVALID_ARGUMENT,
                 "batch_norm: weight has shape (4,), expected (3,): channel_axis is 1, x has "
                 "shape (2, 3, 4)");
    expect_error(fastnorm_batch_norm(NULL, &vector_t, &vector_t, NULL, NULL, &y_t, NULL),
                 FASTNORM_INVALID_ARGUMENT, "batch_norm: x is missing, expected an array");
    expect_error(fastnorm_batch_norm_train(&x_t, NULL, NULL, NULL, NULL, NULL, NULL),
                 FASTNORM_INVALID_ARGUMENT, "batch_norm_train: out is missing, expected an array");
    y_t.dtype = FASTNORM_FLOAT64;
    expect_error(fastnorm_batch_norm_train(&x_t, NULL, NULL, &y_t, NULL, NULL, NULL),
                 FASTNORM_WRONG_DTYPE,
                 "batch_norm_train: out has dtype float64, expected float32 as x has it");
    x_t.dtype = (fastnorm_dtype)77;
    expect_error(fastnorm_batch_norm_sizes(&x_t, 1, &sizes), FASTNORM_WRONG_DTYPE,
                 "batch_norm_sizes: x has an unsupported dtype, expected float32, float64, "
                 "float16 or bfloat16");
    x_t = fastnorm_dense(x, FASTNORM_FLOAT32, 6, x_shape);
    expect_error(fastnorm_batch_norm_sizes(&x_t, 1, &sizes), FASTNORM_INVALID_ARGUMENT,
                 "batch_norm_sizes: x has 6 dimensions, expected 2 to 5");
    x_t = data_of(x);
    expect_error(fastnorm_batch_norm_sizes(&x_t, 1, NULL), FASTNORM_INVALID_ARGUMENT,
                 "batch_norm_sizes: sizes is null, expected a pointer");
    x_t.data = NULL;
    y_t = data_of(y);
    expect_error(fastnorm_batch_norm_train(&x_t, NULL, NULL, &y_t, NULL, NULL, NULL),
                 FASTNORM_INVALID_ARGUMENT,
                 "batch_norm_train: x has no memory (null), expected an array of shape (2, 3, 4)");
    x_t = data_of(x);
    options = fastnorm_defaults();
    options.scratch = &x_t;
    expect_error(fastnorm_batch_norm_train(&x_t, NULL, NULL, &y_t, NULL, NULL, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "batch_norm_train: scratch is given, expected none: on the CPU each thread keeps "
                 "its own");
    options.scratch = NULL;
    options.scratch_bytes = &bytes;
    expect(fastnorm_batch_norm_train(&x_t, NULL, NULL, &y_t, NULL, NULL, &options) == FASTNORM_OK,
           "scratch_bytes");
    expect(bytes == 0, "none is needed on the CPU");
    expect_error(fastnorm_set_num_threads(-1), FASTNORM_INVALID_ARGUMENT,
                 "set_num_threads: n is -1, expected a number >= 1");
    for (i = 0; i < SIZE; ++i) expect(y[i] == -7.0f, "y was written in spite of an error");
}

/* Whoever sets an option expects it to matter. */
static void test_options_of_other_ops(void) {
    const double vector[4] = {0, 0, 0, 0};
    const fastnorm_tensor vector_t = vector_of(vector);
    float x[SIZE], y[SIZE];
    fastnorm_tensor x_t, y_t;
    fastnorm_options options;
    int i;

    fill(x, y);
    for (i = 0; i < SIZE; ++i) y[i] = -7.0f;
    x_t = data_of(x);
    y_t = data_of(y);
    options = fastnorm_defaults();
    options.sum_out = &y_t;
    expect_error(fastnorm_group_norm(&x_t, 1, NULL, NULL, &y_t, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "group_norm: sum_out is set, expected its default: the op does not have it");
    expect_error(
        fastnorm_rms_norm_backward(&x_t, &x_t, &vector_t, NULL, NULL, &y_t, NULL, NULL, NULL,
                                   &options),
        FASTNORM_INVALID_ARGUMENT,
        "rms_norm_backward: sum_out is set, expected its default: the op does not have it");
    options = fastnorm_defaults();
    options.weight_offset = 1.0;
    expect_error(fastnorm_group_norm_train(&x_t, 1, NULL, NULL, &y_t, NULL, NULL, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "group_norm_train: weight_offset is set, expected its default: the op does not "
                 "have it");
    options = fastnorm_defaults();
    options.running_var = &vector_t;
    expect_error(fastnorm_instance_norm(&x_t, NULL, NULL, &y_t, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "instance_norm: running_var is set, expected its default: the op does not have "
                 "it");
    options = fastnorm_defaults();
    options.mask = &vector_t;
    expect_error(fastnorm_batch_norm(&x_t, &vector_t, &vector_t, NULL, NULL, &y_t, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "batch_norm: mask is set, expected its default: the op does not have it");
    options = fastnorm_defaults();
    options.cast_before_weight = 1;
    expect_error(fastnorm_layer_norm(&x_t, NULL, NULL, &y_t, &options), FASTNORM_INVALID_ARGUMENT,
                 "layer_norm: cast_before_weight is set, expected its default: the op does not "
                 "have it");
    options = fastnorm_defaults();
    options.dsum = &x_t;
    expect_error(fastnorm_rms_norm(&x_t, NULL, NULL, &y_t, &options), FASTNORM_INVALID_ARGUMENT,
                 "rms_norm: dsum is set, expected its default: the op does not have it");
    options = fastnorm_defaults();
    options.training = 0;
    expect_error(fastnorm_batch_norm_train(&x_t, NULL, NULL, &y_t, NULL, NULL, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "batch_norm_train: training is set, expected its default: the op does not have "
                 "it");
    options = fastnorm_defaults();
    options.axis = 1;
    expect_error(fastnorm_instance_norm_train(&x_t, NULL, NULL, &y_t, NULL, NULL, &options),
                 FASTNORM_INVALID_ARGUMENT,
                 "instance_norm_train: axis is set, expected its default: the op does not have "
                 "it");
    options = fastnorm_defaults();
    options.channel_axis = -1;
    expect_error(fastnorm_layer_norm(&x_t, NULL, NULL, &y_t, &options), FASTNORM_INVALID_ARGUMENT,
                 "layer_norm: channel_axis is set, expected its default: the op does not have it");
    for (i = 0; i < SIZE; ++i) expect(y[i] == -7.0f, "y was written in spite of an option");
}

/* A layer norm over all axes: its statistics have no dimensions. */
static void test_one_row(void) {
    double mean = 0, rstd = 0, expected = 0;
    float x[SIZE] = {0}, y[SIZE] = {0};
    const fastnorm_tensor x_t = data_of(x), y_t = data_of(y);
    const fastnorm_tensor mean_t = fastnorm_dense(&mean, FASTNORM_FLOAT64, 0, NULL);
    const fastnorm_tensor rstd_t = fastnorm_dense(&rstd, FASTNORM_FLOAT64, 0, NULL);
    fastnorm_options options = fastnorm_defaults();
    int i;

    fill(x, y);
    for (i = 0; i < SIZE; ++i) expected += x[i] / (double)SIZE;
    options.axis = 0;
    expect(fastnorm_layer_norm_train(&x_t, NULL, NULL, &y_t, &mean_t, &rstd_t, &options) ==
               FASTNORM_OK,
           "layer_norm_train of one row");
    expect(close_to(mean, expected), "the mean of one row");
    for (i = 0; i < SIZE; ++i) expect(close_to(y[i], (x[i] - mean) * rstd), "y of one row");
}

static void test_activations(void) {
    fastnorm_activation activation = {FASTNORM_IDENTITY, 7.0, 7.0};

    expect(fastnorm_activation_named("clip", &activation) == FASTNORM_OK, "activation_named");
    expect(activation.kind == FASTNORM_CLIP && activation.alpha == 0.0 && activation.beta == 6.0,
           "the default parameters of clip");
    expect(fastnorm_activation_named("leaky_relu", &activation) == FASTNORM_OK, "leaky_relu");
    expect(activation.kind == FASTNORM_LEAKY_RELU && activation.alpha == 0.01 &&
               activation.beta == 0.0,
           "the default parameter of leaky_relu");
    expect_error(fastnorm_activation_named("swish", &activation), FASTNORM_INVALID_ARGUMENT,
                 "activation is 'swish', expected one of identity, relu, leaky_relu, clip, "
                 "sigmoid, tanh, silu, gelu, gelu_tanh, hardswish");
    expect_error(fastnorm_activation_named(NULL, &activation), FASTNORM_INVALID_ARGUMENT,
                 "fastnorm_activation_named: name is null, expected a pointer");
    expect_error(fastnorm_activation_named("relu", NULL), FASTNORM_INVALID_ARGUMENT,
                 "fastnorm_activation_named: activation is null, expected a pointer");
}

static void test_process(void) {
    expect(strlen(fastnorm_version()) >= 5, "version");
    expect(fastnorm_isa() != NULL, "isa");
    expect(fastnorm_set_num_threads(2) == FASTNORM_OK, "set_num_threads");
    expect(fastnorm_get_num_threads() == 2, "get_num_threads");
}

/* Without a device, or with one, memory that is none of it: an error, and nothing has happened. */
static void test_device(void) {
    float x[SIZE] = {0};
    double mean[C] = {0}, var[C] = {0};
    fastnorm_tensor x_t, mean_t, var_t;
    x_t = fastnorm_on_cuda(fastnorm_dense(x, FASTNORM_FLOAT32, 3, x_shape), 77);
    mean_t = fastnorm_dense(mean, FASTNORM_FLOAT64, 1, c_shape);
    var_t = fastnorm_on_cuda(mean_t, 77);
    var_t.data = var;
    expect(x_t.device == FASTNORM_CUDA && x_t.device_index == 77, "on_cuda");
    expect_error(fastnorm_batch_norm(&x_t, &mean_t, &var_t, NULL, NULL, &x_t, NULL),
                 FASTNORM_INVALID_ARGUMENT,
                 "batch_norm: mean is on the CPU, expected cuda:77 as x is");
    mean_t = fastnorm_on_cuda(mean_t, 77);
    expect(
        fastnorm_batch_norm(&x_t, &mean_t, &var_t, NULL, NULL, &x_t, NULL) == FASTNORM_CUDA_ERROR,
        "a device that is not there");
    expect(strncmp(fastnorm_last_error(), "batch_norm: ", 12) == 0, "an error of the op");
}

int main(void) {
    test_device();
    test_process();
    test_training_and_backward();
    test_inference();
    test_rows();
    test_samples();
    test_one_row();
    test_errors();
    test_options_of_other_ops();
    test_activations();
    if (failures == 0) puts("all passed");
    return failures == 0 ? 0 : 1;
}
