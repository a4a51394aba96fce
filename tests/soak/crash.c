// Ends a program before its n-th file operation, or lets operations fail from the n-th on: a library for LD_PRELOAD.
//
//   cc -shared -fPIC -o crash.so crash.c -ldl
//   CRASH_AT=12 LD_PRELOAD=./crash.so PROGRAM           SIGKILL before the 12th operation
//   CRASH_AT=12 CRASH_ERRNO=28 LD_PRELOAD=.. PROGRAM    the 12th and all later ones fail, as on a full disk; removals do not
//   CRASH_COUNT=FILE LD_PRELOAD=.. PROGRAM              writes how many there were
//
// Operations are: opening a file for writing, writing to it, cutting it, syncing it, renaming, linking, removing, making a folder. Those
// on devices, pipes and sockets are not counted.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 4096

static atomic_long count;
static atomic_char counted[MOST];
static long crash_at;
static int crash_errno;
static const char *count_file;

__attribute__((constructor)) static void begin(void) {
  const char *at = getenv("CRASH_AT"), *code = getenv("CRASH_ERRNO");
  crash_at = at ? atol(at) : 0;
  crash_errno = code ? atoi(code) : 0;
  count_file = getenv("CRASH_COUNT");
  // Programs that this one starts are not meant.
  unsetenv("LD_PRELOAD");
}

__attribute__((destructor)) static void end(void) {
  FILE *(*open_file)(const char *, const char *) = dlsym(RTLD_NEXT, "fopen64");
  FILE *out = count_file && open_file ? open_file(count_file, "w") : NULL;
  if (out) {
    fprintf(out, "%ld\n", (long)count);
    fclose(out);
  }
}

// Whether the operation fails; kills the process if it is the one.
static int next(int frees) {
  long now = atomic_fetch_add(&count, 1) + 1;
  if (!crash_at || now < crash_at) return 0;
  if (!crash_errno) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  if (frees) return 0;
  errno = crash_errno;
  return 1;
}

static int is_counted(int fd) { return fd >= 0 && fd < MOST && counted[fd]; }

static int opened(int fd) {
  struct stat about;
  if (fd >= 0 && fd < MOST) counted[fd] = fstat(fd, &about) == 0 && S_ISREG(about.st_mode);
  return fd;
}

static int is_device(const char *path) {
  return !strncmp(path, "/dev/", 5) || !strncmp(path, "/proc/", 6) || !strncmp(path, "/sys/", 5);
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define REAL(name, result, ...) \
  static result (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, name)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(#name, int, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (!writes(flags) || is_device(path)) return real(path, flags, mode); \
    return next(0) ? -1 : opened(real(path, flags, mode)); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(#name, int, int, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (!writes(flags) || is_device(path)) return real(folder, path, flags, mode); \
    return next(0) ? -1 : opened(real(folder, path, flags, mode)); \
  }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
  REAL("close", int, int);
  if (fd >= 0 && fd < MOST) counted[fd] = 0;
  return real(fd);
}

ssize_t write(int fd, const void *bytes, size_t len) {
  REAL("write", ssize_t, int, const void *, size_t);
  return is_counted(fd) && next(0) ? -1 : real(fd, bytes, len);
}

ssize_t writev(int fd, const struct iovec *parts, int num) {
  REAL("writev", ssize_t, int, const struct iovec *, int);
  return is_counted(fd) && next(0) ? -1 : real(fd, parts, num);
}

#define PWRITE(name) \
  ssize_t name(int fd, const void *bytes, size_t len, off64_t at) { \
    REAL(#name, ssize_t, int, const void *, size_t, off64_t); \
    return is_counted(fd) && next(0) ? -1 : real(fd, bytes, len, at); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_FILE(name, frees, types, names) \
  int name types { \
    static int (*real) types; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    return is_counted(fd) && next(frees) ? -1 : real names; \
  }
ON_FILE(fsync, 0, (int fd), (fd))
ON_FILE(fdatasync, 0, (int fd), (fd))
ON_FILE(ftruncate64, 1, (int fd, off64_t len), (fd, len))

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t len, unsigned flags) {
  REAL("copy_file_range", ssize_t, int, off64_t *, int, off64_t *, size_t, unsigned);
  return is_counted(to) && next(0) ? -1 : real(from, from_at, to, to_at, len, flags);
}

#define ON_PATH(name, frees, types, names) \
  int name types { \
    static int (*real) types; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    return next(frees) ? -1 : real names; \
  }
ON_PATH(rename, 0, (const char *from, const char *to), (from, to))
ON_PATH(link, 0, (const char *from, const char *to), (from, to))
ON_PATH(symlink, 0, (const char *to, const char *path), (to, path))
ON_PATH(mkdir, 0, (const char *path, mode_t mode), (path, mode))
ON_PATH(unlink, 1, (const char *path), (path))
ON_PATH(unlinkat, 1, (int folder, const char *path, int flags), (folder, path, flags))
ON_PATH(rmdir, 1, (const char *path), (path))
