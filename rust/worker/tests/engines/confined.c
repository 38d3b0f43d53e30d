/* A tier-0 engine that tries what engines must not do, and what they must be able to. A prompt names attempts,
 * or one of the tables of them: "forbidden", "of_node", "needed". The answer has a token for each: its name
 * and what became of it, "refused" or "allowed". "environment=NAME" asks for a variable.
 * Compiled with -DIN_CONSTRUCTOR it tries to open a socket while it is being loaded, and dies if it succeeds.
 *
 * Attempts are harmless where they succeed: signals are SIGURG, which nobody dies of. */
#define _GNU_SOURCE
#include <engine_api.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST_ATTEMPTS 128

/* An attempt gives 0 where it succeeded, else -1 with errno, as system calls do. */
typedef struct Attempt {
   const char *name;
   int (*make)(void);
} Attempt;

static int closed(int fd)
{
   return fd < 0 ? -1 : close(fd);
}

/* ---- ways to others ---- */

static int inet(void)
{
   return closed(socket(AF_INET, SOCK_STREAM, 0));
}

static int inet6(void)
{
   return closed(socket(AF_INET6, SOCK_DGRAM, 0));
}

static int unix_stream(void)
{
   return closed(socket(AF_UNIX, SOCK_STREAM, 0));
}

static int unix_datagram(void)
{
   return closed(socket(AF_UNIX, SOCK_DGRAM, 0));
}

static int netlink(void)
{
   return closed(socket(AF_NETLINK, SOCK_RAW, 0));
}

static int packet(void)
{
   return closed(socket(AF_PACKET, SOCK_RAW, 0));
}

static int vsock(void)
{
   return closed(socket(AF_VSOCK, SOCK_STREAM, 0));
}

static int pair_of(int kind)
{
   int ends[2];
   if (socketpair(AF_UNIX, kind, 0, ends))
      return -1;
   close(ends[0]);
   return close(ends[1]);
}

static int stream_pair(void)
{
   return pair_of(SOCK_STREAM | SOCK_CLOEXEC);
}

static int datagram_pair(void)
{
   return pair_of(SOCK_DGRAM | SOCK_CLOEXEC);
}

static int raw_pair(void)
{
   return pair_of(SOCK_RAW);
}

static int with_end_of_pair(int (*use)(int, const struct sockaddr *, socklen_t))
{
   struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0llm-node-test"};
   int ends[2];
   if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
      return -1;
   int result = use(ends[0], (struct sockaddr *)&address, sizeof address);
   int error = errno;
   close(ends[0]);
   close(ends[1]);
   errno = error;
   return result;
}

static int connect_unix(void)
{
   return with_end_of_pair(connect);
}

static int bind_unix(void)
{
   return with_end_of_pair(bind);
}

/* The way to the node is the one socket that there may be. */
static int inherited_socket(void)
{
   int sockets = 0;
   for (int fd = 0; fd < 1024; fd++) {
      struct stat status;
      sockets += fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
   }
   errno = EACCES;
   return sockets > 1 ? 0 : -1;
}

/* ---- other processes; the parent is the node ---- */

static int trace(void)
{
   return (int)ptrace(PTRACE_SEIZE, getppid(), NULL, NULL);
}

static int read_memory(void)
{
   char byte;
   struct iovec here = {&byte, 1}, there = {&inet, 1};
   return process_vm_readv(getppid(), &here, 1, &there, 1, 0) < 0 ? -1 : 0;
}

static int of_parent(const char *file)
{
   char path[64];
   snprintf(path, sizeof path, "/proc/%d/%s", (int)getppid(), file);
   return closed(open(path, O_RDONLY));
}

static int open_memory(void)
{
   return of_parent("mem");
}

