/* sparsefmt.h: reads .sparsefmt files, the format of pruned neural networks. C99 or C++17, no dependencies.

   Use. One source file of a program says

       #define SPARSEFMT_IMPLEMENTATION
       #include "sparsefmt.h"

   and all others include it plainly. Link with -lm.

       // The bytes of a whole file, read or mapped. Lists its tensors, and multiplies one by x. 0 if all is well.
       int run(const void *bytes, size_t size, const float *x, size_t cols, float *y, size_t rows) {
           sparsefmt_file file;
           sparsefmt_tensor weight;
           sparsefmt_info info;
           sparsefmt_error error;
           sparsefmt_code code;
           size_t i;
           code = sparsefmt_open(&file, bytes, size, NULL, &error);             // checks the whole index
           if (code) {
               fprintf(stderr, "%s: %s\n", sparsefmt_code_name(code), error.message);
               return 1;                                                        // nothing is left to free
           }
           for (i = 0; i < sparsefmt_count(&file); i++) {
               sparsefmt_describe(&file, i, &info, NULL);                       // cannot fail for numbers below count
               printf("%.*s: %s\n", (int)info.name_bytes, info.name, sparsefmt_dtype_name(info.dtype));
           }
           i = sparsefmt_find(&file, "layer.weight");                           // if there is none: "argument" below
           code = sparsefmt_load(&file, i, &weight, &error);                    // checks checksums, codecs, layout
           if (code) {
               fprintf(stderr, "%s: %s\n", sparsefmt_code_name(code), error.message);
           } else {
               if (weight.info.cols == cols && weight.info.rows == rows)        // or x and y do not fit
                   code = sparsefmt_matvec_f32(&weight, x, y);                  // from the file's bytes where raw
               else
                   code = SPARSEFMT_ERROR_ARGUMENT;
               sparsefmt_unload(&weight);
           }
           sparsefmt_close(&file);
           return code != SPARSEFMT_OK;
       }

   Dense bytes are had by sparsefmt_dense, some rows by sparsefmt_read_tile, arrays as pointers from tensor.tiles.

   Errors. Functions return a code, 0 if all is well, and describe what is wrong in *error unless that is NULL. What
   failed leaves nothing to close, unload or free. The names of the codes are those of SPEC.md, section 7, and of
   section 6.3 for products of scaled weights. "memory" and "argument" are added: there is none, or the call is wrong.

   Bytes. A file is a block of memory, for example a mapping, and is never written to. Any bytes whatever give a result
   or an error, but they must stay as they are until the file is closed: what was checked is trusted from then on. So do
   not map a file that other programs may change or shorten: read it.

   Memory. Everything comes from the caller's allocator, or from malloc and free if that is NULL:
     sparsefmt_open       about 130 bytes per tensor name, 8 per chunk, and the index if that is coded, at most 32
                          times what it takes in the file, until sparsefmt_close; and a bit per chunk while it runs
     sparsefmt_load       about 220 bytes per tile; the raw bytes of those arrays that are coded; until sparsefmt_unload
     sparsefmt_read_tile  the raw bytes of those arrays of the tile that are coded; until sparsefmt_free_tile
     sparsefmt_dense      as sparsefmt_read_tile, one tile at a time, until it returns
     reading codec rans   for each coded array about 120 KB and its tables, at most 64 of up to 2^18 bytes; and a few
                          bytes per row of a tile and column
     reading codec zstd   one array's raw bytes, and what ZSTD_decompress allocates by malloc
     decoding a mask      its bits row by row: its raw bytes, and at most 56 KiB more
     sparsefmt_find_scales  a bit per tensor name, until it returns
     sparsefmt_load_scales  4 bytes per scale, until sparsefmt_unload_scales, and their dense bytes until it returns
   No function needs more than 16 KiB of stack. What a file claims is not allocated before it is known to be in
   proportion to the bytes of the file (SPEC.md, section 8); an allocator may refuse more, which is error "memory".

   Threads. There are no variables but those of the caller. An open file or a loaded tensor may be read by any number of
   threads at a time, if the allocator may be.

   Building. Codec zstd, and an index that is coded, are read if SPARSEFMT_ZSTD is defined before the implementation; it
   includes <zstd.h>, and needs -lzstd. Products are fastest with -O3. Where gcc or clang compile for x86-64, they use fma instructions of processors
   that have them; with SPARSEFMT_PORTABLE defined, there is nothing but standard C. Arithmetic must be that of IEEE
   754: no -ffast-math nor a part of it, rounding to nearest, fma and fmaf that round once, and threads that do not
   flush subnormals to zero. */

#ifndef SPARSEFMT_H
#define SPARSEFMT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPARSEFMT_MAX_NDIM 32
#define SPARSEFMT_NONE ((size_t)-1)

/* Codes: constant, name. */
#define SPARSEFMT_CODES(X)                                 \
    X(NOT_SPARSEFMT, "not-sparsefmt")                      \
    X(FILE_TOO_SHORT, "file-too-short")                    \
    X(VERSION_UNSUPPORTED, "version-unsupported")          \
    X(FEATURE_UNSUPPORTED, "feature-unsupported")          \
    X(TRAILER_MISSING, "trailer-missing")                  \
    X(INDEX_SIZE, "index-size")                            \
    X(INDEX_OUT_OF_BOUNDS, "index-out-of-bounds")          \
    X(INDEX_CHECKSUM, "index-checksum")                    \
    X(PADDING_NOT_ZERO, "padding-not-zero")                \
    X(INDEX_FRAME, "index-frame")                          \
    X(INDEX_MALFORMED, "index-malformed")                  \
    X(INDEX_NOT_CANONICAL, "index-not-canonical")          \
    X(INDEX_TYPE, "index-type")                            \
    X(INDEX_KEY, "index-key")                              \
    X(TENSOR_COUNT, "tensor-count")                        \
    X(NAME_INVALID, "name-invalid")                        \
    X(NAME_LENGTH, "name-length")                          \
    X(METADATA_INVALID, "metadata-invalid")                \
    X(METADATA_SIZE, "metadata-size")                      \
    X(ALIAS_INVALID, "alias-invalid")                      \
    X(KIND_INVALID, "kind-invalid")                        \
    X(DTYPE_UNKNOWN, "dtype-unknown")                      \
    X(LAYOUT_UNKNOWN, "layout-unknown")                    \
    X(CODEC_UNKNOWN, "codec-unknown")                      \
    X(SHAPE_NDIM, "shape-ndim")                            \
    X(SHAPE_SIZE, "shape-size")                            \
    X(LAYOUT_INVALID, "layout-invalid")                    \
    X(ROW_DIMS, "row-dims")                                \
    X(TILE_ROWS, "tile-rows")                              \
    X(TILE_SIZE, "tile-size")                              \
    X(ARRAY_SET, "array-set")                              \
    X(MODEL_SET, "model-set")                              \
    X(MODEL_SIZE, "model-size")                            \
    X(NNZ, "nnz")                                          \
    X(NEGATIVE_ZEROS_DROPPED, "negative-zeros-dropped")    \
    X(CHUNK_LIMIT, "chunk-limit")                          \
    X(CHUNK_OUT_OF_BOUNDS, "chunk-out-of-bounds")          \
    X(CHUNK_GAP, "chunk-gap")                              \
    X(CHUNK_ASSIGNMENT, "chunk-assignment")                \
    X(CHUNK_SIZE, "chunk-size")                            \
    X(ARRAY_SIZE, "array-size")                            \
    X(CHUNK_CHECKSUM, "chunk-checksum")                    \
    X(ZSTD_SIZE, "zstd-size")                              \
    X(ZSTD_CORRUPT, "zstd-corrupt")                        \
    X(RANS_MODEL, "rans-model")                            \
    X(RANS_STREAM, "rans-stream")                          \
    X(BOOL_INVALID, "bool-invalid")                        \
    X(VALUES_PADDING, "values-padding")                    \
    X(MASK_PADDING, "mask-padding")                        \
    X(STORED_ZERO, "stored-zero")                          \
    X(ROW_PERMUTATION, "row-permutation")                  \
    X(ROW_COUNTS, "row-counts")                            \
    X(SLICE_OFFSETS, "slice-offsets")                      \
    X(COLUMN_RANGE, "column-range")                        \
    X(COLUMN_ORDER, "column-order")                        \
    X(SLOT_PADDING, "slot-padding")                        \
    X(NEGATIVE_ZEROS_PADDING, "negative-zeros-padding")    \
    X(NEGATIVE_ZEROS_EMPTY, "negative-zeros-empty")        \
    X(SCALES_METADATA, "scales-metadata")                  \
    X(SCALES_MISSING, "scales-missing")                    \
    X(SCALES_DTYPE, "scales-dtype")                        \
    X(SCALES_SHAPE, "scales-shape")                        \
    X(SCALES_VALUE, "scales-value")                        \
    X(ACTIVATIONS_DTYPE, "activations-dtype")              \
    X(INPUT_SCALE, "input-scale")                          \
    X(MEMORY, "memory")                                    \
    X(ARGUMENT, "argument")

/* Element types: name, bits, whether sparse layouts may have it, bits of negative zero or 0. */
#define SPARSEFMT_DTYPES(X)                   \
    X(BOOL, 8, 0, 0)                          \
    X(F4, 4, 0, 0)                            \
    X(F6_E2M3, 6, 0, 0)                       \
    X(F6_E3M2, 6, 0, 0)                       \
    X(U8, 8, 1, 0)                            \
    X(I8, 8, 1, 0)                            \
    X(F8_E5M2, 8, 1, 0x80)                    \
    X(F8_E4M3, 8, 1, 0x80)                    \
    X(F8_E8M0, 8, 0, 0)                       \
    X(F8_E4M3FNUZ, 8, 1, 0)                   \
    X(F8_E5M2FNUZ, 8, 1, 0)                   \
    X(I16, 16, 1, 0)                          \
    X(U16, 16, 1, 0)                          \
    X(F16, 16, 1, 0x8000)                     \
    X(BF16, 16, 1, 0x8000)                    \
    X(I32, 32, 1, 0)                          \
    X(U32, 32, 1, 0)                          \
    X(F32, 32, 1, 0x80000000u)                \
    X(C64, 64, 0, 0)                          \
    X(F64, 64, 1, (uint64_t)1 << 63)          \
    X(I64, 64, 1, 0)                          \
    X(U64, 64, 1, 0)

/* Arrays of all layouts, in order of their names: constant, name. */
#define SPARSEFMT_ARRAYS(X)                       \
    X(COLUMNS, "columns")                         \
    X(GAPS, "gaps")                               \
    X(MASK, "mask")                               \
    X(NEGATIVE_ZEROS, "negative_zeros")           \
    X(ROW_COUNTS, "row_counts")                   \
    X(ROW_PERMUTATION, "row_permutation")         \
    X(SLICE_OFFSETS, "slice_offsets")             \
    X(VALUES, "values")

#define SPARSEFMT_X(constant, name) SPARSEFMT_ERROR_##constant,
typedef enum sparsefmt_code { SPARSEFMT_OK, SPARSEFMT_CODES(SPARSEFMT_X) SPARSEFMT_CODE_COUNT } sparsefmt_code;
#undef SPARSEFMT_X

#define SPARSEFMT_X(name, bits, sparse, negative_zero) SPARSEFMT_##name,
typedef enum sparsefmt_dtype { SPARSEFMT_DTYPES(SPARSEFMT_X) SPARSEFMT_DTYPE_COUNT } sparsefmt_dtype;
#undef SPARSEFMT_X

#define SPARSEFMT_X(constant, name) SPARSEFMT_##constant,
typedef enum sparsefmt_array_name { SPARSEFMT_ARRAYS(SPARSEFMT_X) SPARSEFMT_ARRAY_COUNT } sparsefmt_array_name;
#undef SPARSEFMT_X

typedef enum sparsefmt_layout {
    SPARSEFMT_DENSE,
    SPARSEFMT_BITMASK,
    SPARSEFMT_PERMUTED,
    SPARSEFMT_LAYOUT_COUNT
} sparsefmt_layout;

/* What went wrong. */
typedef struct sparsefmt_error {
    sparsefmt_code code;
    const char *tensor; /* its name, in the bytes of the file, not ended by NUL; NULL if no tensor is concerned */
    size_t tensor_bytes;
    char message[160]; /* a sentence of printable ASCII, ended by NUL */
} sparsefmt_error;

/* Where memory comes from. Blocks are aligned as those of malloc are. */
typedef struct sparsefmt_allocator {
    void *(*allocate)(void *context, size_t bytes); /* NULL if there is no memory; bytes are never 0 */
    void (*release)(void *context, void *memory, size_t bytes); /* memory is never NULL, bytes are those asked for */
    void *context;
} sparsefmt_allocator;

/* An open file. Its fields are nobody's business but the library's. */
typedef struct sparsefmt_file {
    const unsigned char *data;
    size_t size, index_offset;
    unsigned char *index; /* what the index was decoded to; NULL if it is not coded */
    size_t index_size;
    const unsigned char *index_end;
    const unsigned char *chunks; /* the columns of the chunk table */
    unsigned raw_width, stored_width; /* bytes of a number in the first of them, and in the second, or 0 */
    uint64_t *offsets; /* where each chunk starts */
    size_t chunk_count;
    const unsigned char *metadata; /* its first key */
    size_t metadata_count, tensor_count;
    struct sparsefmt_entry *entries;
    sparsefmt_allocator allocator;
} sparsefmt_file;

/* What the index says of a tensor. */
typedef struct sparsefmt_info {
    const char *name; /* UTF-8, not ended by NUL; there until the file is closed */
    size_t name_bytes;
    size_t alias_of; /* number of the tensor that this name also stands for, which may be a copy; or SPARSEFMT_NONE */
    int is_copy;     /* whether that is another tensor of the same elements, and not this one */
    sparsefmt_dtype dtype;
    sparsefmt_layout layout;
    unsigned ndim;
    uint64_t shape[SPARSEFMT_MAX_NDIM];
    unsigned row_dims;   /* how many dimensions make rows: 1, or more for a stack of matrices */
    uint64_t rows, cols; /* of the matrix view: products of the first row_dims dimensions, and of the others */
    uint64_t elements;
    uint64_t nnz; /* positions that are not pruned; all elements in layout dense */
    double sparsity; /* share of pruned positions, 0 if there are no elements */
    uint64_t negative_zeros_dropped;
    uint64_t tile_rows, tiles;
    uint64_t dense_bytes;
    uint64_t stored_bytes; /* of all its chunks */
    int arrays; /* bit sparsefmt_array_name is 1 for those that it has */
} sparsefmt_info;

/* One array of a tile: typed as SPEC.md, section 4, says, and little-endian. One that is stored as it is lies in the
   bytes of the file, at a multiple of 8 from the first, or of more if it has 32,768 bytes or more (SPEC.md, section 2.2);
   at least 44 readable bytes follow it. Others lie in memory of their own, and 64 readable bytes follow. */
typedef struct sparsefmt_array {
    const unsigned char *bytes;
    size_t size;
    void *owned; /* the memory it has of its own, or NULL */
} sparsefmt_array;

/* Rows first_row to first_row + rows - 1 of a tensor. Arrays that the layout lacks have 0 bytes. */
typedef struct sparsefmt_tile {
    uint64_t first_row, rows, nnz;
    sparsefmt_array arrays[SPARSEFMT_ARRAY_COUNT];
} sparsefmt_tile;

/* A tensor that is loaded: all its tiles, checked. */
typedef struct sparsefmt_tensor {
    const sparsefmt_file *file;
    size_t number;
    sparsefmt_info info;
    sparsefmt_tile *tiles; /* info.tiles of them */
} sparsefmt_tensor;

/* -- Opening -- */

/* Opens a file of `size` bytes and checks all that SPEC.md wants checked before a tensor is given out. *file is as good
   as closed after an error. */
sparsefmt_code sparsefmt_open(sparsefmt_file *file, const void *data, size_t size, const sparsefmt_allocator *allocator,
                              sparsefmt_error *error);
void sparsefmt_close(sparsefmt_file *file);

/* -- Looking around -- */

/* Tensors are numbered in order of their names, further names of a tensor included. Cost: describing a tensor adds up
   the sizes of its chunks. */
size_t sparsefmt_count(const sparsefmt_file *file);
sparsefmt_code sparsefmt_describe(const sparsefmt_file *file, size_t number, sparsefmt_info *info,
                                  sparsefmt_error *error);

/* Number of the tensor of that name, or SPARSEFMT_NONE, which no function takes for a tensor: they return error
   "argument". Cost: log2(count) comparisons. */
size_t sparsefmt_find(const sparsefmt_file *file, const char *name);
size_t sparsefmt_find_bytes(const sparsefmt_file *file, const char *name, size_t name_bytes);

/* The user's texts, in order of their keys. Calls `each` for every one; texts are UTF-8 and not ended by NUL. */
size_t sparsefmt_metadata_count(const sparsefmt_file *file);
void sparsefmt_metadata(const sparsefmt_file *file,
                        void (*each)(void *context, const char *key, size_t key_bytes, const char *value,
                                     size_t value_bytes),
                        void *context);

/* -- Reading -- */

/* Loads a tensor: reads and checks all its tiles. *tensor is as good as unloaded after an error. The file must stay
   open, and where it is, until the tensor is unloaded. */
sparsefmt_code sparsefmt_load(const sparsefmt_file *file, size_t number, sparsefmt_tensor *tensor,
                              sparsefmt_error *error);
void sparsefmt_unload(sparsefmt_tensor *tensor);

/* Reads and checks one tile, of info.tiles. What only all tiles together show (nnz, and negative_zeros without any) is
   not checked. Cost: codec rans builds the tables of its models each time. */
sparsefmt_code sparsefmt_read_tile(const sparsefmt_file *file, size_t number, uint64_t tile_number,
                                   sparsefmt_tile *tile, sparsefmt_error *error);
void sparsefmt_free_tile(const sparsefmt_file *file, sparsefmt_tile *tile);

/* Writes the dense bytes of a tensor: little-endian, row-major, sub-byte types packed as in SPEC.md, section 3. `size`
   must be info.dense_bytes; a small file can have a very large tensor, so look before you allocate. sparsefmt_dense
   reads and checks tile by tile and needs no more memory than a tile does; after an error, some tiles are written.
   sparsefmt_expand does it for a tensor that is loaded. */
sparsefmt_code sparsefmt_dense(const sparsefmt_file *file, size_t number, void *dense, size_t size,
                               sparsefmt_error *error);
sparsefmt_code sparsefmt_expand(const sparsefmt_tensor *tensor, void *dense, size_t size, sparsefmt_error *error);

/* -- Multiplying -- */

/* y = W x as SPEC.md, section 6, fixes it to the bit. x has info.cols elements, y info.rows; they may not overlap.
   The accumulator is binary32 in one, binary64 in the other; sparsefmt_sum_bits says which a dtype needs if x is not
   wider: 32, 64, or 0 if it has no product. sparsefmt_matvec_f32 takes the first kind, sparsefmt_matvec_f64 both, and
   they return SPARSEFMT_ERROR_ARGUMENT for others. One thread does all the work. To divide it, give each thread a copy
   of *tensor whose `tiles` and `info.tiles` are a run of one or more of the tiles: only their rows of y are written.
   Such a copy is not unloaded. */
int sparsefmt_sum_bits(sparsefmt_dtype dtype);
sparsefmt_code sparsefmt_matvec_f32(const sparsefmt_tensor *tensor, const float *x, float *y);
sparsefmt_code sparsefmt_matvec_f64(const sparsefmt_tensor *tensor, const double *x, double *y);

/* -- Scaled weights (SPEC.md, sections 6.1 to 6.3) -- */

/* Number of the scales of a tensor, which the metadata of the file names; SPARSEFMT_NONE if it names none. What is wrong
   with any pair that it names is an error. Cost: reads the whole text, and looks all names up. */
sparsefmt_code sparsefmt_find_scales(const sparsefmt_file *file, size_t number, size_t *scales, sparsefmt_error *error);

/* Scales of a weight, as numbers: one for all, or `groups` for each row. */
typedef struct sparsefmt_scales {
    const sparsefmt_file *file;
    float *numbers;
    uint64_t count; /* of the numbers */
    uint64_t rows, cols, groups; /* rows and cols: those of the weight */
} sparsefmt_scales;

/* Loads tensor `number` as the scales of a weight that is loaded, and checks that it can be that. *scales is as good as
   unloaded after an error. Both must be unloaded before the file is closed. */
sparsefmt_code sparsefmt_load_scales(const sparsefmt_tensor *weight, size_t number, sparsefmt_scales *scales,
                                     sparsefmt_error *error);
void sparsefmt_unload_scales(sparsefmt_scales *scales);

/* y = (W times scales) x, without a bias, to the bit; x, y and threads as above. sparsefmt_scaled_matvec_i8 has
   activations in eight bits: W must be I8; *input_scale is the static input scale, and NULL if x has its own; a is
   memory for cols elements, which it fills. A bias is added to y; in C, y[i] + bias[i] is all there is to it. */
sparsefmt_code sparsefmt_scaled_matvec_f32(const sparsefmt_tensor *weight, const sparsefmt_scales *scales,
                                           const float *x, float *y);
sparsefmt_code sparsefmt_scaled_matvec_f64(const sparsefmt_tensor *weight, const sparsefmt_scales *scales,
                                           const double *x, double *y);
sparsefmt_code sparsefmt_scaled_matvec_i8(const sparsefmt_tensor *weight, const sparsefmt_scales *scales,
                                          const float *input_scale, const float *x, signed char *a, float *y);

/* The numbers that `count` elements are, from the dense bytes of a tensor; converted to nearest. C64 is no number. */
sparsefmt_code sparsefmt_numbers_f32(sparsefmt_dtype dtype, const void *dense, uint64_t count, float *numbers);
sparsefmt_code sparsefmt_numbers_f64(sparsefmt_dtype dtype, const void *dense, uint64_t count, double *numbers);

/* -- Names and integers -- */

/* Names, as SPEC.md has them, ended by NUL; and little-endian integers, for those who read arrays themselves. */
const char *sparsefmt_code_name(sparsefmt_code code);
const char *sparsefmt_dtype_name(sparsefmt_dtype dtype);
const char *sparsefmt_layout_name(sparsefmt_layout layout);
const char *sparsefmt_array_text(sparsefmt_array_name array);
unsigned sparsefmt_dtype_bits(sparsefmt_dtype dtype);
uint32_t sparsefmt_u16(const unsigned char *bytes);
uint32_t sparsefmt_u32(const unsigned char *bytes);
uint64_t sparsefmt_u64(const unsigned char *bytes);

/* XXH64 with seed 0 of the `first_size` bytes at `first` followed by the `size` bytes at `data`. `first_size` is at
   most 32. */
uint64_t sparsefmt_xxh64(const unsigned char *first, size_t first_size, const unsigned char *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif /* SPARSEFMT_H */

#ifdef SPARSEFMT_IMPLEMENTATION
#ifndef SPARSEFMT_IMPLEMENTED
#define SPARSEFMT_IMPLEMENTED

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef SPARSEFMT_ZSTD
#include <zstd.h>
#endif

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__NO_SIGNED_ZEROS__) || defined(_M_FP_FAST)
#error "sparsefmt products are defined to the bit: compile without -ffast-math and its parts"
#endif
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16 /* 16: processors with arithmetic of binary16 */
#error "sparsefmt products need arithmetic of exactly float and double (on x86-32: -msse2 -mfpmath=sse)"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Limits (SPEC.md, section 8) -------------------------------------------------------------------------------- */

#define SFI_MAX_INDEX_BYTES ((uint64_t)268435456)
#define SFI_MAX_INDEX_ARRAY 1024
#define SFI_MAX_INDEX_DEPTH 16
#define SFI_MAX_TENSORS 1048576
#define SFI_MAX_NAME_BYTES 1024
#define SFI_MAX_METADATA_BYTES 16777216
#define SFI_MAX_TENSOR_BITS ((uint64_t)INT64_MAX)
#define SFI_MAX_CHUNK_BYTES ((uint64_t)68719476736)
#define SFI_MAX_SPARSE_COLS ((uint64_t)2147483648u)
#define SFI_MAX_SPARSE_TILE_ROWS 65536
#define SFI_MAX_SPARSE_TILE_POSITIONS 2147483647
#define SFI_MAX_CODED_INDEX_BYTES 16777216
#define SFI_MAX_INDEX_RATIO 32
#define SFI_ZSTD_MAGIC 0xFD2FB528u
#define SFI_MAX_ZSTD_RATIO 32768
#define SFI_MAX_RANS_RATIO 262144
#define SFI_MAX_MODEL_BYTES 1048576
#define SFI_MAX_CLASSED_COLS 1048576 /* columns of a tensor whose model has classes of columns */
#define SFI_MAX_BINS 4096
#define SFI_SLICE 16 /* rows of a slice */

/* ---- Names ------------------------------------------------------------------------------------------------------ */

typedef struct sfi_dtype {
    const char *name;
    unsigned bits;
    int sparse;
    uint64_t negative_zero;
} sfi_dtype;

#define SPARSEFMT_X(name, bits, sparse, negative_zero) {#name, bits, sparse, negative_zero},
static const sfi_dtype sfi_dtypes[] = {SPARSEFMT_DTYPES(SPARSEFMT_X)};
#undef SPARSEFMT_X

#define SPARSEFMT_X(constant, name) name,
static const char *const sfi_code_names[] = {"ok", SPARSEFMT_CODES(SPARSEFMT_X)};
static const char *const sfi_array_names[] = {SPARSEFMT_ARRAYS(SPARSEFMT_X)};
#undef SPARSEFMT_X

static const char *const sfi_layout_names[] = {"dense", "bitmask", "permuted"};

enum { SFI_RAW, SFI_ZSTD, SFI_RANS, SFI_CODEC_COUNT };
static const char *const sfi_codec_names[] = {"raw", "zstd", "rans"};

