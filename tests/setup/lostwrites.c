/* Preloaded into a process under test: keeps a second copy of its data directory that holds only what a
 * power cut could not take.
 *
 *   LOSTWRITES_ROOT    the directory that the process writes to (absolute)
 *   LOSTWRITES_SHADOW  the copy; the test restarts the process from it after a "power cut"
 *   LOSTWRITES_IGNORE_SYNC=1  syncs report success and do nothing: the check must then fail
 *   LOSTWRITES_EIO     a path: while that file exists, syncs fail with EIO and, as Linux does it, the
 *                      unwritten bytes are dropped and the next sync reports success
 *
 * File contents reach the shadow when fsync or fdatasync is called on them, up to the size that the file
 * had at that moment. Names (create, rename, unlink, mkdir, truncate) reach it at once: a file system
 * with an ordered journal behaves so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FD 65536

static char root[PATH_MAX], shadow[PATH_MAX], eio[PATH_MAX];
static size_t root_len;
static int active, ignore_sync;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Lowest offset written since the last sync, per descriptor; -1: none. */
static off_t dirty[MAX_FD];

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_rmdir)(const char *);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_link)(const char *, const char *);

__attribute__((constructor)) static void init(void) {
  const char *r = getenv("LOSTWRITES_ROOT"), *s = getenv("LOSTWRITES_SHADOW"), *e = getenv("LOSTWRITES_EIO");
  real_open = dlsym(RTLD_NEXT, "open");
  real_openat = dlsym(RTLD_NEXT, "openat");
  real_close = dlsym(RTLD_NEXT, "close");
  real_write = dlsym(RTLD_NEXT, "write");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite");
  real_writev = dlsym(RTLD_NEXT, "writev");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_rename = dlsym(RTLD_NEXT, "rename");
  real_unlink = dlsym(RTLD_NEXT, "unlink");
  real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
  real_rmdir = dlsym(RTLD_NEXT, "rmdir");
  real_mkdir = dlsym(RTLD_NEXT, "mkdir");
  real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
  real_link = dlsym(RTLD_NEXT, "link");
  for (int i = 0; i < MAX_FD; i++) dirty[i] = -1;
  if (!r || !s || strlen(r) + 1 >= sizeof root || strlen(s) + 1 >= sizeof shadow) return;
  strcpy(root, r);
  strcpy(shadow, s);
  root_len = strlen(root);
  if (e && strlen(e) < sizeof eio) strcpy(eio, e);
  ignore_sync = getenv("LOSTWRITES_IGNORE_SYNC") != NULL;
  active = 1;
}

/* The shadow's path for one below the root, or 0. */
static int to_shadow(const char *path, char *out) {
  char full[PATH_MAX];
  if (!active || !path) return 0;
  if (path[0] != '/') {
    char cwd[PATH_MAX];
    if (!getcwd(cwd, sizeof cwd)) return 0;
    if (snprintf(full, sizeof full, "%s/%s", cwd, path) >= (int)sizeof full) return 0;
    path = full;
  }
  if (strncmp(path, root, root_len) != 0 || (path[root_len] != '/' && path[root_len] != 0)) return 0;
  return snprintf(out, PATH_MAX, "%s%s", shadow, path + root_len) < PATH_MAX;
}

static int path_of(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, out, PATH_MAX - 1);
  if (n <= 0) return 0;
  out[n] = 0;
  size_t len = (size_t)n;
  const char *gone = " (deleted)";
  if (len > strlen(gone) && strcmp(out + len - strlen(gone), gone) == 0) return 0;
  return 1;
}

static int at_path(int dirfd, const char *path, char *out) {
  if (path[0] == '/' || dirfd == AT_FDCWD) return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
  char dir[PATH_MAX];
  if (!path_of(dirfd, dir)) return 0;
  return snprintf(out, PATH_MAX, "%s/%s", dir, path) < PATH_MAX;
}

