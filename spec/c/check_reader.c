/* check_reader.c: reads whole files with sparsefmt.h and says what is in them, for comparison with another reader.

   As a program, it answers requests on standard input until that ends: each is a u32 length and the bytes of a file;
   the answer is a u32 length and a text. tools/fuzz/c_reader.py builds it with sanitizers and talks to it. An argument
   is how many bytes the reader may have at a time: what a file needs beyond that is error "memory".

       cc -std=c99 -O1 -g -fsanitize=address,undefined -o check_reader check_reader.c -lm

   With -DFUZZER, it is a target of libFuzzer instead (fuzz_target.h), which finds its way by itself from small files:

       clang -O1 -g -DFUZZER -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
             -o fuzz_reader check_reader.c -lm
       python ../../tools/fuzz/c_reader.py --corpus FOLDER
       ./fuzz_reader -max_len=131072 -max_total_time=1200 FOLDER

   Add -DSPARSEFMT_ZSTD and -lzstd for codec zstd. The text is the code of the first fault, files before tensors and
   tensors in order of their names, or a line for the metadata and one for each tensor: digest of the name, dtype,
   shape, layout, nnz, digest of the dense bytes, digest of a product, and of a scaled weight digests of its products
   with activations as they are, in eight bits, and in eight bits with a static scale, or "refused". Digests are XXH64. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPARSEFMT_IMPLEMENTATION
#include "sparsefmt.h"

#ifdef FUZZER
#define MOST_MEMORY ((size_t)1 << 22) /* so that no file takes long */
#else
#define MOST_MEMORY ((size_t)1 << 26) /* bytes at a time, unless an argument says otherwise */
#endif
#define MOST_IN_PRODUCTS 131072       /* rows and columns */
#define TOKENS 3                      /* of scaled products */
#define INPUT_SCALE 0.046875f

typedef struct budget {
    size_t left;
} budget;

static void *allocate(void *context, size_t bytes) {
    budget *memory = (budget *)context;
    if (bytes > memory->left) return NULL;
    memory->left -= bytes;
    return malloc(bytes);
}

static void release(void *context, void *memory, size_t bytes) {
    ((budget *)context)->left += bytes;
    free(memory);
}

typedef struct text {
    char *bytes;
    size_t size, room;
} text;

static void insist(int what, const char *message) {
    if (what) return;
    fprintf(stderr, "check_reader: %s\n", message);
    abort();
}

static void append(text *to, const char *bytes, size_t size) {
    if (to->room - to->size < size) {
        to->room = 2 * (to->room + size);
        to->bytes = (char *)realloc(to->bytes, to->room);
        insist(to->bytes != NULL, "no memory for the answer");
    }
    memcpy(to->bytes + to->size, bytes, size);
    to->size += size;
}

static void append_text(text *to, const char *bytes) { append(to, bytes, strlen(bytes)); }

static void append_number(text *to, const char *format, uint64_t number) {
    char bytes[40];
    snprintf(bytes, sizeof bytes, format, (unsigned long long)number);
    append_text(to, bytes);
}

static uint64_t digest(const void *bytes, size_t size) {
    return sparsefmt_xxh64(NULL, 0, (const unsigned char *)bytes, size);
}

/* Elements -7 to 7 in steps of one eighth; the same in tools/fuzz/c_reader.py. */
static double element_of_x(uint64_t i) { return (double)((int)(i * 37 % 113) - 56) / 8; }

/* y = W x tile by tile, as several threads would do it. */
static void multiply_tiles(const sparsefmt_tensor *tensor, const double *x, double *y) {
    sparsefmt_tensor part = *tensor;
    uint64_t i;
    part.info.tiles = 1;
    for (i = 0; i < tensor->info.tiles; i++, part.tiles++)
        insist(!sparsefmt_matvec_f64(&part, x, y), "the product of a tile was refused");
}

