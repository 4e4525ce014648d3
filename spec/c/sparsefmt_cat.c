/* sparsefmt_cat.c: what is in a .sparsefmt file.

       sparsefmt_cat FILE                   lists the tensors
       sparsefmt_cat FILE TENSOR            writes the dense bytes of one to standard output
       sparsefmt_cat --matvec FILE TENSOR   multiplies it by the vector on standard input

   Build:  cc -std=c99 -O3 -o sparsefmt_cat sparsefmt_cat.c -lm
   With codec zstd:  cc -std=c99 -O3 -DSPARSEFMT_ZSTD -o sparsefmt_cat sparsefmt_cat.c -lzstd -lm

   The list has a line per name, with tabs between: name, dtype, shape, layout, nnz, bytes stored; for a further name of
   a tensor also the other name. In names, bytes below 0x20, 0x7F and the backslash are written as \xNN.
   Dense bytes are little-endian and row-major, elements of fewer than 8 bits packed as in SPEC.md, section 3. Vectors
   are little-endian: binary64 for F64, I32, U32, I64 and U64, else binary32, both the one read and the one written.
   What goes wrong is said on standard error as `CODE: message`, and the exit status is 1. */

#define _POSIX_C_SOURCE 200809L

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

static int work(const sparsefmt_file *file, const char *name, int product) {
    size_t number;
    if (!name) return list(file);
    number = sparsefmt_find(file, name);
    if (number == SPARSEFMT_NONE) return fail("argument", "no tensor of that name");
    return product ? write_product(file, number) : write_dense(file, number);
}

int main(int count, char **arguments) {
    const int product = count > 1 && !strcmp(arguments[1], "--matvec");
    sparsefmt_error error;
    sparsefmt_file file;
    mapped_file bytes;
    int status;
    arguments += product;
    count -= product;
    if (count < 2 + product || count > 3) {
        fprintf(stderr, "usage: sparsefmt_cat FILE [TENSOR]\n       sparsefmt_cat --matvec FILE TENSOR\n");
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
        status = work(&file, count == 3 ? arguments[2] : NULL, product);
        sparsefmt_close(&file);
    }
    unmap_file(&bytes);
    if (fflush(stdout) && !status) status = fail("io", "standard output cannot be written");
    return status;
}