static int read_environment(void)
{
   char path[64], byte;
   snprintf(path, sizeof path, "/proc/%d/environ", (int)getppid());
   int fd = open(path, O_RDONLY);
   if (fd < 0)
      return -1;
   int result = read(fd, &byte, 1) == 1 ? 0 : -1;
   close(fd);
   if (result)
      errno = EACCES; /* opened, but empty: nothing was seen */
   return result;
}

static int take_descriptor(void)
{
   int process = (int)syscall(SYS_pidfd_open, getppid(), 0);
   if (process < 0)
      return -1;
   int result = closed((int)syscall(SYS_pidfd_getfd, process, 0, 0));
   int error = errno;
   close(process);
   errno = error;
   return result;
}

static int signal_by_descriptor(void)
{
   int process = (int)syscall(SYS_pidfd_open, getppid(), 0);
   if (process < 0)
      return -1;
   int result = (int)syscall(SYS_pidfd_send_signal, process, SIGURG, NULL, 0);
   int error = errno;
   close(process);
   errno = error;
   return result;
}

static int kill_parent(void)
{
   return kill(getppid(), SIGURG);
}

static int kill_group(void)
{
   return kill(-getpgid(getppid()), SIGURG);
}

static int kill_all(void)
{
   return kill(-1, SIGURG);
}

static int kill_thread(void)
{
   return (int)syscall(SYS_tkill, getppid(), SIGURG);
}

static int kill_thread_of_group(void)
{
   return (int)syscall(SYS_tgkill, getppid(), getppid(), SIGURG);
}

static int queue_signal(void)
{
   union sigval value = {0};
   return sigqueue(getppid(), SIGURG, value);
}

static int own_signals_of_descriptor(int (*use)(int))
{
   int ends[2];
   if (pipe(ends))
      return -1;
   int result = use(ends[0]);
   int error = errno;
   close(ends[0]);
   close(ends[1]);
   errno = error;
   return result;
}

static int set_owner(int fd)
{
   return fcntl(fd, F_SETOWN, getppid());
}

static int set_owner_ex(int fd)
{
   struct f_owner_ex owner = {F_OWNER_PID, getppid()};
   return fcntl(fd, F_SETOWN_EX, &owner);
}

static int signals_of_descriptor(void)
{
   return own_signals_of_descriptor(set_owner);
}

static int signals_of_descriptor_ex(void)
{
   return own_signals_of_descriptor(set_owner_ex);
}

static int limits_of_parent(void)
{
   struct rlimit limit;
   return prlimit(getppid(), RLIMIT_NOFILE, NULL, &limit);
}

static int type_into_terminal(void)
{
   return ioctl(0, TIOCSTI, "x");
}

/* ---- calls that are refused whatever they are told: with arguments that are wrong for each of them ---- */