/* Digest of the bits of W x as binary64, NaN being one pattern. 0 if there is no product. */
static uint64_t digest_product(const sparsefmt_tensor *tensor) {
    const uint64_t rows = tensor->info.rows, cols = tensor->info.cols;
    const int bits = sparsefmt_sum_bits(tensor->info.dtype);
    double *x, *y, *again;
    float *narrow_x, *narrow_y;
    unsigned char *bytes;
    uint64_t i, result;
    int k;
    if (!bits || rows > MOST_IN_PRODUCTS || cols > MOST_IN_PRODUCTS) return 0;
    x = (double *)malloc((size_t)(cols + 1) * sizeof *x);
    y = (double *)malloc((size_t)(rows + 1) * sizeof *y);
    again = (double *)calloc((size_t)(rows + 1), sizeof *again);
    narrow_x = (float *)malloc((size_t)(cols + 1) * sizeof *narrow_x);
    narrow_y = (float *)malloc((size_t)(rows + 1) * sizeof *narrow_y);
    bytes = (unsigned char *)malloc((size_t)(rows + 1) * 8);
    insist(x && y && again && narrow_x && narrow_y && bytes, "no memory for a product");
    for (i = 0; i < cols; i++) narrow_x[i] = (float)(x[i] = element_of_x(i));
    insist(!sparsefmt_matvec_f64(tensor, x, y), "a product was refused");
    multiply_tiles(tensor, x, again);
    insist(!memcmp(y, again, (size_t)rows * sizeof *y), "the products of the tiles are another one");
    if (bits == 32) {
        insist(!sparsefmt_matvec_f32(tensor, narrow_x, narrow_y), "a product was refused");
        for (i = 0; i < rows; i++) y[i] = narrow_y[i];
    }
    for (i = 0; i < rows; i++) {
        uint64_t pattern;
        memcpy(&pattern, &y[i], 8);
        if (y[i] != y[i]) pattern = (uint64_t)0x7FF8 << 48;
        for (k = 0; k < 8; k++) bytes[8 * i + (uint64_t)k] = (unsigned char)(pattern >> 8 * k);
    }
    result = digest(bytes, (size_t)rows * 8);
    free(x);
    free(y);
    free(again);
    free(narrow_x);
    free(narrow_y);
    free(bytes);
    return result;
}

/* A few tokens: the one of other products, zeros, and one with NaN. */
static double element_of_token(int token, uint64_t i, uint64_t cols) {
    if (token == 1) return 0;
    return token == 2 && i == cols / 2 ? (double)NAN : element_of_x(i);
}

/* Digest of the products of a scaled weight with each token, as binary64, NaN being one pattern; with activations in
   eight bits if there is memory for them. */
static sparsefmt_code digest_scaled(const sparsefmt_tensor *weight, const sparsefmt_scales *scales, signed char *a,
                                    const float *input_scale, uint64_t *result) {
    const size_t rows = (size_t)weight->info.rows, cols = (size_t)weight->info.cols;
    const int wide = !a && sparsefmt_sum_bits(weight->info.dtype) == 64;
    double *x = (double *)malloc((cols + 1) * sizeof *x), *y = (double *)malloc((rows + 1) * sizeof *y);
    float *narrow_x = (float *)malloc((cols + 1) * sizeof *narrow_x);
    float *narrow_y = (float *)malloc((rows + 1) * sizeof *narrow_y);
    unsigned char *bytes = (unsigned char *)malloc(TOKENS * rows * 8 + 1);
    sparsefmt_code code = SPARSEFMT_OK;
    size_t i;
    int token, k;
    insist(x && y && narrow_x && narrow_y && bytes, "no memory for a product");
    for (token = 0; token < TOKENS && !code; token++) {
        for (i = 0; i < cols; i++) narrow_x[i] = (float)(x[i] = element_of_token(token, i, cols));
        if (a)
            code = sparsefmt_scaled_matvec_i8(weight, scales, input_scale, narrow_x, a, narrow_y);
        else if (wide)
            code = sparsefmt_scaled_matvec_f64(weight, scales, x, y);
        else
            code = sparsefmt_scaled_matvec_f32(weight, scales, narrow_x, narrow_y);
        for (i = 0; i < rows && !code; i++) {
            uint64_t pattern;
            if (!wide) y[i] = narrow_y[i];
            memcpy(&pattern, &y[i], 8);
            if (y[i] != y[i]) pattern = (uint64_t)0x7FF8 << 48;
            for (k = 0; k < 8; k++) bytes[8 * (token * rows + i) + (size_t)k] = (unsigned char)(pattern >> 8 * k);
        }
    }
    if (!code) *result = digest(bytes, TOKENS * rows * 8);
    free(x);
    free(y);
    free(narrow_x);
    free(narrow_y);
    free(bytes);
    return code;
}

