/* Runs the steps of a product, compiled for this processor, on an image of its memory: see tools/arm.py. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "steps.h" /* STEPS: a table of functions */

static int64_t next(FILE *file) {
    int64_t number;
    if (fread(&number, 8, 1, file) != 1) exit(3);
    return number;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    FILE *file = fopen(argv[1], "rb");
    if (!file) return 2;
    int64_t size = next(file), result = next(file), result_bytes = next(file), relocations = next(file);
    int64_t functions = next(file);
    unsigned char *base = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    int64_t *places = malloc(8 * relocations + 16 * functions), *pairs = places + relocations;
    if (!base || fread(places, 8, relocations + 2 * functions, file) != (size_t)(relocations + 2 * functions)) return 3;
    int64_t steps = next(file);
    int64_t *calls = malloc(32 * steps);
    if (fread(calls, 32, steps, file) != (size_t)steps || fread(base, 1, size, file) != (size_t)size) return 3;
    fclose(file);
    for (int64_t number = 0; number < relocations; number++) {
        int64_t address;
        memcpy(&address, base + places[number], 8);
        address += (int64_t)base;
        memcpy(base + places[number], &address, 8);
    }
    for (int64_t number = 0; number < functions; number++) {
        int64_t address = (int64_t)STEPS[pairs[2 * number + 1]];
        memcpy(base + pairs[2 * number], &address, 8);
    }
    for (int64_t number = 0; number < steps; number++) {
        const int64_t *call = calls + 4 * number; /* function, job, units, scratch */
        void *value, *error;
        if (STEPS[call[0]](&value, &error, (int64_t)base + call[1], 0, call[2], (int64_t)base + call[3])) return 4;
    }
    file = fopen(argv[2], "wb");
    if (!file || fwrite(base + result, 1, result_bytes, file) != (size_t)result_bytes || fclose(file)) return 3;
    return 0;
}
