/* example_mlp.c: a pruned multi-layer perceptron, read from a .sparsefmt file and run straight from its bytes.

       example_mlp FILE < x > y        x and y are little-endian binary32

   Build:  cc -std=c99 -O3 -o example_mlp example_mlp.c -lm

   The file has tensors "0.weight", "0.bias", "1.weight", "1.bias" and so on; biases are F32. It is made in Python:

       tensors = {"0.weight": pruned_weight, "0.bias": bias, "1.weight": ...}         # numpy arrays
       sparsefmt.save_file(tensors, "mlp.sparsefmt", layout="permuted", codec="raw", negative_zeros="drop")

   (A mask that multiplies leaves -0.0. Products never see it, and without its signs the file is smaller.) Its output
   equals, to the bit, what Python computes from the same file:

       tensors = sparsefmt.load_file("mlp.sparsefmt")
       y = sparsefmt.linear(x, tensors["0.weight"], tensors["0.bias"])
       y = sparsefmt.linear(np.maximum(y, 0), tensors["1.weight"], tensors["1.bias"])  # and so on */

#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPARSEFMT_IMPLEMENTATION
#include "sparsefmt.h"

#include "mapped_file.h"

#define MOST_LAYERS 100
#define MOST_FEATURES 1048576

typedef struct layer {
    sparsefmt_tensor weight, bias;
} layer;

typedef struct perceptron {
    layer layers[MOST_LAYERS];
    int count;
} perceptron;

static int fail(const char *message) {
    fprintf(stderr, "example_mlp: %s\n", message);
    return 0;
}

/* Loads a tensor by its name. 1 if it is loaded, 0 if it is not there, or after an error. */
static int load(const sparsefmt_file *file, int number, const char *kind, sparsefmt_tensor *tensor) {
    sparsefmt_error error;
    char name[32];
    size_t found;
    snprintf(name, sizeof name, "%d.%s", number, kind);
    found = sparsefmt_find(file, name);
    if (found == SPARSEFMT_NONE) return 0;
    if (!sparsefmt_load(file, found, tensor, &error)) return 1;
    fprintf(stderr, "%s: tensor '%s': %s\n", sparsefmt_code_name(error.code), name, error.message);
    return 0;
}

/* Whether the layer is one, and takes what the layer before it gives. */
static int fits(const perceptron *network, const layer *next) {
    const sparsefmt_info *weight = &next->weight.info, *bias = &next->bias.info;
    if (sparsefmt_sum_bits(weight->dtype) != 32) return fail("a weight whose product is not binary32");
    if (bias->dtype != SPARSEFMT_F32 || bias->elements != weight->rows) return fail("a bias that does not fit");
    if (bias->tiles != 1) return fail("a bias in several tiles, or none");
    if (weight->rows > MOST_FEATURES || weight->cols > MOST_FEATURES) return fail("too many features");
    if (network->count && network->layers[network->count - 1].weight.info.rows != weight->cols)
        return fail("a weight that does not fit the one before it");
    return 1;
}

static int load_network(const sparsefmt_file *file, perceptron *network) {
    network->count = 0;
    while (network->count < MOST_LAYERS) {
        layer *next = &network->layers[network->count];
        if (!load(file, network->count, "weight", &next->weight)) break;
        if (!load(file, network->count, "bias", &next->bias)) {
            sparsefmt_unload(&next->weight);
            return fail("a layer without bias");
        }
        if (!fits(network, next)) {
            sparsefmt_unload(&next->weight);
            sparsefmt_unload(&next->bias);
            return 0;
        }
        network->count++;
    }
    return network->count ? 1 : fail("no tensor 0.weight");
}

static void unload_network(perceptron *network) {
    while (network->count) {
        layer *last = &network->layers[--network->count];
        sparsefmt_unload(&last->weight);
        sparsefmt_unload(&last->bias);
    }
}

static float float_at(const unsigned char *bytes) {
    uint32_t bits = sparsefmt_u32(bytes);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* y = relu(W x + b), or without relu in the last layer. */
static void run_layer(const layer *one, const float *x, float *y, int last) {
    const unsigned char *bias = one->bias.tiles[0].arrays[SPARSEFMT_VALUES].bytes;
    uint64_t i;
    sparsefmt_matvec_f32(&one->weight, x, y);
    for (i = 0; i < one->weight.info.rows; i++) {
        y[i] += float_at(bias + 4 * i);
        if (!last && y[i] <= 0) y[i] = 0; /* NaN stays */
    }
}

static int read_vector(float *x, size_t count) {
    unsigned char bytes[4];
    for (; count; count--) {
        if (fread(bytes, 1, 4, stdin) != 4) return fail("standard input is too short");
        *x++ = float_at(bytes);
    }
    return 1;
}

static int write_vector(const float *y, size_t count) {
    for (; count; count--, y++) {
        uint32_t bits;
        memcpy(&bits, y, 4);
        putchar((int)(bits & 0xFF));
        putchar((int)(bits >> 8 & 0xFF));
        putchar((int)(bits >> 16 & 0xFF));
        putchar((int)(bits >> 24));
    }
    return fflush(stdout) ? fail("standard output cannot be written") : 1;
}

static int run_network(const perceptron *network) {
    float *x = (float *)malloc(MOST_FEATURES * sizeof *x), *y = (float *)malloc(MOST_FEATURES * sizeof *y), *other;
    int number, fine = x && y ? 1 : fail("no memory");
    fine = fine && read_vector(x, (size_t)network->layers[0].weight.info.cols);
    for (number = 0; fine && number < network->count; number++) {
        run_layer(&network->layers[number], x, y, number == network->count - 1);
        other = x;
        x = y;
        y = other;
    }
    fine = fine && write_vector(x, (size_t)network->layers[network->count - 1].weight.info.rows);
    free(x);
    free(y);
    return fine;
}

int main(int count, char **arguments) {
    static perceptron network;
    sparsefmt_error error;
    sparsefmt_file file;
    mapped_file bytes;
    int fine;
    if (count != 2 || !map_file(&bytes, arguments[1])) {
        fail("usage: example_mlp FILE < x > y");
        return 2;
    }
    if (sparsefmt_open(&file, bytes.data, bytes.size, NULL, &error)) {
        fprintf(stderr, "%s: %s\n", sparsefmt_code_name(error.code), error.message);
        return 1;
    }
    fine = load_network(&file, &network) && run_network(&network);
    unload_network(&network);
    sparsefmt_close(&file);
    unmap_file(&bytes);
    return !fine;
}