/* What comes of a tensor that the metadata names as a scaled weight; nothing if it does not. */
static sparsefmt_code append_scaled(const sparsefmt_file *file, size_t number, const sparsefmt_tensor *weight,
                                    text *answer) {
    const float input_scale = INPUT_SCALE;
    sparsefmt_scales scales;
    sparsefmt_code code;
    signed char *a;
    size_t found;
    int how;
    code = sparsefmt_find_scales(file, number, &found, NULL);
    if (code == SPARSEFMT_ERROR_MEMORY || (!code && found == SPARSEFMT_NONE)) return code;
    if (!code) code = sparsefmt_load_scales(weight, found, &scales, NULL);
    if (code == SPARSEFMT_ERROR_MEMORY) return code;
    if (code || !sparsefmt_sum_bits(weight->info.dtype) || weight->info.rows > MOST_IN_PRODUCTS ||
        weight->info.cols > MOST_IN_PRODUCTS) {
        append_text(answer, code ? " refused" : " none");
        if (!code) sparsefmt_unload_scales(&scales);
        return SPARSEFMT_OK;
    }
    a = (signed char *)malloc((size_t)weight->info.cols + 1);
    insist(a != NULL, "no memory for activations");
    for (how = 0; how < 3; how++) {
        uint64_t result;
        code = digest_scaled(weight, &scales, how ? a : NULL, how == 2 ? &input_scale : NULL, &result);
        if (code)
            append_text(answer, " refused");
        else
            append_number(answer, " %016llx", result);
    }
    free(a);
    sparsefmt_unload_scales(&scales);
    return SPARSEFMT_OK;
}

/* Reads the first tiles one by one. The code of the tensor is that of its first tile which does not read. */
static void read_tiles(const sparsefmt_file *file, size_t number, uint64_t tiles, const sparsefmt_tile *loaded,
                       sparsefmt_code expected) {
    const uint64_t some = expected ? 1 : 3;
    sparsefmt_tile tile;
    uint64_t i;
    for (i = 0; i < tiles && i < some; i++) {
        const sparsefmt_code code = sparsefmt_read_tile(file, number, i, &tile, NULL);
        insist(!code || code == expected || code == SPARSEFMT_ERROR_MEMORY || expected == SPARSEFMT_ERROR_MEMORY,
               "sparsefmt_read_tile gives another code");
        insist(code || !loaded || tile.nnz == loaded[i].nnz, "sparsefmt_read_tile gives another nnz");
        sparsefmt_free_tile(file, &tile);
    }
}

