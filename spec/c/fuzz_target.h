/* fuzz_target.h: check_reader.c as a target of libFuzzer.

   Bytes changed anywhere hardly ever pass the checksums. So most mutations change one part of a file, and put it
   together again with right offsets, sizes and checksums, so that the change reaches the code behind them.

   Without libFuzzer, it is a program that runs the target over files, and over a few mutants of each:

       cc -std=c99 -O1 -g -DFUZZER -DFUZZER_MAIN -fsanitize=address,undefined -o fuzz_files check_reader.c -lm
       ./fuzz_files FILE... */

#ifndef FUZZ_TARGET_H
#define FUZZ_TARGET_H

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    text answer = {NULL, 0, 0};
    read_file(data, size, MOST_MEMORY, &answer);
    free(answer.bytes);
    return 0;
}

/* ---- A file in parts -------------------------------------------------------------------------------------------- */

#define TRAILER 20
#define SLACK 4096 /* bytes that a part may grow by */

/* The columns of a chunk table. */
typedef struct table {
    unsigned char *raw, *stored, *checksums; /* `stored` is `raw` if the table has no stored sizes */
    unsigned raw_width, stored_width;
    size_t records;
} table;

typedef struct parts {
    const unsigned char *data; /* the file */
    table table;               /* in `index` */
    uint64_t *offsets, *sizes; /* where the chunks were, and their stored sizes */
    size_t records;            /* how many there were */
    unsigned char preamble[16];
    unsigned char *index; /* to be changed, with room for SLACK bytes more */
    size_t index_size;
    size_t changed; /* number of the chunk that is another, SIZE_MAX for none */
    unsigned char *chunk;
    size_t chunk_size;
} parts;

/* Finds the chunk table of an index. 0 if there is none. */
static int find_table(unsigned char *index, size_t size, table *found) {
    sfi_cursor cursor, check;
    sfi_faults faults = {0, 0};
    sfi_item top, item;
    unsigned width;
    memset(found, 0, sizeof *found);
    cursor.at = index;
    cursor.end = index + size;
    check = cursor;
    if (!sfi_check_value(&check, 0, &faults) || !sfi_next(&cursor, &top) || top.kind != SFI_LIST || !top.number) return 0;
    sfi_take(&cursor, &item);
    if (item.kind != SFI_BIN) return 0;
    if (!item.number) return 1;
    found->raw_width = item.bytes[0] & 15;
    width = item.bytes[0] >> 4;
    if (!sfi_is_width(found->raw_width) || (width && !sfi_is_width(width))) return 0;
    found->records = (size_t)((item.number - 1) / (found->raw_width + width + 8));
    found->raw = index + (item.bytes + 1 - index);
    found->stored = width ? found->raw + found->raw_width * found->records : found->raw;
    found->stored_width = width ? width : found->raw_width;
    found->checksums = found->raw + (found->raw_width + width) * found->records;
    return 1;
}

static uint64_t raw_size(const table *of, size_t number) { return sfi_element(of->raw, number, of->raw_width); }

static uint64_t stored_size(const table *of, size_t number) {
    return sfi_element(of->stored, number, of->stored_width);
}

static void discard(parts *file) {
    free(file->offsets);
    free(file->sizes);
    free(file->index);
    free(file->chunk);
}

/* 0 if it is no file that can be put together again. One whose index is coded is none, since it would have to be coded
   again: corpora have the same files with the index as it is. */