#define SFI_BIT(array) (1 << (array))
static const int sfi_layout_arrays[] = {
    SFI_BIT(SPARSEFMT_VALUES),
    SFI_BIT(SPARSEFMT_MASK) | SFI_BIT(SPARSEFMT_SLICE_OFFSETS) | SFI_BIT(SPARSEFMT_VALUES),
    SFI_BIT(SPARSEFMT_COLUMNS) | SFI_BIT(SPARSEFMT_ROW_COUNTS) | SFI_BIT(SPARSEFMT_ROW_PERMUTATION) |
        SFI_BIT(SPARSEFMT_SLICE_OFFSETS) | SFI_BIT(SPARSEFMT_VALUES),
};
#define SFI_FORMS (SFI_BIT(SPARSEFMT_COLUMNS) | SFI_BIT(SPARSEFMT_GAPS)) /* of layout permuted: it has one of them */

const char *sparsefmt_code_name(sparsefmt_code code) {
    return (unsigned)code < SPARSEFMT_CODE_COUNT ? sfi_code_names[code] : "";
}

const char *sparsefmt_dtype_name(sparsefmt_dtype dtype) {
    return (unsigned)dtype < SPARSEFMT_DTYPE_COUNT ? sfi_dtypes[dtype].name : "";
}

const char *sparsefmt_layout_name(sparsefmt_layout layout) {
    return (unsigned)layout < SPARSEFMT_LAYOUT_COUNT ? sfi_layout_names[layout] : "";
}

const char *sparsefmt_array_text(sparsefmt_array_name array) {
    return (unsigned)array < SPARSEFMT_ARRAY_COUNT ? sfi_array_names[array] : "";
}

unsigned sparsefmt_dtype_bits(sparsefmt_dtype dtype) {
    return (unsigned)dtype < SPARSEFMT_DTYPE_COUNT ? sfi_dtypes[dtype].bits : 0;
}

/* ---- Integers in bytes ------------------------------------------------------------------------------------------ */

uint32_t sparsefmt_u16(const unsigned char *bytes) { return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8; }