static void opened(int fd, const char *path, int flags) {
  char to[PATH_MAX];
  if (fd < 0 || fd >= MAX_FD || !(flags & (O_WRONLY | O_RDWR | O_CREAT)) || !to_shadow(path, to)) return;
  dirty[fd] = -1;
  if (flags & (O_CREAT | O_TRUNC)) {
    int s = real_open(to, O_WRONLY | O_CREAT | (flags & O_TRUNC), 0644);
    if (s >= 0) real_close(s);
  }
}

#define OPEN_BODY(name, call)                      \
  mode_t mode = 0;                                 \
  if (flags & (O_CREAT | O_TMPFILE)) {             \
    va_list ap;                                    \
    va_start(ap, flags);                           \
    mode = va_arg(ap, mode_t);                     \
    va_end(ap);                                    \
  }                                                \
  int fd = call;

int open(const char *path, int flags, ...) {
  OPEN_BODY(open, real_open(path, flags, mode))
  opened(fd, path, flags);
  return fd;
}
int open64(const char *path, int flags, ...) {
  OPEN_BODY(open64, real_open(path, flags | O_LARGEFILE, mode))
  opened(fd, path, flags);
  return fd;
}
int openat(int dirfd, const char *path, int flags, ...) {
  OPEN_BODY(openat, real_openat(dirfd, path, flags, mode))
  char full[PATH_MAX];
  if (at_path(dirfd, path, full)) opened(fd, full, flags);
  return fd;
}
int openat64(int dirfd, const char *path, int flags, ...) {
  OPEN_BODY(openat64, real_openat(dirfd, path, flags | O_LARGEFILE, mode))
  char full[PATH_MAX];
  if (at_path(dirfd, path, full)) opened(fd, full, flags);
  return fd;
}

static void wrote(int fd, off_t at) {
  if (!active || fd < 0 || fd >= MAX_FD || at < 0) return;
  if (dirty[fd] < 0 || at < dirty[fd]) dirty[fd] = at;
}
static off_t position(int fd) {
  if (!active || fd < 3) return -1;
  int flags = fcntl(fd, F_GETFL);
  if (flags >= 0 && (flags & O_APPEND)) return lseek(fd, 0, SEEK_END);
  return lseek(fd, 0, SEEK_CUR);
}
ssize_t write(int fd, const void *buf, size_t n) {
  off_t at = position(fd);
  ssize_t done = real_write(fd, buf, n);
  if (done > 0) wrote(fd, at);
  return done;
}
ssize_t writev(int fd, const struct iovec *v, int n) {
  off_t at = position(fd);
  ssize_t done = real_writev(fd, v, n);
  if (done > 0) wrote(fd, at);
  return done;
}
ssize_t pwrite(int fd, const void *buf, size_t n, off_t at) {
  ssize_t done = real_pwrite(fd, buf, n, at);
  if (done > 0) wrote(fd, at);
  return done;
}
ssize_t pwrite64(int fd, const void *buf, size_t n, off_t at) { return pwrite(fd, buf, n, at); }

/* Copies [from, size) of the file into its shadow. */
static void copy(const char *path, const char *to, off_t from, off_t size) {
  static char buf[1 << 16];
  int in = real_open(path, O_RDONLY), out = real_open(to, O_WRONLY | O_CREAT, 0644);
  struct stat st;
  if (in >= 0 && out >= 0 && fstat(out, &st) == 0) {
    /* Never leave a hole where the shadow is behind for a reason that was not seen (copy_file_range). */
    if (st.st_size < from) from = st.st_size;
    off_t at = from;
    while (at < size) {
      size_t want = (size_t)(size - at) < sizeof buf ? (size_t)(size - at) : sizeof buf;
      ssize_t n = pread(in, buf, want, at);
      if (n <= 0 || real_pwrite(out, buf, (size_t)n, at) != n) break;
      at += n;
    }
  }
  if (in >= 0) real_close(in);
  if (out >= 0) real_close(out);
}

