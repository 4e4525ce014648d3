/* sparsefmt_cat.c: what is in a .sparsefmt file.

       sparsefmt_cat FILE                   lists the tensors
       sparsefmt_cat FILE TENSOR            writes the dense bytes of one to standard output
       sparsefmt_cat --matvec FILE TENSOR   multiplies it by the vector on standard input
       sparsefmt_cat --scaled FILE weight=TENSOR x=TENSOR [bias=TENSOR] [result=DTYPE]
                              [activations=int8] [input_scale=TENSOR]
                                            multiplies a scaled weight by each row of x, all of them tensors of the file

   Build:  cc -std=c99 -O3 -o sparsefmt_cat sparsefmt_cat.c -lm
   With codec zstd:  cc -std=c99 -O3 -DSPARSEFMT_ZSTD -o sparsefmt_cat sparsefmt_cat.c -lzstd -lm

   The list has a line per name, with tabs between: name, dtype, shape, layout, nnz, bytes stored; for a further name of
   a tensor also the other name. In names, bytes below 0x20, 0x7F and the backslash are written as \xNN.
   Dense bytes are little-endian and row-major, elements of fewer than 8 bits packed as in SPEC.md, section 3. Vectors
   are little-endian: binary64 for F64, I32, U32, I64 and U64, else binary32, both the one read and the one written.
   Scaled weights are those that metadata `sparsefmt.scales` names (SPEC.md, section 6.1); results are F32, F64, F16 or
   BF16, by default the type of the sums.
   What goes wrong is said on standard error as `CODE: message`, and the exit status is 1. */

#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPARSEFMT_IMPLEMENTATION
#include "sparsefmt.h"

#include "mapped_file.h"

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

static void print_name(FILE *stream, const char *name, size_t size) {
    size_t i;
    for (i = 0; i < size; i++) {
        const unsigned char byte = (unsigned char)name[i];
        if (byte < 0x20 || byte == 0x7F || byte == '\\')
            fprintf(stream, "\\x%02X", byte);
        else
            fputc(byte, stream);
    }
}

static int fail(const char *code, const char *message) {
    fprintf(stderr, "%s: %s\n", code, message);
    return 1;
}

static int report(const sparsefmt_error *error) {
    fprintf(stderr, "%s: ", sparsefmt_code_name(error->code));
    if (error->tensor) {
        fputs("tensor '", stderr);
        print_name(stderr, error->tensor, error->tensor_bytes);
        fputs("': ", stderr);
    }
    fprintf(stderr, "%s\n", error->message);
    return 1;
}

static int list(const sparsefmt_file *file) {
    sparsefmt_error error;
    sparsefmt_info info, other;
    size_t number;
    unsigned i;
    for (number = 0; number < sparsefmt_count(file); number++) {
        if (sparsefmt_describe(file, number, &info, &error)) return report(&error);
        print_name(stdout, info.name, info.name_bytes);
        printf("\t%s\t[", sparsefmt_dtype_name(info.dtype));
        for (i = 0; i < info.ndim; i++) printf(i ? ",%llu" : "%llu", (unsigned long long)info.shape[i]);
        printf("]\t%s\t%llu\t%llu", sparsefmt_layout_name(info.layout), (unsigned long long)info.nnz,
               (unsigned long long)info.stored_bytes);
        if (info.alias_of != SPARSEFMT_NONE) {
            if (sparsefmt_describe(file, info.alias_of, &other, &error)) return report(&error);
            putchar('\t');
            print_name(stdout, other.name, other.name_bytes);
        }
        putchar('\n');
    }
    return 0;
}

static int write_bytes(const unsigned char *bytes, size_t size) {
    if (fwrite(bytes, 1, size, stdout) != size) return fail("io", "standard output cannot be written");
    return 0;
}

static int write_dense(const sparsefmt_file *file, size_t number) {
    sparsefmt_error error;
    sparsefmt_info info;
    unsigned char *dense;
    int status;
    if (sparsefmt_describe(file, number, &info, &error)) return report(&error);
    dense = info.dense_bytes < SIZE_MAX ? (unsigned char *)malloc((size_t)info.dense_bytes + 1) : NULL;
    if (!dense) return fail("memory", "no memory for the dense tensor");
    if (sparsefmt_dense(file, number, dense, (size_t)info.dense_bytes, &error))
        status = report(&error);
    else
        status = write_bytes(dense, (size_t)info.dense_bytes);
    free(dense);
    return status;
}

/* Numbers in the bytes of a file, and in memory: in place, since both have the same size. */

