// engine_get_info and engine_init, and what goes wrong in them. A part of fake_engine.c, which includes it.

static const EngineHost *host;
static uint64_t default_step_us, default_token_us;
static uint32_t tier0_max_tokens;
static char device_names[FAKE_DEVICES][16], device_buses[FAKE_DEVICES][16];
static char free_file[4096];
static uint32_t device_count;
static int device_is_cpu;

static void add_device(int at) {
   if (device_count < FAKE_DEVICES) {
      strcpy(device_names[device_count], device_is_cpu ? "CPU" : "TOY0");
      strcpy(device_buses[device_count], "0000:01:00.0");
      device_names[device_count][3] += (char)(device_is_cpu ? 0 : device_count);
      device_buses[device_count++][6] += (char)at;
   }
}

// Those that the environment names, by the number behind the last '-' of each, or all.
static void find_devices(void) {
   const char *named = getenv("CUDA_VISIBLE_DEVICES");
   device_count = 0;
   if (device_is_cpu || named == NULL) {
      for (int i = 0; i < FAKE_DEVICES; i++) {
         add_device(i);
      }
      return;
   }
   while (*named != 0 && *named != '-') {
      size_t length = strcspn(named, ","), begin = length;
      while (begin > 0 && named[begin - 1] != '-') {
         begin--;
      }
      add_device(atoi(named + begin));
      named += length + (named[length] == ',');
   }
}

static int fail(int code, const char *why) {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

static uint64_t option(const EngineOption *options, size_t n, const char *key, uint64_t otherwise) {
   for (size_t i = 0; i < n; i++) {
      if (strcmp(options[i].key, key) == 0) {
         return strtoull(options[i].value, NULL, 10);
      }
   }
   return otherwise;
}

#if defined(FAKE_CRASH_IN_CONSTRUCTOR) || defined(FAKE_HANG_IN_CONSTRUCTOR)
__attribute__((constructor)) static void constructor(void) {
#  ifdef FAKE_CRASH_IN_CONSTRUCTOR
   crash();
#  else
   hang();
#  endif
}
#endif

static void tell_devices(const char *when) {
#ifdef FAKE_TELL_DEVICES
   const char *named = getenv("CUDA_VISIBLE_DEVICES");
   fprintf(stderr, "the toy %s, and sees %s\n", when, named != NULL ? named : "all");
#endif
   (void)when;
}

#ifdef FAKE_UNTERMINATED_ID
static char long_id[1 << 20];
#endif

EngineInfo *engine_get_info(void) {
   static EngineInfo info = {FAKE_ABI_VERSION, FAKE_ENGINE_ID, FAKE_ENGINE_VERSION};
   tell_devices("is looked at");
#if defined(FAKE_NULL_INFO)
   return NULL;
#elif defined(FAKE_GARBAGE_INFO)
   return NOWHERE;
#elif defined(FAKE_GARBAGE_ID)
   info.engine_id = NOWHERE;
#elif defined(FAKE_NULL_ID)
   info.engine_id = NULL;
#elif defined(FAKE_UNTERMINATED_ID)
   memset(long_id, 'x', sizeof long_id);
   info.engine_id = long_id;
#elif defined(FAKE_VERSION_NOT_UTF8)
   info.version = "1.0\xff";
#endif
   return &info;
}

#ifdef FAKE_THREAD_LEFT
static void *endless(void *nothing) {
   hang();
   return nothing;
}
#endif

#ifdef FAKE_SIGNAL_IN_INIT
static void on_signal(int number) {
   (void)number;
}
#endif

int engine_init(EngineConfig *config) {
   host = ENGINE_HAS(config, host) ? config->host : NULL;
   tell_devices("starts");
   default_step_us = FAKE_STEP_US;
   default_token_us = FAKE_TOKEN_US;
   if (ENGINE_HAS(config, n_options)) {
      default_step_us = option(config->options, config->n_options, "step_us", default_step_us);
      default_token_us = option(config->options, config->n_options, "token_us", default_token_us);
   }
   tier0_max_tokens = ENGINE_HAS(config, max_tokens) ? config->max_tokens : 0;
   device_is_cpu = !ENGINE_HAS(config, gpu_backend) || config->gpu_backend == NULL ||
                   strcmp(config->gpu_backend, "cpu") == 0;
   find_devices();
   if (ENGINE_HAS(config, engine_dir) && config->engine_dir != NULL) {
      snprintf(free_file, sizeof free_file, "%s/free_bytes", config->engine_dir);
   }
   if (ENGINE_CAN(host, log)) {
      host->log(host, ENGINE_LOG_DEBUG, "the toy is up");
   }
#ifdef FAKE_CRASH_IN_INIT
   crash();
#endif
#ifdef FAKE_ABORT_IN_INIT
   abort();
#endif
#ifdef FAKE_HANG_IN_INIT
   hang();
#endif
#ifdef FAKE_FORK_IN_INIT
   if (fork() == 0) {
      sleep_us(600000000);
      _exit(0);
   }
#endif
#ifdef FAKE_EXIT_IN_INIT
   exit(0);
#endif
#ifdef FAKE_PRINTF
   printf("loading...\n");
   fflush(stdout);
#endif
#ifdef FAKE_SOCKET_IN_INIT
   int descriptor = socket(AF_INET, SOCK_STREAM, 0);
   if (descriptor < 0) {
      return fail(ERR_INTERNAL, "the toy got no socket");
   }
   close(descriptor);
#endif
#ifdef FAKE_SIGNAL_IN_INIT
   signal(SIGSEGV, on_signal);
#endif
#ifdef FAKE_SETENV_IN_INIT
   setenv("FAKE_ENGINE_WAS_HERE", "1", 1);
#endif
#ifdef FAKE_WRITE_PAST_CONFIG
   memset((char *)config + config->struct_size, 0x5a, 8);
#endif
#ifdef FAKE_LEAK_DESCRIPTORS
   for (int i = 0; i < 8; i++) {
      if (open("/dev/null", O_RDONLY) < 0) {
         break;
      }
   }
#endif
#ifdef FAKE_THREAD_LEFT
   pthread_t thread;
   pthread_create(&thread, NULL, endless, NULL);
   pthread_detach(thread);
#endif
#ifdef FAKE_INIT_CODE
   return fail(FAKE_INIT_CODE, "the toy would not start");
#else
   return ERR_OK;
#endif
}