uint32_t sparsefmt_u32(const unsigned char *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

uint64_t sparsefmt_u64(const unsigned char *bytes) {
    return (uint64_t)bytes[0] | (uint64_t)bytes[1] << 8 | (uint64_t)bytes[2] << 16 | (uint64_t)bytes[3] << 24 |
           (uint64_t)bytes[4] << 32 | (uint64_t)bytes[5] << 40 | (uint64_t)bytes[6] << 48 | (uint64_t)bytes[7] << 56;
}

/* The element `number` of an array of elements of 1, 2, 4 or 8 bytes. */
static uint64_t sfi_element(const unsigned char *bytes, uint64_t number, unsigned width) {
    const unsigned char *at = bytes + number * width;
    switch (width) {
    case 1: return at[0];
    case 2: return sparsefmt_u16(at);
    case 4: return sparsefmt_u32(at);
    default: return sparsefmt_u64(at);
    }
}

static void sfi_put(unsigned char *at, uint64_t value, unsigned width) {
    unsigned i;
    for (i = 0; i < width; i++) at[i] = (unsigned char)(value >> 8 * i);
}

/* The element `number` of packed elements of fewer than 8 bits. */
static unsigned sfi_packed(const unsigned char *bytes, uint64_t number, unsigned bits) {
    uint64_t first = number * bits;
    unsigned shift = (unsigned)(first % 8), value = bytes[first / 8];
    if (shift + bits > 8) value |= (unsigned)bytes[first / 8 + 1] << 8;
    return value >> shift & ((1u << bits) - 1);
}

static uint64_t sfi_ceil_div(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

static unsigned sfi_bit_length(uint64_t value) {
    unsigned n = 0;
    while (value) {
        n++;
        value >>= 1;
    }
    return n;
}

static unsigned sfi_popcount(uint64_t v) {
    v -= v >> 1 & 0x5555555555555555u;
    v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
    v = (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
    return (unsigned)(v * 0x0101010101010101u >> 56);
}

/* Number of the lowest bit that is 1; v is not 0. */
static unsigned sfi_lowest_bit(uint64_t v) {
#if defined(__GNUC__) && !defined(SPARSEFMT_PORTABLE)
    return (unsigned)__builtin_ctzll(v);
#else
    return sfi_popcount((v & (0 - v)) - 1);
#endif
}

static int sfi_all_zero(const unsigned char *bytes, uint64_t size) {
    uint64_t i = 0;
    unsigned any = 0;
    for (; i + 8 <= size; i += 8)
        if (sparsefmt_u64(bytes + i)) return 0;
    for (; i < size; i++) any |= bytes[i];
    return !any;
}

/* ---- Errors and memory ------------------------------------------------------------------------------------------ */

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static sparsefmt_code
sfi_fail(sparsefmt_error *error, sparsefmt_code code, const char *format, ...) {
    if (error) {
        va_list arguments;
        char *at;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
        for (at = error->message; *at; at++)
            if (*at < 0x20 || *at > 0x7E) *at = '?'; /* a file's texts give no commands to a terminal */
        error->code = code;
        error->tensor = NULL;
        error->tensor_bytes = 0;
    }
    return code;
}

#define SFI_FAIL(code, ...) return sfi_fail(error, SPARSEFMT_ERROR_##code, __VA_ARGS__)
#define SFI_TRY(call)                         \
    do {                                      \
        sparsefmt_code sfi_code = (call);     \
        if (sfi_code) return sfi_code;        \
    } while (0)

static void *sfi_malloc(void *context, size_t bytes) {
    (void)context;
    return malloc(bytes);
}

static void sfi_free(void *context, void *memory, size_t bytes) {
    (void)context;
    (void)bytes;
    free(memory);
}

/* NULL if there is no memory. `bytes` may be 0. */
static void *sfi_allocate(const sparsefmt_allocator *allocator, uint64_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    return allocator->allocate(allocator->context, bytes ? (size_t)bytes : 1);
}

static void sfi_release(const sparsefmt_allocator *allocator, void *memory, uint64_t bytes) {
    if (memory) allocator->release(allocator->context, memory, bytes ? (size_t)bytes : 1);
}

#define SFI_PADDING 64 /* readable bytes behind every array that is decoded */

/* ---- XXH64 ------------------------------------------------------------------------------------------------------ */

#define SFI_P1 0x9E3779B185EBCA87u
#define SFI_P2 0xC2B2AE3D27D4EB4Fu
#define SFI_P3 0x165667B19E3779F9u
#define SFI_P4 0x85EBCA77C2B2AE63u
#define SFI_P5 0x27D4EB2F165667C5u

static uint64_t sfi_rotate(uint64_t v, unsigned by) { return v << by | v >> (64 - by); }

static uint64_t sfi_xxh_round(uint64_t lane, uint64_t input) { return sfi_rotate(lane + input * SFI_P2, 31) * SFI_P1; }

static void sfi_xxh_stripe(uint64_t lanes[4], const unsigned char *at) {
    unsigned i;
    for (i = 0; i < 4; i++) lanes[i] = sfi_xxh_round(lanes[i], sparsefmt_u64(at + 8 * i));
}

uint64_t sparsefmt_xxh64(const unsigned char *first, size_t first_size, const unsigned char *data, size_t size) {
    uint64_t lanes[4] = {SFI_P1 + SFI_P2, SFI_P2, 0, (uint64_t)0 - SFI_P1}, hash;
    const uint64_t total = (uint64_t)first_size + size;
    unsigned char joint[32];
    const unsigned char *rest = data;
    size_t left = size, used = 0;
    unsigned i;
    if (first_size > 32) return 0;
    if (first_size) {
        memcpy(joint, first, first_size);
        used = left < 32 - first_size ? left : 32 - first_size;
        if (used) memcpy(joint + first_size, data, used);
        used += first_size;
        if (used == 32) {
            sfi_xxh_stripe(lanes, joint);
            rest += 32 - first_size;
            left -= 32 - first_size;
        } else {
            rest = joint;
            left = used;
        }
    }
    for (; left >= 32; left -= 32, rest += 32) sfi_xxh_stripe(lanes, rest);
    if (total >= 32) {
        hash = sfi_rotate(lanes[0], 1) + sfi_rotate(lanes[1], 7) + sfi_rotate(lanes[2], 12) + sfi_rotate(lanes[3], 18);
        for (i = 0; i < 4; i++) hash = (hash ^ sfi_xxh_round(0, lanes[i])) * SFI_P1 + SFI_P4;
    } else {
        hash = SFI_P5;
    }
    hash += total;
    for (; left >= 8; left -= 8, rest += 8)
        hash = sfi_rotate(hash ^ sfi_xxh_round(0, sparsefmt_u64(rest)), 27) * SFI_P1 + SFI_P4;
    for (; left >= 4; left -= 4, rest += 4)
        hash = sfi_rotate(hash ^ sparsefmt_u32(rest) * SFI_P1, 23) * SFI_P2 + SFI_P3;
    for (; left; left--, rest++) hash = sfi_rotate(hash ^ *rest * SFI_P5, 11) * SFI_P1;
    hash = (hash ^ hash >> 33) * SFI_P2;
    hash = (hash ^ hash >> 29) * SFI_P3;
    return hash ^ hash >> 32;
}

/* ---- Canonical msgpack (SPEC.md, section 2.4) ------------------------------------------------------------------- */

typedef enum sfi_kind { SFI_UINT, SFI_STR, SFI_BIN, SFI_LIST, SFI_MAP, SFI_OTHER } sfi_kind;

typedef struct sfi_cursor {
    const unsigned char *at, *end;
} sfi_cursor;

typedef struct sfi_item {
    sfi_kind kind;
    uint64_t number; /* value of an integer; bytes of a str or bin; elements of a list; pairs of a map */
    const unsigned char *bytes;
    int canonical;
} sfi_item;

/* Reads a big-endian integer of `width` bytes, and whether it is more than `below`. 0 if the bytes end before. */
static int sfi_big(sfi_cursor *cursor, unsigned width, uint64_t below, sfi_item *item) {
    unsigned i;
    if ((size_t)(cursor->end - cursor->at) < width) return 0;
    item->number = 0;
    for (i = 0; i < width; i++) item->number = item->number << 8 | cursor->at[i];
    cursor->at += width;
    item->canonical = item->number > below;
    return 1;
}

/* Steps over an item's head, and over the bytes of all but lists and maps. 0 if it is no msgpack, or of an extension
   type. */
static int sfi_next(sfi_cursor *cursor, sfi_item *item) {
    unsigned head;
    uint64_t skipped = 0;
    int fine = 1;
    if (cursor->at == cursor->end) return 0;
    head = *cursor->at++;
    item->canonical = 1;
    item->number = 0;
    if (head < 0x80) {
        item->kind = SFI_UINT;
        item->number = head;
    } else if (head < 0x90) {
        item->kind = SFI_MAP;
        item->number = head & 15;
    } else if (head < 0xA0) {
        item->kind = SFI_LIST;
        item->number = head & 15;
    } else if (head < 0xC0) {
        item->kind = SFI_STR;
        item->number = head & 31;
    } else {
        item->kind = SFI_OTHER;
        switch (head) {
        case 0xC0: case 0xC2: case 0xC3: break;
        case 0xC1: return 0; /* never used */
        case 0xC7: case 0xC8: case 0xC9: return 0; /* extension types */
        case 0xD4: case 0xD5: case 0xD6: case 0xD7: case 0xD8: return 0;
        case 0xC4: item->kind = SFI_BIN; fine = sfi_big(cursor, 1, 0, item); item->canonical = 1; break;
        case 0xC5: item->kind = SFI_BIN; fine = sfi_big(cursor, 2, 0xFF, item); break;
        case 0xC6: item->kind = SFI_BIN; fine = sfi_big(cursor, 4, 0xFFFF, item); break;
        case 0xCA: skipped = 4; break; /* floats: no type of an index */
        case 0xCB: skipped = 8; break;
        case 0xCC: item->kind = SFI_UINT; fine = sfi_big(cursor, 1, 0x7F, item); break;
        case 0xCD: item->kind = SFI_UINT; fine = sfi_big(cursor, 2, 0xFF, item); break;
        case 0xCE: item->kind = SFI_UINT; fine = sfi_big(cursor, 4, 0xFFFF, item); break;
        case 0xCF: item->kind = SFI_UINT; fine = sfi_big(cursor, 8, 0xFFFFFFFFu, item); break;
        case 0xD0: case 0xD1: case 0xD2: case 0xD3: /* signed integers */
            fine = sfi_big(cursor, 1u << (head - 0xD0), 0, item);
            item->canonical = (int)(item->number >> (8 * (1u << (head - 0xD0)) - 1)); /* a negative one is of no type */
            if (!item->canonical) item->kind = SFI_UINT;
            break;
        case 0xD9: item->kind = SFI_STR; fine = sfi_big(cursor, 1, 31, item); break;
        case 0xDA: item->kind = SFI_STR; fine = sfi_big(cursor, 2, 0xFF, item); break;
        case 0xDB: item->kind = SFI_STR; fine = sfi_big(cursor, 4, 0xFFFF, item); break;
        case 0xDC: item->kind = SFI_LIST; fine = sfi_big(cursor, 2, 15, item); break;
        case 0xDD: item->kind = SFI_LIST; fine = sfi_big(cursor, 4, 0xFFFF, item); break;
        case 0xDE: item->kind = SFI_MAP; fine = sfi_big(cursor, 2, 15, item); break;
        case 0xDF: item->kind = SFI_MAP; fine = sfi_big(cursor, 4, 0xFFFF, item); break;
        default: break; /* negative integers */
        }
    }
    if (!fine) return 0;
    item->bytes = cursor->at;
    if (item->kind == SFI_STR || item->kind == SFI_BIN) skipped = item->number;
    if (skipped > (uint64_t)(cursor->end - cursor->at)) return 0;
    cursor->at += (size_t)skipped;
    return 1;
}

static int sfi_is_utf8(const unsigned char *at, uint64_t size) {
    const unsigned char *end = at + size;
    while (at < end) {
        unsigned lead = *at++, more, least, i;
        uint32_t point;
        if (lead < 0x80) continue;
        if (lead < 0xC2 || lead > 0xF4) return 0;
        more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        least = more == 1 ? 0x80 : more == 2 ? 0x800 : 0x10000;
        if ((size_t)(end - at) < more) return 0;
        point = lead & (0x3Fu >> more);
        for (i = 0; i < more; i++) {
            if ((at[i] & 0xC0) != 0x80) return 0;
            point = point << 6 | (at[i] & 0x3Fu);
        }
        at += more;
        if (point < least || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return 0;
    }
    return 1;
}

/* Negative, 0 or positive as the first string comes before the second, is the same, or comes after it. */
static int sfi_compare(const unsigned char *a, uint64_t a_size, const unsigned char *b, uint64_t b_size) {
    uint64_t common = a_size < b_size ? a_size : b_size;
    int order = common ? memcmp(a, b, (size_t)common) : 0;
    return order ? order : a_size < b_size ? -1 : a_size > b_size;
}

static int sfi_is_text(const sfi_item *item, const char *text) {
    return item->kind == SFI_STR && !sfi_compare(item->bytes, item->number, (const unsigned char *)text, strlen(text));
}

typedef struct sfi_faults {
    int not_canonical, other_type;
} sfi_faults;

/* Steps over a whole value and notes what is wrong with it. 0 if it is malformed. */
static int sfi_check_value(sfi_cursor *cursor, unsigned depth, sfi_faults *faults) {
    sfi_item item, key, before = {SFI_STR, 0, NULL, 1};
    uint64_t i;
    if (!sfi_next(cursor, &item)) return 0;
    if (!item.canonical) faults->not_canonical = 1;
    if (item.kind == SFI_OTHER) faults->other_type = 1;
    if (item.kind == SFI_STR) return sfi_is_utf8(item.bytes, item.number);
    if (item.kind != SFI_LIST && item.kind != SFI_MAP) return 1;
    if (depth == SFI_MAX_INDEX_DEPTH || (item.kind == SFI_LIST && item.number > SFI_MAX_INDEX_ARRAY)) return 0;
    for (i = 0; i < item.number; i++) {
        if (item.kind == SFI_MAP) {
            if (!sfi_next(cursor, &key) || key.kind != SFI_STR || !sfi_is_utf8(key.bytes, key.number)) return 0;
            if (!key.canonical) faults->not_canonical = 1;
            if (i && sfi_compare(before.bytes, before.number, key.bytes, key.number) >= 0) faults->not_canonical = 1;
            before = key;
        }
        if (!sfi_check_value(cursor, depth + 1, faults)) return 0;
    }
    return 1;
}

/* Steps over a value of an index that sfi_check_value has seen. */
static void sfi_skip(sfi_cursor *cursor) {
    uint64_t left = 1;
    sfi_item item;
    while (left--) {
        if (!sfi_next(cursor, &item)) return;
        if (item.kind == SFI_LIST) left += item.number;
        if (item.kind == SFI_MAP) left += 2 * item.number;
    }
}

/* Reads a value and steps over all of it. */
static void sfi_take(sfi_cursor *cursor, sfi_item *item) {
    sfi_cursor ahead = *cursor;
    sfi_next(&ahead, item);
    sfi_skip(cursor);
}

/* ---- Index ------------------------------------------------------------------------------------------------------ */

/* What tensors of one kind have in common. */
typedef struct sfi_common {
    unsigned char dtype, layout, used;
    unsigned char codecs[SPARSEFMT_ARRAY_COUNT]; /* SFI_CODEC_COUNT for arrays that it does not have */
} sfi_common;

typedef struct sfi_kinds {
    sfi_common *first;
    size_t count;
} sfi_kinds;

typedef struct sparsefmt_entry {
    const unsigned char *name, *shape, *models; /* where the first element of each is; models may be NULL */
    uint64_t volume; /* product of max(d, 1) over the dimensions */
    uint64_t rows, cols, nnz, tile_rows, tiles, first_chunk, dropped;
    size_t alias_of; /* the entry itself if it is no alias */
    uint32_t name_bytes, alias_bytes;
    const unsigned char *alias; /* name of the tensor; NULL if it is no alias */
    uint32_t row_dims;
    unsigned char dtype, layout, ndim, model_count, is_copy;
    unsigned char codecs[SPARSEFMT_ARRAY_COUNT]; /* as in its kind */
} sparsefmt_entry;

typedef struct sfi_record {
    uint64_t offset, stored, raw, checksum;
} sfi_record;

#define SFI_FOLLOWS UINT64_MAX /* in place of a first chunk: behind those of the entry before */

static sfi_record sfi_chunk(const sparsefmt_file *file, uint64_t number) {
    const uint64_t count = file->chunk_count;
    const unsigned char *stored = file->chunks + file->raw_width * count, *checksums = stored + file->stored_width * count;
    sfi_record record;
    record.offset = file->offsets[number];
    record.raw = sfi_element(file->chunks, number, file->raw_width);
    record.stored = file->stored_width ? sfi_element(stored, number, file->stored_width) : record.raw;
    record.checksum = sparsefmt_u64(checksums + 8 * number);
    return record;
}

/* Where a chunk of these sizes starts, if the one before ends at `end`. */
static uint64_t sfi_place(uint64_t end, uint64_t stored, uint64_t raw) {
    uint64_t unit = stored == raw ? 8 : 1;
    if (stored == raw && raw >= 32768)
        while (unit < 64 && raw % (2 * unit) == 0) unit *= 2;
    return (end + unit - 1) / unit * unit;
}

static int sfi_has(const sparsefmt_entry *entry, int array) { return entry->codecs[array] != SFI_CODEC_COUNT; }

static unsigned sfi_array_count(const sparsefmt_entry *entry) {
    unsigned array, count = 0;
    for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++) count += (unsigned)sfi_has(entry, (int)array);
    return count;
}

static uint64_t sfi_tile_height(const sparsefmt_entry *entry, uint64_t tile) {
    uint64_t left = entry->rows - tile * entry->tile_rows;
    return left < entry->tile_rows ? left : entry->tile_rows;
}

/* Number of the text among `count` names, or `count`. */
static int sfi_lookup(const sfi_item *text, const char *const *names, int count) {
    int i;
    for (i = 0; i < count; i++)
        if (sfi_is_text(text, names[i])) return i;
    return count;
}

static sparsefmt_code sfi_read_integer(sfi_cursor *cursor, const char *key, uint64_t *value, sparsefmt_error *error) {
    sfi_item item;
    sfi_next(cursor, &item);
    if (item.kind != SFI_UINT || item.number > (uint64_t)INT64_MAX)
        SFI_FAIL(INDEX_TYPE, "%s is not an integer from 0 to 2^63 - 1", key);
    *value = item.number;
    return SPARSEFMT_OK;
}

/* The head of an array of so many elements, or of one more, which sfi_open_fields reads. */
static sparsefmt_code sfi_open_list(sfi_cursor *cursor, unsigned always, int *more, sparsefmt_error *error) {
    sfi_item item;
    sfi_next(cursor, &item);
    if (item.kind != SFI_LIST) SFI_FAIL(INDEX_TYPE, "the index, a kind or an entry is not an array");
    if (item.number != always && item.number != always + 1)
        SFI_FAIL(INDEX_KEY, "the index, a kind or an entry has another number of elements than %u or one more", always);
    *more = item.number > always;
    return SPARSEFMT_OK;
}

/* The head of the map that is the last element of an array, if there is one. */
static sparsefmt_code sfi_open_fields(sfi_cursor *cursor, int more, uint64_t *pairs, sparsefmt_error *error) {
    sfi_item item;
    *pairs = 0;
    if (!more) return SPARSEFMT_OK;
    sfi_next(cursor, &item);
    if (item.kind != SFI_MAP) SFI_FAIL(INDEX_TYPE, "the last element of the index, a kind or an entry is not a map");
    if (!item.number) SFI_FAIL(INDEX_NOT_CANONICAL, "an empty map, which should be left out");
    *pairs = item.number;
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_read_shape(sfi_cursor *cursor, sparsefmt_entry *entry, sparsefmt_error *error) {
    sfi_item item;
    uint64_t dimension = 0, i;
    sfi_next(cursor, &item);
    if (item.kind != SFI_LIST) SFI_FAIL(INDEX_TYPE, "shape is not an array");
    entry->shape = cursor->at;
    entry->ndim = item.number > SPARSEFMT_MAX_NDIM ? SPARSEFMT_MAX_NDIM + 1 : (unsigned char)item.number;
    entry->volume = 1;
    for (i = 0; i < item.number; i++) {
        SFI_TRY(sfi_read_integer(cursor, "a dimension", &dimension, error));
        if (dimension > 1)
            entry->volume = entry->volume > UINT64_MAX / dimension ? UINT64_MAX : entry->volume * dimension;
    }
    return SPARSEFMT_OK;
}

/* The matrix view of a shape whose volume is within its limit. Returns the rows of a matrix. */
static uint64_t sfi_view(sparsefmt_entry *entry, const unsigned char *end) {
    uint64_t matrix_rows = 1;
    sfi_cursor cursor;
    sfi_item item;
    unsigned i;
    cursor.at = entry->shape;
    cursor.end = end;
    entry->rows = entry->cols = 1;
    for (i = 0; i < entry->ndim; i++) {
        sfi_next(&cursor, &item);
        if (i + 1 == entry->row_dims) matrix_rows = item.number;
        if (i < entry->row_dims)
            entry->rows *= item.number;
        else
            entry->cols *= item.number;
    }
    return matrix_rows;
}

/* Notes on an entry while it is read: what cannot be judged before all its keys are known. */
typedef struct sfi_notes {
    int seen;           /* bits of the keys */
    int unknown_array;  /* arrays that no layout has */
    int other_type;     /* codecs that are no str, or models that are no bin */
    int unknown_codec;
    sfi_item codec;     /* that one */
    int models;         /* bits of the arrays that have one */
    int large_model;
    int left_out;       /* whether there is something that should be left out */
    uint64_t row_dims;
} sfi_notes;

static sparsefmt_code sfi_read_arrays(sfi_cursor *cursor, sparsefmt_entry *entry, sfi_notes *notes,
                                      sparsefmt_error *error) {
    sfi_item item, key, codec;
    uint64_t i;
    sfi_next(cursor, &item);
    if (item.kind != SFI_MAP) SFI_FAIL(INDEX_TYPE, "arrays is not a map");
    for (i = 0; i < item.number; i++) {
        int array, number;
        sfi_next(cursor, &key);
        array = sfi_lookup(&key, sfi_array_names, SPARSEFMT_ARRAY_COUNT);
        sfi_take(cursor, &codec);
        number = sfi_lookup(&codec, sfi_codec_names, SFI_CODEC_COUNT);
        if (codec.kind != SFI_STR) notes->other_type = 1;
        if (number == SFI_CODEC_COUNT && codec.kind == SFI_STR) {
            notes->unknown_codec = 1;
            notes->codec = codec;
        }
        if (number == SFI_CODEC_COUNT) number = SFI_RAW;
        if (array == SPARSEFMT_ARRAY_COUNT)
            notes->unknown_array = 1;
        else
            entry->codecs[array] = (unsigned char)number;
    }
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_read_models(sfi_cursor *cursor, sparsefmt_entry *entry, sfi_notes *notes,
                                      sparsefmt_error *error) {
    sfi_item item, key, model;
    uint64_t i;
    sfi_next(cursor, &item);
    if (item.kind != SFI_MAP) SFI_FAIL(INDEX_TYPE, "models is not a map");
    if (!item.number) notes->left_out = 1;
    entry->models = cursor->at;
    entry->model_count = item.number > SPARSEFMT_ARRAY_COUNT ? 0 : (unsigned char)item.number;
    for (i = 0; i < item.number; i++) {
        sfi_next(cursor, &key);
        sfi_take(cursor, &model);
        if (model.kind != SFI_BIN) notes->other_type = 1;
        if (model.kind == SFI_BIN && model.number > SFI_MAX_MODEL_BYTES) notes->large_model = 1;
        notes->models |= SFI_BIT(sfi_lookup(&key, sfi_array_names, SPARSEFMT_ARRAY_COUNT));
    }
    return SPARSEFMT_OK;
}

enum { SFI_FIRST_CHUNK, SFI_MODELS, SFI_DROPPED, SFI_NNZ, SFI_ROW_DIMS, SFI_TILE_ROWS, SFI_KEY_COUNT };
static const char *const sfi_keys[] = {"first_chunk", "models", "negative_zeros_dropped", "nnz", "row_dims",
                                       "tile_rows"};

/* Whether codec rans derives an array from another, without a model. */
static int sfi_is_derived(const sparsefmt_entry *entry, int array) {
    return entry->codecs[array] == SFI_RANS && array == SPARSEFMT_SLICE_OFFSETS && entry->layout == SPARSEFMT_BITMASK;
}

static sparsefmt_code sfi_check_arrays(const sparsefmt_entry *entry, const sfi_notes *notes, sparsefmt_error *error) {
    int array, needed = sfi_layout_arrays[entry->layout], present = 0;
    for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++)
        if (sfi_has(entry, array)) present |= SFI_BIT(array);
    if (entry->layout == SPARSEFMT_PERMUTED && (present & SFI_FORMS) == SFI_BIT(SPARSEFMT_GAPS)) needed ^= SFI_FORMS;
    if (entry->layout != SPARSEFMT_DENSE && sfi_dtypes[entry->dtype].negative_zero)
        needed |= present & SFI_BIT(SPARSEFMT_NEGATIVE_ZEROS);
    if (notes->unknown_array || present != needed)
        SFI_FAIL(ARRAY_SET, "other arrays than layout %s has", sfi_layout_names[entry->layout]);
    if (notes->unknown_codec)
        SFI_FAIL(CODEC_UNKNOWN, "unknown codec '%.*s'", notes->codec.number > 40 ? 40 : (int)notes->codec.number,
                 (const char *)notes->codec.bytes);
    if (notes->other_type) SFI_FAIL(INDEX_TYPE, "a codec that is no str");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_check_models(const sparsefmt_entry *entry, const sfi_notes *notes, sparsefmt_error *error) {
    int array, modelled = 0;
    for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++)
        if (entry->codecs[array] == SFI_RANS && !sfi_is_derived(entry, array)) modelled |= SFI_BIT(array);
    if (notes->models != modelled) SFI_FAIL(MODEL_SET, "models of other arrays than need one");
    if (notes->other_type) SFI_FAIL(INDEX_TYPE, "a model that is no bin");
    if (notes->large_model) SFI_FAIL(MODEL_SIZE, "a model of over 2^20 bytes");
    return SPARSEFMT_OK;
}

/* How a tensor is cut into tiles: row_dims and tile_rows, as far as they are there. */
static sparsefmt_code sfi_check_tiles(sparsefmt_entry *entry, const sfi_notes *notes, const unsigned char *end,
                                      sparsefmt_error *error) {
    const int stack = notes->seen >> SFI_ROW_DIMS & 1, cut = notes->seen >> SFI_TILE_ROWS & 1;
    uint64_t matrix_rows;
    if (stack && (notes->row_dims < 2 || notes->row_dims >= entry->ndim))
        SFI_FAIL(ROW_DIMS, "row_dims that the shape cannot have, or that should be left out");
    entry->row_dims = stack ? (uint32_t)notes->row_dims : 1;
    matrix_rows = sfi_view(entry, end);
    if (!entry->rows || !entry->cols) {
        if (stack) SFI_FAIL(ROW_DIMS, "row_dims of a tensor without elements");
        if (cut || entry->first_chunk != SFI_FOLLOWS)
            SFI_FAIL(TILE_ROWS, "tile_rows or first_chunk of a tensor without elements");
        entry->first_chunk = 0;
        return SPARSEFMT_OK;
    }
    if (cut && (!entry->tile_rows || entry->tile_rows >= matrix_rows))
        SFI_FAIL(TILE_ROWS, "tile_rows out of range, or that should be left out");
    if (!cut) entry->tile_rows = matrix_rows;
    if (stack && matrix_rows % entry->tile_rows) SFI_FAIL(TILE_ROWS, "tiles that do not divide the matrices of a stack");
    entry->tiles = sfi_ceil_div(entry->rows, entry->tile_rows);
    if (sfi_dtypes[entry->dtype].bits < 8 && entry->tiles > 1 && entry->tile_rows % 8)
        SFI_FAIL(TILE_ROWS, "tile_rows of a packed dtype is not a multiple of 8");
    return SPARSEFMT_OK;
}

/* Checks what an entry's fields say against each other. */
static sparsefmt_code sfi_check_entry(sparsefmt_entry *entry, const sfi_notes *notes, const unsigned char *end,
                                      sparsefmt_error *error) {
    const sfi_dtype *dtype = &sfi_dtypes[entry->dtype];
    const int sparse = entry->layout != SPARSEFMT_DENSE;
    uint64_t elements;
    if (entry->ndim > SPARSEFMT_MAX_NDIM) SFI_FAIL(SHAPE_NDIM, "more than %d dimensions", SPARSEFMT_MAX_NDIM);
    if (entry->volume > SFI_MAX_TENSOR_BITS / dtype->bits) SFI_FAIL(SHAPE_SIZE, "a shape of 2^63 bits or more");
    SFI_TRY(sfi_check_models(entry, notes, error));
    SFI_TRY(sfi_check_tiles(entry, notes, end, error));
    elements = entry->rows * entry->cols;
    if (sparse && (!dtype->sparse || entry->ndim < 2 || !elements))
        SFI_FAIL(LAYOUT_INVALID, "this dtype or shape must be dense");
    if (sparse && (entry->cols > SFI_MAX_SPARSE_COLS || entry->tile_rows > SFI_MAX_SPARSE_TILE_ROWS ||
                   entry->cols > SFI_MAX_SPARSE_TILE_POSITIONS / entry->tile_rows))
        SFI_FAIL(TILE_SIZE, "columns or tile over the limits of sparse layouts");
    if (!sparse)
        entry->nnz = elements;
    else if (entry->nnz > elements)
        SFI_FAIL(NNZ, "nnz is more than the elements");
    if (entry->dropped > elements || (entry->dropped && !dtype->negative_zero))
        SFI_FAIL(NEGATIVE_ZEROS_DROPPED, "more dropped than elements, or a dtype without negative zero");
    if (notes->left_out) SFI_FAIL(INDEX_NOT_CANONICAL, "models of none, or a number of 0: they should be left out");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_read_dtype(const sfi_item *item, sparsefmt_entry *entry, sparsefmt_error *error) {
    int i;
    if (item->kind != SFI_STR) SFI_FAIL(INDEX_TYPE, "dtype is not a str");
    for (i = 0; i < SPARSEFMT_DTYPE_COUNT; i++) {
        if (!sfi_is_text(item, sfi_dtypes[i].name)) continue;
        entry->dtype = (unsigned char)i;
        return SPARSEFMT_OK;
    }
    SFI_FAIL(DTYPE_UNKNOWN, "unknown dtype '%.*s'", item->number > 40 ? 40 : (int)item->number,
             (const char *)item->bytes);
}

static sparsefmt_code sfi_read_layout(const sfi_item *item, sparsefmt_entry *entry, sparsefmt_error *error) {
    int number;
    if (item->kind != SFI_STR) SFI_FAIL(INDEX_TYPE, "layout is not a str");
    number = sfi_lookup(item, sfi_layout_names, SPARSEFMT_LAYOUT_COUNT);
    if (number == SPARSEFMT_LAYOUT_COUNT)
        SFI_FAIL(LAYOUT_UNKNOWN, "unknown layout '%.*s'", item->number > 40 ? 40 : (int)item->number,
                 (const char *)item->bytes);
    entry->layout = (unsigned char)number;
    return SPARSEFMT_OK;
}

/* One kind of the index. */
static sparsefmt_code sfi_read_kind(sfi_cursor *cursor, unsigned minor, sfi_common *kind, sparsefmt_error *error) {
    static const char *const keys[] = {"arrays", "layout"};
    sfi_notes notes;
    sfi_item item, key;
    sparsefmt_entry read; /* of which it fills dtype, layout and codecs */
    uint64_t i, pairs;
    int more, array;
    memset(&notes, 0, sizeof notes);
    memset(&read, 0, sizeof read);
    memset(read.codecs, SFI_CODEC_COUNT, sizeof read.codecs);
    SFI_TRY(sfi_open_list(cursor, 1, &more, error));
    sfi_next(cursor, &item);
    SFI_TRY(sfi_read_dtype(&item, &read, error));
    SFI_TRY(sfi_open_fields(cursor, more, &pairs, error));
    read.layout = SPARSEFMT_DENSE;
    for (i = 0; i < pairs; i++) {
        sfi_next(cursor, &key);
        switch (sfi_lookup(&key, keys, 2)) {
        case 0:
            notes.seen |= 1;
            SFI_TRY(sfi_read_arrays(cursor, &read, &notes, error));
            break;
        case 1:
            notes.seen |= 2;
            sfi_take(cursor, &item);
            SFI_TRY(sfi_read_layout(&item, &read, error));
            break;
        default:
            if (!minor) SFI_FAIL(INDEX_KEY, "an unknown key of a kind");
            sfi_skip(cursor);
        }
    }
    if (!(notes.seen & 1)) {
        if (read.layout != SPARSEFMT_DENSE) SFI_FAIL(INDEX_KEY, "arrays is missing");
        read.codecs[SPARSEFMT_VALUES] = SFI_RAW;
    }
    SFI_TRY(sfi_check_arrays(&read, &notes, error));
    if (read.layout == SPARSEFMT_DENSE && (notes.seen & 2 || (notes.seen && read.codecs[SPARSEFMT_VALUES] == SFI_RAW)))
        SFI_FAIL(INDEX_NOT_CANONICAL, "a layout, or arrays, that should be left out");
    kind->dtype = read.dtype;
    kind->layout = read.layout;
    for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++) kind->codecs[array] = read.codecs[array];
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_read_kinds(sfi_kinds *kinds, sfi_cursor cursor, unsigned minor, sparsefmt_error *error) {
    size_t i;
    for (i = 0; i < kinds->count; i++) {
        memset(&kinds->first[i], 0, sizeof kinds->first[i]);
        SFI_TRY(sfi_read_kind(&cursor, minor, &kinds->first[i], error));
    }
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_take_kind(sfi_cursor *cursor, const sfi_kinds *kinds, sparsefmt_entry *entry,
                                    sparsefmt_error *error) {
    sfi_common *kind;
    uint64_t number = 0;
    sfi_cursor ahead = *cursor;
    SFI_TRY(sfi_read_integer(&ahead, "the number of a kind", &number, error));
    *cursor = ahead;
    if (number >= kinds->count) SFI_FAIL(KIND_INVALID, "a kind that is not in the index");
    kind = &kinds->first[number];
    kind->used = 1;
    entry->dtype = kind->dtype;
    entry->layout = kind->layout;
    memcpy(entry->codecs, kind->codecs, sizeof entry->codecs);
    return SPARSEFMT_OK;
}

/* An entry that is no alias: its kind, its shape, and its fields, one by one. */
static sparsefmt_code sfi_read_fields(sfi_cursor *cursor, unsigned minor, const sfi_kinds *kinds,
                                      sparsefmt_entry *entry, sparsefmt_error *error) {
    sfi_notes notes;
    sfi_item key;
    uint64_t i, pairs;
    int more;
    memset(&notes, 0, sizeof notes);
    entry->first_chunk = SFI_FOLLOWS;
    SFI_TRY(sfi_open_list(cursor, 2, &more, error));
    SFI_TRY(sfi_take_kind(cursor, kinds, entry, error));
    SFI_TRY(sfi_read_shape(cursor, entry, error));
    SFI_TRY(sfi_open_fields(cursor, more, &pairs, error));
    for (i = 0; i < pairs; i++) {
        int number;
        sfi_next(cursor, &key);
        number = sfi_lookup(&key, sfi_keys, SFI_KEY_COUNT);
        notes.seen |= SFI_BIT(number);
        switch (number) {
        case SFI_FIRST_CHUNK: SFI_TRY(sfi_read_integer(cursor, "first_chunk", &entry->first_chunk, error)); break;
        case SFI_MODELS: SFI_TRY(sfi_read_models(cursor, entry, &notes, error)); break;
        case SFI_DROPPED:
            SFI_TRY(sfi_read_integer(cursor, "negative_zeros_dropped", &entry->dropped, error));
            if (!entry->dropped) notes.left_out = 1;
            break;
        case SFI_NNZ: SFI_TRY(sfi_read_integer(cursor, "nnz", &entry->nnz, error)); break;
        case SFI_ROW_DIMS: SFI_TRY(sfi_read_integer(cursor, "row_dims", &notes.row_dims, error)); break;
        case SFI_TILE_ROWS: SFI_TRY(sfi_read_integer(cursor, "tile_rows", &entry->tile_rows, error)); break;
        default:
            if (!minor) SFI_FAIL(INDEX_KEY, "an unknown key of a tensor");
            sfi_skip(cursor);
        }
    }
    if (!(notes.seen & SFI_BIT(SFI_NNZ)) != (entry->layout == SPARSEFMT_DENSE))
        SFI_FAIL(INDEX_KEY, "nnz is missing, or is there in layout dense");
    return sfi_check_entry(entry, &notes, cursor->end, error);
}

static sparsefmt_code sfi_read_entry(sfi_cursor *cursor, unsigned minor, const sfi_kinds *kinds,
                                     sparsefmt_entry *entry, sparsefmt_error *error) {
    sfi_item item, key;
    sfi_cursor ahead = *cursor;
    uint64_t i;
    sfi_next(&ahead, &item);
    if (item.kind != SFI_MAP) return sfi_read_fields(cursor, minor, kinds, entry, error);
    for (i = 0; i < item.number; i++) {
        sfi_item target;
        sfi_next(&ahead, &key);
        const int is_copy = sfi_is_text(&key, "copy_of");
        if (!is_copy && !sfi_is_text(&key, "alias_of")) {
            sfi_skip(&ahead);
            continue;
        }
        if (!sfi_next(&ahead, &target) || target.kind != SFI_STR)
            SFI_FAIL(INDEX_TYPE, "alias_of or copy_of is not a str");
        if (entry->alias || (!minor && item.number > 1)) SFI_FAIL(INDEX_KEY, "an alias with other keys");
        entry->is_copy = (unsigned char)is_copy;
        if (target.number > SFI_MAX_NAME_BYTES) SFI_FAIL(ALIAS_INVALID, "alias of a tensor that is not there");
        entry->alias = target.bytes;
        entry->alias_bytes = (uint32_t)target.number;
    }
    if (!entry->alias) SFI_FAIL(INDEX_KEY, "an alias of nothing");
    *cursor = ahead;
    return SPARSEFMT_OK;
}

/* Where the chunks of an entry begin that does not say it: where those of the entry before end. */
static sparsefmt_code sfi_put_first_chunk(sparsefmt_entry *entry, uint64_t *following, sparsefmt_error *error) {
    const uint64_t arrays = sfi_array_count(entry);
    if (entry->alias || !entry->tiles) return SPARSEFMT_OK;
    if (entry->first_chunk == *following) SFI_FAIL(INDEX_NOT_CANONICAL, "first_chunk should be left out");
    if (entry->first_chunk == SFI_FOLLOWS) entry->first_chunk = *following;
    /* of more chunks than there can be: refused later */
    if (entry->tiles > (SFI_FOLLOWS - 1 - entry->first_chunk) / arrays)
        *following = SFI_FOLLOWS - 1;
    else
        *following = entry->first_chunk + entry->tiles * arrays;
    return SPARSEFMT_OK;
}

static void sfi_name_tensor(const sparsefmt_entry *entry, sparsefmt_error *error) {
    if (!error) return;
    error->tensor = (const char *)entry->name;
    error->tensor_bytes = entry->name_bytes;
}

static sparsefmt_code sfi_read_tensors(sparsefmt_file *file, sfi_cursor cursor, unsigned minor,
                                       const sfi_kinds *kinds, sparsefmt_error *error) {
    sparsefmt_code code;
    sfi_item key;
    uint64_t following = 0;
    size_t i;
    for (i = 0; i < file->tensor_count; i++) {
        sparsefmt_entry *entry = &file->entries[i];
        memset(entry, 0, sizeof *entry);
        memset(entry->codecs, SFI_CODEC_COUNT, sizeof entry->codecs);
        entry->alias_of = i;
        sfi_next(&cursor, &key);
        if (key.number > SFI_MAX_NAME_BYTES) SFI_FAIL(NAME_LENGTH, "a name of %lu bytes", (unsigned long)key.number);
        entry->name = key.bytes;
        entry->name_bytes = (uint32_t)key.number;
        if (!key.number || memchr(key.bytes, 0, (size_t)key.number)) {
            code = sfi_fail(error, SPARSEFMT_ERROR_NAME_INVALID, "a name that is empty or has NUL in it");
            sfi_name_tensor(entry, error);
            return code;
        }
        code = sfi_read_entry(&cursor, minor, kinds, entry, error);
        if (!code) code = sfi_put_first_chunk(entry, &following, error);
        if (code) {
            sfi_name_tensor(entry, error);
            return code;
        }
    }
    for (i = 0; i < file->tensor_count; i++) {
        sparsefmt_entry *entry = &file->entries[i];
        const sparsefmt_entry *target;
        if (!entry->alias) continue;
        entry->alias_of = sparsefmt_find_bytes(file, (const char *)entry->alias, entry->alias_bytes);
        target = entry->alias_of == SPARSEFMT_NONE ? NULL : &file->entries[entry->alias_of];
        if (target && (!target->alias || (target->is_copy && !entry->is_copy))) continue;
        code = sfi_fail(error, SPARSEFMT_ERROR_ALIAS_INVALID, "alias of an alias, or of a tensor that is not there");
        sfi_name_tensor(entry, error);
        return code;
    }
    for (i = 0; i < kinds->count; i++)
        if (!kinds->first[i].used) SFI_FAIL(KIND_INVALID, "a kind that no tensor is of");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_read_metadata(sparsefmt_file *file, sfi_cursor *cursor, sparsefmt_error *error) {
    sfi_item item, key, value;
    uint64_t i, bytes = 0;
    sfi_next(cursor, &item);
    if (item.kind != SFI_MAP) SFI_FAIL(INDEX_TYPE, "metadata is not a map");
    file->metadata = cursor->at;
    file->metadata_count = (size_t)item.number;
    if (!item.number) SFI_FAIL(INDEX_NOT_CANONICAL, "metadata is empty: it should be left out");
    for (i = 0; i < item.number; i++) {
        sfi_next(cursor, &key);
        sfi_take(cursor, &value);
        if (value.kind == SFI_OTHER) SFI_FAIL(INDEX_TYPE, "a value of the metadata of a type that no index has");
        if (value.kind != SFI_STR) SFI_FAIL(METADATA_INVALID, "a value of the metadata is not a str");
        bytes += key.number + value.number;
    }
    if (bytes > SFI_MAX_METADATA_BYTES) SFI_FAIL(METADATA_SIZE, "metadata of over 2^24 bytes");
    return SPARSEFMT_OK;
}

static unsigned sfi_least_width(uint64_t size) { return size < 256 ? 1 : size < 65536 ? 2 : size >> 32 ? 8 : 4; }

static int sfi_is_width(unsigned width) { return width == 1 || width == 2 || width == 4 || width == 8; }

/* The chunk table: where its columns are, and that none is longer than it need be. */
static sparsefmt_code sfi_read_chunk_table(sparsefmt_file *file, const sfi_item *table, sparsefmt_error *error) {
    uint64_t largest_raw = 0, largest_stored = 0;
    unsigned raw_width, stored_width;
    int coded = 0;
    size_t i;
    if (table->kind != SFI_BIN) SFI_FAIL(INDEX_TYPE, "the chunk table is not a bin");
    if (!table->number) return SPARSEFMT_OK;
    file->raw_width = raw_width = table->bytes[0] & 15;
    file->stored_width = stored_width = table->bytes[0] >> 4;
    if (!sfi_is_width(raw_width) || (stored_width && !sfi_is_width(stored_width)))
        SFI_FAIL(INDEX_TYPE, "a chunk table with sizes of %u and of %u bytes", raw_width, stored_width);
    if ((table->number - 1) % (raw_width + stored_width + 8)) SFI_FAIL(INDEX_TYPE, "a chunk table of no whole records");
    file->chunks = table->bytes + 1;
    file->chunk_count = (size_t)((table->number - 1) / (raw_width + stored_width + 8));
    for (i = 0; i < file->chunk_count; i++) {
        const uint64_t raw = sfi_element(file->chunks, i, raw_width);
        const uint64_t stored =
            stored_width ? sfi_element(file->chunks + raw_width * file->chunk_count, i, stored_width) : raw;
        if (raw > largest_raw) largest_raw = raw;
        if (stored > largest_stored) largest_stored = stored;
        if (stored != raw) coded = 1;
    }
    if (!file->chunk_count || raw_width != sfi_least_width(largest_raw) ||
        (stored_width && (!coded || stored_width != sfi_least_width(largest_stored))))
        SFI_FAIL(INDEX_NOT_CANONICAL, "the chunk table is longer than it need be");
    return SPARSEFMT_OK;
}

/* Where each chunk lies, one after the other. */
static sparsefmt_code sfi_place_chunks(sparsefmt_file *file, sparsefmt_error *error) {
    uint64_t end = 16;
    size_t i;
    file->offsets = (uint64_t *)sfi_allocate(&file->allocator, (uint64_t)file->chunk_count * sizeof *file->offsets);
    if (!file->offsets) SFI_FAIL(MEMORY, "no memory for the offsets of %lu chunks", (unsigned long)file->chunk_count);
    memset(file->offsets, 0, file->chunk_count * sizeof *file->offsets);
    for (i = 0; i < file->chunk_count; i++) {
        const sfi_record record = sfi_chunk(file, i);
        const uint64_t stored = record.stored, raw = record.raw;
        if (stored > SFI_MAX_CHUNK_BYTES || raw > SFI_MAX_CHUNK_BYTES)
            SFI_FAIL(CHUNK_LIMIT, "chunk %lu has over 2^36 bytes", (unsigned long)i);
        file->offsets[i] = sfi_place(end, stored, raw);
        end = file->offsets[i] + stored; /* fewer than 2^25 chunks: no overflow */
    }
    if (end > file->index_offset) SFI_FAIL(CHUNK_OUT_OF_BOUNDS, "the chunks end beyond the start of the index");
    if (end < file->index_offset) SFI_FAIL(CHUNK_GAP, "there is a gap before the index");
    end = file->chunk_count ? file->offsets[0] : 16;
    if (!sfi_all_zero(file->data + 16, end - 16)) SFI_FAIL(PADDING_NOT_ZERO, "bytes before the first chunk are not zero");
    return SPARSEFMT_OK;
}

/* Bytes between a chunk and what follows. */
static uint64_t sfi_padding(const sparsefmt_file *file, uint64_t number, uint64_t end) {
    return (number + 1 < file->chunk_count ? file->offsets[number + 1] : file->index_offset) - end;
}

/* Bytes of an element of an array, as codecs see it. */
static unsigned sfi_width(const sparsefmt_entry *entry, int array) {
    unsigned bits = sfi_dtypes[entry->dtype].bits;
    switch (array) {
    case SPARSEFMT_VALUES: return bits < 8 ? 1 : bits / 8;
    case SPARSEFMT_COLUMNS: return entry->cols > 65536 ? 4 : 2;
    case SPARSEFMT_ROW_COUNTS: case SPARSEFMT_SLICE_OFFSETS: return 4;
    case SPARSEFMT_ROW_PERMUTATION: return 2;
    default: return 1;
    }
}

/* Bytes of values in layout dense, without overflow: rows * cols * bits is below 2^63. */
static uint64_t sfi_dense_bytes(const sparsefmt_entry *entry, uint64_t rows) {
    return sfi_ceil_div(rows * entry->cols * sfi_dtypes[entry->dtype].bits, 8);
}

/* Whether an array of a tile of that height may have so many bytes. `slots` are those of layout permuted, from the
   columns or gaps, which come first. */
static int sfi_is_array_size(const sparsefmt_entry *entry, int array, uint64_t rows, uint64_t bytes, uint64_t *slots) {
    unsigned width = sfi_width(entry, array);
    switch (array) {
    case SPARSEFMT_MASK: return bytes == entry->cols * sfi_ceil_div(rows, 8);
    case SPARSEFMT_NEGATIVE_ZEROS: return bytes <= sfi_ceil_div(rows * entry->cols, 8);
    case SPARSEFMT_ROW_COUNTS: return bytes == 4 * rows;
    case SPARSEFMT_ROW_PERMUTATION: return bytes == 2 * rows;
    case SPARSEFMT_SLICE_OFFSETS: return bytes == 4 * (sfi_ceil_div(rows, SFI_SLICE) + 1);
    case SPARSEFMT_COLUMNS: case SPARSEFMT_GAPS:
        *slots = bytes / (SFI_SLICE * width);
        return bytes % (SFI_SLICE * width) == 0 && *slots <= sfi_ceil_div(rows, SFI_SLICE) * entry->cols;
    default: break;
    }
    if (entry->layout == SPARSEFMT_DENSE) return bytes == sfi_dense_bytes(entry, rows);
    if (entry->layout == SPARSEFMT_BITMASK) return bytes % width == 0 && bytes / width <= rows * entry->cols;
    return bytes == SFI_SLICE * *slots * width;
}

static sparsefmt_code sfi_check_chunk_size(const sfi_record *record, const sparsefmt_entry *entry, int array,
                                           sparsefmt_error *error) {
    static const uint64_t most[] = {1, SFI_MAX_ZSTD_RATIO, SFI_MAX_RANS_RATIO};
    int fine = record->stored <= record->raw;
    if (sfi_is_derived(entry, array))
        fine = record->stored == record->raw || !record->stored;
    else
        fine = fine && sfi_ceil_div(record->raw, most[entry->codecs[array]]) <= record->stored;
    if (!fine) SFI_FAIL(CHUNK_SIZE, "chunk of %s: stored size that its raw size cannot have", sfi_array_names[array]);
    return SPARSEFMT_OK;
}

/* The sizes of a tensor's chunks, as far as they follow from the index. */
static sparsefmt_code sfi_check_sizes(const sparsefmt_file *file, const sparsefmt_entry *entry,
                                      sparsefmt_error *error) {
    uint64_t tile, number = entry->first_chunk;
    int array;
    for (tile = 0; tile < entry->tiles; tile++) {
        for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++) {
            sfi_record record;
            if (!sfi_has(entry, array)) continue;
            record = sfi_chunk(file, number++);
            SFI_TRY(sfi_check_chunk_size(&record, entry, array, error));
        }
    }
    number = entry->first_chunk;
    for (tile = 0; tile < entry->tiles; tile++) {
        uint64_t rows = sfi_tile_height(entry, tile), slots = 0;
        for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++) {
            sfi_record record;
            if (!sfi_has(entry, array)) continue;
            record = sfi_chunk(file, number++);
            if (!sfi_is_array_size(entry, array, rows, record.raw, &slots))
                SFI_FAIL(ARRAY_SIZE, "%s has a size that it cannot have", sfi_array_names[array]);
        }
    }
    return SPARSEFMT_OK;
}

/* The chunks of an entry: that they are there, belong to no other, and have sizes that they can have. `owned` has a bit
   for each chunk of the file. */
static sparsefmt_code sfi_assign_chunks(const sparsefmt_file *file, const sparsefmt_entry *entry, unsigned char *owned,
                                        uint64_t *assigned, sparsefmt_error *error) {
    const uint64_t arrays = sfi_array_count(entry);
    uint64_t number, end;
    if (entry->first_chunk > file->chunk_count || entry->tiles > (file->chunk_count - entry->first_chunk) / arrays)
        SFI_FAIL(CHUNK_ASSIGNMENT, "chunks that do not exist");
    end = entry->first_chunk + entry->tiles * arrays;
    for (number = entry->first_chunk; number < end; number++) {
        if (owned[number / 8] >> number % 8 & 1)
            SFI_FAIL(CHUNK_ASSIGNMENT, "a chunk that belongs to another tensor too");
        owned[number / 8] = (unsigned char)(owned[number / 8] | 1u << number % 8);
    }
    *assigned += entry->tiles * arrays;
    return sfi_check_sizes(file, entry, error);
}

static sparsefmt_code sfi_check_assignment(const sparsefmt_file *file, sparsefmt_error *error) {
    const size_t bytes = file->chunk_count / 8 + 1;
    unsigned char *owned = (unsigned char *)sfi_allocate(&file->allocator, bytes);
    sparsefmt_code code = SPARSEFMT_OK;
    uint64_t assigned = 0;
    size_t i;
    if (!owned) SFI_FAIL(MEMORY, "no memory for %lu bytes", (unsigned long)bytes);
    memset(owned, 0, bytes);
    for (i = 0; i < file->tensor_count && !code; i++) {
        if (file->entries[i].alias) continue;
        code = sfi_assign_chunks(file, &file->entries[i], owned, &assigned, error);
        if (code) sfi_name_tensor(&file->entries[i], error);
    }
    sfi_release(&file->allocator, owned, bytes);
    if (!code && assigned != file->chunk_count) SFI_FAIL(CHUNK_ASSIGNMENT, "a chunk that belongs to no tensor");
    return code;
}

/* The tensors of an index, each of one of its kinds. `kinds`: where they stand. */
static sparsefmt_code sfi_read_all_tensors(sparsefmt_file *file, sfi_cursor kinds_at, sfi_cursor tensors, unsigned minor,
                                           sparsefmt_error *error) {
    sparsefmt_code code;
    sfi_kinds kinds;
    sfi_item item;
    sfi_next(&tensors, &item);
    if (item.kind != SFI_MAP) SFI_FAIL(INDEX_TYPE, "tensors is not a map");
    if (item.number > SFI_MAX_TENSORS) SFI_FAIL(TENSOR_COUNT, "more than 2^20 tensors");
    file->entries = (sparsefmt_entry *)sfi_allocate(&file->allocator, item.number * sizeof *file->entries);
    if (!file->entries) SFI_FAIL(MEMORY, "no memory for the entries of %lu tensors", (unsigned long)item.number);
    file->tensor_count = (size_t)item.number;
    sfi_next(&kinds_at, &item);
    if (item.kind != SFI_LIST) SFI_FAIL(INDEX_TYPE, "kinds is not an array");
    if (item.number > file->tensor_count) SFI_FAIL(KIND_INVALID, "more kinds than tensors");
    kinds.count = (size_t)item.number;
    kinds.first = (sfi_common *)sfi_allocate(&file->allocator, item.number * sizeof *kinds.first);
    if (!kinds.first) SFI_FAIL(MEMORY, "no memory for %lu kinds", (unsigned long)item.number);
    code = sfi_read_kinds(&kinds, kinds_at, minor, error);
    if (!code) code = sfi_read_tensors(file, tensors, minor, &kinds, error);
    sfi_release(&file->allocator, kinds.first, kinds.count * sizeof *kinds.first);
    return code;
}

static sparsefmt_code sfi_read_index(sparsefmt_file *file, sfi_cursor cursor, unsigned minor, sparsefmt_error *error) {
    sfi_cursor check = cursor, tensors, kinds;
    sfi_faults faults = {0, 0};
    sfi_item key, item;
    uint64_t i, pairs;
    int more;
    if (!sfi_check_value(&check, 0, &faults) || check.at != check.end)
        SFI_FAIL(INDEX_MALFORMED, "the index is no msgpack of the types that an index has");
    if (faults.not_canonical) SFI_FAIL(INDEX_NOT_CANONICAL, "the index is not in canonical form");
    SFI_TRY(sfi_open_list(&cursor, 3, &more, error));
    sfi_take(&cursor, &item);
    kinds = cursor;
    sfi_skip(&cursor);
    tensors = cursor;
    sfi_skip(&cursor);
    SFI_TRY(sfi_open_fields(&cursor, more, &pairs, error));
    for (i = 0; i < pairs; i++) {
        sfi_next(&cursor, &key);
        if (sfi_is_text(&key, "metadata")) {
            SFI_TRY(sfi_read_metadata(file, &cursor, error));
            continue;
        }
        if (!minor) SFI_FAIL(INDEX_KEY, "an unknown key of the index");
        sfi_skip(&cursor);
    }
    SFI_TRY(sfi_read_chunk_table(file, &item, error));
    SFI_TRY(sfi_place_chunks(file, error));
    SFI_TRY(sfi_read_all_tensors(file, kinds, tensors, minor, error));
    if (faults.other_type) SFI_FAIL(INDEX_TYPE, "a value of a type that no index has");
    return sfi_check_assignment(file, error);
}

/* ---- Frames of zstd (SPEC.md, sections 2.4 and 5.2) --------------------------------------------------------------- */

#ifdef SPARSEFMT_ZSTD
/* What the head of a frame says (RFC 8878, section 3.1.1.1). */
typedef struct sfi_frame {
    uint64_t content, window; /* the size of the content, UINT64_MAX if it is not stated; 0 for no window */
} sfi_frame;

/* Reads the head of a frame that uses no dictionary. */
static sparsefmt_code sfi_read_frame(const unsigned char *bytes, uint64_t stored, sfi_frame *frame,
                                     sparsefmt_error *error) {
    static const unsigned id_bytes[] = {0, 1, 2, 4}, size_bytes[] = {0, 2, 4, 8};
    unsigned descriptor, single, ids, sizes, i;
    frame->content = frame->window = 0;
    if (stored < 5 || sparsefmt_u32(bytes) != SFI_ZSTD_MAGIC) SFI_FAIL(ZSTD_CORRUPT, "no zstd frame");
    descriptor = bytes[4];
    single = descriptor >> 5 & 1;
    ids = id_bytes[descriptor & 3];
    sizes = size_bytes[descriptor >> 6];
    if (single && !sizes) sizes = 1;
    if (descriptor & 8) SFI_FAIL(ZSTD_CORRUPT, "a zstd frame with a reserved bit");
    if (stored < 5 + (1 - single) + ids + sizes) SFI_FAIL(ZSTD_CORRUPT, "the head of the zstd frame is cut off");
    bytes += 5;
    if (!single) {
        frame->window = (uint64_t)1 << (10 + (*bytes >> 3));
        frame->window += (frame->window >> 3) * (*bytes & 7);
        bytes++;
    }
    for (i = 0; i < ids; i++)
        if (*bytes++) SFI_FAIL(ZSTD_CORRUPT, "a zstd frame with a dictionary");
    for (i = 0; i < sizes; i++) frame->content |= (uint64_t)*bytes++ << 8 * i;
    if (sizes == 2) frame->content += 256;
    if (!sizes) frame->content = UINT64_MAX;
    return SPARSEFMT_OK;
}

/* Decodes a frame of `stored` bytes, which has to have `size` bytes of content. */
static sparsefmt_code sfi_decode_frame(const unsigned char *frame, uint64_t stored, unsigned char *content,
                                       uint64_t size, sparsefmt_error *error) {
    sfi_frame head;
    SFI_TRY(sfi_read_frame(frame, stored, &head, error));
    if (head.content != size) SFI_FAIL(ZSTD_SIZE, "a zstd frame of another content size than its array has, or of none");
    if (head.window > (size > 1024 ? size : 1024)) SFI_FAIL(ZSTD_CORRUPT, "a zstd frame with too large a window");
    if (ZSTD_findFrameCompressedSize(frame, (size_t)stored) != (size_t)stored)
        SFI_FAIL(ZSTD_CORRUPT, "the zstd frame does not fill its chunk");
    if (ZSTD_decompress(content, (size_t)size, frame, (size_t)stored) != (size_t)size)
        SFI_FAIL(ZSTD_CORRUPT, "the zstd frame does not decode");
    return SPARSEFMT_OK;
}
#else
static sparsefmt_code sfi_decode_frame(const unsigned char *frame, uint64_t stored, unsigned char *content,
                                       uint64_t size, sparsefmt_error *error) {
    (void)frame, (void)stored, (void)content, (void)size;
    SFI_FAIL(CODEC_UNKNOWN, "codec zstd: this reader was built without it");
}
#endif

/* Decodes the index at the cursor, if it is coded, and points the cursor to what it is then. */
static sparsefmt_code sfi_decode_index(sparsefmt_file *file, sfi_cursor *cursor, sparsefmt_error *error) {
    const size_t stored = (size_t)(cursor->end - cursor->at);
    if (stored < 4 || sparsefmt_u32(cursor->at) != SFI_ZSTD_MAGIC) return SPARSEFMT_OK;
#ifdef SPARSEFMT_ZSTD
    {
        const unsigned char *frame = cursor->at;
        sfi_frame head;
        uint64_t size;
        if (stored < 32 || sfi_read_frame(frame, stored, &head, error) || head.content == UINT64_MAX)
            SFI_FAIL(INDEX_FRAME, "the index is no frame of 32 bytes or more that states its size");
        size = head.content;
        if (size > SFI_MAX_CODED_INDEX_BYTES) SFI_FAIL(INDEX_SIZE, "a coded index of over 2^24 bytes");
        if (size / SFI_MAX_INDEX_RATIO > stored || size > (uint64_t)stored * SFI_MAX_INDEX_RATIO)
            SFI_FAIL(INDEX_FRAME, "an index of over 32 times its coded bytes");
        file->index = (unsigned char *)sfi_allocate(&file->allocator, size);
        if (!file->index) SFI_FAIL(MEMORY, "no memory for an index of %lu bytes", (unsigned long)size);
        file->index_size = (size_t)size;
        if (sfi_decode_frame(frame, stored, file->index, size, error))
            SFI_FAIL(INDEX_FRAME, "the coded index does not decode");
        cursor->at = file->index;
        cursor->end = file->index + size;
        return SPARSEFMT_OK;
    }
#else
    (void)file;
    SFI_FAIL(CODEC_UNKNOWN, "the index is coded by zstd: this reader was built without it");
#endif
}

/* ---- Container (SPEC.md, section 2) ----------------------------------------------------------------------------- */

static sparsefmt_code sfi_open(sparsefmt_file *file, sparsefmt_error *error) {
    static const unsigned char magic[] = {0x89, 0x53, 0x50, 0x46, 0x0D, 0x0A, 0x1A, 0x0A};
    static const unsigned char end_magic[] = {0x0A, 0x1A, 0x0A, 0x0D, 0x46, 0x50, 0x53, 0x89};
    const unsigned char *data = file->data, *trailer;
    uint64_t offset, size;
    sfi_cursor cursor;
    if (file->size < 8 || memcmp(data, magic, 8)) SFI_FAIL(NOT_SPARSEFMT, "does not start as a .sparsefmt file does");
    if (file->size < 36) SFI_FAIL(FILE_TOO_SHORT, "%lu bytes are too few", (unsigned long)file->size);
    if (sparsefmt_u16(data + 8) != 1)
        SFI_FAIL(VERSION_UNSUPPORTED, "version %u.%u", (unsigned)sparsefmt_u16(data + 8),
                 (unsigned)sparsefmt_u16(data + 10));
    if (sparsefmt_u32(data + 12))
        SFI_FAIL(FEATURE_UNSUPPORTED, "features 0x%lX", (unsigned long)sparsefmt_u32(data + 12));
    trailer = data + (file->size - 20);
    if (memcmp(trailer + 12, end_magic, 8))
        SFI_FAIL(TRAILER_MISSING, "no trailer: the file is cut off or not finished");
    size = sparsefmt_u32(trailer);
    if (size > SFI_MAX_INDEX_BYTES) SFI_FAIL(INDEX_SIZE, "an index of over 2^28 bytes");
    if (size > file->size - 36) SFI_FAIL(INDEX_OUT_OF_BOUNDS, "the index would begin before byte 16");
    offset = file->size - 20 - size;
    file->index_offset = (size_t)offset;
    if (sparsefmt_xxh64(data, 16, data + offset, (size_t)size) != sparsefmt_u64(trailer + 4))
        SFI_FAIL(INDEX_CHECKSUM, "preamble or index changed");
    cursor.at = data + offset;
    cursor.end = trailer;
    SFI_TRY(sfi_decode_index(file, &cursor, error));
    file->index_end = cursor.end;
    return sfi_read_index(file, cursor, sparsefmt_u16(data + 10), error);
}

sparsefmt_code sparsefmt_open(sparsefmt_file *file, const void *data, size_t size, const sparsefmt_allocator *allocator,
                              sparsefmt_error *error) {
    sparsefmt_code code;
    memset(file, 0, sizeof *file);
    file->data = (const unsigned char *)data;
    file->size = data ? size : 0;
    if (allocator) {
        file->allocator = *allocator;
    } else {
        file->allocator.allocate = sfi_malloc;
        file->allocator.release = sfi_free;
    }
    code = sfi_open(file, error);
    if (code) sparsefmt_close(file);
    return code;
}

void sparsefmt_close(sparsefmt_file *file) {
    sfi_release(&file->allocator, file->entries, file->tensor_count * sizeof *file->entries);
    sfi_release(&file->allocator, file->offsets, (uint64_t)file->chunk_count * sizeof *file->offsets);
    sfi_release(&file->allocator, file->index, file->index_size);
    memset(file, 0, sizeof *file);
}

size_t sparsefmt_count(const sparsefmt_file *file) { return file->tensor_count; }

size_t sparsefmt_find_bytes(const sparsefmt_file *file, const char *name, size_t name_bytes) {
    size_t low = 0, high = file->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const sparsefmt_entry *entry = &file->entries[middle];
        int order = sfi_compare(entry->name, entry->name_bytes, (const unsigned char *)name, name_bytes);
        if (!order) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return SPARSEFMT_NONE;
}

size_t sparsefmt_find(const sparsefmt_file *file, const char *name) {
    return sparsefmt_find_bytes(file, name, strlen(name));
}

size_t sparsefmt_metadata_count(const sparsefmt_file *file) { return file->metadata_count; }

void sparsefmt_metadata(const sparsefmt_file *file,
                        void (*each)(void *context, const char *key, size_t key_bytes, const char *value,
                                     size_t value_bytes),
                        void *context) {
    sfi_cursor cursor;
    sfi_item key, value;
    size_t i;
    cursor.at = file->metadata;
    cursor.end = file->index_end;
    for (i = 0; i < file->metadata_count; i++) {
        sfi_next(&cursor, &key);
        sfi_next(&cursor, &value);
        each(context, (const char *)key.bytes, (size_t)key.number, (const char *)value.bytes, (size_t)value.number);
    }
}

/* The entry that a number stands for, aliases followed; NULL, and an error, if there is no such number. */
static const sparsefmt_entry *sfi_entry(const sparsefmt_file *file, size_t number, sparsefmt_error *error) {
    if (number >= file->tensor_count) {
        sfi_fail(error, SPARSEFMT_ERROR_ARGUMENT, "no such tensor");
        return NULL;
    }
    while (file->entries[number].alias) number = file->entries[number].alias_of; /* at most twice */
    return &file->entries[number];
}

sparsefmt_code sparsefmt_describe(const sparsefmt_file *file, size_t number, sparsefmt_info *info,
                                  sparsefmt_error *error) {
    const sparsefmt_entry *entry = sfi_entry(file, number, error);
    sfi_cursor cursor;
    uint64_t i, chunks;
    memset(info, 0, sizeof *info);
    if (!entry) return SPARSEFMT_ERROR_ARGUMENT;
    info->name = (const char *)file->entries[number].name;
    info->name_bytes = file->entries[number].name_bytes;
    info->alias_of = file->entries[number].alias ? file->entries[number].alias_of : SPARSEFMT_NONE;
    info->is_copy = file->entries[number].is_copy;
    info->dtype = (sparsefmt_dtype)entry->dtype;
    info->layout = (sparsefmt_layout)entry->layout;
    info->ndim = entry->ndim;
    cursor.at = entry->shape;
    cursor.end = file->index_end;
    for (i = 0; i < entry->ndim; i++) {
        sfi_item item;
        sfi_next(&cursor, &item);
        info->shape[i] = item.number;
    }
    info->row_dims = entry->row_dims;
    info->rows = entry->rows;
    info->cols = entry->cols;
    info->elements = entry->rows * entry->cols;
    info->nnz = entry->nnz;
    info->sparsity = info->elements ? 1 - (double)entry->nnz / (double)info->elements : 0;
    info->negative_zeros_dropped = entry->dropped;
    info->tile_rows = entry->tile_rows;
    info->tiles = entry->tiles;
    info->dense_bytes = sfi_dense_bytes(entry, entry->rows);
    chunks = entry->tiles * sfi_array_count(entry);
    for (i = 0; i < chunks; i++) info->stored_bytes += sfi_chunk(file, entry->first_chunk + i).stored;
    for (i = 0; i < SPARSEFMT_ARRAY_COUNT; i++)
        if (sfi_has(entry, (int)i)) info->arrays |= SFI_BIT((int)i);
    return SPARSEFMT_OK;
}

/* ---- Masks, row by row and in slices (SPEC.md, section 4.2) ------------------------------------------------------ */

/* Bit 8 * i + k becomes bit 8 * k + i: a transpose of 8 x 8 bits. */
static uint64_t sfi_transpose(uint64_t v) {
    uint64_t swapped = (v ^ v >> 7) & 0x00AA00AA00AA00AAu;
    v ^= swapped ^ swapped << 7;
    swapped = (v ^ v >> 14) & 0x0000CCCC0000CCCCu;
    v ^= swapped ^ swapped << 14;
    swapped = (v ^ v >> 28) & 0x00000000F0F0F0F0u;
    return v ^ swapped ^ swapped << 28;
}

/* Writes the mask of whose rows the bits are given, each in ceil(cols / 8) bytes. Eight rows at a time: they are a byte
   of each integer of their slice. */
static void sfi_put_mask(const unsigned char *bits, uint64_t rows, uint64_t cols, unsigned char *mask) {
    const uint64_t row_bytes = sfi_ceil_div(cols, 8);
    uint64_t first, at;
    for (first = 0; first < rows; first += 8, bits += 8 * row_bytes) {
        const unsigned some = rows - first < 8 ? (unsigned)(rows - first) : 8;
        const uint64_t slice = first / SFI_SLICE, width = rows - SFI_SLICE * slice > 8 ? 2 : 1;
        unsigned char *out = mask + 2 * cols * slice + first % SFI_SLICE / 8;
        for (at = 0; at < row_bytes; at++) {
            const unsigned columns = cols - 8 * at < 8 ? (unsigned)(cols - 8 * at) : 8;
            uint64_t v = 0;
            unsigned i;
            for (i = 0; i < some; i++) v |= (uint64_t)bits[i * row_bytes + at] << 8 * i;
            v = sfi_transpose(v);
            for (i = 0; i < columns; i++, out += width) *out = (unsigned char)(v >> 8 * i);
        }
    }
}

/* A slice of a mask. */
typedef struct sfi_slice {
    const unsigned char *mask; /* its first integer */
    unsigned rows, width;      /* bytes of an integer */
} sfi_slice;

static sfi_slice sfi_slice_of(const sparsefmt_tile *tile, uint64_t cols, uint64_t number) {
    const uint64_t left = tile->rows - SFI_SLICE * number;
    sfi_slice slice;
    slice.mask = tile->arrays[SPARSEFMT_MASK].bytes + 2 * cols * number;
    slice.rows = left < SFI_SLICE ? (unsigned)left : SFI_SLICE;
    slice.width = slice.rows > 8 ? 2 : 1;
    return slice;
}

/* As sfi_four_columns, of narrow integers, or of the last columns. */
static uint64_t sfi_any_columns(const sfi_slice *slice, uint64_t column, uint64_t cols) {
    uint64_t word = sparsefmt_u64(slice->mask + slice->width * column);
    if (slice->width == 1) {
        word &= 0xFFFFFFFFu;
        word = (word | word << 16) & 0x0000FFFF0000FFFFu;
        word = (word | word << 8) & 0x00FF00FF00FF00FFu;
    }
    return cols - column < 4 ? word & (((uint64_t)1 << 16 * (cols - column)) - 1) : word;
}

/* The integers of four columns, 16 bits for each, those of columns that do not exist being 0: bit b is that of row
   b % 16 of the slice, and of column + b / 16. */
static inline uint64_t sfi_four_columns(const sfi_slice *slice, uint64_t column, uint64_t cols) {
    if (slice->width == 2 && cols - column >= 4) return sparsefmt_u64(slice->mask + 2 * column);
    return sfi_any_columns(slice, column, cols);
}

static uint32_t sfi_count_bits(const unsigned char *bytes, uint64_t size) {
    uint32_t count = 0;
    uint64_t i = 0;
    for (; i + 8 <= size; i += 8) count += sfi_popcount(sparsefmt_u64(bytes + i));
    for (; i < size; i++) count += sfi_popcount(bytes[i]);
    return count;
}

static uint32_t sfi_count_values(const sfi_slice *slice, uint64_t cols) {
    return sfi_count_bits(slice->mask, cols * slice->width);
}

/* ---- Codec zstd (SPEC.md, section 5.2) -------------------------------------------------------------------------- */

typedef struct sfi_reader {
    const sparsefmt_file *file;
    const sparsefmt_entry *entry;
    struct sfi_model *models[SPARSEFMT_ARRAY_COUNT]; /* of codec rans; NULL until they are needed */
    sparsefmt_error *error;
} sfi_reader;

/* Decodes `stored` bytes to the `raw` bytes of an array that is no mask. */
static sparsefmt_code sfi_decode_planes(sfi_reader *reader, const unsigned char *chunk, uint64_t stored,
                                        unsigned char *array, uint64_t raw, unsigned width) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_allocator *allocator = &reader->file->allocator;
    const uint64_t count = raw / width;
    unsigned char *planes;
    sparsefmt_code code;
    uint64_t i;
    unsigned k;
    if (width == 1) return sfi_decode_frame(chunk, stored, array, raw, error);
    planes = (unsigned char *)sfi_allocate(allocator, raw);
    if (!planes) SFI_FAIL(MEMORY, "no memory for the planes of an array");
    code = sfi_decode_frame(chunk, stored, planes, raw, error);
    for (k = 0; k < width && !code; k++)
        for (i = 0; i < count; i++) array[i * width + k] = planes[k * count + i];
    sfi_release(allocator, planes, raw);
    return code;
}

/* Decodes `stored` bytes to a mask, whose bits they have row by row. */
static sparsefmt_code sfi_decode_mask(sfi_reader *reader, const sparsefmt_tile *tile, const unsigned char *chunk,
                                      uint64_t stored, unsigned char *mask) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_allocator *allocator = &reader->file->allocator;
    const uint64_t cols = reader->entry->cols, row_bytes = sfi_ceil_div(cols, 8), size = tile->rows * row_bytes;
    unsigned char *bits = (unsigned char *)sfi_allocate(allocator, size);
    sparsefmt_code code;
    uint64_t row;
    if (!bits) SFI_FAIL(MEMORY, "no memory for the rows of a mask");
    code = sfi_decode_frame(chunk, stored, bits, size, error);
    for (row = 1; row <= tile->rows && !code; row++)
        if (cols % 8 && bits[row * row_bytes - 1] >> cols % 8)
            code = sfi_fail(error, SPARSEFMT_ERROR_ZSTD_CORRUPT, "mask has a bit set beyond the columns");
    if (!code) sfi_put_mask(bits, tile->rows, cols, mask);
    sfi_release(allocator, bits, size);
    return code;
}

/* ---- Codec rans: bits (SPEC.md, section 5.3.1) ------------------------------------------------------------------ */

typedef struct sfi_bits {
    const unsigned char *bytes;
    uint64_t at, size; /* in bits */
    int ended;         /* a field went beyond the end: all fields from then on are 0 */
} sfi_bits;

/* A field of at most 32 bits. */
static uint32_t sfi_field(sfi_bits *bits, unsigned count) {
    uint64_t value = 0;
    const unsigned char *at;
    unsigned shift = (unsigned)(bits->at % 8), i;
    if (count > bits->size - bits->at) bits->ended = 1;
    if (bits->ended || !count) return 0;
    at = bits->bytes + bits->at / 8;
    for (i = 0; 8 * i < shift + count; i++) value |= (uint64_t)at[i] << 8 * i;
    bits->at += count;
    return (uint32_t)(value >> shift & (((uint64_t)1 << count) - 1));
}

/* A number of order k, at most 16. */
static uint64_t sfi_number(sfi_bits *bits, unsigned order) {
    unsigned zeros = 0;
    uint64_t high;
    while (!sfi_field(bits, 1)) {
        if (bits->ended || zeros == 32) {
            bits->ended = 1;
            return 0;
        }
        zeros++;
    }
    high = ((uint64_t)1 << zeros) + sfi_field(bits, zeros) - 1;
    return (high << order) + sfi_field(bits, order);
}

/* Steps over the zero bits up to a whole byte. 0 if one of them is not zero, or the bits ended before. */
static int sfi_end_bits(sfi_bits *bits) {
    return !sfi_field(bits, (unsigned)((8 - bits->at % 8) % 8)) && !bits->ended;
}

/* ---- Codec rans: tables (SPEC.md, sections 5.3.2 and 5.3.3) ----------------------------------------------------- */

/* A table has 2^precision slots: the symbol << 32 | its frequency << 16 | the slot less the symbol's start. */

static void sfi_fill_table(uint64_t *slots, const uint32_t *frequencies, unsigned count) {
    unsigned symbol;
    uint32_t i;
    for (symbol = 0; symbol < count; symbol++) {
        uint64_t slot = (uint64_t)symbol << 32 | (uint64_t)frequencies[symbol] << 16;
        for (i = 0; i < frequencies[symbol]; i++) *slots++ = slot | i;
    }
}

/* Frequencies of those bins whose frequency is not 0 at the call; they are replaced. `widths` may be NULL for all 0. */
static int sfi_read_frequencies(sfi_bits *bits, const unsigned char *widths, uint32_t *frequencies, unsigned count,
                                unsigned precision) {
    const int64_t whole = (int64_t)1 << precision;
    int64_t left = whole, expected, frequency;
    unsigned i, used = 0, before = 0, last = 0;
    uint64_t v;
    for (i = 0; i < count; i++) {
        if (!frequencies[i]) continue;
        used++;
        last = i;
    }
    if (!used) return 0;
    expected = whole / used;
    for (i = 0; i < last; i++) {
        if (!frequencies[i]) continue;
        if (left < whole) {
            int d = widths ? (int)widths[i] - (int)widths[before] : 0;
            d = d < -16 ? -16 : d > 16 ? 16 : d;
            expected = d < 0 ? (int64_t)frequencies[before] >> -d : (int64_t)frequencies[before] << d;
        }
        expected = expected < 1 ? 1 : expected > whole - 1 ? whole - 1 : expected;
        v = sfi_number(bits, sfi_bit_length((uint64_t)expected) > 2 ? sfi_bit_length((uint64_t)expected) - 2 : 0);
        frequency = v % 2 ? expected - (int64_t)((v + 1) / 2) : expected + (int64_t)(v / 2);
        if (bits->ended || frequency < 1 || frequency >= left) return 0;
        frequencies[i] = (uint32_t)frequency;
        left -= frequency;
        before = i;
    }
    frequencies[last] = (uint32_t)left;
    return 1;
}

/* Frequencies of symbols, or of bins of which a bit says whether they occur. */
static int sfi_read_table(sfi_bits *bits, const unsigned char *widths, uint32_t *frequencies, unsigned count,
                          unsigned precision, uint64_t *slots) {
    unsigned i;
    for (i = 0; i < count; i++) frequencies[i] = sfi_field(bits, 1);
    if (!sfi_read_frequencies(bits, widths, frequencies, count, precision)) return 0;
    sfi_fill_table(slots, frequencies, count);
    return 1;
}

/* A table of bytes: frequencies of popcounts, or of 256 symbols. */
static int sfi_read_byte_table(sfi_bits *bits, uint32_t *frequencies, unsigned precision, uint64_t *slots) {
    static const unsigned ways[] = {1, 8, 28, 56, 70, 56, 28, 8, 1};
    uint64_t counts[10] = {0}, left = (uint64_t)1 << precision;
    unsigned k;
    if (!sfi_field(bits, 1)) return sfi_read_table(bits, NULL, frequencies, 256, precision, slots);
    for (k = 8; k; k--) {
        counts[k] = sfi_number(bits, sfi_bit_length(counts[k + 1]));
        if (bits->ended || counts[k] > left || counts[k] * ways[k] > left) return 0;
        left -= counts[k] * ways[k];
    }
    counts[0] = left;
    for (k = 0; k < 256; k++) frequencies[k] = (uint32_t)counts[sfi_popcount(k)];
    sfi_fill_table(slots, frequencies, 256);
    return 1;
}

/* ---- Codec rans: streams (SPEC.md, section 5.3.2) --------------------------------------------------------------- */

#define SFI_BLOCK 32 /* symbols decoded in one go: a multiple of the number of states */

typedef struct sfi_stream {
    uint32_t states[SFI_BLOCK];
    unsigned count; /* of states */
    const unsigned char *at, *end;
} sfi_stream;

static int sfi_open_stream(sfi_stream *stream, const unsigned char *at, uint64_t size, uint64_t symbols) {
    unsigned i;
    stream->count = symbols < 1024 ? 1 : symbols < 65536 ? 8 : 32;
    if (size < 4 * stream->count) return 0;
    for (i = 0; i < stream->count; i++) {
        stream->states[i] = sparsefmt_u32(at + 4 * i);
        if (stream->states[i] < 65536) return 0;
    }
    stream->at = at + 4 * stream->count;
    stream->end = at + size;
    return 1;
}

/* Decodes a block of symbols; only the last of a stream may have fewer than SFI_BLOCK. tables[i] codes symbol i. 0 if
   the words end before. */
static int sfi_decode_block(sfi_stream *stream, const uint64_t *const *tables, unsigned precision, unsigned count,
                            uint16_t *symbols) {
    const uint32_t low = ((uint32_t)1 << precision) - 1;
    const unsigned lanes = stream->count - 1;
    const unsigned char *at = stream->at;
    unsigned i;
    if (count == SFI_BLOCK && stream->end - at >= 2 * SFI_BLOCK) {
        for (i = 0; i < SFI_BLOCK; i++) {
            uint32_t x = stream->states[i & lanes], renewed;
            uint64_t slot = tables[i][x & low];
            symbols[i] = (uint16_t)(slot >> 32);
            x = (uint32_t)(slot >> 16 & 0xFFFF) * (x >> precision) + (uint32_t)(slot & 0xFFFF);
            renewed = x << 16 | sparsefmt_u16(at);
            at += x < 65536 ? 2 : 0;
            stream->states[i & lanes] = x < 65536 ? renewed : x;
        }
        stream->at = at;
        return 1;
    }
    for (i = 0; i < count; i++) {
        uint32_t x = stream->states[i & lanes];
        uint64_t slot = tables[i][x & low];
        symbols[i] = (uint16_t)(slot >> 32);
        x = (uint32_t)(slot >> 16 & 0xFFFF) * (x >> precision) + (uint32_t)(slot & 0xFFFF);
        if (x < 65536) {
            if (stream->end - at < 2) return 0;
            x = x << 16 | sparsefmt_u16(at);
            at += 2;
        }
        stream->states[i & lanes] = x;
    }
    stream->at = at;
    return 1;
}

/* Whether the stream ended as it must. */
static int sfi_end_stream(const sfi_stream *stream) {
    unsigned i;
    for (i = 0; i < stream->count; i++)
        if (stream->states[i] != 65536) return 0;
    return stream->at == stream->end;
}

/* Decodes a whole stream of symbols below 256, all with one table. */
static int sfi_decode_classes(const unsigned char *at, uint64_t size, const uint64_t *table, uint64_t count,
                              unsigned char *classes) {
    const uint64_t *tables[SFI_BLOCK];
    uint16_t symbols[SFI_BLOCK];
    sfi_stream stream;
    uint64_t done;
    unsigned i;
    for (i = 0; i < SFI_BLOCK; i++) tables[i] = table;
    if (!sfi_open_stream(&stream, at, size, count)) return 0;
    for (done = 0; done < count; done += SFI_BLOCK) {
        unsigned some = count - done < SFI_BLOCK ? (unsigned)(count - done) : SFI_BLOCK;
        if (!sfi_decode_block(&stream, tables, 12, some, symbols)) return 0;
        for (i = 0; i < some; i++) classes[done + i] = (unsigned char)symbols[i];
    }
    return sfi_end_stream(&stream);
}

/* ---- Codec rans: models (SPEC.md, sections 5.3.4 and 5.3.6) ----------------------------------------------------- */

#define SFI_CLASS_PRECISION 12

typedef struct sfi_model {
    unsigned precision, row_symbols, column_classes, table_count;
    unsigned char numbers[64]; /* of the table, by class of row + class of column */
    uint64_t *tables;
    uint64_t class_tables[2][1 << SFI_CLASS_PRECISION]; /* of rows, and of columns */
    unsigned char *classes; /* of each column; NULL if all are 0 */
    uint32_t frequencies[SFI_MAX_BINS];
    /* elements */
    unsigned lag, folded, shift, bin_count;
    uint64_t lows[SFI_MAX_BINS];
    unsigned char widths[SFI_MAX_BINS];
    /* positions */
    unsigned copies;          /* 1 if there may be rows that are copies */
    unsigned char *order;     /* column of each place, less the first of its run of 64; NULL if as they are */
    unsigned char *groups;    /* class of each group of eight columns; NULL if all are 0 */
    uint64_t classed_columns; /* that the three have room for */
} sfi_model;

static void sfi_free_model(const sparsefmt_allocator *allocator, sfi_model *model) {
    if (!model) return;
    sfi_release(allocator, model->tables, ((uint64_t)model->table_count << model->precision) * sizeof *model->tables);
    sfi_release(allocator, model->classes, 3 * model->classed_columns);
    sfi_release(allocator, model, sizeof *model);
}

static void sfi_read_steps(sfi_bits *bits, sfi_model *model, unsigned row_classes) {
    unsigned z;
    model->numbers[0] = 0;
    for (z = 1; z < row_classes + model->column_classes - 1; z++)
        model->numbers[z] = (unsigned char)(model->numbers[z - 1] + sfi_field(bits, 1));
    model->table_count = model->numbers[row_classes + model->column_classes - 2] + 1u;
}

static sparsefmt_code sfi_allocate_tables(sfi_reader *reader, sfi_model *model) {
    sparsefmt_error *error = reader->error;
    uint64_t bytes = ((uint64_t)model->table_count << model->precision) * sizeof *model->tables;
    model->tables = (uint64_t *)sfi_allocate(&reader->file->allocator, bytes);
    if (!model->tables) SFI_FAIL(MEMORY, "no memory for the tables of a model");
    return SPARSEFMT_OK;
}

/* What ends both kinds of model: frequencies of the classes of rows and columns, and the classes of the columns. */
static sparsefmt_code sfi_read_classes(sfi_reader *reader, sfi_bits *bits, sfi_model *model) {
    sparsefmt_error *error = reader->error;
    uint64_t cols = reader->entry->cols, at;
    if (model->row_symbols > 1 && !sfi_read_table(bits, NULL, model->frequencies, model->row_symbols,
                                                  SFI_CLASS_PRECISION, model->class_tables[0]))
        SFI_FAIL(RANS_MODEL, "the model's frequencies of rows are invalid");
    if (model->column_classes > 1 && !sfi_read_table(bits, NULL, model->frequencies, model->column_classes,
                                                     SFI_CLASS_PRECISION, model->class_tables[1]))
        SFI_FAIL(RANS_MODEL, "the model's frequencies of columns are invalid");
    if (!sfi_end_bits(bits)) SFI_FAIL(RANS_MODEL, "the model is cut off, or does not end with zero bits");
    at = bits->at / 8;
    if (model->column_classes == 1) {
        if (at != bits->size / 8) SFI_FAIL(RANS_MODEL, "the model has bytes left over");
        return SPARSEFMT_OK;
    }
    if (cols > SFI_MAX_CLASSED_COLS) SFI_FAIL(RANS_MODEL, "classes of over 2^20 columns");
    model->classes = (unsigned char *)sfi_allocate(&reader->file->allocator, 3 * cols);
    if (!model->classes) SFI_FAIL(MEMORY, "no memory for the classes of the columns");
    model->classed_columns = cols;
    if (!sfi_decode_classes(bits->bytes + at, bits->size / 8 - at, model->class_tables[1], cols, model->classes))
        SFI_FAIL(RANS_MODEL, "the model's classes of columns do not decode");
    return SPARSEFMT_OK;
}

/* The bins, leaves of a tree in preorder. 0 if they are invalid. */
static int sfi_read_bins(sfi_bits *bits, sfi_model *model, unsigned key_bits) {
    struct {
        uint64_t low;
        unsigned width;
    } nodes[66];
    unsigned depth = 1;
    nodes[0].low = 0;
    nodes[0].width = key_bits;
    while (depth && !bits->ended) {
        uint64_t low = nodes[--depth].low;
        unsigned width = nodes[depth].width;
        if (width && sfi_field(bits, 1)) {
            nodes[depth].low = low + ((uint64_t)1 << (width - 1));
            nodes[depth++].width = width - 1;
            nodes[depth].low = low;
            nodes[depth++].width = width - 1;
        } else if (sfi_field(bits, 1)) {
            if (width > 63 || model->bin_count == SFI_MAX_BINS) return 0;
            model->lows[model->bin_count] = low;
            model->widths[model->bin_count++] = (unsigned char)width;
        }
    }
    return !bits->ended && model->bin_count;
}

static sparsefmt_code sfi_read_element_model(sfi_reader *reader, int array, sfi_bits *bits, sfi_model *model) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_entry *entry = reader->entry;
    unsigned key_bits = 8 * sfi_width(entry, array), i;
    int placed = array == SPARSEFMT_VALUES && sfi_dtypes[entry->dtype].bits >= 8 && entry->layout != SPARSEFMT_PERMUTED;
    model->lag = sfi_field(bits, 2);
    model->folded = sfi_field(bits, 1);
    model->shift = sfi_field(bits, 6);
    model->precision = 8 + sfi_field(bits, 3);
    model->row_symbols = 1 + sfi_field(bits, 5);
    model->column_classes = 1 + sfi_field(bits, 5);
    if (bits->ended || model->lag == 3 || model->shift >= key_bits)
        SFI_FAIL(RANS_MODEL, "the model's lag or shift is invalid");
    if (!placed && model->row_symbols + model->column_classes > 2)
        SFI_FAIL(RANS_MODEL, "the model has classes of rows or columns, for elements that have none");
    sfi_read_steps(bits, model, model->row_symbols);
    if (!sfi_read_bins(bits, model, key_bits - model->shift)) SFI_FAIL(RANS_MODEL, "the model's bins are invalid");
    SFI_TRY(sfi_allocate_tables(reader, model));
    for (i = 0; i < model->table_count; i++) {
        uint64_t *slots = model->tables + ((size_t)i << model->precision);
        int fine;
        if (model->table_count > 1) {
            fine = sfi_read_table(bits, model->widths, model->frequencies, model->bin_count, model->precision, slots);
        } else {
            unsigned k;
            for (k = 0; k < model->bin_count; k++) model->frequencies[k] = 1;
            fine = sfi_read_frequencies(bits, model->widths, model->frequencies, model->bin_count, model->precision);
            if (fine) sfi_fill_table(slots, model->frequencies, model->bin_count);
        }
        if (!fine) SFI_FAIL(RANS_MODEL, "the model's frequencies of bins are invalid");
    }
    return sfi_read_classes(reader, bits, model);
}

/* The order of the columns, and the classes of the groups of eight of them. */
static void sfi_order_columns(sfi_model *model, uint64_t cols) {
    uint64_t first, group, place;
    model->order = model->classes + cols;
    model->groups = model->classes + 2 * cols;
    for (first = 0, place = 0; first < cols; first += 64) {
        unsigned some = cols - first < 64 ? (unsigned)(cols - first) : 64, wanted = model->column_classes, i;
        while (wanted--)
            for (i = 0; i < some; i++)
                if (model->classes[first + i] == wanted) model->order[place++] = (unsigned char)i;
    }
    for (group = 0; 8 * group < cols; group++) {
        unsigned some = cols - 8 * group < 8 ? (unsigned)(cols - 8 * group) : 8, sum = 0, i;
        for (i = 0; i < some; i++) sum += model->classes[group / 8 * 64 + model->order[8 * group + i]];
        model->groups[group] = (unsigned char)((2 * sum + some) / (2 * some));
    }
}

static sparsefmt_code sfi_read_position_model(sfi_reader *reader, sfi_bits *bits, sfi_model *model) {
    sparsefmt_error *error = reader->error;
    unsigned row_classes, i;
    model->precision = 8 + sfi_field(bits, 3);
    row_classes = 1 + sfi_field(bits, 5);
    model->copies = sfi_field(bits, 1);
    model->column_classes = 1 + sfi_field(bits, 5);
    model->row_symbols = row_classes + model->copies;
    sfi_read_steps(bits, model, row_classes);
    if (bits->ended) SFI_FAIL(RANS_MODEL, "the model is cut off");
    model->table_count += model->copies;
    SFI_TRY(sfi_allocate_tables(reader, model));
    for (i = 0; i < model->table_count; i++)
        if (!sfi_read_byte_table(bits, model->frequencies, model->precision,
                                 model->tables + ((size_t)i << model->precision)))
            SFI_FAIL(RANS_MODEL, "the model's frequencies of bytes are invalid");
    SFI_TRY(sfi_read_classes(reader, bits, model));
    if (model->classes) sfi_order_columns(model, reader->entry->cols);
    return SPARSEFMT_OK;
}

/* Reads the model of an array, unless that is done. */
static sparsefmt_code sfi_need_model(sfi_reader *reader, int array, sfi_model **found) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_entry *entry = reader->entry;
    sfi_cursor cursor;
    sfi_item key, item;
    sfi_bits bits = {NULL, 0, 0, 0};
    sfi_model *model;
    unsigned i;
    *found = reader->models[array];
    if (*found) return SPARSEFMT_OK;
    cursor.at = entry->models;
    cursor.end = reader->file->data + reader->file->size;
    for (i = 0; i < entry->model_count; i++) {
        if (!sfi_next(&cursor, &key) || !sfi_next(&cursor, &item)) break;
        if (!sfi_is_text(&key, sfi_array_names[array])) continue;
        bits.bytes = item.bytes;
        bits.size = 8 * item.number;
        break;
    }
    model = (sfi_model *)sfi_allocate(&reader->file->allocator, sizeof *model);
    if (!model) SFI_FAIL(MEMORY, "no memory for a model");
    memset(model, 0, sizeof *model);
    *found = reader->models[array] = model;
    if (array == SPARSEFMT_MASK) return sfi_read_position_model(reader, &bits, model);
    return sfi_read_element_model(reader, array, &bits, model);
}

/* ---- Codec rans: chunks (SPEC.md, sections 5.3.5 to 5.3.7) ------------------------------------------------------- */

/* The symbols of the rows of a tile: the part that a chunk begins with if there is more than one. */
static sparsefmt_code sfi_read_row_symbols(sfi_reader *reader, const sfi_model *model, uint64_t rows,
                                           const unsigned char **chunk, uint64_t *size, unsigned char *symbols) {
    sparsefmt_error *error = reader->error;
    uint64_t part;
    if (*size < 4) SFI_FAIL(RANS_STREAM, "the chunk is cut off");
    part = sparsefmt_u32(*chunk);
    if (part > *size - 4) SFI_FAIL(RANS_STREAM, "the chunk is cut off");
    if (!sfi_decode_classes(*chunk + 4, part, model->class_tables[0], rows, symbols))
        SFI_FAIL(RANS_STREAM, "the symbols of the rows do not decode");
    *chunk += 4 + part;
    *size -= 4 + part;
    return SPARSEFMT_OK;
}

/* Positions of the elements of a tile, in their order. */
typedef struct sfi_places {
    const sparsefmt_entry *entry;
    const sparsefmt_tile *tile;
    uint64_t row, column; /* of the next position; in layout bitmask, of the lowest bit of `word` */
    uint64_t word;        /* bits of four columns of a slice of the mask, those that are still to come */
    sfi_slice slice;
} sfi_places;

static void sfi_first_place(sfi_places *places, const sparsefmt_entry *entry, const sparsefmt_tile *tile) {
    memset(places, 0, sizeof *places);
    places->entry = entry;
    places->tile = tile;
    if (entry->layout != SPARSEFMT_BITMASK) return;
    places->slice = sfi_slice_of(tile, entry->cols, 0);
    places->word = sfi_four_columns(&places->slice, 0, entry->cols);
}

/* Row and column of the next position, which is there. */
static void sfi_next_place(sfi_places *places, uint64_t *row, uint64_t *column) {
    const uint64_t cols = places->entry->cols;
    unsigned bit;
    if (places->entry->layout != SPARSEFMT_BITMASK) {
        if (places->column == cols) {
            places->column = 0;
            places->row++;
        }
        *row = places->row;
        *column = places->column++;
        return;
    }
    while (!places->word) {
        places->column += 4;
        if (places->column >= cols) {
            places->column = 0;
            places->row += SFI_SLICE;
            places->slice = sfi_slice_of(places->tile, cols, places->row / SFI_SLICE);
        }
        places->word = sfi_four_columns(&places->slice, places->column, cols);
    }
    bit = sfi_lowest_bit(places->word);
    *row = places->row + bit % SFI_SLICE;
    *column = places->column + bit / SFI_SLICE;
    places->word &= places->word - 1;
}

typedef struct sfi_offsets {
    const unsigned char *words;
    uint64_t at, size; /* in bits */
} sfi_offsets;

/* A field of `width` bits, at most 63, that are there. */
static uint64_t sfi_offset(sfi_offsets *offsets, unsigned width) {
    const unsigned char *word = offsets->words + offsets->at / 64 * 8;
    unsigned shift = (unsigned)(offsets->at % 64);
    uint64_t value;
    if (!width) return 0;
    value = sparsefmt_u64(word) >> shift;
    if (shift + width > 64) value |= sparsefmt_u64(word + 8) << (64 - shift);
    offsets->at += width;
    return value & (((uint64_t)1 << width) - 1);
}

/* Elements of a block of symbols. 0 if the offset bits end before. */
static int sfi_place_elements(const sfi_model *model, const uint16_t *symbols, unsigned count, unsigned width,
                              sfi_offsets *offsets, uint64_t *before, uint64_t first, unsigned char *array) {
    const unsigned top = 8 * width - 1;
    unsigned i;
    for (i = 0; i < count; i++) {
        unsigned bits = model->widths[symbols[i]];
        uint64_t key, element;
        if (bits > offsets->size - offsets->at) return 0;
        key = model->lows[symbols[i]] + sfi_offset(offsets, bits);
        element = model->folded ? (key & 1) << top | key >> 1 << model->shift : key << model->shift;
        if (model->lag) {
            uint64_t *other = &before[model->lag == 2 ? (first + i) % 16 : 0];
            element += *other;
            *other = element;
        }
        sfi_put(array + (first + i) * width, element, width);
    }
    return 1;
}

static sparsefmt_code sfi_check_mask(const sparsefmt_entry *entry, const sparsefmt_tile *tile, sparsefmt_error *error) {
    const sfi_slice last = sfi_slice_of(tile, entry->cols, (tile->rows - 1) / SFI_SLICE);
    uint64_t column;
    for (column = 0; column < entry->cols; column++)
        if (sfi_element(last.mask, column, last.width) >> last.rows)
            SFI_FAIL(MASK_PADDING, "mask has a bit set beyond the rows");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_decode_element_stream(sfi_reader *reader, const sfi_model *model, const sparsefmt_tile *tile,
                                                const unsigned char *rows, sfi_offsets *offsets,
                                                const unsigned char *chunk, uint64_t size, unsigned width,
                                                unsigned char *array, uint64_t count) {
    sparsefmt_error *error = reader->error;
    const uint64_t *tables[SFI_BLOCK];
    uint16_t symbols[SFI_BLOCK];
    uint64_t before[16] = {0}, done, row, column;
    const int placed = model->row_symbols + model->column_classes > 2;
    sfi_places places;
    sfi_stream stream;
    unsigned i;
    for (i = 0; i < SFI_BLOCK; i++) tables[i] = model->tables;
    sfi_first_place(&places, reader->entry, tile);
    if (placed && reader->entry->layout == SPARSEFMT_BITMASK) {
        const sparsefmt_array *mask = &tile->arrays[SPARSEFMT_MASK];
        SFI_TRY(sfi_check_mask(reader->entry, tile, error));
        if (sfi_count_bits(mask->bytes, mask->size) != count)
            SFI_FAIL(SLICE_OFFSETS, "mask has not as many bits set as there are values");
    }
    if (!sfi_open_stream(&stream, chunk, size, count)) SFI_FAIL(RANS_STREAM, "the chunk's states are invalid");
    for (done = 0; done < count; done += SFI_BLOCK) {
        unsigned some = count - done < SFI_BLOCK ? (unsigned)(count - done) : SFI_BLOCK;
        for (i = 0; placed && i < some; i++) {
            unsigned sum;
            sfi_next_place(&places, &row, &column);
            sum = (rows ? rows[row] : 0u) + (model->classes ? model->classes[column] : 0u);
            tables[i] = model->tables + ((size_t)model->numbers[sum] << model->precision);
        }
        if (!sfi_decode_block(&stream, tables, model->precision, some, symbols))
            SFI_FAIL(RANS_STREAM, "the chunk's words end too early");
        if (!sfi_place_elements(model, symbols, some, width, offsets, before, done, array))
            SFI_FAIL(RANS_STREAM, "the chunk's offset bits end too early");
    }
    if (!sfi_end_stream(&stream) || offsets->at != offsets->size)
        SFI_FAIL(RANS_STREAM, "the chunk does not end as it must");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_decode_elements(sfi_reader *reader, int number, const sparsefmt_tile *tile,
                                          const unsigned char *chunk, uint64_t size, unsigned char *array,
                                          uint64_t raw) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_allocator *allocator = &reader->file->allocator;
    unsigned width = sfi_width(reader->entry, number);
    unsigned char *rows = NULL;
    sparsefmt_code code = SPARSEFMT_OK;
    sfi_offsets offsets;
    sfi_model *model;
    uint64_t words;
    SFI_TRY(sfi_need_model(reader, number, &model));
    if (size < 8) SFI_FAIL(RANS_STREAM, "the chunk is cut off");
    offsets.words = chunk + 8;
    offsets.at = 0;
    offsets.size = sparsefmt_u64(chunk);
    words = sfi_ceil_div(offsets.size, 64);
    if (words > (size - 8) / 8) SFI_FAIL(RANS_STREAM, "the chunk's offset bits are cut off");
    chunk += 8 + 8 * words;
    size -= 8 + 8 * words;
    if (offsets.size % 64 && sparsefmt_u64(chunk - 8) >> offsets.size % 64)
        SFI_FAIL(RANS_STREAM, "bits behind the chunk's offset bits are not zero");
    if (model->row_symbols > 1) {
        rows = (unsigned char *)sfi_allocate(allocator, tile->rows);
        if (!rows) SFI_FAIL(MEMORY, "no memory for the classes of the rows");
        code = sfi_read_row_symbols(reader, model, tile->rows, &chunk, &size, rows);
    }
    if (!code)
        code = sfi_decode_element_stream(reader, model, tile, rows, &offsets, chunk, size, width, array, raw / width);
    sfi_release(allocator, rows, tile->rows);
    return code;
}

/* Puts the bits of the groups of a row, in the order of the columns, where they belong. */
static void sfi_place_columns(const sfi_model *model, unsigned char *row, uint64_t groups) {
    uint64_t run;
    for (run = 0; run < groups; run += 8) {
        const unsigned some = groups - run < 8 ? (unsigned)(groups - run) : 8;
        uint64_t coded = 0, word = 0;
        unsigned i;
        for (i = 0; i < some; i++) coded |= (uint64_t)row[run + i] << 8 * i;
        for (; coded; coded &= coded - 1) word |= (uint64_t)1 << model->order[8 * run + sfi_lowest_bit(coded)];
        sfi_put(row + run, word, some);
    }
}

/* Which byte of a stream of positions comes next. */
typedef struct sfi_group {
    uint64_t first, row, number; /* first row of the slice; row; group */
} sfi_group;

static void sfi_next_group(sfi_group *group, uint64_t rows, uint64_t groups) {
    group->row++;
    if (group->row < rows && group->row % SFI_SLICE) return;
    if (++group->number < groups) {
        group->row = group->first;
        return;
    }
    group->number = 0;
    group->first = group->row;
}

/* The bytes of all groups of all rows, which are put row by row. */
static sparsefmt_code sfi_decode_groups(sfi_reader *reader, const sfi_model *model, const unsigned char *symbols,
                                        const unsigned char *chunk, uint64_t size, unsigned char *bits, uint64_t rows) {
    sparsefmt_error *error = reader->error;
    const uint64_t groups = sfi_ceil_div(reader->entry->cols, 8), count = rows * groups;
    const unsigned row_classes = model->row_symbols - model->copies;
    const uint64_t *tables[SFI_BLOCK];
    uint16_t coded[SFI_BLOCK];
    sfi_group next = {0, 0, 0}, out = {0, 0, 0};
    sfi_stream stream;
    uint64_t done;
    unsigned i;
    if (!sfi_open_stream(&stream, chunk, size, count)) SFI_FAIL(RANS_STREAM, "the chunk's states are invalid");
    for (done = 0; done < count; done += SFI_BLOCK) {
        unsigned some = count - done < SFI_BLOCK ? (unsigned)(count - done) : SFI_BLOCK;
        for (i = 0; i < some; i++) {
            unsigned symbol = symbols ? symbols[next.row] : 0u, number;
            number = symbol == row_classes ? model->table_count - 1
                                           : model->numbers[symbol + (model->groups ? model->groups[next.number] : 0u)];
            tables[i] = model->tables + ((size_t)number << model->precision);
            sfi_next_group(&next, rows, groups);
        }
        if (!sfi_decode_block(&stream, tables, model->precision, some, coded))
            SFI_FAIL(RANS_STREAM, "the chunk's words end too early");
        for (i = 0; i < some; i++) {
            bits[out.row * groups + out.number] = (unsigned char)coded[i];
            sfi_next_group(&out, rows, groups);
        }
    }
    if (!sfi_end_stream(&stream)) SFI_FAIL(RANS_STREAM, "the chunk does not end as it must");
    return SPARSEFMT_OK;
}

/* The bits of all rows, each in as many bytes as there are groups. */
static sparsefmt_code sfi_decode_rows(sfi_reader *reader, const sfi_model *model, const unsigned char *symbols,
                                      const unsigned char *chunk, uint64_t size, unsigned char *bits, uint64_t rows) {
    sparsefmt_error *error = reader->error;
    const uint64_t cols = reader->entry->cols, groups = sfi_ceil_div(cols, 8);
    const unsigned row_classes = model->row_symbols - model->copies;
    uint64_t row, i;
    if (symbols && symbols[0] == row_classes) SFI_FAIL(RANS_STREAM, "the first row of a tile is a copy");
    SFI_TRY(sfi_decode_groups(reader, model, symbols, chunk, size, bits, rows));
    for (row = 0; row < rows; row++) {
        unsigned char *of_row = bits + row * groups;
        if (cols % 8 && of_row[groups - 1] >> cols % 8) SFI_FAIL(RANS_STREAM, "mask has a bit set beyond the columns");
        if (model->order) sfi_place_columns(model, of_row, groups);
        if (symbols && symbols[row] == row_classes) {
            const unsigned char *above = of_row - groups;
            for (i = 0; i < groups; i++) of_row[i] ^= above[i];
        }
    }
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_decode_positions(sfi_reader *reader, const sparsefmt_tile *tile, const unsigned char *chunk,
                                           uint64_t size, unsigned char *mask) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_allocator *allocator = &reader->file->allocator;
    const uint64_t cols = reader->entry->cols, bytes = tile->rows * sfi_ceil_div(cols, 8);
    unsigned char *symbols = NULL, *bits;
    sparsefmt_code code = SPARSEFMT_OK;
    sfi_model *model;
    SFI_TRY(sfi_need_model(reader, SPARSEFMT_MASK, &model));
    if (model->row_symbols > 1) {
        symbols = (unsigned char *)sfi_allocate(allocator, tile->rows);
        if (!symbols) SFI_FAIL(MEMORY, "no memory for the symbols of the rows");
        code = sfi_read_row_symbols(reader, model, tile->rows, &chunk, &size, symbols);
    }
    bits = code ? NULL : (unsigned char *)sfi_allocate(allocator, bytes);
    if (!code && !bits) code = sfi_fail(error, SPARSEFMT_ERROR_MEMORY, "no memory for the rows of a mask");
    if (!code) code = sfi_decode_rows(reader, model, symbols, chunk, size, bits, tile->rows);
    if (!code) sfi_put_mask(bits, tile->rows, cols, mask);
    sfi_release(allocator, bits, bytes);
    sfi_release(allocator, symbols, tile->rows);
    return code;
}

static void sfi_derive_slice_offsets(const sparsefmt_entry *entry, const sparsefmt_tile *tile, unsigned char *offsets) {
    const uint64_t slices = sfi_ceil_div(tile->rows, SFI_SLICE);
    uint64_t number, total = 0;
    for (number = 0; number < slices; number++) {
        const sfi_slice slice = sfi_slice_of(tile, entry->cols, number);
        sfi_put(offsets + 4 * number, total, 4);
        total += sfi_count_values(&slice, entry->cols);
    }
    sfi_put(offsets + 4 * slices, total, 4);
}

/* ---- Tiles ------------------------------------------------------------------------------------------------------ */

static sparsefmt_code sfi_decode(sfi_reader *reader, int number, const sparsefmt_tile *tile, const sfi_record *record,
                                 unsigned char *array) {
    const unsigned char *chunk = reader->file->data + record->offset;
    if (reader->entry->codecs[number] == SFI_ZSTD) {
        if (number == SPARSEFMT_MASK) return sfi_decode_mask(reader, tile, chunk, record->stored, array);
        return sfi_decode_planes(reader, chunk, record->stored, array, record->raw, sfi_width(reader->entry, number));
    }
    if (number == SPARSEFMT_MASK) return sfi_decode_positions(reader, tile, chunk, record->stored, array);
    if (!sfi_is_derived(reader->entry, number))
        return sfi_decode_elements(reader, number, tile, chunk, record->stored, array, record->raw);
    sfi_derive_slice_offsets(reader->entry, tile, array);
    return SPARSEFMT_OK;
}

/* Verifies one chunk and decodes it, if it is coded. */
static sparsefmt_code sfi_read_array(sfi_reader *reader, int number, sparsefmt_tile *tile, uint64_t chunk) {
    sparsefmt_error *error = reader->error;
    const sparsefmt_file *file = reader->file;
    sparsefmt_array *array = &tile->arrays[number];
    sfi_record record = sfi_chunk(file, chunk);
    const uint64_t end = record.offset + record.stored;
    unsigned char *bytes;
    if (sparsefmt_xxh64(NULL, 0, file->data + record.offset, (size_t)record.stored) != record.checksum)
        SFI_FAIL(CHUNK_CHECKSUM, "%s: its bytes are not the ones that were written", sfi_array_names[number]);
    if (!sfi_all_zero(file->data + end, sfi_padding(file, chunk, end)))
        SFI_FAIL(PADDING_NOT_ZERO, "%s: bytes behind its chunk are not zero", sfi_array_names[number]);
    if (record.stored == record.raw) {
        array->bytes = file->data + record.offset;
        array->size = (size_t)record.raw;
        return SPARSEFMT_OK;
    }
    bytes = (unsigned char *)sfi_allocate(&file->allocator, record.raw + SFI_PADDING);
    if (!bytes) SFI_FAIL(MEMORY, "no memory for an array of %.0f bytes", (double)record.raw);
    array->bytes = bytes;
    array->owned = bytes;
    array->size = (size_t)record.raw;
    memset(bytes + record.raw, 0, SFI_PADDING);
    return sfi_decode(reader, number, tile, &record, bytes);
}

static int sfi_is_stored_zero(const sfi_dtype *dtype, uint64_t element) {
    return !element || element == dtype->negative_zero;
}

static sparsefmt_code sfi_check_dense(const sparsefmt_entry *entry, const sparsefmt_tile *tile,
                                      sparsefmt_error *error) {
    const sparsefmt_array *values = &tile->arrays[SPARSEFMT_VALUES];
    const unsigned used = (unsigned)(tile->rows * entry->cols % 8 * sfi_dtypes[entry->dtype].bits % 8);
    size_t i;
    if (entry->dtype == SPARSEFMT_BOOL)
        for (i = 0; i < values->size; i++)
            if (values->bytes[i] > 1) SFI_FAIL(BOOL_INVALID, "a BOOL that is neither 0 nor 1");
    if (used && values->bytes[values->size - 1] >> used) SFI_FAIL(VALUES_PADDING, "unused bits of values are not zero");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_check_bitmask(const sparsefmt_entry *entry, sparsefmt_tile *tile, sparsefmt_error *error) {
    const sfi_dtype *dtype = &sfi_dtypes[entry->dtype];
    const unsigned width = dtype->bits / 8;
    const unsigned char *offsets = tile->arrays[SPARSEFMT_SLICE_OFFSETS].bytes;
    const sparsefmt_array *values = &tile->arrays[SPARSEFMT_VALUES];
    uint64_t number, total = 0, i;
    SFI_TRY(sfi_check_mask(entry, tile, error));
    for (number = 0; SFI_SLICE * number < tile->rows; number++) {
        const sfi_slice slice = sfi_slice_of(tile, entry->cols, number);
        if (sparsefmt_u32(offsets + 4 * number) != total)
            SFI_FAIL(SLICE_OFFSETS, "slice_offsets are not those of mask");
        total += sfi_count_values(&slice, entry->cols);
    }
    if (sparsefmt_u32(offsets + 4 * number) != total || values->size / width != total)
        SFI_FAIL(SLICE_OFFSETS, "slice_offsets or values are not those of mask");
    for (i = 0; i < total; i++)
        if (sfi_is_stored_zero(dtype, sfi_element(values->bytes, i, width)))
            SFI_FAIL(STORED_ZERO, "a stored value is zero");
    tile->nnz = total;
    return SPARSEFMT_OK;
}

/* Row counts, row permutation and slice offsets. `seen` has a zeroed bit for each row. */
static sparsefmt_code sfi_check_rows(const sparsefmt_entry *entry, sparsefmt_tile *tile, unsigned char *seen,
                                     sparsefmt_error *error) {
    const unsigned char *counts = tile->arrays[SPARSEFMT_ROW_COUNTS].bytes;
    const unsigned char *permutation = tile->arrays[SPARSEFMT_ROW_PERMUTATION].bytes;
    const unsigned char *offsets = tile->arrays[SPARSEFMT_SLICE_OFFSETS].bytes;
    const uint64_t slots = tile->arrays[SPARSEFMT_VALUES].size / (SFI_SLICE * sfi_width(entry, SPARSEFMT_VALUES));
    uint64_t i, total = 0, before = entry->cols, row_before = 0;
    int counts_fine = 1, permutation_fine = 1, offsets_fine = 1;
    for (i = 0; i < tile->rows; i++) {
        uint64_t count = sparsefmt_u32(counts + 4 * i), row = sparsefmt_u16(permutation + 2 * i);
        counts_fine &= count <= before;
        permutation_fine &= row < tile->rows && !(seen[row / 8] >> row % 8 & 1);
        permutation_fine &= !i || count != before || row > row_before;
        seen[row / 8] = (unsigned char)(seen[row / 8] | 1u << row % 8);
        if (i % SFI_SLICE == 0) {
            offsets_fine &= sparsefmt_u32(offsets + i / SFI_SLICE * 4) == total;
            total += count;
        }
        tile->nnz += count;
        before = count;
        row_before = row;
    }
    offsets_fine &= sparsefmt_u32(offsets + sfi_ceil_div(tile->rows, SFI_SLICE) * 4) == total && total == slots;
    if (!counts_fine) SFI_FAIL(ROW_COUNTS, "row_counts ascend, or are more than the columns");
    if (!permutation_fine) SFI_FAIL(ROW_PERMUTATION, "no permutation, or rows of equal count are out of order");
    if (!offsets_fine) SFI_FAIL(SLICE_OFFSETS, "slice_offsets or values are not those of row_counts");
    return SPARSEFMT_OK;
}

enum { SFI_STORED_ZERO = 1, SFI_COLUMN_ORDER = 2, SFI_COLUMN_RANGE = 4, SFI_SLOT_PADDING = 8 };

/* Values and columns, or gaps, of one slice of layout permuted, slot by slot. Bits of the faults that it has. Fillers,
   which row_counts count, are taken off tile->nnz. */
static unsigned sfi_check_slice(const sparsefmt_entry *entry, sparsefmt_tile *tile, uint64_t slice) {
    const sfi_dtype *dtype = &sfi_dtypes[entry->dtype];
    const int gaps = sfi_has(entry, SPARSEFMT_GAPS), where = gaps ? SPARSEFMT_GAPS : SPARSEFMT_COLUMNS;
    const unsigned width = dtype->bits / 8, where_width = sfi_width(entry, where);
    const unsigned char *values = tile->arrays[SPARSEFMT_VALUES].bytes;
    const unsigned char *places = tile->arrays[where].bytes;
    const unsigned char *offsets = tile->arrays[SPARSEFMT_SLICE_OFFSETS].bytes + 4 * slice;
    const uint64_t first = sparsefmt_u32(offsets), slots = sparsefmt_u32(offsets + 4) - first;
    uint64_t counts[SFI_SLICE] = {0}, least[SFI_SLICE] = {0}, slot;
    unsigned lane, faults = 0;
    for (lane = 0; lane < SFI_SLICE && SFI_SLICE * slice + lane < tile->rows; lane++)
        counts[lane] = sparsefmt_u32(tile->arrays[SPARSEFMT_ROW_COUNTS].bytes + 4 * (SFI_SLICE * slice + lane));
    for (slot = 0; slot < slots; slot++) {
        for (lane = 0; lane < SFI_SLICE; lane++) {
            uint64_t at = SFI_SLICE * (first + slot) + lane;
            uint64_t place = sfi_element(places, at, where_width), value = sfi_element(values, at, width);
            uint64_t column = gaps && slot ? least[lane] - 1 + place : place;
            if (slot >= counts[lane]) {
                faults |= place || value ? SFI_SLOT_PADDING : 0;
                continue;
            }
            faults |= (column >= entry->cols ? SFI_COLUMN_RANGE : 0) | (column < least[lane] ? SFI_COLUMN_ORDER : 0);
            if (gaps && !value && place == 255 && slot + 1 < counts[lane])
                tile->nnz--;
            else if (sfi_is_stored_zero(dtype, value))
                faults |= SFI_STORED_ZERO;
            least[lane] = column + 1;
        }
    }
    return faults;
}

static sparsefmt_code sfi_check_permuted(const sfi_reader *reader, sparsefmt_tile *tile) {
    sparsefmt_error *error = reader->error;
    unsigned char seen[65536 / 8] = {0}; /* any row that 16 bits can name */
    unsigned faults = 0;
    uint64_t slice;
    SFI_TRY(sfi_check_rows(reader->entry, tile, seen, error));
    for (slice = 0; SFI_SLICE * slice < tile->rows; slice++)
        faults |= sfi_check_slice(reader->entry, tile, slice);
    if (faults & SFI_STORED_ZERO) SFI_FAIL(STORED_ZERO, "a stored value is zero, and no filler");
    if (faults & SFI_COLUMN_ORDER) SFI_FAIL(COLUMN_ORDER, "columns of a row do not ascend");
    if (faults & SFI_COLUMN_RANGE) SFI_FAIL(COLUMN_RANGE, "a column beyond the last");
    if (faults & SFI_SLOT_PADDING) SFI_FAIL(SLOT_PADDING, "a padding lane is not 0");
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_check_negative_zeros(const sparsefmt_entry *entry, const sparsefmt_tile *tile,
                                               sparsefmt_error *error) {
    const sparsefmt_array *bits = &tile->arrays[SPARSEFMT_NEGATIVE_ZEROS];
    const uint64_t pruned = tile->rows * entry->cols - tile->nnz;
    if (bits->size != sfi_ceil_div(pruned, 8)) SFI_FAIL(ARRAY_SIZE, "negative_zeros has another size than nnz gives");
    if (pruned % 8 && bits->bytes[bits->size - 1] >> pruned % 8)
        SFI_FAIL(NEGATIVE_ZEROS_PADDING, "unused bits of negative_zeros are not zero");
    return SPARSEFMT_OK;
}

static void sfi_release_tile(const sparsefmt_file *file, sparsefmt_tile *tile) {
    int i;
    for (i = 0; i < SPARSEFMT_ARRAY_COUNT; i++)
        sfi_release(&file->allocator, tile->arrays[i].owned, (uint64_t)tile->arrays[i].size + SFI_PADDING);
    memset(tile, 0, sizeof *tile);
}

/* Reads and checks a tile. After an error, what *tile owns is still to be released. */
static sparsefmt_code sfi_fill_tile(sfi_reader *reader, uint64_t number, sparsefmt_tile *tile) {
    const sparsefmt_entry *entry = reader->entry;
    uint64_t chunk = entry->first_chunk + number * sfi_array_count(entry);
    int array;
    memset(tile, 0, sizeof *tile);
    tile->first_row = number * entry->tile_rows;
    tile->rows = sfi_tile_height(entry, number);
    for (array = 0; array < SPARSEFMT_ARRAY_COUNT; array++) {
        if (!sfi_has(entry, array)) continue;
        SFI_TRY(sfi_read_array(reader, array, tile, chunk++));
    }
    switch (entry->layout) {
    case SPARSEFMT_DENSE:
        tile->nnz = tile->rows * entry->cols;
        return sfi_check_dense(entry, tile, reader->error);
    case SPARSEFMT_BITMASK: SFI_TRY(sfi_check_bitmask(entry, tile, reader->error)); break;
    default: SFI_TRY(sfi_check_permuted(reader, tile));
    }
    if (!sfi_has(entry, SPARSEFMT_NEGATIVE_ZEROS)) return SPARSEFMT_OK;
    return sfi_check_negative_zeros(entry, tile, reader->error);
}

static void sfi_open_reader(sfi_reader *reader, const sparsefmt_file *file, const sparsefmt_entry *entry,
                            sparsefmt_error *error) {
    memset(reader, 0, sizeof *reader);
    reader->file = file;
    reader->entry = entry;
    reader->error = error;
}

static void sfi_close_reader(sfi_reader *reader) {
    int i;
    for (i = 0; i < SPARSEFMT_ARRAY_COUNT; i++) sfi_free_model(&reader->file->allocator, reader->models[i]);
}

/* What all tiles of a tensor together show. */
typedef struct sfi_totals {
    uint64_t nnz;
    int negative_zeros;
} sfi_totals;

static void sfi_count_tile(sfi_totals *totals, const sparsefmt_tile *tile) {
    const sparsefmt_array *bits = &tile->arrays[SPARSEFMT_NEGATIVE_ZEROS];
    totals->nnz += tile->nnz;
    totals->negative_zeros = totals->negative_zeros || !sfi_all_zero(bits->bytes, bits->size);
}

static sparsefmt_code sfi_check_totals(const sfi_totals *totals, const sparsefmt_entry *entry, sparsefmt_error *error) {
    if (totals->nnz != entry->nnz) SFI_FAIL(NNZ, "nnz is not the sum over the tiles");
    if (sfi_has(entry, SPARSEFMT_NEGATIVE_ZEROS) && !totals->negative_zeros)
        SFI_FAIL(NEGATIVE_ZEROS_EMPTY, "negative_zeros without a single one");
    return SPARSEFMT_OK;
}

sparsefmt_code sparsefmt_read_tile(const sparsefmt_file *file, size_t number, uint64_t tile_number,
                                   sparsefmt_tile *tile, sparsefmt_error *error) {
    const sparsefmt_entry *entry = sfi_entry(file, number, error);
    sparsefmt_code code;
    sfi_reader reader;
    memset(tile, 0, sizeof *tile);
    if (!entry) return SPARSEFMT_ERROR_ARGUMENT;
    if (tile_number >= entry->tiles) SFI_FAIL(ARGUMENT, "no such tile");
    sfi_open_reader(&reader, file, entry, error);
    code = sfi_fill_tile(&reader, tile_number, tile);
    sfi_close_reader(&reader);
    if (!code) return code;
    sfi_release_tile(file, tile);
    sfi_name_tensor(entry, error);
    return code;
}

void sparsefmt_free_tile(const sparsefmt_file *file, sparsefmt_tile *tile) { sfi_release_tile(file, tile); }

static sparsefmt_code sfi_load(sfi_reader *reader, sparsefmt_tensor *tensor) {
    sparsefmt_error *error = reader->error;
    const uint64_t tiles = reader->entry->tiles;
    sfi_totals totals = {0, 0};
    uint64_t i;
    tensor->tiles = (sparsefmt_tile *)sfi_allocate(&reader->file->allocator, tiles * sizeof *tensor->tiles);
    if (!tensor->tiles) SFI_FAIL(MEMORY, "no memory for %.0f tiles", (double)tiles);
    memset(tensor->tiles, 0, (size_t)(tiles * sizeof *tensor->tiles));
    for (i = 0; i < tiles; i++) {
        SFI_TRY(sfi_fill_tile(reader, i, &tensor->tiles[i]));
        sfi_count_tile(&totals, &tensor->tiles[i]);
    }
    return sfi_check_totals(&totals, reader->entry, error);
}

sparsefmt_code sparsefmt_load(const sparsefmt_file *file, size_t number, sparsefmt_tensor *tensor,
                              sparsefmt_error *error) {
    const sparsefmt_entry *entry = sfi_entry(file, number, error);
    sparsefmt_code code;
    sfi_reader reader;
    memset(tensor, 0, sizeof *tensor);
    if (!entry) return SPARSEFMT_ERROR_ARGUMENT;
    tensor->file = file;
    tensor->number = number;
    sparsefmt_describe(file, number, &tensor->info, error);
    sfi_open_reader(&reader, file, entry, error);
    code = sfi_load(&reader, tensor);
    sfi_close_reader(&reader);
    if (!code) return code;
    sparsefmt_unload(tensor);
    sfi_name_tensor(entry, error);
    return code;
}

void sparsefmt_unload(sparsefmt_tensor *tensor) {
    uint64_t i;
    if (tensor->tiles) {
        for (i = 0; i < tensor->info.tiles; i++) sfi_release_tile(tensor->file, &tensor->tiles[i]);
        sfi_release(&tensor->file->allocator, tensor->tiles, tensor->info.tiles * sizeof *tensor->tiles);
    }
    memset(tensor, 0, sizeof *tensor);
}

/* ---- Dense bytes ------------------------------------------------------------------------------------------------ */

static void sfi_expand_bitmask(const sparsefmt_entry *entry, const sparsefmt_tile *tile, unsigned char *dense) {
    const unsigned width = sfi_dtypes[entry->dtype].bits / 8;
    const unsigned char *value = tile->arrays[SPARSEFMT_VALUES].bytes;
    uint64_t row, column, word;
    for (row = 0; row < tile->rows; row += SFI_SLICE) {
        const sfi_slice slice = sfi_slice_of(tile, entry->cols, row / SFI_SLICE);
        for (column = 0; column < entry->cols; column += 4) {
            word = sfi_four_columns(&slice, column, entry->cols);
            for (; word; word &= word - 1, value += width) {
                const unsigned bit = sfi_lowest_bit(word);
                const uint64_t at = (row + bit % SFI_SLICE) * entry->cols + column + bit / SFI_SLICE;
                memcpy(dense + at * width, value, width);
            }
        }
    }
}

static void sfi_expand_permuted(const sparsefmt_entry *entry, const sparsefmt_tile *tile, unsigned char *dense) {
    const int gaps = sfi_has(entry, SPARSEFMT_GAPS), where = gaps ? SPARSEFMT_GAPS : SPARSEFMT_COLUMNS;
    const unsigned width = sfi_dtypes[entry->dtype].bits / 8, where_width = sfi_width(entry, where);
    const unsigned char *values = tile->arrays[SPARSEFMT_VALUES].bytes;
    const unsigned char *places = tile->arrays[where].bytes;
    uint64_t position, k;
    for (position = 0; position < tile->rows; position++) {
        uint64_t row = sparsefmt_u16(tile->arrays[SPARSEFMT_ROW_PERMUTATION].bytes + 2 * position);
        uint64_t count = sparsefmt_u32(tile->arrays[SPARSEFMT_ROW_COUNTS].bytes + 4 * position);
        uint64_t first = sparsefmt_u32(tile->arrays[SPARSEFMT_SLICE_OFFSETS].bytes + position / SFI_SLICE * 4);
        uint64_t column = 0;
        for (k = 0; k < count; k++) {
            uint64_t at = SFI_SLICE * (first + k) + position % SFI_SLICE;
            column = sfi_element(places, at, where_width) + (gaps ? column : 0); /* a filler is 0 between elements */
            memcpy(dense + (row * entry->cols + column) * width, values + at * width, width);
        }
    }
}

/* Sets the sign of those pruned positions that are -0.0. */
static void sfi_expand_negative_zeros(const sparsefmt_entry *entry, const sparsefmt_tile *tile, unsigned char *dense) {
    const unsigned width = sfi_dtypes[entry->dtype].bits / 8;
    const unsigned char *bits = tile->arrays[SPARSEFMT_NEGATIVE_ZEROS].bytes;
    const uint64_t elements = tile->rows * entry->cols;
    uint64_t i, pruned = 0;
    for (i = 0; i < elements; i++) {
        if (sfi_element(dense, i, width)) continue;
        if (bits[pruned / 8] >> pruned % 8 & 1) dense[(i + 1) * width - 1] = 0x80;
        pruned++;
    }
}

static void sfi_expand_tile(const sparsefmt_entry *entry, const sparsefmt_tile *tile, unsigned char *dense) {
    const sparsefmt_array *values = &tile->arrays[SPARSEFMT_VALUES];
    if (entry->layout == SPARSEFMT_DENSE) {
        memcpy(dense, values->bytes, values->size);
        return;
    }
    memset(dense, 0, (size_t)sfi_dense_bytes(entry, tile->rows));
    if (entry->layout == SPARSEFMT_BITMASK)
        sfi_expand_bitmask(entry, tile, dense);
    else
        sfi_expand_permuted(entry, tile, dense);
    if (tile->arrays[SPARSEFMT_NEGATIVE_ZEROS].size) sfi_expand_negative_zeros(entry, tile, dense);
}

/* Where in the dense bytes a tile starts: tiles but the last are whole bytes. */
static uint64_t sfi_tile_start(const sparsefmt_entry *entry, const sparsefmt_tile *tile) {
    return sfi_dense_bytes(entry, tile->first_row);
}

sparsefmt_code sparsefmt_expand(const sparsefmt_tensor *tensor, void *dense, size_t size, sparsefmt_error *error) {
    const sparsefmt_entry *entry;
    uint64_t i;
    if (!tensor->file) SFI_FAIL(ARGUMENT, "the tensor is not loaded");
    entry = sfi_entry(tensor->file, tensor->number, error);
    if (size != tensor->info.dense_bytes) SFI_FAIL(ARGUMENT, "the size is not dense_bytes");
    for (i = 0; i < tensor->info.tiles; i++)
        sfi_expand_tile(entry, &tensor->tiles[i], (unsigned char *)dense + sfi_tile_start(entry, &tensor->tiles[i]));
    return SPARSEFMT_OK;
}

static sparsefmt_code sfi_read_dense(sfi_reader *reader, unsigned char *dense) {
    const sparsefmt_entry *entry = reader->entry;
    sfi_totals totals = {0, 0};
    sparsefmt_tile tile;
    uint64_t i;
    for (i = 0; i < entry->tiles; i++) {
        sparsefmt_code code = sfi_fill_tile(reader, i, &tile);
        if (!code) {
            sfi_count_tile(&totals, &tile);
            sfi_expand_tile(entry, &tile, dense + sfi_tile_start(entry, &tile));
        }
        sfi_release_tile(reader->file, &tile);
        if (code) return code;
    }
    return sfi_check_totals(&totals, entry, reader->error);
}

sparsefmt_code sparsefmt_dense(const sparsefmt_file *file, size_t number, void *dense, size_t size,
                               sparsefmt_error *error) {
    const sparsefmt_entry *entry = sfi_entry(file, number, error);
    sparsefmt_code code;
    sfi_reader reader;
    if (!entry) return SPARSEFMT_ERROR_ARGUMENT;
    if (size != sfi_dense_bytes(entry, entry->rows)) SFI_FAIL(ARGUMENT, "the size is not dense_bytes");
    sfi_open_reader(&reader, file, entry, error);
    code = sfi_read_dense(&reader, (unsigned char *)dense);
    sfi_close_reader(&reader);
    if (code) sfi_name_tensor(entry, error);
    return code;
}

/* ---- Elements as numbers (SPEC.md, section 3) -------------------------------------------------------------------- */

/* Values of a tile, and what is needed to read them as numbers. */
typedef struct sfi_numbers {
    const unsigned char *bytes;
    sparsefmt_dtype dtype;
    unsigned bits;
    float table[256]; /* of all patterns of dtypes of up to 8 bits */
} sfi_numbers;

static float sfi_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float sfi_half(uint32_t bits) {
    uint32_t magnitude = (bits & 0x7FFF) << 13, sign = (bits & 0x8000) << 16;
    if (magnitude >= 0x0F800000u) return sfi_float_from_bits(sign | magnitude | 0x7F800000u); /* Inf and NaN */
    return sfi_float_from_bits(sign | magnitude) * 5192296858534827628530496329220096.0f;     /* 2^112 */
}

/* A float of at most 8 bits: sign, `exponent_bits`, `mantissa_bits`. */
static float sfi_small_float(unsigned bits, int exponent_bits, int mantissa_bits, int bias) {
    const int mantissa = (int)(bits & ((1u << mantissa_bits) - 1));
    const int exponent = (int)(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
    const double value = exponent ? ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits)
                                  : ldexp(mantissa, 1 - bias - mantissa_bits);
    return (float)(bits >> (exponent_bits + mantissa_bits) & 1 ? -value : value);
}

static float sfi_small_number(sparsefmt_dtype dtype, unsigned bits) {
    const float nan = sfi_float_from_bits(0x7FC00000u);
    switch (dtype) {
    case SPARSEFMT_I8: return (float)(bits < 128 ? (int)bits : (int)bits - 256);
    case SPARSEFMT_F4: return sfi_small_float(bits, 2, 1, 1);
    case SPARSEFMT_F6_E2M3: return sfi_small_float(bits, 2, 3, 1);
    case SPARSEFMT_F6_E3M2: return sfi_small_float(bits, 3, 2, 3);
    case SPARSEFMT_F8_E5M2: return sfi_half(bits << 8);
    case SPARSEFMT_F8_E4M3: return (bits & 0x7F) == 0x7F ? nan : sfi_small_float(bits, 4, 3, 7);
    case SPARSEFMT_F8_E4M3FNUZ: return bits == 0x80 ? nan : sfi_small_float(bits, 4, 3, 8);
    case SPARSEFMT_F8_E5M2FNUZ: return bits == 0x80 ? nan : sfi_small_float(bits, 5, 2, 16);
    case SPARSEFMT_F8_E8M0: return bits == 0xFF ? nan : (float)ldexp(1, (int)bits - 127);
    default: return (float)bits; /* BOOL, U8 */
    }
}

static void sfi_set_up_numbers(sfi_numbers *numbers, sparsefmt_dtype dtype) {
    unsigned i;
    numbers->bytes = NULL;
    numbers->dtype = dtype;
    numbers->bits = sfi_dtypes[dtype].bits;
    if (numbers->bits <= 8)
        for (i = 0; i < 1u << numbers->bits; i++) numbers->table[i] = sfi_small_number(dtype, i);
}

#define SFI_SOME 256 /* elements converted at a time: a multiple of 16 */
#define SFI_LINE 64  /* columns at a time of rows of layout dense */

/* Little-endian integers as integers, so many at a time that compilers vectorise what is done with them. */
#if defined(__BYTE_ORDER__) && !defined(SPARSEFMT_PORTABLE)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define SFI_LITTLE_ENDIAN
#endif
#endif

static void sfi_load_u16(const unsigned char *at, unsigned count, uint16_t *out) {
#ifdef SFI_LITTLE_ENDIAN
    memcpy(out, at, 2 * count);
#else
    unsigned i;
    for (i = 0; i < count; i++) out[i] = (uint16_t)sparsefmt_u16(at + 2 * i);
#endif
}

static void sfi_load_u32(const unsigned char *at, unsigned count, uint32_t *out) {
#ifdef SFI_LITTLE_ENDIAN
    memcpy(out, at, 4 * count);
#else
    unsigned i;
    for (i = 0; i < count; i++) out[i] = sparsefmt_u32(at + 4 * i);
#endif
}

static void sfi_load_u64(const unsigned char *at, unsigned count, uint64_t *out) {
#ifdef SFI_LITTLE_ENDIAN
    memcpy(out, at, 8 * count);
#else
    unsigned i;
    for (i = 0; i < count; i++) out[i] = sparsefmt_u64(at + 8 * i);
#endif
}

/* Elements `first` to `first + count - 1` of a dtype that binary32 holds exactly; at most SFI_SOME. */
static void sfi_convert_f32(const sfi_numbers *numbers, uint64_t first, unsigned count, float *out) {
    const unsigned char *at = numbers->bytes + (numbers->bits < 8 ? 0 : first * (numbers->bits / 8));
    uint16_t narrow[SFI_SOME];
    uint32_t bits[SFI_SOME];
    unsigned i;
    if (numbers->bits == 16) sfi_load_u16(at, count, narrow);
    switch (numbers->dtype) {
    case SPARSEFMT_I16:
        for (i = 0; i < count; i++) out[i] = (float)((int32_t)(narrow[i] ^ 0x8000u) - 0x8000);
        break;
    case SPARSEFMT_U16:
        for (i = 0; i < count; i++) out[i] = (float)narrow[i];
        break;
    case SPARSEFMT_F16:
        for (i = 0; i < count; i++) out[i] = sfi_half(narrow[i]);
        break;
    case SPARSEFMT_BF16:
        for (i = 0; i < count; i++) bits[i] = (uint32_t)narrow[i] << 16;
        memcpy(out, bits, 4 * count);
        break;
    case SPARSEFMT_F32:
#ifdef SFI_LITTLE_ENDIAN
        memcpy(out, at, 4 * count);
#else
        for (i = 0; i < count; i++) out[i] = sfi_float_from_bits(sparsefmt_u32(at + 4 * i));
#endif
        break;
    default:
        if (numbers->bits == 8)
            for (i = 0; i < count; i++) out[i] = numbers->table[at[i]];
        else
            for (i = 0; i < count; i++) out[i] = numbers->table[sfi_packed(at, first + i, numbers->bits)];
    }
}

static int64_t sfi_signed(uint64_t bits) {
    return bits >> 63 ? -(int64_t)(~bits) - 1 : (int64_t)bits;
}

static void sfi_convert_f64(const sfi_numbers *numbers, uint64_t first, unsigned count, double *out) {
    const unsigned char *at = numbers->bytes + (numbers->bits < 8 ? 0 : first * (numbers->bits / 8));
    uint64_t wide[SFI_SOME];
    uint32_t bits[SFI_SOME];
    float narrow[SFI_SOME];
    unsigned i;
    if (numbers->bits == 64) sfi_load_u64(at, count, wide);
    if (numbers->bits == 32) sfi_load_u32(at, count, bits);
    switch (numbers->dtype) {
    case SPARSEFMT_I32:
        for (i = 0; i < count; i++) out[i] = (double)((int64_t)(bits[i] ^ 0x80000000u) - 0x80000000);
        break;
    case SPARSEFMT_U32:
        for (i = 0; i < count; i++) out[i] = (double)bits[i];
        break;
    case SPARSEFMT_I64:
        for (i = 0; i < count; i++) out[i] = (double)sfi_signed(wide[i]);
        break;
    case SPARSEFMT_U64:
        for (i = 0; i < count; i++) out[i] = (double)wide[i];
        break;
    case SPARSEFMT_F64: memcpy(out, wide, 8 * count); break;
    default:
        sfi_convert_f32(numbers, first, count, narrow);
        for (i = 0; i < count; i++) out[i] = (double)narrow[i];
    }
}

/* ---- Products (SPEC.md, section 6) ------------------------------------------------------------------------------- */

static void sfi_read_columns(const unsigned char *columns, uint64_t first, unsigned count, unsigned width,
                             uint32_t *out) {
    uint16_t narrow[SFI_SOME];
    unsigned i;
    if (width == 4) {
        sfi_load_u32(columns + 4 * first, count, out);
        return;
    }
    sfi_load_u16(columns + 2 * first, count, narrow);
    for (i = 0; i < count; i++) out[i] = narrow[i];
}

/* The columns of `count` elements, a multiple of 16, from their gaps. reached: those of the slot before. */
static void sfi_add_up_gaps(const unsigned char *gaps, uint64_t first, unsigned count, uint32_t *reached,
                            uint32_t *out) {
    unsigned i, lane;
    for (i = 0; i < count; i += SFI_SLICE)
        for (lane = 0; lane < SFI_SLICE; lane++) out[i + lane] = reached[lane] += gaps[first + i + lane];
}

/* The products of a tile in each layout, for accumulators of type T. `finite` says whether all of x is: then multiplying
   zeros gives the same bits as skipping them. */
#define SFI_PRODUCTS(TARGET, T, FMA, CONVERT, NAME)                                                                    \
    /* Eight rows at a time, so that their chains of additions overlap. Rows that do not exist are 0. */               \
    TARGET                                                                                                             \
    static void sfi_dense_##NAME(const sfi_numbers *w, const sparsefmt_tile *tile, uint64_t cols, const T *x,          \
                                 int finite, T *y) {                                                                   \
        T lines[8][SFI_LINE];                                                                                          \
        uint64_t row, first;                                                                                           \
        unsigned i, k;                                                                                                 \
        memset(lines, 0, sizeof lines);                                                                                \
        for (row = 0; row < tile->rows; row += 8) {                                                                    \
            const unsigned rows = tile->rows - row < 8 ? (unsigned)(tile->rows - row) : 8;                             \
            T s[8] = {0};                                                                                              \
            for (first = 0; first < cols; first += SFI_LINE) {                                                         \
                const unsigned count = cols - first < SFI_LINE ? (unsigned)(cols - first) : SFI_LINE;                  \
                const T *const here = x + first;                                                                       \
                for (i = 0; i < rows; i++) CONVERT(w, (row + i) * cols + first, count, lines[i]);                      \
                for (i = 0; i < rows && !finite; i++)                                                                  \
                    for (k = 0; k < count; k++)                                                                        \
                        if (lines[i][k] != 0) s[i] = FMA(lines[i][k], here[k], s[i]);                                  \
                for (k = 0; k < count && finite; k++) {                                                                \
                    s[0] = FMA(lines[0][k], here[k], s[0]);                                                            \
                    s[1] = FMA(lines[1][k], here[k], s[1]);                                                            \
                    s[2] = FMA(lines[2][k], here[k], s[2]);                                                            \
                    s[3] = FMA(lines[3][k], here[k], s[3]);                                                            \
                    s[4] = FMA(lines[4][k], here[k], s[4]);                                                            \
                    s[5] = FMA(lines[5][k], here[k], s[5]);                                                            \
                    s[6] = FMA(lines[6][k], here[k], s[6]);                                                            \
                    s[7] = FMA(lines[7][k], here[k], s[7]);                                                            \
                }                                                                                                      \
            }                                                                                                          \
            for (i = 0; i < rows; i++) y[tile->first_row + row + i] = s[i] + (T)0;                                     \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* Rows in lanes, as they lie in a slice. */                                                                       \
    TARGET                                                                                                             \
    static void sfi_bitmask_##NAME(const sfi_numbers *w, const sparsefmt_tile *tile, uint64_t cols, const T *x,        \
                                   T *y) {                                                                             \
        T some[SFI_SOME];                                                                                              \
        uint64_t row, column, word, converted = 0;                                                                     \
        unsigned at = 0, end = 0, lane;                                                                                \
        for (row = 0; row < tile->rows; row += SFI_SLICE) {                                                            \
            const sfi_slice slice = sfi_slice_of(tile, cols, row / SFI_SLICE);                                         \
            T s[SFI_SLICE] = {0};                                                                                      \
            for (column = 0; column < cols; column += 4) {                                                             \
                const T *const here = x + column;                                                                      \
                for (word = sfi_four_columns(&slice, column, cols); word; word &= word - 1) {                          \
                    const unsigned bit = sfi_lowest_bit(word);                                                         \
                    if (at == end) {                                                                                   \
                        end = tile->nnz - converted < SFI_SOME ? (unsigned)(tile->nnz - converted) : SFI_SOME;         \
                        CONVERT(w, converted, end, some);                                                              \
                        converted += end;                                                                              \
                        at = 0;                                                                                        \
                    }                                                                                                  \
                    s[bit % SFI_SLICE] = FMA(some[at++], here[bit / SFI_SLICE], s[bit % SFI_SLICE]);                   \
                }                                                                                                      \
            }                                                                                                          \
            for (lane = 0; lane < slice.rows; lane++) y[tile->first_row + row + lane] = s[lane] + (T)0;                \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* Rows of a slice end one after the other, the last lane first: all lanes as long as all have elements. */        \
    TARGET                                                                                                             \
    static void sfi_permuted_##NAME(const sfi_numbers *w, const sparsefmt_tile *tile, uint64_t cols, int gaps,         \
                                    const T *x, int finite, T *y) {                                                    \
        const unsigned char *where = tile->arrays[gaps ? SPARSEFMT_GAPS : SPARSEFMT_COLUMNS].bytes;                    \
        const unsigned column_width = cols > 65536 ? 4 : 2;                                                            \
        T some[SFI_SOME];                                                                                              \
        uint32_t places[SFI_SOME];                                                                                     \
        uint64_t position;                                                                                             \
        unsigned lane;                                                                                                 \
        for (position = 0; position < tile->rows; position += SFI_SLICE) {                                             \
            const unsigned char *offsets = tile->arrays[SPARSEFMT_SLICE_OFFSETS].bytes + position / SFI_SLICE * 4;     \
            const uint64_t first = sparsefmt_u32(offsets), slots = sparsefmt_u32(offsets + 4) - first;                 \
            const uint64_t left = tile->rows - position;                                                               \
            uint64_t counts[SFI_SLICE] = {0}, slot = 0;                                                                \
            const unsigned lanes = left < SFI_SLICE ? (unsigned)left : SFI_SLICE;                                      \
            uint32_t reached[SFI_SLICE] = {0};                                                                         \
            unsigned active = lanes, i;                                                                                \
            T s[SFI_SLICE] = {0};                                                                                      \
            for (lane = 0; lane < lanes; lane++)                                                                       \
                counts[lane] = sparsefmt_u32(tile->arrays[SPARSEFMT_ROW_COUNTS].bytes + 4 * (position + lane));        \
            while (slot < slots) {                                                                                     \
                const uint64_t some_slots = slots - slot < SFI_SOME / SFI_SLICE ? slots - slot : SFI_SOME / SFI_SLICE; \
                const unsigned count = (unsigned)some_slots * SFI_SLICE;                                               \
                CONVERT(w, SFI_SLICE * (first + slot), count, some);                                                   \
                if (gaps)                                                                                              \
                    sfi_add_up_gaps(where, SFI_SLICE * (first + slot), count, reached, places);                        \
                else                                                                                                   \
                    sfi_read_columns(where, SFI_SLICE * (first + slot), count, column_width, places);                  \
                for (i = 0; i < count && finite && slot < counts[SFI_SLICE - 1]; i += SFI_SLICE, slot++)               \
                    for (lane = 0; lane < SFI_SLICE; lane++)                                                           \
                        s[lane] = FMA(some[i + lane], x[places[i + lane]], s[lane]);                                   \
                for (; i < count; i += SFI_SLICE, slot++) {                                                            \
                    while (counts[active - 1] <= slot) active--;                                                       \
                    for (lane = 0; lane < active; lane++)                                                              \
                        if (finite || some[i + lane] != 0) /* a filler */                                              \
                            s[lane] = FMA(some[i + lane], x[places[i + lane]], s[lane]);                               \
                }                                                                                                      \
            }                                                                                                          \
            for (lane = 0; lane < lanes; lane++) {                                                                     \
                const unsigned char *row = tile->arrays[SPARSEFMT_ROW_PERMUTATION].bytes + 2 * (position + lane);      \
                y[tile->first_row + sparsefmt_u16(row)] = s[lane] + (T)0;                                              \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    TARGET                                                                                                             \
    static void sfi_matvec_##NAME(const sparsefmt_tensor *tensor, const T *x, T *y) {                                  \
        const sparsefmt_info *info = &tensor->info;                                                                    \
        sfi_numbers w;                                                                                                 \
        uint64_t i;                                                                                                    \
        int finite = 1;                                                                                                \
        sfi_set_up_numbers(&w, info->dtype);                                                                           \
        for (i = 0; i < info->cols; i++) finite &= x[i] - x[i] == 0;                                                   \
        if (!info->tiles)                                                                                              \
            for (i = 0; i < info->rows; i++) y[i] = 0;                                                                 \
        for (i = 0; i < info->tiles; i++) {                                                                            \
            const sparsefmt_tile *tile = &tensor->tiles[i];                                                            \
            w.bytes = tile->arrays[SPARSEFMT_VALUES].bytes;                                                            \
            switch (info->layout) {                                                                                    \
            case SPARSEFMT_BITMASK: sfi_bitmask_##NAME(&w, tile, info->cols, x, y); break;                             \
            case SPARSEFMT_PERMUTED:                                                                                   \
                sfi_permuted_##NAME(&w, tile, info->cols, info->arrays >> SPARSEFMT_GAPS & 1, x, finite, y);           \
                break;                                                                                                 \
            default: sfi_dense_##NAME(&w, tile, info->cols, x, finite, y);                                             \
            }                                                                                                          \
        }                                                                                                              \
    }

#define SFI_ANY_TARGET
SFI_PRODUCTS(SFI_ANY_TARGET, float, fmaf, sfi_convert_f32, f32)
SFI_PRODUCTS(SFI_ANY_TARGET, double, fma, sfi_convert_f64, f64)

/* Where the compiler does not know whether the processor has an instruction for fma, a call does it, six times slower.
   So the same again with that instruction, for those that have it; the bits are the same. */
#if defined(__GNUC__) && defined(__x86_64__) && !defined(__FMA__) && !defined(SPARSEFMT_PORTABLE)
#define SFI_FMA_TARGET __attribute__((target("avx2,fma")))
SFI_PRODUCTS(SFI_FMA_TARGET, float, fmaf, sfi_convert_f32, f32_fma)
SFI_PRODUCTS(SFI_FMA_TARGET, double, fma, sfi_convert_f64, f64_fma)

static int sfi_has_fma(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

int sparsefmt_sum_bits(sparsefmt_dtype dtype) {
    switch (dtype) {
    case SPARSEFMT_C64: return 0;
    case SPARSEFMT_F64: case SPARSEFMT_I32: case SPARSEFMT_U32: case SPARSEFMT_I64: case SPARSEFMT_U64: return 64;
    default: return (unsigned)dtype < SPARSEFMT_DTYPE_COUNT ? 32 : 0;
    }
}

sparsefmt_code sparsefmt_matvec_f32(const sparsefmt_tensor *tensor, const float *x, float *y) {
    if (!tensor->file || sparsefmt_sum_bits(tensor->info.dtype) != 32) return SPARSEFMT_ERROR_ARGUMENT;
#ifdef SFI_FMA_TARGET
    if (sfi_has_fma()) {
        sfi_matvec_f32_fma(tensor, x, y);
        return SPARSEFMT_OK;
    }
#endif
    sfi_matvec_f32(tensor, x, y);
    return SPARSEFMT_OK;
}

sparsefmt_code sparsefmt_matvec_f64(const sparsefmt_tensor *tensor, const double *x, double *y) {
    if (!tensor->file || !sparsefmt_sum_bits(tensor->info.dtype)) return SPARSEFMT_ERROR_ARGUMENT;
#ifdef SFI_FMA_TARGET
    if (sfi_has_fma()) {
        sfi_matvec_f64_fma(tensor, x, y);
        return SPARSEFMT_OK;
    }
#endif
    sfi_matvec_f64(tensor, x, y);
    return SPARSEFMT_OK;
}

/* ---- Elements of any dtype as numbers ---------------------------------------------------------------------------- */

sparsefmt_code sparsefmt_numbers_f32(sparsefmt_dtype dtype, const void *dense, uint64_t count, float *numbers) {
    const int bits = sparsefmt_sum_bits(dtype);
    sfi_numbers from;
    uint64_t i, wide;
    if (!bits) return SPARSEFMT_ERROR_ARGUMENT;
    sfi_set_up_numbers(&from, dtype);
    from.bytes = (const unsigned char *)dense;
    for (i = 0; i < count; i += SFI_SOME) {
        const unsigned some = count - i < SFI_SOME ? (unsigned)(count - i) : SFI_SOME;
        double narrowed[SFI_SOME];
        unsigned k;
        if (bits == 32) {
            sfi_convert_f32(&from, i, some, numbers + i);
            continue;
        }
        sfi_convert_f64(&from, i, some, narrowed);
        for (k = 0; k < some; k++) {
            wide = from.bits == 64 ? sparsefmt_u64(from.bytes + 8 * (i + k)) : 0;
            if (dtype == SPARSEFMT_I64) /* binary64 has rounded it, and once is enough */
                numbers[i + k] = (float)sfi_signed(wide);
            else
                numbers[i + k] = dtype == SPARSEFMT_U64 ? (float)wide : (float)narrowed[k];
        }
    }
    return SPARSEFMT_OK;
}

sparsefmt_code sparsefmt_numbers_f64(sparsefmt_dtype dtype, const void *dense, uint64_t count, double *numbers) {
    sfi_numbers from;
    uint64_t i;
    if (!sparsefmt_sum_bits(dtype)) return SPARSEFMT_ERROR_ARGUMENT;
    sfi_set_up_numbers(&from, dtype);
    from.bytes = (const unsigned char *)dense;
    for (i = 0; i < count; i += SFI_SOME)
        sfi_convert_f64(&from, i, count - i < SFI_SOME ? (unsigned)(count - i) : SFI_SOME, numbers + i);
    return SPARSEFMT_OK;
}

/* ---- Which scales a weight has (SPEC.md, sections 6.1 and 6.3) --------------------------------------------------- */

typedef struct sfi_json {
    const unsigned char *at, *end;
} sfi_json;

static int sfi_is_next(sfi_json *json, char expected) {
    while (json->at < json->end && (*json->at == ' ' || *json->at == '\t' || *json->at == '\n' || *json->at == '\r'))
        json->at++;
    if (json->at == json->end || *json->at != (unsigned char)expected) return 0;
    json->at++;
    return 1;
}

/* The 16 bits of four hexadecimal digits; -1 if they are none. */
static int32_t sfi_json_digits(sfi_json *json) {
    int32_t bits = 0;
    unsigned i;
    if (json->end - json->at < 4) return -1;
    for (i = 0; i < 4; i++) {
        const unsigned char digit = *json->at++;
        if (digit >= '0' && digit <= '9')
            bits = bits * 16 + (digit - '0');
        else if ((digit | 32) >= 'a' && (digit | 32) <= 'f')
            bits = bits * 16 + ((digit | 32) - 'a' + 10);
        else
            return -1;
    }
    return bits;
}

/* What stands behind \u, as UTF-8. Half a pair becomes three bytes that no name of a file has. 0 if there is an error. */
static unsigned sfi_json_code_point(sfi_json *json, unsigned char *out) {
    int32_t code = sfi_json_digits(json), low;
    if (code < 0) return 0;
    if (code >= 0xD800 && code < 0xDC00 && json->end - json->at >= 6 && json->at[0] == '\\' && json->at[1] == 'u') {
        sfi_json behind = *json;
        behind.at += 2;
        low = sfi_json_digits(&behind);
        if (low >= 0xDC00 && low < 0xE000) {
            *json = behind;
            code = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00);
        }
    }
    if (code < 0x80) {
        out[0] = (unsigned char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (unsigned char)(0xC0 | code >> 6);
        out[1] = (unsigned char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (unsigned char)(0xE0 | code >> 12);
        out[1] = (unsigned char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (unsigned char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (unsigned char)(0xF0 | code >> 18);
    out[1] = (unsigned char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (unsigned char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (unsigned char)(0x80 | (code & 0x3F));
    return 4;
}

/* Reads a string, and finds the tensor of that name. 0 if there is none: no string. */
static int sfi_json_tensor(const sparsefmt_file *file, sfi_json *json, size_t *number) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    unsigned char name[SFI_MAX_NAME_BYTES + 4], some[4];
    size_t size = 0;
    if (!sfi_is_next(json, '"')) return 0;
    while (json->at < json->end && *json->at != '"') {
        unsigned count = 1;
        some[0] = *json->at++;
        if (some[0] < 0x20) return 0;
        if (some[0] == '\\') {
            const char *escape;
            if (json->at == json->end || !*json->at) return 0;
            if (*json->at == 'u') {
                json->at++;
                count = sfi_json_code_point(json, some);
                if (!count) return 0;
            } else {
                escape = strchr(from, *json->at++);
                if (!escape) return 0;
                some[0] = (unsigned char)to[escape - from];
            }
        }
        if (size <= SFI_MAX_NAME_BYTES) { /* what is longer than any name of a tensor need not be known */
            memcpy(name + size, some, count);
            size += count;
        }
    }
    *number = sparsefmt_find_bytes(file, (const char *)name, size);
    return json->at++ < json->end;
}

typedef struct sfi_pairs {
    sfi_json text;
    int found;
} sfi_pairs;

static void sfi_find_text(void *context, const char *key, size_t key_bytes, const char *value, size_t value_bytes) {
    sfi_pairs *pairs = (sfi_pairs *)context;
    if (key_bytes != 16 || memcmp(key, "sparsefmt.scales", 16)) return;
    pairs->found = 1;
    pairs->text.at = (const unsigned char *)value;
    pairs->text.end = pairs->text.at + value_bytes;
}

/* Reads all pairs. seen: a bit for each tensor, 0 at first. */
static sparsefmt_code sfi_read_pairs(const sparsefmt_file *file, sfi_json *text, unsigned char *seen, size_t number,
                                     size_t *scales, sparsefmt_error *error) {
    const char *const no_object = "metadata `sparsefmt.scales` is no JSON object of texts";
    sparsefmt_code code = SPARSEFMT_OK;
    size_t weight, its_scales;
    int more;
    if (!sfi_is_next(text, '{')) SFI_FAIL(SCALES_METADATA, "%s", no_object);
    more = !sfi_is_next(text, '}');
    while (more) {
        if (!sfi_json_tensor(file, text, &weight) || !sfi_is_next(text, ':') ||
            !sfi_json_tensor(file, text, &its_scales))
            SFI_FAIL(SCALES_METADATA, "%s", no_object);
        if (weight == SPARSEFMT_NONE || its_scales == SPARSEFMT_NONE) {
            code = SPARSEFMT_ERROR_SCALES_MISSING;
        } else {
            if (seen[weight / 8] >> weight % 8 & 1)
                SFI_FAIL(SCALES_METADATA, "metadata `sparsefmt.scales` has the name of a weight twice");
            seen[weight / 8] |= (unsigned char)(1u << weight % 8);
            if (weight == number) *scales = its_scales;
        }
        more = sfi_is_next(text, ',');
        if (!more && !sfi_is_next(text, '}')) SFI_FAIL(SCALES_METADATA, "%s", no_object);
    }
    (void)sfi_is_next(text, ' '); /* steps over white space, and is no byte that could follow */
    if (text->at != text->end) SFI_FAIL(SCALES_METADATA, "%s", no_object);
    if (code) SFI_FAIL(SCALES_MISSING, "metadata `sparsefmt.scales` names a tensor that is not in the file");
    return SPARSEFMT_OK;
}

sparsefmt_code sparsefmt_find_scales(const sparsefmt_file *file, size_t number, size_t *scales, sparsefmt_error *error) {
    const uint64_t bytes = sfi_ceil_div(file->tensor_count, 8);
    sfi_pairs pairs;
    unsigned char *seen;
    sparsefmt_code code;
    *scales = SPARSEFMT_NONE;
    if (!sfi_entry(file, number, error)) return SPARSEFMT_ERROR_ARGUMENT;
    memset(&pairs, 0, sizeof pairs);
    sparsefmt_metadata(file, sfi_find_text, &pairs);
    if (!pairs.found) return SPARSEFMT_OK;
    seen = (unsigned char *)sfi_allocate(&file->allocator, bytes);
    if (!seen) SFI_FAIL(MEMORY, "no memory to read pairs of weights and scales");
    memset(seen, 0, (size_t)bytes);
    code = sfi_read_pairs(file, &pairs.text, seen, number, scales, error);
    sfi_release(&file->allocator, seen, bytes);
    if (!code) return code;
    *scales = SPARSEFMT_NONE;
    sfi_name_tensor(sfi_entry(file, number, NULL), error);
    return code;
}

/* Whether a tensor has a shape that scales of a weight can have, and how many groups these are then. */
static int sfi_has_scales_shape(const sparsefmt_tensor *weight, const sparsefmt_info *info, uint64_t *groups) {
    const uint64_t rows = weight->info.rows, cols = weight->info.cols;
    *groups = 1;
    if (info->ndim < 2) return !info->ndim || info->shape[0] == 1 || info->shape[0] == rows;
    *groups = info->shape[1];
    if (info->ndim != 2 || !*groups || cols % *groups) return 0;
    return info->shape[0] == rows || (info->shape[0] == 1 && *groups == 1);
}

static sparsefmt_code sfi_load_scales(const sparsefmt_tensor *weight, size_t number, const sparsefmt_info *info,
                                      sparsefmt_scales *scales, sparsefmt_error *error) {
    unsigned char *dense;
    sparsefmt_code code;
    uint64_t i;
    if (info->dtype != SPARSEFMT_F32 && info->dtype != SPARSEFMT_BF16 && info->dtype != SPARSEFMT_F16)
        SFI_FAIL(SCALES_DTYPE, "scales of dtype %s", sparsefmt_dtype_name(info->dtype));
    if (!sfi_has_scales_shape(weight, info, &scales->groups))
        SFI_FAIL(SCALES_SHAPE, "the shape of the scales is none for %llu x %llu elements",
                 (unsigned long long)scales->rows, (unsigned long long)scales->cols);
    scales->count = info->elements;
    if (info->elements > SIZE_MAX / 16) SFI_FAIL(MEMORY, "no memory for scales");
    scales->numbers = (float *)sfi_allocate(&scales->file->allocator, 4 * info->elements);
    dense = (unsigned char *)sfi_allocate(&scales->file->allocator, info->dense_bytes);
    if (!scales->numbers || !dense)
        code = sfi_fail(error, SPARSEFMT_ERROR_MEMORY, "no memory for scales");
    else
        code = sparsefmt_dense(scales->file, number, dense, (size_t)info->dense_bytes, error);
    if (!code) sparsefmt_numbers_f32(info->dtype, dense, scales->count, scales->numbers);
    sfi_release(&scales->file->allocator, dense, info->dense_bytes);
    if (code) return code;
    for (i = 0; i < scales->count; i++)
        if (!(scales->numbers[i] >= 0 && scales->numbers[i] <= FLT_MAX))
            SFI_FAIL(SCALES_VALUE, "a scale is NaN, infinite or negative");
    return SPARSEFMT_OK;
}

sparsefmt_code sparsefmt_load_scales(const sparsefmt_tensor *weight, size_t number, sparsefmt_scales *scales,
                                     sparsefmt_error *error) {
    sparsefmt_info info;
    sparsefmt_code code;
    char message[sizeof error->message];
    memset(scales, 0, sizeof *scales);
    if (!weight->file) SFI_FAIL(ARGUMENT, "the weight is not loaded");
    SFI_TRY(sparsefmt_describe(weight->file, number, &info, error));
    scales->file = weight->file;
    scales->rows = weight->info.rows;
    scales->cols = weight->info.cols;
    code = sfi_load_scales(weight, number, &info, scales, error);
    if (!code) return code;
    sparsefmt_unload_scales(scales);
    if (error && !error->tensor) {
        memcpy(message, error->message, sizeof message);
        sfi_fail(error, code, "with '%.*s': %s", info.name_bytes < 60 ? (int)info.name_bytes : 60, info.name, message);
        sfi_name_tensor(sfi_entry(weight->file, weight->number, NULL), error);
    }
    return code;
}

void sparsefmt_unload_scales(sparsefmt_scales *scales) {
    if (scales->numbers) sfi_release(&scales->file->allocator, scales->numbers, 4 * scales->count);
    memset(scales, 0, sizeof *scales);
}

/* ---- Products of scaled weights (SPEC.md, sections 6.1 and 6.2) --------------------------------------------------- */

/* Goes through the values of a slice in the order in which they are stored. In each row it is that of its columns. */
typedef struct sfi_walk {
    const sparsefmt_tile *tile;
    sparsefmt_layout layout;
    int gaps;
    uint64_t cols, position; /* of the first row of the slice, among the rows of the tile as they are stored */
    uint64_t next, end;      /* values */
    unsigned lane, lanes;    /* of a slice that is dense: the row of the next value */
    uint64_t column;         /* likewise; in bitmask, that of the four which follow */
    sfi_slice slice;
    uint64_t word; /* of a mask, what is left of four columns */
    uint32_t reached[SFI_SLICE];
} sfi_walk;

static void sfi_walk_tile(sfi_walk *walk, const sparsefmt_tensor *tensor, const sparsefmt_tile *tile) {
    walk->tile = tile;
    walk->layout = tensor->info.layout;
    walk->gaps = tensor->info.arrays >> SPARSEFMT_GAPS & 1;
    walk->cols = tensor->info.cols;
}

static void sfi_walk_slice(sfi_walk *walk, uint64_t position) {
    const uint64_t left = walk->tile->rows - position;
    const unsigned char *offsets = walk->tile->arrays[SPARSEFMT_SLICE_OFFSETS].bytes;
    const unsigned unit = walk->layout == SPARSEFMT_PERMUTED ? SFI_SLICE : 1;
    walk->position = position;
    walk->lanes = left < SFI_SLICE ? (unsigned)left : SFI_SLICE;
    walk->lane = 0;
    walk->column = 0;
    walk->word = 0;
    memset(walk->reached, 0, sizeof walk->reached);
    if (walk->layout == SPARSEFMT_DENSE) {
        walk->next = position * walk->cols;
        walk->end = walk->next + walk->lanes * walk->cols;
        return;
    }
    offsets += position / SFI_SLICE * 4;
    walk->next = (uint64_t)sparsefmt_u32(offsets) * unit;
    walk->end = (uint64_t)sparsefmt_u32(offsets + 4) * unit;
    if (walk->layout == SPARSEFMT_BITMASK) walk->slice = sfi_slice_of(walk->tile, walk->cols, position / SFI_SLICE);
}

/* Lanes and columns of the next values, at most SFI_SOME. Returns how many they are: 0 at the end of the slice. */
static unsigned sfi_walk_on(sfi_walk *walk, unsigned char *lanes, uint64_t *columns) {
    const unsigned count = walk->end - walk->next < SFI_SOME ? (unsigned)(walk->end - walk->next) : SFI_SOME;
    const uint64_t first = walk->next;
    uint32_t places[SFI_SOME];
    unsigned i;
    walk->next += count;
    switch (walk->layout) {
    case SPARSEFMT_BITMASK:
        for (i = 0; i < count; i++, walk->word &= walk->word - 1) {
            while (!walk->word) {
                walk->word = sfi_four_columns(&walk->slice, walk->column, walk->cols);
                walk->column += 4;
            }
            lanes[i] = (unsigned char)(sfi_lowest_bit(walk->word) % SFI_SLICE);
            columns[i] = walk->column - 4 + sfi_lowest_bit(walk->word) / SFI_SLICE;
        }
        break;
    case SPARSEFMT_PERMUTED:
        if (walk->gaps)
            sfi_add_up_gaps(walk->tile->arrays[SPARSEFMT_GAPS].bytes, first, count, walk->reached, places);
        else
            sfi_read_columns(walk->tile->arrays[SPARSEFMT_COLUMNS].bytes, first, count, walk->cols > 65536 ? 4 : 2,
                             places);
        for (i = 0; i < count; i++) {
            lanes[i] = (unsigned char)(i % SFI_SLICE);
            columns[i] = places[i];
        }
        break;
    default:
        for (i = 0; i < count; i++) {
            lanes[i] = (unsigned char)walk->lane;
            columns[i] = walk->column++;
            if (walk->column == walk->cols) {
                walk->column = 0;
                walk->lane++;
            }
        }
    }
    return count;
}

/* The row of a lane, among those of the tensor. */
static uint64_t sfi_walk_row(const sfi_walk *walk, unsigned lane) {
    const uint64_t stored = walk->position + lane;
    const unsigned char *permutation = walk->tile->arrays[SPARSEFMT_ROW_PERMUTATION].bytes;
    if (walk->layout != SPARSEFMT_PERMUTED) return walk->tile->first_row + stored;
    return walk->tile->first_row + sparsefmt_u16(permutation + 2 * stored);
}

/* The scales of each lane, the group that its sum is of, and the column in which that ends. */
typedef struct sfi_lane_groups {
    const float *scales[SFI_SLICE];
    uint64_t columns, group[SFI_SLICE], end[SFI_SLICE];
} sfi_lane_groups;

static void sfi_first_groups(sfi_lane_groups *groups, const sparsefmt_scales *scales, const sfi_walk *walk) {
    unsigned lane;
    groups->columns = scales->cols / scales->groups;
    for (lane = 0; lane < SFI_SLICE; lane++) {
        const uint64_t row = lane < walk->lanes && scales->count > 1 ? sfi_walk_row(walk, lane) : 0;
        groups->scales[lane] = scales->numbers + row * scales->groups;
        groups->group[lane] = 0;
        groups->end[lane] = groups->columns;
    }
}

/* Lane `lane` goes on in the group of that column. */
static void sfi_enter_group(sfi_lane_groups *groups, unsigned lane, uint64_t column) {
    groups->group[lane] = column / groups->columns;
    groups->end[lane] = (groups->group[lane] + 1) * groups->columns;
}

static float sfi_lane_scale(const sfi_lane_groups *groups, unsigned lane) {
    return groups->scales[lane][groups->group[lane]];
}

/* For sums of type T. Groups without elements are skipped: they would add a zero to t. */
#define SFI_SCALED(TARGET, T, FMA, CONVERT, NAME)                                                                      \
    TARGET                                                                                                             \
    static void sfi_scaled_##NAME(const sparsefmt_tensor *tensor, const sparsefmt_scales *scales, const T *x, T *y) {  \
        T some[SFI_SOME];                                                                                              \
        unsigned char lanes[SFI_SOME];                                                                                 \
        uint64_t columns[SFI_SOME], i, position;                                                                       \
        sfi_lane_groups groups;                                                                                        \
        sfi_numbers w;                                                                                                 \
        sfi_walk walk;                                                                                                 \
        sfi_set_up_numbers(&w, tensor->info.dtype);                                                                    \
        if (!tensor->info.tiles)                                                                                       \
            for (i = 0; i < tensor->info.rows; i++) y[i] = 0;                                                          \
        for (i = 0; i < tensor->info.tiles; i++) {                                                                     \
            sfi_walk_tile(&walk, tensor, &tensor->tiles[i]);                                                           \
            w.bytes = tensor->tiles[i].arrays[SPARSEFMT_VALUES].bytes;                                                 \
            for (position = 0; position < tensor->tiles[i].rows; position += SFI_SLICE) {                              \
                T s[SFI_SLICE] = {0}, t[SFI_SLICE] = {0};                                                              \
                unsigned count, k;                                                                                     \
                sfi_walk_slice(&walk, position);                                                                       \
                sfi_first_groups(&groups, scales, &walk);                                                              \
                while ((count = sfi_walk_on(&walk, lanes, columns)) != 0) {                                            \
                    CONVERT(&w, walk.next - count, count, some);                                                       \
                    for (k = 0; k < count; k++) {                                                                      \
                        const unsigned lane = lanes[k];                                                                \
                        if (some[k] == 0) continue; /* a filler, padding, or a zero of layout dense */                 \
                        if (columns[k] >= groups.end[lane]) {                                                          \
                            t[lane] = FMA(s[lane], (T)sfi_lane_scale(&groups, lane), t[lane]);                         \
                            s[lane] = 0;                                                                               \
                            sfi_enter_group(&groups, lane, columns[k]);                                                \
                        }                                                                                              \
                        s[lane] = FMA(some[k], x[columns[k]], s[lane]);                                                \
                    }                                                                                                  \
                }                                                                                                      \
                for (k = 0; k < walk.lanes; k++)                                                                       \
                    y[sfi_walk_row(&walk, k)] = FMA(s[k], (T)sfi_lane_scale(&groups, k), t[k]) + (T)0;                 \
            }                                                                                                          \
        }                                                                                                              \
    }

SFI_SCALED(SFI_ANY_TARGET, float, fmaf, sfi_convert_f32, f32)
SFI_SCALED(SFI_ANY_TARGET, double, fma, sfi_convert_f64, f64)
#ifdef SFI_FMA_TARGET
SFI_SCALED(SFI_FMA_TARGET, float, fmaf, sfi_convert_f32, f32_fma)
SFI_SCALED(SFI_FMA_TARGET, double, fma, sfi_convert_f64, f64_fma)
#endif

static int sfi_fits(const sparsefmt_tensor *weight, const sparsefmt_scales *scales) {
    return weight->file && scales->numbers && scales->rows == weight->info.rows && scales->cols == weight->info.cols;
}

sparsefmt_code sparsefmt_scaled_matvec_f32(const sparsefmt_tensor *weight, const sparsefmt_scales *scales,
                                           const float *x, float *y) {
    if (!sfi_fits(weight, scales) || sparsefmt_sum_bits(weight->info.dtype) != 32) return SPARSEFMT_ERROR_ARGUMENT;
#ifdef SFI_FMA_TARGET
    if (sfi_has_fma()) {
        sfi_scaled_f32_fma(weight, scales, x, y);
        return SPARSEFMT_OK;
    }
#endif
    sfi_scaled_f32(weight, scales, x, y);
    return SPARSEFMT_OK;
}

sparsefmt_code sparsefmt_scaled_matvec_f64(const sparsefmt_tensor *weight, const sparsefmt_scales *scales,
                                           const double *x, double *y) {
    if (!sfi_fits(weight, scales) || !sparsefmt_sum_bits(weight->info.dtype)) return SPARSEFMT_ERROR_ARGUMENT;
#ifdef SFI_FMA_TARGET
    if (sfi_has_fma()) {
        sfi_scaled_f64_fma(weight, scales, x, y);
        return SPARSEFMT_OK;
    }
#endif
    sfi_scaled_f64(weight, scales, x, y);
    return SPARSEFMT_OK;
}

/* a * b, rounded: compilers that make one fma of a product and a sum may not use it for one. */
static float sfi_product(float a, float b) {
    volatile float product = a * b;
    return product;
}

/* The activations in eight bits, and what one of them stands for. 0 if x is not finite. */
static int sfi_quantize(uint64_t cols, const float *x, const float *input_scale, signed char *a, float *unit) {
    float largest = 0;
    uint64_t j;
    for (j = 0; j < cols; j++) {
        if (x[j] - x[j] != 0) return 0;
        if (fabsf(x[j]) > largest) largest = fabsf(x[j]);
    }
    *unit = input_scale ? *input_scale : largest / 127;
    for (j = 0; j < cols; j++) {
        const float rounded = *unit != 0 ? rintf(x[j] / *unit) : 0;
        a[j] = (signed char)(rounded > 127 ? 127 : rounded < -127 ? -127 : rounded);
    }
    return 1;
}

/* The rows of a tile. Sums are integers of 64 bits, which no row exceeds. */
static void sfi_scaled_tile_i8(const sparsefmt_tensor *tensor, const sparsefmt_tile *tile,
                               const sparsefmt_scales *scales, const signed char *a, float unit, float *y) {
    const unsigned char *values = tile->arrays[SPARSEFMT_VALUES].bytes;
    unsigned char lanes[SFI_SOME];
    uint64_t columns[SFI_SOME], position;
    sfi_lane_groups groups;
    sfi_walk walk;
    sfi_walk_tile(&walk, tensor, tile);
    for (position = 0; position < tile->rows; position += SFI_SLICE) {
        int64_t sums[SFI_SLICE] = {0};
        float t[SFI_SLICE] = {0};
        unsigned count, k;
        sfi_walk_slice(&walk, position);
        sfi_first_groups(&groups, scales, &walk);
        while ((count = sfi_walk_on(&walk, lanes, columns)) != 0) {
            for (k = 0; k < count; k++) {
                const int q = (values[walk.next - count + k] ^ 128) - 128;
                const unsigned lane = lanes[k];
                if (!q) continue;
                if (columns[k] >= groups.end[lane]) {
                    t[lane] = fmaf((float)sums[lane], sfi_lane_scale(&groups, lane), t[lane]);
                    sums[lane] = 0;
                    sfi_enter_group(&groups, lane, columns[k]);
                }
                sums[lane] += q * a[columns[k]];
            }
        }
        for (k = 0; k < walk.lanes; k++) {
            t[k] = fmaf((float)sums[k], sfi_lane_scale(&groups, k), t[k]);
            y[sfi_walk_row(&walk, k)] = sfi_product(t[k], unit) + 0.0f;
        }
    }
}

sparsefmt_code sparsefmt_scaled_matvec_i8(const sparsefmt_tensor *weight, const sparsefmt_scales *scales,
                                          const float *input_scale, const float *x, signed char *a, float *y) {
    uint64_t i, k;
    float unit = 0;
    int finite;
    if (!sfi_fits(weight, scales)) return SPARSEFMT_ERROR_ARGUMENT;
    if (weight->info.dtype != SPARSEFMT_I8) return SPARSEFMT_ERROR_ACTIVATIONS_DTYPE;
    if (input_scale && !(*input_scale > 0 && *input_scale <= FLT_MAX)) return SPARSEFMT_ERROR_INPUT_SCALE;
    finite = sfi_quantize(weight->info.cols, x, input_scale, a, &unit);
    if (!weight->info.tiles)
        for (i = 0; i < weight->info.rows; i++) y[i] = 0;
    for (i = 0; i < weight->info.tiles; i++) {
        const sparsefmt_tile *tile = &weight->tiles[i];
        if (finite)
            sfi_scaled_tile_i8(weight, tile, scales, a, unit, y);
        else
            for (k = 0; k < tile->rows; k++) y[tile->first_row + k] = sfi_float_from_bits(0x7FC00000u);
    }
    return SPARSEFMT_OK;
}

#undef SFI_TRY
#undef SFI_FAIL
#ifdef __cplusplus
}
#endif
#endif /* SPARSEFMT_IMPLEMENTED */
#endif /* SPARSEFMT_IMPLEMENTATION */