static void floats_of_bytes(void *numbers, size_t count, int bits) {
    unsigned char *bytes = (unsigned char *)numbers;
    size_t i;
    for (i = 0; i < count; i++) {
        if (bits == 32) {
            uint32_t value = sparsefmt_u32(bytes + 4 * i);
            memcpy(bytes + 4 * i, &value, 4);
        } else {
            uint64_t value = sparsefmt_u64(bytes + 8 * i);
            memcpy(bytes + 8 * i, &value, 8);
        }
    }
}

static void bytes_of_floats(void *numbers, size_t count, int bits) {
    unsigned char *bytes = (unsigned char *)numbers;
    size_t i;
    int k;
    for (i = 0; i < count; i++) {
        uint64_t value = 0;
        uint32_t narrow;
        if (bits == 32) {
            memcpy(&narrow, bytes + 4 * i, 4);
            value = narrow;
        } else {
            memcpy(&value, bytes + 8 * i, 8);
        }
        for (k = 0; k < bits / 8; k++) bytes[i * (size_t)(bits / 8) + (size_t)k] = (unsigned char)(value >> 8 * k);
    }
}

static int multiply(const sparsefmt_tensor *tensor, void *x, void *y, int bits) {
    const size_t rows = (size_t)tensor->info.rows, cols = (size_t)tensor->info.cols, size = (size_t)bits / 8;
    if (fread(x, size, cols, stdin) != cols || getchar() != EOF)
        return fail("argument", "the vector on standard input has not as many elements as the tensor has columns");
    floats_of_bytes(x, cols, bits);
    if (bits == 32)
        sparsefmt_matvec_f32(tensor, (const float *)x, (float *)y);
    else
        sparsefmt_matvec_f64(tensor, (const double *)x, (double *)y);
    bytes_of_floats(y, rows, bits);
    return write_bytes((const unsigned char *)y, rows * size);
}

static int write_product(const sparsefmt_file *file, size_t number) {
    sparsefmt_error error;
    sparsefmt_tensor tensor;
    int bits, status;
    void *x = NULL, *y = NULL;
    if (sparsefmt_load(file, number, &tensor, &error)) return report(&error);
    bits = sparsefmt_sum_bits(tensor.info.dtype);
    if (tensor.info.rows < SIZE_MAX / 8 && tensor.info.cols < SIZE_MAX / 8) {
        x = malloc((size_t)tensor.info.cols * 8 + 1);
        y = malloc((size_t)tensor.info.rows * 8 + 1);
    }
    if (!bits)
        status = fail("argument", "C64 has no product");
    else if (!x || !y)
        status = fail("memory", "no memory for the vectors");
    else
        status = multiply(&tensor, x, y, bits);
    free(x);
    free(y);
    sparsefmt_unload(&tensor);
    return status;
}

/* -- Products of scaled weights. Numbers are double here: every binary32 is one. -- */

typedef struct product {
    const char *weight, *x, *bias, *activations, *input_scale, *result;
} product;

/* What a product needs. Numbers are of type A: binary64 if `wide`. */
typedef struct operands {
    sparsefmt_tensor weight;
    sparsefmt_scales scales;
    int quantized, wide;
    sparsefmt_dtype result;
    size_t rows, cols, tokens;
    void *x, *bias, *y;
    signed char *a;
    float input_scale;
} operands;

static int read_options(int count, char **arguments, product *wanted) {
    static const char *const names[] = {"weight=", "x=", "bias=", "activations=", "input_scale=", "result="};
    const char **const values[] = {&wanted->weight, &wanted->x,           &wanted->bias, &wanted->activations,
                                   &wanted->input_scale, &wanted->result};
    int i, k;
    memset(wanted, 0, sizeof *wanted);
    for (i = 0; i < count; i++) {
        for (k = 0; k < 6 && strncmp(arguments[i], names[k], strlen(names[k])) != 0; k++) continue;
        if (k == 6) return 0;
        *values[k] = arguments[i] + strlen(names[k]);
    }
    return wanted->weight && wanted->x && (!wanted->activations || !strcmp(wanted->activations, "int8"));
}

