/* mapped_file.h: a whole file as bytes, mapped where the system can, for the programs beside it. */

#ifndef MAPPED_FILE_H
#define MAPPED_FILE_H

#include <stddef.h>

typedef struct mapped_file {
    const void *data; /* NULL if the file is empty */
    size_t size;
} mapped_file;

#if defined(__unix__) || defined(__APPLE__)

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* 0 if the file cannot be read. */
static int map_file(mapped_file *file, const char *path) {
    struct stat status;
    void *data = NULL;
    int descriptor = open(path, O_RDONLY), fine;
    if (descriptor < 0) return 0;
    fine = !fstat(descriptor, &status) && S_ISREG(status.st_mode) && (uintmax_t)status.st_size <= SIZE_MAX;
    file->size = fine ? (size_t)status.st_size : 0;
    if (file->size) data = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    file->data = data;
    return fine && data != MAP_FAILED;
}

static void unmap_file(mapped_file *file) {
    if (file->data) munmap((void *)(uintptr_t)file->data, file->size);
}

#else

#include <stdio.h>
#include <stdlib.h>

static int map_file(mapped_file *file, const char *path) {
    FILE *stream = fopen(path, "rb");
    unsigned char *data = NULL, *more;
    size_t room = 0, got;
    file->size = 0;
    if (!stream) return 0;
    for (;;) {
        if (file->size == room) {
            room = room ? 2 * room : 65536;
            more = (unsigned char *)realloc(data, room);
            if (!more) break;
            data = more;
        }
        got = fread(data + file->size, 1, room - file->size, stream);
        if (!got) break;
        file->size += got;
    }
    file->data = data;
    room = !ferror(stream) && feof(stream);
    fclose(stream);
    if (!room) free(data);
    return room != 0;
}

static void unmap_file(mapped_file *file) { free((void *)file->data); }

#endif
#endif
