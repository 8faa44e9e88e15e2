/* A disk that breaks: preloaded into a training, it lets calls on chosen files fail. Inert until FAULT_CALL is set.
 *
 * FAULT_CALL   write, fsync, rename or open (for writing)
 * FAULT_PATH   a part of the path
 * FAULT_AFTER  bytes (of write) or calls (of the others) that succeed before; from then on every one fails
 * FAULT_ERRNO  the number of the error
 * FAULT_MARK   a file that is made at the first failure
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long done, after;
static int is_set, number;
static const char *wanted, *part, *mark;

/* Only the main thread reads the variables, once they are all set: it is the one that changes the environment, and
 * getenv in another thread meanwhile reads memory that is free already. */
static int is_asked(void) {
    if (__atomic_load_n(&is_set, __ATOMIC_ACQUIRE)) return 1;
    if (syscall(SYS_gettid) != getpid()) return 0;
    const char *names[] = {"FAULT_CALL", "FAULT_PATH", "FAULT_MARK", "FAULT_AFTER", "FAULT_ERRNO"}, *values[5];
    for (int i = 0; i < 5; i++)
        if (!(values[i] = getenv(names[i]))) return 0;
    wanted = strdup(values[0]), part = strdup(values[1]), mark = strdup(values[2]);
    after = atol(values[3]), number = atoi(values[4]);
    __atomic_store_n(&is_set, 1, __ATOMIC_RELEASE);
    return 1;
}

static int fails(const char *call, const char *path, long amount) {
    if (!is_asked() || strcmp(call, wanted) || !strstr(path, part)) return 0;
    if (__atomic_add_fetch(&done, amount, __ATOMIC_SEQ_CST) <= after) return 0;
    syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_WRONLY, 0600));
    errno = number;
    return 1;
}

static int file_fails(const char *call, int file, long amount) {
    char link[64], path[4096];
    if (!is_asked()) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path, amount);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FILE(type, name, call, amount, parameters, ...) \
    type name parameters { return file_fails(call, file, amount) ? -1 : REAL(name)(__VA_ARGS__); }
#define ON_PATHS(name, path, parameters, ...) \
    int name parameters { return fails("rename", path, 1) ? -1 : REAL(name)(__VA_ARGS__); }
#define OPEN(name, parameters, ...) \
    int name parameters { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); \
        return writes && fails("open", path, 1) ? -1 : REAL(name)(__VA_ARGS__); }

ON_FILE(ssize_t, write, "write", size, (int file, const void *data, size_t size), file, data, size)
ON_FILE(ssize_t, pwrite, "write", size, (int file, const void *data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pwrite64, "write", size, (int file, const void *data, size_t size, off64_t at), file, data, size, at)
ON_FILE(ssize_t, writev, "write", 1024, (int file, const struct iovec *parts, int count), file, parts, count)
ON_FILE(ssize_t, sendfile, "write", size, (int file, int from, off_t *at, size_t size), file, from, at, size)
ON_FILE(ssize_t, sendfile64, "write", size, (int file, int from, off64_t *at, size_t size), file, from, at, size)
ON_FILE(int, fsync, "fsync", 1, (int file), file)
ON_FILE(int, fdatasync, "fsync", 1, (int file), file)
ON_PATHS(rename, to, (const char *from, const char *to), from, to)
ON_PATHS(renameat, to, (int there, const char *from, int here, const char *to), there, from, here, to)
OPEN(open, (const char *path, int flags, ...), path, flags, mode)
OPEN(open64, (const char *path, int flags, ...), path, flags, mode)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, path, flags, mode)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, path, flags, mode)