static int take_apart(const unsigned char *data, size_t size, parts *file) {
    uint64_t offset, index_size, end = 16;
    size_t i;
    memset(file, 0, sizeof *file);
    if (size < 16 + TRAILER) return 0;
    index_size = sparsefmt_u32(data + size - TRAILER);
    if (index_size > size - TRAILER - 16) return 0;
    offset = size - TRAILER - index_size;
    file->changed = SIZE_MAX;
    file->index_size = (size_t)index_size;
    file->index = (unsigned char *)malloc(file->index_size + SLACK);
    insist(file->index != NULL, "no memory for an index");
    memcpy(file->preamble, data, 16);
    memcpy(file->index, data + offset, file->index_size);
    if (!find_table(file->index, file->index_size, &file->table)) return 0;
    file->data = data;
    file->records = file->table.records;
    file->offsets = (uint64_t *)malloc((file->records + 1) * sizeof *file->offsets);
    file->sizes = (uint64_t *)malloc((file->records + 1) * sizeof *file->sizes);
    insist(file->offsets != NULL && file->sizes != NULL, "no memory for offsets");
    for (i = 0; i < file->records; i++) {
        const uint64_t stored = file->sizes[i] = stored_size(&file->table, i);
        file->offsets[i] = end = sfi_place(end, stored, raw_size(&file->table, i));
        if (end > offset || stored > offset - end) return 0;
        end += stored;
    }
    return 1;
}

/* Puts chunk `number` at out + size, and into its record. Returns the size then, or 0 if there is no room. */
static size_t put_chunk(const parts *file, const table *to, size_t number, unsigned char *out, size_t size,
                        size_t room) {
    const unsigned char *bytes = file->chunk;
    uint64_t stored = file->chunk_size, at;
    if (number >= file->records) return size; /* a record that was not there before: as it is */
    if (number != file->changed) {
        bytes = file->data + file->offsets[number];
        stored = file->sizes[number];
    } else if (raw_size(to, number) == file->sizes[number]) {
        sfi_put(to->raw + number * to->raw_width, stored, to->raw_width); /* it was stored as it is */
    }
    sfi_put(to->stored + number * to->stored_width, stored, to->stored_width);
    at = sfi_place(size, stored, raw_size(to, number));
    if (at > room || stored > room - at) return 0;
    memset(out + size, 0, (size_t)(at - size));
    memcpy(out + at, bytes, (size_t)stored);
    sfi_put(to->checksums + 8 * number, digest(bytes, (size_t)stored), 8);
    return (size_t)(at + stored);
}

/* Returns the size of the file at `out`, or 0 if there is no room. */
static size_t put_together(const parts *file, unsigned char *out, size_t room) {
    size_t size = 16, i;
    table to;
    if (room < 16) return 0;
    memcpy(out, file->preamble, 16);
    find_table(file->index, file->index_size, &to);
    for (i = 0; i < to.records; i++) {
        size = put_chunk(file, &to, i, out, size, room);
        if (!size) return 0;
    }
    if (file->index_size + TRAILER > room - size) return 0;
    memcpy(out + size, file->index, file->index_size);
    out += size + file->index_size;
    sfi_put(out, file->index_size, 4);
    sfi_put(out + 4, sparsefmt_xxh64(file->preamble, 16, file->index, file->index_size), 8);
    memcpy(out + 12, "\x0A\x1A\x0A\x0D\x46\x50\x53\x89", 8);
    return size + file->index_size + TRAILER;
}

/* ---- Mutations -------------------------------------------------------------------------------------------------- */

/* A number below `below`, from the seed, which is another afterwards. */
static size_t pick(unsigned *seed, size_t below) {
    const uint64_t mixed = (*seed + 1) * (uint64_t)0x9E3779B97F4A7C15u;
    *seed = (unsigned)(mixed >> 32);
    return (size_t)((mixed >> 16 & 0xFFFFFFFFu) % below);
}

/* Changes some bytes; there are as many afterwards. */
static void change(unsigned char *bytes, size_t size) {
    if (size) LLVMFuzzerMutate(bytes, size, size);
}

/* Changes a number, a text or a bin of the index. */
static void change_value(parts *file, unsigned *seed) {
    sfi_cursor cursor;
    sfi_item item;
    size_t values = 0, chosen, i;
    cursor.at = file->index;
    cursor.end = file->index + file->index_size;
    while (sfi_next(&cursor, &item)) values++;
    if (!values) return;
    chosen = pick(seed, values);
    cursor.at = file->index;
    for (i = 0; i <= chosen; i++) {
        unsigned char *start = file->index + (cursor.at - file->index);
        sfi_next(&cursor, &item);
        if (i < chosen) continue;
        if (item.kind == SFI_STR || item.kind == SFI_BIN) start = file->index + (item.bytes - file->index);
        change(start, (size_t)(cursor.at - start));
    }
}

