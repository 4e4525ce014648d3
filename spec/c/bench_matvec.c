/* bench_matvec.c: how long a matrix-vector product takes, straight from the bytes of a file.

       bench_matvec FILE TENSOR [REPEATS]

   Build:  cc -std=c99 -O3 -o bench_matvec bench_matvec.c -lm

   Prints how many bytes of arrays had to be decoded (0 if all are stored raw), the time to load and check the tensor,
   and the shortest and the median time of a product by one thread, for binary32 or binary64 as the dtype needs. */

#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPARSEFMT_IMPLEMENTATION
#include "sparsefmt.h"

#include "mapped_file.h"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    const double first = *(const double *)a, second = *(const double *)b;
    return (first > second) - (first < second);
}

static uint64_t decoded_bytes(const sparsefmt_tensor *tensor) {
    uint64_t tile, total = 0;
    int array;
    for (tile = 0; tile < tensor->info.tiles; tile++)
        for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++)
            if (tensor->tiles[tile].arrays[array].owned) total += tensor->tiles[tile].arrays[array].size;
    return total;
}

static double time_product(const sparsefmt_tensor *tensor, void *x, void *y) {
    const double start = now();
    if (sparsefmt_sum_bits(tensor->info.dtype) == 32)
        sparsefmt_matvec_f32(tensor, (const float *)x, (float *)y);
    else
        sparsefmt_matvec_f64(tensor, (const double *)x, (double *)y);
    return now() - start;
}

static int measure(const sparsefmt_tensor *tensor, int repeats) {
    const size_t rows = (size_t)tensor->info.rows, cols = (size_t)tensor->info.cols;
    double *x = (double *)calloc(cols + 1, 8), *y = (double *)calloc(rows + 1, 8);
    double *times = (double *)malloc((size_t)repeats * sizeof *times);
    size_t i;
    int k;
    if (!x || !y || !times || !sparsefmt_sum_bits(tensor->info.dtype)) return 1;
    for (i = 0; i < cols; i++) {
        if (sparsefmt_sum_bits(tensor->info.dtype) == 32)
            ((float *)x)[i] = (float)(i % 17) - 8;
        else
            x[i] = (double)(i % 17) - 8;
    }
    for (k = 0; k < repeats; k++) times[k] = time_product(tensor, x, y);
    qsort(times, (size_t)repeats, sizeof *times, by_size);
    printf("product   %.1f us shortest, %.1f us median of %d\n", 1e6 * times[0], 1e6 * times[repeats / 2], repeats);
    free(x);
    free(y);
    free(times);
    return 0;
}

int main(int count, char **arguments) {
    const int repeats = count > 3 ? atoi(arguments[3]) : 200;
    sparsefmt_error error;
    sparsefmt_tensor tensor;
    sparsefmt_file file;
    mapped_file bytes;
    double start;
    int status;
    if (count < 3 || repeats < 1 || !map_file(&bytes, arguments[1])) {
        fprintf(stderr, "usage: bench_matvec FILE TENSOR [REPEATS]\n");
        return 2;
    }
    start = now();
    if (sparsefmt_open(&file, bytes.data, bytes.size, NULL, &error) ||
        sparsefmt_load(&file, sparsefmt_find(&file, arguments[2]), &tensor, &error)) {
        fprintf(stderr, "%s: %s\n", sparsefmt_code_name(error.code), error.message);
        return 1;
    }
    printf("%s %s, %llu of %llu positions not pruned\n", sparsefmt_dtype_name(tensor.info.dtype),
           sparsefmt_layout_name(tensor.info.layout), (unsigned long long)tensor.info.nnz,
           (unsigned long long)tensor.info.elements);
    printf("load      %.1f us, of which %llu bytes decoded\n", 1e6 * (now() - start),
           (unsigned long long)decoded_bytes(&tensor));
    status = measure(&tensor, repeats);
    sparsefmt_unload(&tensor);
    sparsefmt_close(&file);
    unmap_file(&bytes);
    return status;
}
