/* A tier-0 engine that tries what engines must not do: open sockets. Its answer says how that went.
 * Compiled with -DIN_CONSTRUCTOR it tries while it is being loaded, and dies if it succeeds. */
#define _GNU_SOURCE
#include <engine_api.h>

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *try_family(int family)
{
   int fd = socket(family, SOCK_STREAM, 0);
   if (fd < 0)
      return errno == EACCES ? "refused " : "failed ";
   close(fd);
   return "open ";
}

#ifdef IN_CONSTRUCTOR
__attribute__((constructor)) static void early(void)
{
   if (strcmp(try_family(AF_INET), "open ") == 0)
      _exit(99);
}
#endif

static EngineInfo info = {.abi_version = ENGINE_ABI_VERSION, .engine_id = "network", .version = "1.0.0"};
static TokenResult results[5];

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
   static const int families[] = {AF_INET, AF_INET6, AF_UNIX};
   (void)prompt;
   memset(results, 0, sizeof results);
   for (int i = 0; i < 3; i++) {
      results[i].text = try_family(families[i]);
      results[i].text_len = strlen(results[i].text);
   }
#ifdef SYS_io_uring_setup
   results[3].text = syscall(SYS_io_uring_setup, 1, NULL) < 0 && errno == EACCES ? "refused" : "open";
#else
   results[3].text = "refused";
#endif
   results[3].text_len = strlen(results[3].text);
   *out = results;
   return ERR_OK;
}

void engine_shutdown(void)
{
}