static int sync_fd(int fd, int (*real)(int)) {
  char path[PATH_MAX], to[PATH_MAX];
  struct stat st;
  if (!active || !path_of(fd, path) || !to_shadow(path, to) || fstat(fd, &st) != 0) return real(fd);
  if (ignore_sync) return 0;
  if (eio[0] && access(eio, F_OK) == 0) {
    if (S_ISREG(st.st_mode)) {
      /* The dropped bytes read as zeros after the cut: the shadow grows over them. */
      pthread_mutex_lock(&lock);
      int out = real_open(to, O_WRONLY | O_CREAT, 0644);
      struct stat old;
      if (out >= 0 && fstat(out, &old) == 0 && old.st_size < st.st_size) {
        if (real_ftruncate(out, st.st_size) != 0) { /* nothing to do about it */ }
      }
      if (out >= 0) real_close(out);
      if (fd < MAX_FD) dirty[fd] = -1;
      pthread_mutex_unlock(&lock);
    }
    errno = EIO;
    return -1;
  }
  if (!S_ISREG(st.st_mode)) return 0;
  pthread_mutex_lock(&lock);
  off_t from = fd < MAX_FD ? dirty[fd] : 0;
  if (fd < MAX_FD) dirty[fd] = -1;
  struct stat there;
  if (from < 0) from = stat(to, &there) == 0 ? there.st_size : 0;
  copy(path, to, from, st.st_size);
  pthread_mutex_unlock(&lock);
  return 0;
}
int fsync(int fd) { return sync_fd(fd, real_fsync); }
int fdatasync(int fd) { return sync_fd(fd, real_fdatasync); }

int rename(const char *a, const char *b) {
  char sa[PATH_MAX], sb[PATH_MAX];
  int status = real_rename(a, b), keep = errno;
  if (status == 0 && to_shadow(a, sa) && to_shadow(b, sb)) real_rename(sa, sb);
  errno = keep;
  return status;
}
int unlink(const char *path) {
  char to[PATH_MAX];
  int status = real_unlink(path), keep = errno;
  if (status == 0 && to_shadow(path, to)) real_unlink(to);
  errno = keep;
  return status;
}
int unlinkat(int dirfd, const char *path, int flags) {
  char full[PATH_MAX], to[PATH_MAX];
  int known = active && at_path(dirfd, path, full) && to_shadow(full, to);
  int status = real_unlinkat(dirfd, path, flags), keep = errno;
  if (status == 0 && known) {
    if (flags & AT_REMOVEDIR) real_rmdir(to);
    else real_unlink(to);
  }
  errno = keep;
  return status;
}
int rmdir(const char *path) {
  char to[PATH_MAX];
  int status = real_rmdir(path), keep = errno;
  if (status == 0 && to_shadow(path, to)) real_rmdir(to);
  errno = keep;
  return status;
}
int mkdir(const char *path, mode_t mode) {
  char to[PATH_MAX];
  int status = real_mkdir(path, mode), keep = errno;
  if (status == 0 && to_shadow(path, to)) real_mkdir(to, mode);
  errno = keep;
  return status;
}
int link(const char *a, const char *b) {
  char sa[PATH_MAX], sb[PATH_MAX];
  int status = real_link(a, b), keep = errno;
  if (status == 0 && to_shadow(a, sa) && to_shadow(b, sb)) real_link(sa, sb);
  errno = keep;
  return status;
}
int ftruncate(int fd, off_t size) {
  char path[PATH_MAX], to[PATH_MAX];
  int status = real_ftruncate(fd, size), keep = errno;
  if (status == 0 && active && path_of(fd, path) && to_shadow(path, to)) {
    struct stat st;
    if (stat(to, &st) == 0 && st.st_size > size && truncate(to, size) != 0) { /* gone meanwhile */ }
  }
  errno = keep;
  return status;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
