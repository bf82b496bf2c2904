/* Normalizes a matrix of two channels by given statistics and prints it. */
#include <fastnorm/fastnorm.h>
#include <math.h>
#include <stdio.h>

int main(void) {
    float x[4] = {1, 10, 3, 30}; /* 2 rows, 2 channels */
    const float mean[2] = {2, 20};
    const float var[2] = {1, 100};
    const int64_t x_shape[2] = {2, 2};
    const int64_t channels[1] = {2};
    const fastnorm_tensor x_t = fastnorm_dense(x, FASTNORM_FLOAT32, 2, x_shape);
    const fastnorm_tensor mean_t = fastnorm_dense(mean, FASTNORM_FLOAT32, 1, channels);
    const fastnorm_tensor var_t = fastnorm_dense(var, FASTNORM_FLOAT32, 1, channels);

    if (fastnorm_batch_norm(&x_t, &mean_t, &var_t, NULL, NULL, &x_t, NULL) != FASTNORM_OK) {
        fprintf(stderr, "%s\n", fastnorm_last_error());
        return 1;
    }
    printf("fastnorm %s: %g %g %g %g\n", fastnorm_version(), x[0], x[1], x[2], x[3]);
    return fabs(x[0] + 1) < 1e-3 && fabs(x[1] + 1) < 1e-3 && fabs(x[2] - 1) < 1e-3 &&
                   fabs(x[3] - 1) < 1e-3
               ? 0
               : 1;
}