/* Reads a tensor in all ways there are. They have to agree. */
static sparsefmt_code read_tensor(const sparsefmt_file *file, size_t number, const sparsefmt_info *info, text *answer,
                                  sparsefmt_error *error) {
    sparsefmt_tensor tensor;
    unsigned char *dense, *again;
    sparsefmt_code code, other;
    if (info->dense_bytes > MOST_MEMORY) return SPARSEFMT_ERROR_MEMORY;
    dense = (unsigned char *)malloc((size_t)info->dense_bytes + 1);
    again = (unsigned char *)malloc((size_t)info->dense_bytes + 1);
    insist(dense && again, "no memory for a dense tensor");
    code = sparsefmt_dense(file, number, dense, (size_t)info->dense_bytes, error);
    other = sparsefmt_load(file, number, &tensor, error);
    insist(code == other || other == SPARSEFMT_ERROR_MEMORY, "sparsefmt_dense and sparsefmt_load disagree");
    read_tiles(file, number, info->tiles, tensor.tiles, code);
    if (!code && !other) {
        insist(!sparsefmt_expand(&tensor, again, (size_t)info->dense_bytes, error), "sparsefmt_expand failed");
        insist(!memcmp(dense, again, (size_t)info->dense_bytes), "sparsefmt_expand gives other bytes");
        append_number(answer, " %016llx", digest(dense, (size_t)info->dense_bytes));
        append_number(answer, " %016llx", digest_product(&tensor));
        other = append_scaled(file, number, &tensor, answer);
        append_text(answer, "\n");
    }
    sparsefmt_unload(&tensor);
    free(dense);
    free(again);
    return code ? code : other;
}

static sparsefmt_code read_tensors(const sparsefmt_file *file, text *answer, sparsefmt_error *error) {
    sparsefmt_info info;
    size_t number;
    unsigned i;
    for (number = 0; number < sparsefmt_count(file); number++) {
        sparsefmt_code code = sparsefmt_describe(file, number, &info, error);
        insist(!code, "sparsefmt_describe failed");
        insist(sparsefmt_find_bytes(file, info.name, info.name_bytes) == number, "sparsefmt_find finds another");
        append_number(answer, "%016llx ", digest(info.name, info.name_bytes));
        append_text(answer, sparsefmt_dtype_name(info.dtype));
        append_text(answer, " [");
        for (i = 0; i < info.ndim; i++) append_number(answer, i ? ",%llu" : "%llu", info.shape[i]);
        append_text(answer, "] ");
        append_text(answer, sparsefmt_layout_name(info.layout));
        append_number(answer, " %llu", info.nnz);
        code = read_tensor(file, number, &info, answer, error);
        if (code) return code;
    }
    return SPARSEFMT_OK;
}

static void digest_text(void *context, const char *key, size_t key_bytes, const char *value, size_t value_bytes) {
    append_number((text *)context, "%016llx", digest(key, key_bytes));
    append_number((text *)context, "=%016llx ", digest(value, value_bytes));
}

static void read_file(const unsigned char *bytes, size_t size, size_t most, text *answer) {
    sparsefmt_allocator allocator;
    sparsefmt_error error;
    sparsefmt_file file;
    sparsefmt_code code;
    budget memory;
    memory.left = most;
    allocator.allocate = allocate;
    allocator.release = release;
    allocator.context = &memory;
    answer->size = 0;
    code = sparsefmt_open(&file, bytes, size, &allocator, &error);
    if (!code) {
        sparsefmt_metadata(&file, digest_text, answer);
        append_text(answer, "\n");
        code = read_tensors(&file, answer, &error);
        sparsefmt_close(&file);
    }
    insist(memory.left == most, "memory was not released, or of another size");
    if (!code) return;
    answer->size = 0;
    append_text(answer, sparsefmt_code_name(code));
}

#ifdef FUZZER

#include "fuzz_target.h"

#else

int main(int count, char **arguments) {
    const size_t most = count > 1 ? (size_t)strtoul(arguments[1], NULL, 10) : MOST_MEMORY;
    text answer = {NULL, 0, 0};
    unsigned char head[4];
    while (fread(head, 1, 4, stdin) == 4) {
        const size_t size = sparsefmt_u32(head);
        unsigned char *bytes = (unsigned char *)malloc(size ? size : 1);
        unsigned i;
        insist(bytes != NULL && fread(bytes, 1, size, stdin) == size, "the request is cut off");
        read_file(bytes, size, most, &answer);
        free(bytes);
        for (i = 0; i < 4; i++) head[i] = (unsigned char)(answer.size >> 8 * i);
        fwrite(head, 1, 4, stdout);
        fwrite(answer.bytes, 1, answer.size, stdout);
        fflush(stdout);
    }
    free(answer.bytes);
    return 0;
}

#endif