/* All elements of a tensor as numbers of type A. NULL if that was reported. */
static void *read_numbers(const sparsefmt_file *file, const char *name, int wide, sparsefmt_info *info) {
    const size_t number = sparsefmt_find(file, name);
    unsigned char *dense;
    void *numbers = NULL;
    sparsefmt_error error;
    sparsefmt_code code;
    if (number == SPARSEFMT_NONE) {
        fail("argument", "no tensor of that name");
        return NULL;
    }
    sparsefmt_describe(file, number, info, NULL);
    dense = info->elements < SIZE_MAX / 16 ? (unsigned char *)malloc((size_t)info->dense_bytes + 1) : NULL;
    if (dense) numbers = malloc((size_t)info->elements * (wide ? sizeof(double) : sizeof(float)) + 1);
    if (!numbers) {
        free(dense);
        fail("memory", "no memory for a tensor");
        return NULL;
    }
    code = sparsefmt_dense(file, number, dense, (size_t)info->dense_bytes, &error);
    if (code) {
        report(&error);
    } else {
        code = wide ? sparsefmt_numbers_f64(info->dtype, dense, info->elements, (double *)numbers)
                    : sparsefmt_numbers_f32(info->dtype, dense, info->elements, (float *)numbers);
        if (code) fail("argument", "C64 has no product");
    }
    free(dense);
    if (!code) return numbers;
    free(numbers);
    return NULL;
}

/* The bits of a float of `mantissa` bits and as many exponent bits as fill 16: y rounded to nearest, ties to even. */
static unsigned half_of(double y, int mantissa) {
    const int least = 2 - (1 << (14 - mantissa)); /* exponent of the least normal number */
    const unsigned infinite = ((1u << (15 - mantissa)) - 1) << mantissa, sign = signbit(y) ? 0x8000 : 0;
    int exponent;
    double units;
    if (y != y) return infinite | 1u << (mantissa - 1);
    if (fabs(y) > 1e39) return sign | infinite;
    frexp(y, &exponent);
    if (y == 0 || --exponent < least) exponent = least;
    units = rint(ldexp(fabs(y), mantissa - exponent)) + ldexp(exponent - least, mantissa);
    return sign | (units < infinite ? (unsigned)units : infinite);
}

/* An element of y, with its bias, in the result type. */
static void write_result(const operands *with, size_t row, unsigned char *at) {
    uint64_t bits = 0;
    uint32_t narrow_bits;
    double value;
    float narrow;
    int k;
    if (with->wide) {
        value = ((const double *)with->y)[row];
        if (with->bias) value += ((const double *)with->bias)[row];
        narrow = (float)value;
    } else {
        narrow = ((const float *)with->y)[row];
        if (with->bias) narrow += ((const float *)with->bias)[row];
        value = narrow;
    }
    memcpy(&narrow_bits, &narrow, 4);
    switch (with->result) {
    case SPARSEFMT_F64: memcpy(&bits, &value, 8); break;
    case SPARSEFMT_F32: bits = narrow_bits; break;
    case SPARSEFMT_F16: bits = half_of(value, 10); break;
    default: bits = half_of(value, 7);
    }
    for (k = 0; k < (int)sparsefmt_dtype_bits(with->result) / 8; k++) at[k] = (unsigned char)(bits >> 8 * k);
}

static int multiply_tokens(const operands *with, int has_input_scale) {
    const size_t width = sparsefmt_dtype_bits(with->result) / 8;
    unsigned char *bytes = (unsigned char *)malloc(with->rows * width + 1);
    int status = bytes ? 0 : fail("memory", "no memory for a result");
    size_t token, row;
    for (token = 0; token < with->tokens && !status; token++) {
        sparsefmt_code code;
        if (with->quantized)
            code = sparsefmt_scaled_matvec_i8(&with->weight, &with->scales, has_input_scale ? &with->input_scale : NULL,
                                              (const float *)with->x + token * with->cols, with->a, (float *)with->y);
        else if (with->wide)
            code = sparsefmt_scaled_matvec_f64(&with->weight, &with->scales,
                                               (const double *)with->x + token * with->cols, (double *)with->y);
        else
            code = sparsefmt_scaled_matvec_f32(&with->weight, &with->scales,
                                               (const float *)with->x + token * with->cols, (float *)with->y);
        if (code) {
            status = fail(sparsefmt_code_name(code), "this product is refused");
        } else {
            for (row = 0; row < with->rows; row++) write_result(with, row, bytes + row * width);
            status = write_bytes(bytes, with->rows * width);
        }
    }
    free(bytes);
    return status;
}

static int find_result(const product *wanted, operands *with) {
    static const sparsefmt_dtype results[] = {SPARSEFMT_F32, SPARSEFMT_F64, SPARSEFMT_F16, SPARSEFMT_BF16};
    int i;
    with->result = with->wide ? SPARSEFMT_F64 : SPARSEFMT_F32;
    if (!wanted->result) return 0;
    for (i = 0; i < 4; i++) {
        with->result = results[i];
        if (!strcmp(sparsefmt_dtype_name(results[i]), wanted->result)) return 0;
    }
    return fail("argument", "a result is F32, F64, F16 or BF16");
}