static void change_chunk(parts *file, unsigned *seed) {
    size_t stored;
    if (!file->records) return;
    file->changed = pick(seed, file->records);
    stored = (size_t)file->sizes[file->changed];
    file->chunk = (unsigned char *)malloc(stored + SLACK);
    insist(file->chunk != NULL, "no memory for a chunk");
    memcpy(file->chunk, file->data + file->offsets[file->changed], stored);
    file->chunk_size = stored;
    if (pick(seed, 3))
        change(file->chunk, stored);
    else
        file->chunk_size = LLVMFuzzerMutate(file->chunk, stored, stored + SLACK);
}

static void change_raw_size(parts *file, unsigned *seed) {
    const table *of = &file->table;
    if (of->records) change(of->raw + of->raw_width * pick(seed, of->records), of->raw_width);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    unsigned char *out;
    parts file;
    size_t kind = pick(&seed, 12);
    if (!kind) return LLVMFuzzerMutate(data, size, most);
    if (!take_apart(data, size, &file)) {
        discard(&file);
        return LLVMFuzzerMutate(data, size, most);
    }
    if (kind == 1)
        file.index_size = LLVMFuzzerMutate(file.index, file.index_size, file.index_size + SLACK);
    else if (kind == 2)
        change_raw_size(&file, &seed);
    else if (kind == 3)
        change(file.preamble + 10, 2);
    else if (kind < 8)
        change_value(&file, &seed);
    else
        change_chunk(&file, &seed);
    out = (unsigned char *)malloc(most + 1);
    insist(out != NULL, "no memory for a file");
    size = put_together(&file, out, most);
    memcpy(data, out, size);
    free(out);
    discard(&file);
    return size;
}

/* ---- Without libFuzzer ------------------------------------------------------------------------------------------ */

#ifdef FUZZER_MAIN

#define MUTANTS 20
#define MOST_BYTES ((size_t)1 << 20)

/* In place of libFuzzer's: another byte here and there, and sometimes another size. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most) {
    static unsigned seed;
    size_t changes = 1 + pick(&seed, 3);
    if (size < most && !pick(&seed, 4)) data[size++] = (uint8_t)pick(&seed, 256);
    if (size > 1 && size < most && !pick(&seed, 4)) size--;
    for (; size && changes; changes--) data[pick(&seed, size)] ^= (uint8_t)(1u << pick(&seed, 8));
    return size;
}

int main(int count, char **arguments) {
    unsigned char *bytes = (unsigned char *)malloc(MOST_BYTES), *mutant = (unsigned char *)malloc(MOST_BYTES);
    unsigned long whole = 0, mutants = 0;
    int k;
    insist(bytes && mutant, "no memory for files");
    for (k = 1; k < count; k++) {
        FILE *stream = fopen(arguments[k], "rb");
        const size_t size = stream ? fread(bytes, 1, MOST_BYTES, stream) : 0;
        unsigned seed;
        insist(stream != NULL, "a file that cannot be read");
        fclose(stream);
        LLVMFuzzerTestOneInput(bytes, size);
        for (seed = 0; seed < MUTANTS; seed++) {
            parts file;
            size_t other;
            memcpy(mutant, bytes, size);
            other = LLVMFuzzerCustomMutator(mutant, size, MOST_BYTES, seed);
            LLVMFuzzerTestOneInput(mutant, other);
            if (take_apart(mutant, other, &file)) whole++;
            discard(&file);
            mutants++;
        }
    }
    printf("%d files, %lu mutants, %lu of them whole\n", count - 1, mutants, whole);
    free(bytes);
    free(mutant);
    return 0;
}

#endif
#endif