#define NONSENSE(name)                                                                                       \
   static int call_##name(void)                                                                              \
   {                                                                                                         \
      return syscall(SYS_##name, -1L, -1L, -1L, -1L, -1L, -1L) < 0 ? -1 : 0;                                 \
   }
#define CALLS(X)                                                                                             \
   X(io_uring_setup) X(io_uring_enter) X(io_uring_register) X(process_vm_writev) X(process_madvise)          \
   X(process_mrelease) X(kcmp) X(add_key) X(bpf) X(keyctl) X(perf_event_open) X(request_key) X(userfaultfd)  \
   X(acct) X(adjtimex) X(chroot) X(clock_adjtime) X(clock_settime) X(delete_module) X(finit_module)          \
   X(fsconfig) X(fsmount) X(fsopen) X(fspick) X(init_module) X(kexec_load) X(mount) X(mount_setattr)         \
   X(move_mount) X(open_by_handle_at) X(open_tree) X(pivot_root) X(quotactl) X(reboot) X(setdomainname)      \
   X(sethostname) X(setns) X(settimeofday) X(swapoff) X(swapon) X(syslog) X(umount2) X(unshare) X(listen) \
   X(setpgid) X(setsid)
CALLS(NONSENSE)

/* ---- privileges ---- */

static int bit_of_status(FILE *status, const char *field, int bit)
{
   char line[256];
   int found = -1;
   while (status && fgets(line, sizeof line, status))
      if (strncmp(line, field, strlen(field)) == 0)
         found = (int)(strtoull(line + strlen(field), NULL, 16) >> bit & 1);
   errno = found < 0 ? ENOENT : EACCES;
   return found == 1 ? 0 : -1;
}

static int privileged(void)
{
   FILE *status = fopen("/proc/self/status", "r");
   int result = bit_of_status(status, "CapPrm:", CAP_SYS_PTRACE);
   if (status)
      fclose(status);
   return result;
}

/* Nor does a program that it starts get them back. */
static int privileged_helper(void)
{
   FILE *status = popen("cat /proc/self/status", "r");
   int result = bit_of_status(status, "CapPrm:", CAP_SYS_PTRACE), error = errno;
   if (status)
      pclose(status);
   errno = error;
   return result;
}

static int new_privileges(void)
{
   errno = EACCES;
   return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? -1 : 0;
}

static int dumpable(void)
{
   errno = EACCES;
   return prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0 ? -1 : 0;
}

/* ---- what an engine may need ---- */

static void *in_thread(void *argument)
{
   return argument;
}

static int thread(void)
{
   pthread_t id;
   int error = pthread_create(&id, NULL, in_thread, NULL);
   errno = error;
   return error ? -1 : pthread_join(id, NULL);
}

static int fork_helper(void)
{
   int status;
   pid_t child = fork();
   if (child == 0)
      _exit(7);
   return child > 0 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7 ? 0 : -1;
}

static int run_program(void)
{
   return system("exit 7") == 7 << 8 ? 0 : -1;
}

static int map_memory(void)
{
   void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
   if (memory == MAP_FAILED)
      return -1;
   memset(memory, 1, 1 << 20);
   return madvise(memory, 1 << 20, MADV_DONTNEED) || munmap(memory, 1 << 20);
}

static int map_file(void)
{
   int fd = open("/proc/self/exe", O_RDONLY);
   void *memory = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
   close(fd);
   return memory == MAP_FAILED ? -1 : munmap(memory, 4096);
}

static int share_memory(void)
{
   return closed(memfd_create("llm-node-test", MFD_CLOEXEC));
}

static int write_file(void)
{
   FILE *file = tmpfile();
   if (!file)
      return -1;
   int result = fputs("text", file) < 0 || fflush(file);
   fclose(file);
   return result ? -1 : 0;
}

static int wait_for_events(void)
{
   struct epoll_event event = {.events = EPOLLIN}, happened;
   int poll = epoll_create1(EPOLL_CLOEXEC), counter = eventfd(1, EFD_CLOEXEC);
   int result = epoll_ctl(poll, EPOLL_CTL_ADD, counter, &event) || epoll_wait(poll, &happened, 1, 0) != 1;
   close(poll);
   close(counter);
   return result ? -1 : 0;
}

static int use_timers(void)
{
   struct timespec moment = {0, 1000};
   int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
   return closed(fd) || nanosleep(&moment, NULL);
}

static int pin_threads(void)
{
   cpu_set_t processors;
   return sched_getaffinity(0, sizeof processors, &processors) ||
          pthread_setaffinity_np(pthread_self(), sizeof processors, &processors);
}

static int own_limits(void)
{
   struct rlimit limit;
   return getrlimit(RLIMIT_NOFILE, &limit) || setrlimit(RLIMIT_NOFILE, &limit);
}

static int signal_itself(void)
{
   return raise(SIGURG) || kill(getpid(), SIGURG) || pthread_kill(pthread_self(), SIGURG);
}

static int look_for_process(void)
{
   return kill(getppid(), 0);
}

static int change_descriptor(void)
{
   int ends[2];
   if (pipe2(ends, O_CLOEXEC))
      return -1;
   int result = fcntl(ends[0], F_SETFL, O_NONBLOCK), waiting;
   result |= ioctl(ends[0], FIONREAD, &waiting);
   close(ends[0]);
   close(ends[1]);
   return result;
}

#define A(name) {#name, name},
#define CALL(name) {#name, call_##name},
static const Attempt forbidden[] = {
   A(inet) A(inet6) A(unix_datagram) A(netlink) A(packet) A(vsock) A(datagram_pair) A(raw_pair) A(connect_unix)
   A(bind_unix) A(inherited_socket) A(trace) A(read_memory) A(take_descriptor) A(signal_by_descriptor)
   A(kill_parent) A(kill_group) A(kill_all) A(kill_thread) A(kill_thread_of_group) A(queue_signal)
   A(signals_of_descriptor) A(signals_of_descriptor_ex) A(limits_of_parent) A(type_into_terminal)
   A(privileged) A(privileged_helper) A(new_privileges) A(dumpable) CALLS(CALL){NULL, NULL}
};
/* These the node itself has to see to. */
static const Attempt of_node[] = {A(open_memory) A(read_environment){NULL, NULL}};
static const Attempt needed[] = {
   A(unix_stream) A(stream_pair) A(thread) A(fork_helper) A(run_program) A(map_memory) A(map_file) A(share_memory)
   A(write_file) A(wait_for_events) A(use_timers) A(pin_threads) A(own_limits) A(signal_itself)
   A(look_for_process) A(change_descriptor){NULL, NULL}
};
static const struct {
   const char *name;
   const Attempt *attempts;
} tables[] = {{"forbidden", forbidden}, {"of_node", of_node}, {"needed", needed}};

static TokenResult results[MOST_ATTEMPTS + 1];
static char texts[MOST_ATTEMPTS][256];
static size_t count;

static void answer(const char *name, const char *outcome)
{
   if (count == MOST_ATTEMPTS)
      return;
   int length = snprintf(texts[count], sizeof texts[count], "%s: %s\n", name, outcome);
   results[count].text = texts[count];
   results[count].text_len = (size_t)length < sizeof texts[count] ? (size_t)length : sizeof texts[count] - 1;
   count++;
}

static void try(const Attempt *attempt)
{
   errno = 0;
   const char *outcome = attempt->make() == 0 ? "allowed" : errno == EACCES ? "refused" : strerror(errno);
   answer(attempt->name, outcome);
}

static void look_up(const char *name)
{
   if (strncmp(name, "environment=", 12) == 0) {
      const char *value = getenv(name + 12);
      return answer(name + 12, value ? value : "(unset)");
   }
   for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
      for (const Attempt *attempt = tables[i].attempts; attempt->name; attempt++)
         if (strcmp(name, tables[i].name) == 0 || strcmp(name, attempt->name) == 0)
            try(attempt);
}

#ifdef IN_CONSTRUCTOR
__attribute__((constructor)) static void early(void)
{
   if (inet() == 0)
      _exit(99);
}
#endif

static EngineInfo info = {.abi_version = ENGINE_ABI_VERSION, .engine_id = "confined", .version = "1.0.0"};

EngineInfo *engine_get_info(void)
{
   return &info;
}

int engine_init(EngineConfig *config)
{
   (void)config;
   return ERR_OK;
}

int engine_load_model(const char *path)
{
   (void)path;
   return ERR_OK;
}

int engine_generate(const char *prompt, TokenResult **out)
{
   static char names[8192];
   char *rest = NULL;
   memset(results, 0, sizeof results);
   count = 0;
   snprintf(names, sizeof names, "%s", prompt);
   for (char *name = strtok_r(names, " ", &rest); name; name = strtok_r(NULL, " ", &rest))
      look_up(name);
   *out = results;
   return ERR_OK;
}

void engine_shutdown(void)
{
}
