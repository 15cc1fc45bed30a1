/*
 * Fails libvirt at the n-th call of a program named nodegraft: loaded with LD_PRELOAD in front of libvirt.so, between
 * the program and the library. Each function that the program imports has a trampoline (made by `build`), which asks
 * `fault_enter` where to go on. Nothing of this is in the product.
 *
 *   FAULT_CALLS=DIRECTORY      each counted call is a line `NUMBER NAME` of DIRECTORY/calls.PID
 *   FAULT=MODE@N[+]            at the N-th counted call (with `+` from there on), or
 *   FAULT=MODE@NAME:N[+]       at the N-th call of that name:
 *     kill    SIGKILL
 *     error   the call fails with an error of libvirt's own; nothing was done
 *     lost    the connections' sockets are dead: the call itself finds out
 *     late    the call is carried out, but the connection dies before its answer: it fails
 *     hang    the call never returns
 *     run     the shell command in FAULT_RUN is run first, and nothing else fails: what others do in that very moment
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Of the generated half: the functions in the order of their numbers; whether one counts, and what it returns. */
extern const char *const fault_names[];
extern const unsigned char fault_counts[], fault_pointers[];
extern const unsigned fault_size;
/* Ways out of a trampoline besides the real function: return -1, return NULL. */
extern void fault_return_int(void), fault_return_pointer(void);

enum mode { NONE, KILL, ERROR, LOST, LATE, HANG, RUN };
static const char *const modes[] = {"", "kill", "error", "lost", "late", "hang", "run"};

static enum mode mode;
static char name_wanted[80];
static unsigned long at;
static bool onward, ours;
static int calls_file = -1;
static atomic_ulong counted, named;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void die(const char *what) {
  fprintf(stderr, "fault: %s\n", what);
  _exit(99);
}

static void read_fault(const char *text) {
  const char *where = strchr(text, '@'), *colon = strchr(text, ':');
  for (mode = RUN; mode > NONE; mode--)
    if (where && strlen(modes[mode]) == (size_t)(where - text) && !strncmp(text, modes[mode], where - text)) break;
  if (mode == NONE) die("FAULT is not MODE@N or MODE@NAME:N");
  if (colon) snprintf(name_wanted, sizeof name_wanted, "%.*s", (int)(colon - where - 1), where + 1);
  char *rest;
  at = strtoul(colon ? colon + 1 : where + 1, &rest, 10);
  onward = *rest == '+';
  if (at == 0) die("FAULT names no call");
}

static void begin(void) {
  /* Not its children, and not what starts it. */
  ours = !strcmp(program_invocation_short_name, "nodegraft");
  if (!ours) return;
  const char *fault = getenv("FAULT"), *calls = getenv("FAULT_CALLS");
  if (fault && *fault) read_fault(fault);
  if (calls && *calls) {
    char path[4096];
    snprintf(path, sizeof path, "%s/calls.%d", calls, getpid());
    calls_file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (calls_file < 0) die("FAULT_CALLS is no directory to write in");
  }
}

static void *real(const char *name) {
  void *address = dlsym(RTLD_NEXT, name);
  if (!address) die(name);
  return address;
}

/* Every socket that leads to a libvirtd. Shut down, not closed: the number must not be given to another file. */
static void lose_connections(void) {
  for (int fd = 0; fd < 1024; fd++) {
    struct sockaddr_un peer = {0};
    socklen_t length = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && peer.sun_family == AF_UNIX && strstr(peer.sun_path, "libvirt-sock"))
      shutdown(fd, SHUT_RDWR);
  }
}

/*
 * Only libvirt itself can set its last error. Its test driver, asked for a saved domain that is not there, leaves a plain
 * one; the driver of remote hosts, asked for a socket that is not there, one of the connection.
 */
static void leave_error(const char *name, unsigned long number, bool of_connection) {
  void *(*connect)(const char *) = (void *(*)(const char *))real("virConnectOpen");
  char text[200];
  if (of_connection) {
    snprintf(text, sizeof text, "qemu+unix:///system?socket=/answer-lost-at-call-%lu-%s", number, name);
    if (connect(text)) die("libvirt connected to nothing");
    return;
  }
  int (*restore)(void *, const char *) = (int (*)(void *, const char *))real("virDomainRestore");
  /* Never closed: that would clear the error. */
  void *connection = connect("test:///default");
  snprintf(text, sizeof text, "/fault-at-call-%lu-%s", number, name);
  if (!connection || restore(connection, text) == 0) die("the test driver left no error");
}

static bool is_due(const char *name, unsigned long number) {
  if (*name_wanted) {
    if (strcmp(name, name_wanted)) return false;
    number = atomic_fetch_add(&named, 1) + 1;
  }
  return number == at || (onward && number > at);
}

/* How a trampoline goes on: to `target`; where `late` is set it comes back and is given the way out. */
struct way {
  void *target, *late;
};

static void *failure(unsigned index) { return fault_pointers[index] ? (void *)fault_return_pointer : (void *)fault_return_int; }

struct way fault_enter(unsigned index) {
  pthread_once(&once, begin);
  const char *name = fault_names[index];
  struct way way = {real(name), NULL};
  if (!ours || !fault_counts[index]) return way;
  unsigned long number = atomic_fetch_add(&counted, 1) + 1;
  if (calls_file >= 0) dprintf(calls_file, "%lu %s\n", number, name);
  if (mode == NONE || !is_due(name, number)) return way;
  switch (mode) {
    case KILL: kill(getpid(), SIGKILL); pause(); break;
    case HANG: for (;;) pause();
    case RUN:
      if (!getenv("FAULT_RUN") || system(getenv("FAULT_RUN"))) die("FAULT_RUN failed");
      break;
    case LOST: lose_connections(); break;
    case ERROR:
      leave_error(name, number, false);
      way.target = failure(index);
      break;
    case LATE: way.late = failure(index); break;
    case NONE: break;
  }
  return way;
}

/* After a call that was carried out: its answer is thrown away. */
void fault_late(unsigned index) {
  lose_connections();
  leave_error(fault_names[index], atomic_load(&counted), true);
}
