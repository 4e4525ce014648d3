// Products of ggml with one matrix, timed on request: the process behind `bench_kernels.py --peers ggml`.
//
//     bench_peer_ggml ROWS COLS WEIGHTS      WEIGHTS is a file of ROWS * COLS float32
//
// One command a line on stdin, one line of answer each:
//
//     case THREADS BATCH X      prepare the products with the BATCH * COLS float32 of file X          "ok"
//     result TYPE Y             multiply once by the weights as f16, bf16 or q8_0, write Y, float32   "ok"
//     warm TYPE, cold TYPE      the seconds of one product, weights in a cache if they fit, or not    "1.234e-03"

#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-cpu.h"
#include "ggml.h"

#define TYPES 3
// as in bench_contenders.py
#define TURN_SECONDS 0.002
#define COLD_CALLS 3
#define EVICTING_BYTES ((size_t) 96 << 20)
#define MAX_CALLS 10000

static const enum ggml_type types[TYPES] = {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0};

struct product {
    struct ggml_tensor * y;
    struct ggml_cgraph * graph;
    struct ggml_cplan plan;
};

static void fail(const char * what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void read_floats(const char * path, float * data, int64_t count) {
    FILE * file = fopen(path, "rb");
    if (!file || fread(data, sizeof(float), count, file) != (size_t) count) fail("cannot read a matrix");
    fclose(file);
}

static struct ggml_context * new_context(size_t bytes) {
    struct ggml_init_params params = {.mem_size = bytes, .mem_buffer = NULL, .no_alloc = false};
    struct ggml_context * context = ggml_init(params);
    if (!context) fail("out of memory");
    return context;
}

static void run(struct product * product) {
    if (ggml_graph_compute(product->graph, &product->plan) != GGML_STATUS_SUCCESS) fail("the product failed");
}

static int ascending(const void * left, const void * right) {
    const double a = *(const double *) left, b = *(const double *) right;
    return (a > b) - (a < b);
}

// The median of the seconds of as many calls as fit into TURN_SECONDS.
static double seconds_of_calls(struct product * product) {
    static double calls[MAX_CALLS];
    int count = 0;
    const double begin = now();
    for (double start = begin; start - begin < TURN_SECONDS && count < MAX_CALLS;) {
        run(product);
        const double end = now();
        calls[count++] = end - start;
        start = end;
    }
    qsort(calls, count, sizeof(double), ascending);
    return (calls[(count - 1) / 2] + calls[count / 2]) / 2;
}

// Seconds of one call, warm.
static double warm_turn(struct product * product) {
    seconds_of_calls(product);
    return seconds_of_calls(product);
}

// Seconds of one call, the median of COLD_CALLS, each after all was evicted from the caches and then the same product was
// made with other weights.
static double cold_turn(struct product * product, struct product * before) {
    static int64_t * evicting = NULL;
    static volatile int64_t sum;
    const size_t count = EVICTING_BYTES / sizeof(int64_t);
    if (!evicting) {
        evicting = malloc(EVICTING_BYTES);
        if (!evicting) fail("out of memory");
        for (size_t i = 0; i < count; i++) evicting[i] = 1;
    }
    double calls[COLD_CALLS];
    run(product);
    for (int call = 0; call < COLD_CALLS; call++) {
        int64_t total = 0;
        for (size_t i = 0; i < count; i++) total += evicting[i];
        sum = total;
        run(before);
        const double start = now();
        run(product);
        calls[call] = now() - start;
    }
    qsort(calls, COLD_CALLS, sizeof(double), ascending);
    return calls[COLD_CALLS / 2];
}

// All types that fit the matrix; q8_0 stores 32 columns at a time.
static void load_weights(struct ggml_tensor ** weights, int64_t rows, int64_t cols, const char * path) {
    size_t bytes = 0;
    for (int type = 0; type < TYPES; type++) {
        bytes += ggml_tensor_overhead() + 64;
        if (cols % ggml_blck_size(types[type]) == 0) bytes += rows * ggml_row_size(types[type], cols);
    }
    struct ggml_context * context = new_context(bytes);
    float * data = malloc(rows * cols * sizeof(float));
    if (!data) fail("out of memory");
    read_floats(path, data, rows * cols);
    for (int type = 0; type < TYPES; type++) {
        if (cols % ggml_blck_size(types[type])) continue;
        weights[type] = ggml_new_tensor_2d(context, types[type], cols, rows);
        ggml_quantize_chunk(types[type], data, weights[type]->data, 0, rows, cols, NULL);
    }
    free(data);
}

static struct ggml_context * make_products(
        struct product * products, struct ggml_tensor ** weights, struct ggml_threadpool * pool, int threads,
        int64_t batch, const char * path) {
    const int64_t rows = weights[0]->ne[1], cols = weights[0]->ne[0];
    const size_t graphs = TYPES * (ggml_graph_overhead_custom(4, false) + rows * batch * sizeof(float));
    const size_t tensors = (2 * TYPES + 1) * (ggml_tensor_overhead() + 64);
    struct ggml_context * context = new_context(graphs + tensors + cols * batch * sizeof(float));
    struct ggml_tensor * x = ggml_new_tensor_2d(context, GGML_TYPE_F32, cols, batch);
    read_floats(path, x->data, cols * batch);
    for (int type = 0; type < TYPES; type++) {
        if (!weights[type]) continue;
        struct product * product = &products[type];
        product->y = ggml_mul_mat(context, weights[type], x);
        product->graph = ggml_new_graph_custom(context, 4, false);
        ggml_build_forward_expand(product->graph, product->y);
        product->plan = ggml_graph_plan(product->graph, threads, pool);
        product->plan.work_data = malloc(product->plan.work_size + 1);
        if (!product->plan.work_data) fail("out of memory");
    }
    return context;
}

static int type_number(const char * name) {
    for (int type = 0; type < TYPES; type++)
        if (!strcmp(name, ggml_type_name(types[type]))) return type;
    fail("unknown type");
    return -1;
}

int main(int argc, char ** argv) {
    if (argc != 4) fail("usage: bench_peer_ggml ROWS COLS WEIGHTS");
    const int64_t rows = atoll(argv[1]), cols = atoll(argv[2]);
    ggml_cpu_init();
    struct ggml_tensor * weights[2][TYPES] = {0};
    struct product products[2][TYPES] = {0}; // the second ones are only made before cold ones
    struct ggml_context * contexts[2] = {0};
    for (int set = 0; set < 2; set++) load_weights(weights[set], rows, cols, argv[3]);

    struct ggml_threadpool * pool = NULL;
    char line[4608], name[16], path[4096];
    int threads, batch;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "case %d %d %4095[^\n]", &threads, &batch, path) == 3) {
            for (int set = 0; set < 2 && pool; set++) {
                for (int type = 0; type < TYPES; type++) free(products[set][type].plan.work_data);
                ggml_free(contexts[set]);
            }
            if (pool) ggml_threadpool_free(pool);
            struct ggml_threadpool_params params = ggml_threadpool_params_default(threads);
            pool = ggml_threadpool_new(&params);
            for (int set = 0; set < 2; set++)
                contexts[set] = make_products(products[set], weights[set], pool, threads, batch, path);
            puts("ok");
        } else if (sscanf(line, "result %15s %4095[^\n]", name, path) == 2) {
            struct product * product = &products[0][type_number(name)];
            run(product);
            FILE * file = fopen(path, "wb");
            const size_t count = ggml_nelements(product->y);
            if (!file || fwrite(product->y->data, sizeof(float), count, file) != count) fail("cannot write a result");
            fclose(file);
            puts("ok");
        } else if (sscanf(line, "warm %15s", name) == 1) {
            printf("%.6e\n", warm_turn(&products[0][type_number(name)]));
        } else if (sscanf(line, "cold %15s", name) == 1) {
            const int type = type_number(name);
            printf("%.6e\n", cold_turn(&products[0][type], &products[1][type]));
        } else {
            fail("unknown command");
        }
        fflush(stdout);
    }
    return 0;
}