/* What is read into *with, the caller frees. */
static int multiply_scaled(const sparsefmt_file *file, const product *wanted, operands *with) {
    const size_t number = sparsefmt_find(file, wanted->weight), of_x = sparsefmt_find(file, wanted->x);
    sparsefmt_error error;
    sparsefmt_info info;
    size_t scales;
    int status;
    if (sparsefmt_find_scales(file, number, &scales, &error)) return report(&error);
    if (scales == SPARSEFMT_NONE) return fail("argument", "the file names no scales of this weight");
    if (sparsefmt_describe(file, of_x, &info, &error)) return report(&error);
    if (sparsefmt_load(file, number, &with->weight, &error)) return report(&error);
    if (sparsefmt_load_scales(&with->weight, scales, &with->scales, &error)) return report(&error);
    with->quantized = wanted->activations != NULL;
    with->wide = sparsefmt_sum_bits(with->weight.info.dtype) == 64 || sparsefmt_sum_bits(info.dtype) == 64;
    if (with->quantized) with->wide = 0;
    status = find_result(wanted, with);
    if (status) return status;
    with->rows = (size_t)with->weight.info.rows;
    with->cols = (size_t)with->weight.info.cols;
    with->x = read_numbers(file, wanted->x, with->wide, &info);
    if (!with->x) return 1;
    if (info.cols != with->cols) return fail("argument", "x and the weight differ in their columns");
    with->tokens = (size_t)info.rows;
    if (wanted->bias) {
        with->bias = read_numbers(file, wanted->bias, with->wide, &info);
        if (!with->bias) return 1;
        if (info.elements != with->rows) return fail("argument", "the bias has not an element for each row");
    }
    if (wanted->input_scale) {
        float *const value = (float *)read_numbers(file, wanted->input_scale, 0, &info);
        if (!value) return 1;
        if (info.elements == 1) with->input_scale = *value;
        free(value);
        if (info.elements != 1) return fail("input-scale", "the static input scale is not one number");
    }
    with->y = malloc(with->rows * sizeof(double) + 1);
    with->a = (signed char *)malloc(with->cols + 1);
    if (!with->y || !with->a) return fail("memory", "no memory for a product");
    return multiply_tokens(with, wanted->input_scale != NULL);
}

static int write_scaled(const sparsefmt_file *file, const product *wanted) {
    operands with;
    int status;
    memset(&with, 0, sizeof with);
    status = multiply_scaled(file, wanted, &with);
    free(with.x);
    free(with.bias);
    free(with.y);
    free(with.a);
    sparsefmt_unload_scales(&with.scales);
    sparsefmt_unload(&with.weight);
    return status;
}

static int work(const sparsefmt_file *file, const char *name, int is_product) {
    size_t number;
    if (!name) return list(file);
    number = sparsefmt_find(file, name);
    if (number == SPARSEFMT_NONE) return fail("argument", "no tensor of that name");
    return is_product ? write_product(file, number) : write_dense(file, number);
}

int main(int count, char **arguments) {
    const int is_product = count > 1 && !strcmp(arguments[1], "--matvec");
    const int is_scaled = count > 1 && !strcmp(arguments[1], "--scaled");
    const int skipped = is_product || is_scaled;
    sparsefmt_error error;
    sparsefmt_file file;
    product wanted;
    mapped_file bytes;
    int status;
    arguments += skipped;
    count -= skipped;
    if (count < 2 + is_product || (is_scaled ? !read_options(count - 2, arguments + 2, &wanted) : count > 3)) {
        fprintf(stderr, "usage: sparsefmt_cat FILE [TENSOR]\n       sparsefmt_cat --matvec FILE TENSOR\n"
                        "       sparsefmt_cat --scaled FILE weight=TENSOR x=TENSOR [bias=TENSOR] [result=DTYPE]\n"
                        "                              [activations=int8] [input_scale=TENSOR]\n");
        return 2;
    }
#ifdef _WIN32
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    if (!map_file(&bytes, arguments[1])) return fail("io", "the file cannot be read");
    if (sparsefmt_open(&file, bytes.data, bytes.size, NULL, &error)) {
        status = report(&error);
    } else {
        status = is_scaled ? write_scaled(&file, &wanted) : work(&file, count == 3 ? arguments[2] : NULL, is_product);
        sparsefmt_close(&file);
    }
    unmap_file(&bytes);
    if (fflush(stdout) && !status) status = fail("io", "standard output cannot be written");
    return status;
}
