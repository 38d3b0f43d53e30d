// fake_engine.c - a whole toy engine in one file, and a liar for every rule of engine_api.h.
//
// Built without any -D it is a GOOD engine, quick and deterministic, with the extensions models,
// memory, tokenizer, batch, stream and embed:
//
//    cc -std=c99 -shared -fPIC -I rust/abi/include -o libfake_engine.so tests/fakes/fake_engine.c
//
// Its models are files that begin with "TOY1"; format "toy", architecture "toy". The rest of the file
// may hold lines "key=value", which become the model's metadata. Known keys:
//
//    n_context=N        longest sequence it says it was trained for              (default 2048)
//    eog_every=N        one position in N or so ends the answer; 0: none does    (default 64)
//    estimate_bytes=N   what the weights take                                    (default: the file's size)
//
// A token is one byte (0 to 255), BOS (256, "<s>") or EOS (257, "</s>"). A row of logits is a hash of the
// whole sequence up to its token, so the greedy text depends on every earlier token at its place, and a
// host that mixes up two sequences, or loses a token of one, gets another text. Small letters and the
// space are likelier than all else. The hashes are kept in the cells of a KV cache with reference
// counts, so that seq_copy, seq_remove and ERR_CACHE_FULL are real.
//
// Options, of engine_init or of a context (which counts more): "step_us" and "token_us" are the
// microseconds that a step takes, and each of its tokens on top.
//
// -DFAKE_...=VALUE
//    ENGINE_ID="fake"  ENGINE_VERSION="1.0.0"  ABI_VERSION=1
//    STEP_US=0  TOKEN_US=0        defaults of the options
//    TOKENIZE_NS=0                nanoseconds that the tokenizer takes for a byte
//    EOG_EVERY=64                 default of the key
//    ESTIMATE_BYTES=N             what estimate and usage say for every model, all in all
//    DEVICE_BYTES=8589934592ULL   memory of the one device
//    INIT_CODE=N                  engine_init returns N, saying "the toy would not start"
//    LOAD_CODE=N                  loading a model returns N, saying "the toy would not load"
//    CRASH_ON_BYTE=N              a step (or tier 0, stream) with token N dies of signal 11
//    HANG_ON_BYTE=N               ... never returns
//    CRASH_AFTER_STEPS=N          step N + 1 dies of signal 11
//    MOST_SEQUENCES=4096          a context for more of them is refused
//    EMBED_US=0                   what an embedding takes
//    TABLE_SIZE=N                 every table's struct_size (0, 0xFFFFFFFF, ...)
//    HANG_IN_CALL=NAME            never returns from it, where it happens between steps: TOKENIZE (of what
//                                 begins with "!"), EMBED, SEQ_REMOVE, SEQ_COPY, SEQ_SAVE, SEQ_RESTORE,
//                                 CACHE_FREE (once something is in the cache)
//
// -DFAKE_..., fewer features
//    NO_EXTENSIONS   tier 0 alone        NO_GET_EXTENSION   nor the symbol
//    NO_BATCH  NO_TOKENIZER  NO_MEMORY  NO_ESTIMATE  NO_CHAT_TEMPLATE  NO_CANCEL  NO_SHARE
//    NO_SAVE
//    ROWS_F16  ROWS_BF16   logits in half the width
//
// -DFAKE_..., lies and accidents
//    at loading     CRASH_IN_CONSTRUCTOR  HANG_IN_CONSTRUCTOR  MISSING_SYMBOL (engine_generate)  NULL_INFO
//                   GARBAGE_INFO  GARBAGE_ID  NULL_ID  UNTERMINATED_ID  VERSION_NOT_UTF8  GARBAGE_TABLE  NULL_SLOT
//    in init        CRASH_IN_INIT  ABORT_IN_INIT  HANG_IN_INIT  EXIT_IN_INIT  UNKNOWN_CODE (4711)
//                   FORK_IN_INIT (a helper that lives for ten minutes)
//                   PRINTF  SOCKET_IN_INIT  SIGNAL_IN_INIT  SETENV_IN_INIT  WRITE_PAST_CONFIG  LEAK_DESCRIPTORS
//    in load        CRASH_IN_LOAD  HANG_IN_LOAD  NULL_MODEL  NULL_ARCHITECTURE  HUGE_VOCAB
//    the memory     NO_SUCH_DEVICE  ESTIMATE_NOTHING
//    in generate    CRASH_IN_GENERATE  HANG_IN_GENERATE  NO_END_MARKER  GARBAGE_RESULTS  GARBAGE_TEXT  LEAK_MEMORY
//    the tokenizer  OFFSETS_FALL  VOCAB_TOO_SHORT  SPECIAL_OUT_OF_RANGE  TOKENS_OUT_OF_RANGE  COUNT_TOO_LARGE
//                   REFUSE_TEXT (one with "?")  EOS_IS_NO_END
//    the batch      NULL_CONTEXT  ZERO_LIMITS  CRASH_IN_STEP  HANG_IN_STEP  TICKETS_JUMP  NAN_LOGITS  NULL_LOGITS
//                   CROOKED_LOGITS  ROW_TOO_NARROW  ROWS_UNWRITTEN  STAGE_TOO_FAR  UNKNOWN_DTYPE  RANGE_BACKWARDS
//                   SAVE_NEEDS_NOTHING  SAVE_NEEDS_ALL  SAVE_NEEDS_MORE  SAVE_WROTE_MORE  RESTORE_NOTHING
//                   RESTORE_SHORT  REMOVE_NOTHING  REMOVE_LEAKS  COPY_SHORT  COPY_SPOILS  TICKET_ZERO
//                   FEWER_SEQUENCES  SHORTER_CONTEXT  FEWER_ROWS  SMALLER_CACHE  ENDLESS_SEQUENCES
//    the stream     TOKEN_AFTER_END  NO_END_ELEMENT
//    embed          SHORT_VECTORS
//    at the end     CRASH_IN_SHUTDOWN  HANG_IN_SHUTDOWN  THREAD_LEFT
//
#if !defined(_WIN32)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "engine_api.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if !defined(_WIN32)
#  include <unistd.h>
#  ifdef FAKE_SOCKET_IN_INIT
#     include <netinet/in.h>
#     include <sys/socket.h>
#  endif
#  ifdef FAKE_LEAK_DESCRIPTORS
#     include <fcntl.h>
#  endif
#  ifdef FAKE_THREAD_LEFT
#     include <pthread.h>
#  endif
#endif

#ifndef FAKE_ENGINE_ID
#  define FAKE_ENGINE_ID "fake"
#endif
#ifndef FAKE_ENGINE_VERSION
#  define FAKE_ENGINE_VERSION "1.0.0"
#endif
#ifndef FAKE_ABI_VERSION
#  define FAKE_ABI_VERSION ENGINE_ABI_VERSION
#endif
#ifndef FAKE_STEP_US
#  define FAKE_STEP_US 0
#endif
#ifndef FAKE_TOKEN_US
#  define FAKE_TOKEN_US 0
#endif
#ifndef FAKE_EMBED_US
#  define FAKE_EMBED_US 0
#endif
#ifndef FAKE_TOKENIZE_NS
#  define FAKE_TOKENIZE_NS 0
#endif
#ifndef FAKE_EOG_EVERY
#  define FAKE_EOG_EVERY 64
#endif
#ifdef FAKE_UNKNOWN_CODE
#  define FAKE_INIT_CODE 4711
#endif
#ifndef FAKE_DEVICE_BYTES
#  define FAKE_DEVICE_BYTES 8589934592ULL
#endif
#ifndef FAKE_CRASH_ON_BYTE
#  define FAKE_CRASH_ON_BYTE (-1000)
#endif
#ifndef FAKE_HANG_ON_BYTE
#  define FAKE_HANG_ON_BYTE (-1000)
#endif

#define N_VOCAB 258
#define TOKEN_BOS 256
#define TOKEN_EOS 257
#define N_EMBEDDING 8
#define CACHE_BYTES_PER_TOKEN 64
#ifdef FAKE_MOST_SEQUENCES
#  define MOST_SEQUENCES FAKE_MOST_SEQUENCES
#else
#  define MOST_SEQUENCES 4096
#endif
#define MOST_METADATA 16
#define NOWHERE ((void *)(uintptr_t)0x10)

// Needed only by some of the lies.
#if defined(__GNUC__)
#  define MAYBE_UNUSED __attribute__((unused))
#else
#  define MAYBE_UNUSED
#endif

static MAYBE_UNUSED void crash(void) {
   // Not a write through a bad pointer: a compiler may do with that what it likes, and a sanitizer
   // would have its say.
   signal(SIGSEGV, SIG_DFL);
   raise(SIGSEGV);
}

static void sleep_us(uint64_t us) {
#if defined(_WIN32)
   clock_t end = clock() + (clock_t)(us * CLOCKS_PER_SEC / 1000000);
   while (clock() < end) {
   }
#else
   struct timespec left = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
   while (nanosleep(&left, &left) != 0 && errno == EINTR) {
   }
#endif
}

static MAYBE_UNUSED void hang(void) {
   for (;;) {
      sleep_us(1000000);
   }
}

enum { NO_CALL, TOKENIZE, EMBED, SEQ_REMOVE, SEQ_COPY, SEQ_SAVE, SEQ_RESTORE, CACHE_FREE };
#ifndef FAKE_HANG_IN_CALL
#  define FAKE_HANG_IN_CALL NO_CALL
#endif

static MAYBE_UNUSED void perhaps_hang(int call) {
   if (call == FAKE_HANG_IN_CALL) {
      hang();
   }
}


//////////////
// The hash //
//////////////

static uint64_t mixed(uint64_t x) { // splitmix64
   x += 0x9e3779b97f4a7c15ULL;
   x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
   x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
   return x ^ (x >> 31);
}

static uint64_t appended(uint64_t hash, EngineToken token) {
   return mixed(hash * 31 + (uint64_t)(uint32_t)token + 1);
}

static float logit(uint64_t hash, int token, uint64_t eog_every) {
   float noise = (float)(mixed(hash ^ ((uint64_t)token << 40)) >> 40) / (float)(1 << 24); // [0, 1)
   if (token == TOKEN_EOS) {
      return eog_every != 0 && mixed(hash) % eog_every == 0 ? 12.0f : -12.0f;
   }
   if (token == TOKEN_BOS) {
      return -20.0f;
   }
   if ((token >= 'a' && token <= 'z') || token == ' ') {
      return 8.0f * noise;
   }
   return 8.0f * noise - 10.0f;
}

static EngineToken greedy(uint64_t hash, uint64_t eog_every) {
   EngineToken best = 0;
   for (int token = 1; token < N_VOCAB; token++) {
      if (logit(hash, token, eog_every) > logit(hash, best, eog_every)) {
         best = token;
      }
   }
   return best;
}


////////////////////
// Life of engine //
////////////////////

static const EngineHost *host;
static uint64_t default_step_us, default_token_us;
static uint32_t tier0_max_tokens;
static char device_name[16];
static int device_is_cpu;

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

#ifdef FAKE_UNTERMINATED_ID
static char long_id[1 << 20];
#endif

EngineInfo *engine_get_info(void) {
   static EngineInfo info = {FAKE_ABI_VERSION, FAKE_ENGINE_ID, FAKE_ENGINE_VERSION};
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
   default_step_us = FAKE_STEP_US;
   default_token_us = FAKE_TOKEN_US;
   if (ENGINE_HAS(config, n_options)) {
      default_step_us = option(config->options, config->n_options, "step_us", default_step_us);
      default_token_us = option(config->options, config->n_options, "token_us", default_token_us);
   }
   tier0_max_tokens = ENGINE_HAS(config, max_tokens) ? config->max_tokens : 0;
   device_is_cpu = !ENGINE_HAS(config, gpu_backend) || config->gpu_backend == NULL ||
                   strcmp(config->gpu_backend, "cpu") == 0;
   strcpy(device_name, device_is_cpu ? "CPU" : "TOY0");
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


////////////
// Models //
////////////

struct EngineModel {
   uint64_t file_bytes, eog_every, estimate_bytes;
   uint32_t n_context;
   size_t   n_metadata;
   char    *text; // the file, cut into the strings below
   char    *keys[MOST_METADATA], *values[MOST_METADATA];
   uint64_t cache_bytes; // of its contexts
};

static uint64_t metadata_number(const EngineModel *model, const char *key, uint64_t otherwise) {
   for (size_t i = 0; i < model->n_metadata; i++) {
      if (strcmp(model->keys[i], key) == 0) {
         return strtoull(model->values[i], NULL, 10);
      }
   }
   return otherwise;
}

static void model_free(EngineModel *model) {
   if (model != NULL) {
      free(model->text);
      free(model);
   }
}

static int model_open(const char *path, EngineModel **result) {
   FILE *file = fopen(path, "rb");
   if (file == NULL) {
      return fail(ERR_NOT_FOUND, "the toy finds no such file");
   }
   EngineModel *model = calloc(1, sizeof *model);
   char        *text  = calloc(1, 65537);
   if (model == NULL || text == NULL) {
      fclose(file);
      free(text);
      free(model);
      return ERR_OOM_RAM;
   }
   model->text = text;
   size_t length = fread(text, 1, 65536, file);
   fclose(file);
   if (length < 4 || memcmp(text, "TOY1", 4) != 0) {
      model_free(model);
      return fail(ERR_MODEL_CORRUPT, "the file does not begin with TOY1");
   }
   model->file_bytes = length;
   for (char *line = strtok(text + 4, "\r\n"); line != NULL; line = strtok(NULL, "\r\n")) {
      char *equals = strchr(line, '=');
      if (equals != NULL && model->n_metadata < MOST_METADATA) {
         *equals = 0;
         model->keys[model->n_metadata] = line;
         model->values[model->n_metadata++] = equals + 1;
      }
   }
   model->n_context      = (uint32_t)metadata_number(model, "n_context", 2048);
   model->eog_every      = metadata_number(model, "eog_every", FAKE_EOG_EVERY);
   model->estimate_bytes = metadata_number(model, "estimate_bytes", model->file_bytes);
   *result = model;
   return ERR_OK;
}

static MAYBE_UNUSED int models_load(const EngineModelParams *params, EngineModel **model) {
#ifdef FAKE_CRASH_IN_LOAD
   crash();
#endif
#ifdef FAKE_HANG_IN_LOAD
   hang();
#endif
#ifdef FAKE_LOAD_CODE
   (void)params, (void)model;
   return fail(FAKE_LOAD_CODE, "the toy would not load");
#else
   EngineModel *loaded = NULL;
   int          code   = model_open(params->path, &loaded);
   if (code != ERR_OK) {
      return code;
   }
   for (int i = 0; i <= 4; i++) {
      if (ENGINE_HAS(params, user) && params->progress != NULL &&
          params->progress(params->user, (float)i / 4.0f) != 0) {
         model_free(loaded);
         return ERR_CANCELLED;
      }
   }
#  ifdef FAKE_NULL_MODEL
   model_free(loaded);
   loaded = NULL;
#  endif
   *model = loaded;
   return ERR_OK;
#endif
}

static MAYBE_UNUSED void models_unload(EngineModel *model) {
   model_free(model);
}

static MAYBE_UNUSED int models_info(const EngineModel *model, EngineModelInfo *info) {
   EngineModelInfo mine = {0};
   mine.struct_size  = info->struct_size;
   mine.flags        = ENGINE_MODEL_GENERATES | ENGINE_MODEL_EMBEDS;
   mine.architecture = "toy";
   mine.format       = "toy";
   mine.quantization = NULL;
   mine.n_parameters = 258;
   mine.size_bytes   = model->file_bytes;
   mine.n_vocab      = N_VOCAB;
   mine.n_context    = model->n_context;
   mine.n_embedding  = N_EMBEDDING;
   mine.max_streams  = 1;
#ifdef FAKE_NULL_ARCHITECTURE
   mine.architecture = NULL;
#endif
#ifdef FAKE_HUGE_VOCAB
   mine.n_vocab = 0xFFFFFFFF;
#endif
   memcpy(info, &mine, info->struct_size < sizeof mine ? info->struct_size : sizeof mine);
   return ERR_OK;
}

static MAYBE_UNUSED size_t models_meta_count(const EngineModel *model) {
   return model->n_metadata;
}

static MAYBE_UNUSED int models_meta_get(const EngineModel *model, size_t index, EngineStr *key,
                                        EngineStr *value) {
   if (index >= model->n_metadata) {
      return ERR_NOT_FOUND;
   }
   key->data   = model->keys[index];
   key->len    = strlen(key->data);
   value->data = model->values[index];
   value->len  = strlen(value->data);
   return ERR_OK;
}


////////////
// Memory //
////////////

static MAYBE_UNUSED uint32_t memory_device_count(void) {
   return 1;
}

static MAYBE_UNUSED int memory_device_get(uint32_t index, EngineDevice *device) {
   if (index != 0) {
      return ERR_NOT_FOUND;
   }
   EngineDevice mine = {0};
   mine.struct_size = device->struct_size;
   mine.kind        = device_is_cpu ? ENGINE_DEVICE_CPU : ENGINE_DEVICE_GPU;
   mine.name        = device_name;
   mine.description = "a toy device";
   mine.bus_id      = device_is_cpu ? NULL : "0000:01:00.0";
   mine.total_bytes = FAKE_DEVICE_BYTES;
   mine.free_bytes  = FAKE_DEVICE_BYTES;
   memcpy(device, &mine, device->struct_size < sizeof mine ? device->struct_size : sizeof mine);
   return ERR_OK;
}

static void use_of(const EngineModel *model, uint64_t cache_bytes, EngineMemoryUse *use) {
   memset(use, 0, sizeof *use);
   use->device          = device_is_cpu ? ENGINE_DEVICE_HOST : 0;
   use->weights         = model->estimate_bytes;
   use->cache           = cache_bytes;
   use->compute         = 4096;
#ifdef FAKE_ESTIMATE_BYTES
   use->weights = FAKE_ESTIMATE_BYTES - use->cache - use->compute;
#endif
   use->cache_per_token = CACHE_BYTES_PER_TOKEN;
#ifdef FAKE_NO_SUCH_DEVICE
   use->device = 7;
#endif
#ifdef FAKE_ESTIMATE_NOTHING
   use->weights = use->cache = use->compute = use->cache_per_token = 0;
#endif
}

static uint64_t cache_capacity(const EngineContextParams *params, uint32_t context_length) {
   if (params->cache_tokens != 0) {
      return params->cache_tokens;
   }
   return (uint64_t)params->max_sequences * context_length;
}

static MAYBE_UNUSED int memory_estimate(const EngineModelParams   *params,
                                        const EngineContextParams *context, EngineMemoryUse *uses,
                                        size_t capacity, size_t *count) {
   EngineModel *model = NULL;
   int          code  = model_open(params->path, &model);
   if (code != ERR_OK) {
      return code;
   }
   uint64_t cache = 0;
   if (context != NULL) {
      uint32_t length = context->context_length != 0 ? context->context_length : model->n_context;
      cache = cache_capacity(context, length) * CACHE_BYTES_PER_TOKEN;
   }
   if (capacity > 0) {
      use_of(model, cache, uses);
   }
   *count = 1;
   model_free(model);
   return ERR_OK;
}

static MAYBE_UNUSED int memory_usage(const EngineModel *model, EngineMemoryUse *uses,
                                     size_t capacity, size_t *count) {
   if (capacity > 0) {
      use_of(model, model->cache_bytes, uses);
   }
   *count = 1;
   return ERR_OK;
}


///////////////
// Tokenizer //
///////////////

static const char special_names[] = "<s></s>";
static uint8_t    vocab_bytes[256 + 7];
static uint32_t   vocab_offsets[N_VOCAB + 1];
static uint32_t   vocab_attributes[N_VOCAB];

static MAYBE_UNUSED int tokenizer_vocab(const EngineModel *model, EngineVocab *vocab) {
   (void)model;
   // Written anew with the same values by every call: harmless from several threads.
   for (uint32_t i = 0; i < 256; i++) {
      vocab_bytes[i]      = (uint8_t)i;
      vocab_offsets[i]    = i;
      vocab_attributes[i] = ENGINE_ATTR_BYTE;
   }
   memcpy(vocab_bytes + 256, special_names, 7);
   vocab_offsets[TOKEN_BOS]     = 256;
   vocab_offsets[TOKEN_EOS]     = 259;
   vocab_offsets[N_VOCAB]       = 263;
   vocab_attributes[TOKEN_BOS]  = ENGINE_ATTR_CONTROL;
   vocab_attributes[TOKEN_EOS]  = ENGINE_ATTR_CONTROL | ENGINE_ATTR_EOG;
#ifdef FAKE_EOS_IS_NO_END
   vocab_attributes[TOKEN_EOS] = ENGINE_ATTR_CONTROL;
#endif
   EngineVocab mine = {0};
   mine.struct_size = vocab->struct_size;
   mine.n_tokens    = N_VOCAB;
   mine.bytes       = vocab_bytes;
   mine.offsets     = vocab_offsets;
   mine.attributes  = vocab_attributes;
   mine.bos         = TOKEN_BOS;
   mine.eos         = TOKEN_EOS;
   mine.eot = mine.pad = mine.sep = mine.mask = ENGINE_TOKEN_NONE;
   mine.adds_bos    = 1;
#ifdef FAKE_OFFSETS_FALL
   vocab_offsets[10] = 200;
#endif
#ifdef FAKE_VOCAB_TOO_SHORT
   mine.n_tokens = 256;
#endif
#ifdef FAKE_SPECIAL_OUT_OF_RANGE
   mine.eos = N_VOCAB;
#endif
   memcpy(vocab, &mine, vocab->struct_size < sizeof mine ? vocab->struct_size : sizeof mine);
   return ERR_OK;
}

static MAYBE_UNUSED int tokenizer_tokenize(const EngineModel *model, const char *text,
                                           size_t text_len, uint32_t flags, EngineToken *tokens,
                                           size_t capacity, size_t *count) {
   (void)model;
   size_t n = 0;
   sleep_us((uint64_t)text_len * FAKE_TOKENIZE_NS / 1000);
   if (text_len > 0 && text[0] == '!') {
      perhaps_hang(TOKENIZE);
   }
#ifdef FAKE_REFUSE_TEXT
   if (memchr(text, '?', text_len) != NULL) {
      return fail(ERR_INVALID_ARGUMENT, "the toy takes no questions");
   }
#endif
   if ((flags & ENGINE_TOKENIZE_ADD_SPECIAL) != 0) {
      if (n < capacity) {
         tokens[n] = TOKEN_BOS;
      }
      n++;
   }
   for (size_t i = 0; i < text_len;) {
      EngineToken token  = (unsigned char)text[i];
      size_t      length = 1;
      if ((flags & ENGINE_TOKENIZE_PARSE_SPECIAL) != 0) {
         if (text_len - i >= 3 && memcmp(text + i, "<s>", 3) == 0) {
            token  = TOKEN_BOS;
            length = 3;
         } else if (text_len - i >= 4 && memcmp(text + i, "</s>", 4) == 0) {
            token  = TOKEN_EOS;
            length = 4;
         }
      }
      if (n < capacity) {
         tokens[n] = token;
      }
      n++;
      i += length;
   }
   *count = n;
#ifdef FAKE_TOKENS_OUT_OF_RANGE
   if (capacity > 0) {
      tokens[0] = N_VOCAB;
   }
#endif
#ifdef FAKE_COUNT_TOO_LARGE
   *count = capacity + 1;
   return ERR_OK;
#else
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
#endif
}

static size_t spelled(EngineToken token, const char **text) {
   if (token == TOKEN_BOS) {
      *text = special_names;
      return 3;
   }
   if (token == TOKEN_EOS) {
      *text = special_names + 3;
      return 4;
   }
   static const char bytes[] = {
#define FOUR(n) (char)(n), (char)(n + 1), (char)(n + 2), (char)(n + 3)
#define SIXTEEN(n) FOUR(n), FOUR(n + 4), FOUR(n + 8), FOUR(n + 12)
#define SIXTY_FOUR(n) SIXTEEN(n), SIXTEEN(n + 16), SIXTEEN(n + 32), SIXTEEN(n + 48)
      SIXTY_FOUR(0), SIXTY_FOUR(64), SIXTY_FOUR(128), SIXTY_FOUR(192)};
   *text = bytes + (token & 255);
   return 1;
}

static MAYBE_UNUSED int tokenizer_detokenize(const EngineModel *model, const EngineToken *tokens,
                                             size_t n_tokens, char *text, size_t capacity,
                                             size_t *count) {
   (void)model;
   size_t n = 0;
   for (size_t i = 0; i < n_tokens; i++) {
      if (tokens[i] < 0 || tokens[i] >= N_VOCAB) {
         return fail(ERR_INVALID_ARGUMENT, "a token is outside the toy's vocabulary");
      }
      const char *bytes;
      size_t      length = spelled(tokens[i], &bytes);
      for (size_t j = 0; j < length; j++, n++) {
         if (n < capacity) {
            text[n] = bytes[j];
         }
      }
   }
   *count = n;
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
}

static MAYBE_UNUSED int tokenizer_chat_template(const EngineModel *model, const char *name,
                                                EngineStr *source) {
   (void)model;
#ifdef FAKE_NO_CHAT_TEMPLATE
   (void)name, (void)source;
   return ERR_NOT_FOUND;
#else
   static const char text[] =
      "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
      "{% if add_generation_prompt %}[assistant] {% endif %}";
   if (name != NULL) {
      return ERR_NOT_FOUND;
   }
   source->data = text;
   source->len  = sizeof text - 1;
   return ERR_OK;
#endif
}


///////////
// Batch //
///////////

// One token in the KV cache. Several sequences may hold the same one.
typedef struct Cell {
   uint64_t hash; // of the sequence up to here
   uint32_t references;
} Cell;

typedef struct Sequence {
   uint32_t  length;
   uint32_t *cells; // context_length
} Sequence;

struct EngineContext {
   EngineModel *model;
   uint32_t     max_sequences, context_length, max_batch_tokens, max_rows;
   uint64_t     n_cells, n_free, next_cell; // where to look for a free one
   Cell        *cells;
   Sequence    *sequences;
   uint64_t     ticket;
   size_t       n_rows; // of that ticket
   float       *rows;   // max_rows * N_VOCAB
   uint32_t    *wanted; // per row, how many candidates suffice; 0: it must be whole
   EngineToken *ids;    // candidates, and their logits: max_rows * N_VOCAB
   float       *best;
   uint16_t    *narrow_rows;
   uint64_t     step_us, token_us, steps;
   volatile sig_atomic_t cancelled;
};

static MAYBE_UNUSED void batch_destroy(EngineContext *context) {
   if (context == NULL) {
      return;
   }
   context->model->cache_bytes -= context->n_cells * CACHE_BYTES_PER_TOKEN;
   for (uint32_t i = 0; context->sequences != NULL && i < context->max_sequences; i++) {
      free(context->sequences[i].cells);
   }
   free(context->sequences);
   free(context->cells);
   free(context->rows);
   free(context->wanted);
   free(context->ids);
   free(context->best);
   free(context->narrow_rows);
   free(context);
}

static MAYBE_UNUSED int batch_create(EngineModel *model, const EngineContextParams *params,
                                     EngineContext **result) {
   if (params->max_sequences == 0 || params->max_sequences > MOST_SEQUENCES) {
      return fail(ERR_INVALID_ARGUMENT, "the toy takes 1 to 4096 sequences");
   }
   EngineContext *context = calloc(1, sizeof *context);
   if (context == NULL) {
      return ERR_OOM_RAM;
   }
   context->model            = model;
   context->max_sequences    = params->max_sequences;
   context->context_length   = params->context_length != 0 ? params->context_length : model->n_context;
   context->max_batch_tokens = params->max_batch_tokens != 0 ? params->max_batch_tokens : 512;
   context->max_rows         = params->max_rows != 0 ? params->max_rows : params->max_sequences;
   context->n_cells          = cache_capacity(params, context->context_length);
   context->n_free           = context->n_cells;
   context->step_us  = option(params->options, params->n_options, "step_us", default_step_us);
   context->token_us = option(params->options, params->n_options, "token_us", default_token_us);
   model->cache_bytes += context->n_cells * CACHE_BYTES_PER_TOKEN;
   context->cells       = calloc((size_t)context->n_cells, sizeof *context->cells);
   context->sequences   = calloc(context->max_sequences, sizeof *context->sequences);
   context->rows        = calloc((size_t)context->max_rows * N_VOCAB + 1, sizeof *context->rows);
   context->narrow_rows = calloc((size_t)context->max_rows * N_VOCAB + 1, sizeof *context->narrow_rows);
   context->wanted      = calloc((size_t)context->max_rows + 1, sizeof *context->wanted);
   context->ids         = calloc((size_t)context->max_rows * N_VOCAB + 1, sizeof *context->ids);
   context->best        = calloc((size_t)context->max_rows * N_VOCAB + 1, sizeof *context->best);
   int complete = context->cells != NULL && context->sequences != NULL && context->rows != NULL &&
                  context->wanted != NULL && context->ids != NULL && context->best != NULL &&
                  context->narrow_rows != NULL;
   for (uint32_t i = 0; complete && i < context->max_sequences; i++) {
      context->sequences[i].cells = calloc(context->context_length, sizeof(uint32_t));
      complete                    = context->sequences[i].cells != NULL;
   }
   if (!complete) {
      batch_destroy(context);
      return fail(ERR_OOM_RAM, "no memory for the toy's cache");
   }
#ifdef FAKE_NULL_CONTEXT
   batch_destroy(context);
   context = NULL;
#endif
   *result = context;
   return ERR_OK;
}

static MAYBE_UNUSED int batch_info(const EngineContext *context, EngineContextInfo *info) {
   EngineContextInfo mine = {0};
   mine.struct_size = info->struct_size;
#ifndef FAKE_NO_SHARE
   mine.flags = ENGINE_CONTEXT_SHARE;
#endif
   mine.max_sequences    = context->max_sequences;
   mine.context_length   = context->context_length;
   mine.max_batch_tokens = context->max_batch_tokens;
   mine.max_rows         = context->max_rows;
   mine.max_in_flight    = 1;
   mine.max_rollback     = UINT32_MAX;
   mine.cache_page       = 1;
   mine.cache_tokens     = context->n_cells;
#ifdef FAKE_TOP
   mine.max_candidates = FAKE_TOP;
#endif
#ifdef FAKE_ZERO_LIMITS
   mine.max_batch_tokens = 0;
#endif
#ifdef FAKE_FEWER_SEQUENCES
   mine.max_sequences--;
#endif
#ifdef FAKE_SHORTER_CONTEXT
   mine.context_length--;
#endif
#ifdef FAKE_FEWER_ROWS
   mine.max_rows--;
#endif
#ifdef FAKE_SMALLER_CACHE
   mine.cache_tokens--;
#endif
#ifdef FAKE_ENDLESS_SEQUENCES
   mine.max_sequences = UINT32_MAX;
#endif
   memcpy(info, &mine, info->struct_size < sizeof mine ? info->struct_size : sizeof mine);
   return ERR_OK;
}

static uint32_t take_cell(EngineContext *context) {
   while (context->cells[context->next_cell].references != 0) {
      context->next_cell = (context->next_cell + 1) % context->n_cells;
   }
   context->cells[context->next_cell].references = 1;
   context->n_free--;
   return (uint32_t)context->next_cell;
}

static void drop_cell(EngineContext *context, uint32_t cell) {
   if (--context->cells[cell].references == 0) {
#ifndef FAKE_REMOVE_LEAKS
      context->n_free++;
#endif
   }
}

static uint64_t hash_of(const EngineContext *context, const Sequence *sequence) {
   return sequence->length == 0 ? 0 : context->cells[sequence->cells[sequence->length - 1]].hash;
}

static MAYBE_UNUSED void mind(EngineToken token) {
   if (token == FAKE_CRASH_ON_BYTE) {
      crash();
   }
   if (token == FAKE_HANG_ON_BYTE) {
      hang();
   }
}

// Everything is checked before anything is changed.
static int step_refused(const EngineContext *context, const EngineBatch *batch) {
   static const char not_a_sequence[] = "no such sequence, or twice in one step";
   uint8_t  seen[MOST_SEQUENCES] = {0};
   uint64_t n_tokens = 0, n_rows = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice =
         (const EngineSlice *)(const void *)((const char *)batch->slices + i * batch->slice_stride);
      if (slice->sequence >= context->max_sequences || seen[slice->sequence]++) {
         return fail(ERR_INVALID_ARGUMENT, not_a_sequence);
      }
      if (slice->position != context->sequences[slice->sequence].length) {
         return fail(ERR_INVALID_ARGUMENT, "a slice does not begin where its sequence ends");
      }
      if (slice->n_tokens == 0 || slice->n_rows > slice->n_tokens || slice->adapter != NULL) {
         return fail(ERR_INVALID_ARGUMENT, "a slice is empty, wants too many rows, or has an adapter");
      }
      if ((uint64_t)slice->position + slice->n_tokens > context->context_length) {
         return fail(ERR_INVALID_ARGUMENT, "a sequence grows beyond the context length");
      }
      for (uint32_t j = 0; j < slice->n_tokens; j++) {
         if (slice->tokens[j] < 0 || slice->tokens[j] >= N_VOCAB) {
            return fail(ERR_INVALID_ARGUMENT, "a token is outside the toy's vocabulary");
         }
      }
      n_tokens += slice->n_tokens;
      n_rows += slice->n_rows;
   }
   if (n_tokens == 0 || n_tokens > context->max_batch_tokens || n_rows > context->max_rows) {
      return fail(ERR_INVALID_ARGUMENT, "no tokens, or too many tokens or rows in one step");
   }
   if (n_tokens > context->n_free) {
      return fail(ERR_CACHE_FULL, "the toy's cache is full");
   }
   return ERR_OK;
}

static MAYBE_UNUSED uint32_t candidates_wanted(const EnginePick *pick) {
#ifdef FAKE_TOP
   // Whoever wants penalties, bias or masks applied gets the whole row.
   if (pick != NULL && pick->stage == ENGINE_STAGE_TOP && pick->uses == 0) {
      return pick->n_candidates < FAKE_TOP ? pick->n_candidates : FAKE_TOP;
   }
#else
   (void)pick;
#endif
   return 0;
}

static MAYBE_UNUSED int batch_step(EngineContext *context, const EngineBatch *batch,
                                   uint64_t *ticket) {
#ifdef FAKE_CRASH_IN_STEP
   crash();
#endif
#ifdef FAKE_HANG_IN_STEP
   hang();
#endif
#ifdef FAKE_CRASH_AFTER_STEPS
   if (context->steps >= FAKE_CRASH_AFTER_STEPS) {
      crash();
   }
#endif
   int code = step_refused(context, batch);
   if (code != ERR_OK) {
      return code;
   }
   uint64_t us = context->step_us;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice =
         (const EngineSlice *)(const void *)((const char *)batch->slices + i * batch->slice_stride);
      us += context->token_us * slice->n_tokens;
   }
   context->cancelled = 0;
   while (us > 0) {
      uint64_t piece = us < 1000 ? us : 1000;
      sleep_us(piece);
      us -= piece;
      if (context->cancelled) {
         return fail(ERR_CANCELLED, "somebody cancelled the step");
      }
   }
   size_t row = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice =
         (const EngineSlice *)(const void *)((const char *)batch->slices + i * batch->slice_stride);
      Sequence *sequence = &context->sequences[slice->sequence];
      for (uint32_t j = 0; j < slice->n_tokens; j++) {
         mind(slice->tokens[j]);
         uint64_t hash = appended(hash_of(context, sequence), slice->tokens[j]);
         uint32_t cell = take_cell(context);
         context->cells[cell].hash           = hash;
         sequence->cells[sequence->length++] = cell;
         if (j + slice->n_rows >= slice->n_tokens) {
            context->wanted[row] = candidates_wanted(slice->pick);
            float *out           = context->rows + row++ * N_VOCAB;
            for (int token = 0; token < N_VOCAB; token++) {
               out[token] = logit(hash, token, context->model->eog_every);
            }
         }
      }
   }
   context->n_rows = row;
   context->steps++;
#ifdef FAKE_TICKETS_JUMP
   context->ticket += 2;
#else
   context->ticket++;
#endif
   *ticket = context->ticket;
#ifdef FAKE_TICKET_ZERO
   *ticket -= 1;
#endif
   return ERR_OK;
}

static MAYBE_UNUSED uint16_t as_bf16(float number) {
   uint32_t bits;
   memcpy(&bits, &number, 4);
   return (uint16_t)(bits >> 16);
}

static MAYBE_UNUSED uint16_t as_f16(float number) { // of the magnitudes that occur here
   uint32_t bits;
   memcpy(&bits, &number, 4);
   uint32_t sign = bits >> 16 & 0x8000, mantissa = bits >> 13 & 0x3ff;
   int      exponent = (int)(bits >> 23 & 0xff) - 112;
   return exponent <= 0 ? (uint16_t)sign : (uint16_t)(sign | (uint32_t)exponent << 10 | mantissa);
}

static void describe(EngineContext *context, size_t index, EngineRow *row) {
   memset(row, 0, sizeof *row);
   float *logits = context->rows + index * N_VOCAB;
   row->stage    = ENGINE_STAGE_LOGITS;
   row->dtype    = ENGINE_F32;
   row->n        = N_VOCAB;
   row->token    = ENGINE_TOKEN_NONE;
   row->logprob = row->log_sum = row->log_sum_t = NAN;
   row->logits   = logits;
#if defined(FAKE_ROWS_F16) || defined(FAKE_ROWS_BF16)
   uint16_t *narrow = context->narrow_rows + index * N_VOCAB;
   for (int i = 0; i < N_VOCAB; i++) {
#  ifdef FAKE_ROWS_F16
      narrow[i] = as_f16(logits[i]);
#  else
      narrow[i] = as_bf16(logits[i]);
#  endif
   }
#  ifdef FAKE_ROWS_F16
   row->dtype = ENGINE_F16;
#  else
   row->dtype = ENGINE_BF16;
#  endif
   row->logits = narrow;
#endif
#ifdef FAKE_NAN_LOGITS
   for (int i = 0; i < N_VOCAB; i++) {
      logits[i] = NAN;
   }
#endif
#ifdef FAKE_NULL_LOGITS
   row->logits = NULL;
#endif
#ifdef FAKE_CROOKED_LOGITS
   row->logits = (const char *)logits + 1;
#endif
#ifdef FAKE_ROW_TOO_NARROW
   row->n = N_VOCAB - 1;
#endif
#ifdef FAKE_STAGE_TOO_FAR
   row->stage = ENGINE_STAGE_TOKEN;
   row->token = N_VOCAB;
#endif
#ifdef FAKE_UNKNOWN_DTYPE
   row->dtype = 77;
#endif
}

// Cuts the row down to the likeliest tokens, best first, and equal ones by lower id.
static MAYBE_UNUSED void cut_down(EngineContext *context, size_t index, EngineRow *row) {
   const float *logits = context->rows + index * N_VOCAB;
   EngineToken *ids    = context->ids + index * N_VOCAB;
   float       *best   = context->best + index * N_VOCAB;
   uint32_t     n      = 0;
   double       sum    = 0;
   for (EngineToken id = 0; id < N_VOCAB; id++) {
      uint32_t place = n;
      while (place > 0 && !(logits[id] <= best[place - 1])) {
         place--;
      }
      if (place < context->wanted[index]) {
         n += n < context->wanted[index];
         memmove(ids + place + 1, ids + place, (n - place - 1) * sizeof *ids);
         memmove(best + place + 1, best + place, (n - place - 1) * sizeof *best);
         ids[place]  = id;
         best[place] = logits[id];
      }
      sum += exp(logits[id]);
   }
   row->stage   = ENGINE_STAGE_TOP;
   row->dtype   = ENGINE_F32;
   row->n       = n;
   row->log_sum = (float)log(sum);
   row->ids     = ids;
   row->logits  = best;
#ifdef FAKE_TOP_NOTHING
   row->n = 0;
#endif
#ifdef FAKE_TOP_TOO_MANY
   row->n = context->wanted[index] + 1;
#endif
#ifdef FAKE_TOP_OUTSIDE
   ids[n - 1] = N_VOCAB;
#endif
#ifdef FAKE_TOP_NEGATIVE
   ids[0] = -1;
#endif
#ifdef FAKE_TOP_TWICE
   ids[1]  = ids[0];
   best[1] = best[0];
#endif
#ifdef FAKE_TOP_UNSORTED
   best[n - 1] = best[0] + 1;
#endif
#ifdef FAKE_TOP_NULL_IDS
   row->ids = NULL;
#endif
#ifdef FAKE_TOP_CROOKED_IDS
   row->ids = (const EngineToken *)(const void *)((const char *)ids + 1);
#endif
#ifdef FAKE_TOP_NULL_LOGITS
   row->logits = NULL;
#endif
}

static MAYBE_UNUSED int batch_collect(EngineContext *context, uint64_t ticket,
                                      const uint32_t *const *late_masks, EngineRow *rows,
                                      size_t n_rows, size_t row_stride) {
   (void)late_masks; // no row goes as far as to need one
   if (ticket == 0 || ticket != context->ticket || n_rows != context->n_rows) {
      return fail(ERR_INVALID_ARGUMENT, "not the last ticket, or not the rows that it has");
   }
#ifdef FAKE_ROWS_UNWRITTEN
   (void)rows, (void)row_stride;
#else
   for (size_t i = 0; i < n_rows; i++) {
      EngineRow row;
      describe(context, i, &row);
      if (context->wanted[i] > 0) {
         cut_down(context, i, &row);
      }
#   ifdef FAKE_TOP_UNASKED
      context->wanted[i] = 4;
      cut_down(context, i, &row);
#   endif
      memcpy((char *)rows + i * row_stride, &row, row_stride < sizeof row ? row_stride : sizeof row);
   }
#endif
   return ERR_OK;
}

static MAYBE_UNUSED int batch_fetch(EngineContext *context, uint64_t ticket, size_t row,
                                    EngineRow *out) {
   if (ticket == 0 || ticket != context->ticket || row >= context->n_rows) {
      return fail(ERR_INVALID_ARGUMENT, "not the last ticket, or not a row that it has");
   }
   describe(context, row, out);
   return ERR_OK;
}

static MAYBE_UNUSED void batch_cancel(EngineContext *context) {
   context->cancelled = 1;
}

static MAYBE_UNUSED int batch_seq_copy(EngineContext *context, uint32_t from, uint32_t to,
                                       uint32_t end) {
   if (from >= context->max_sequences || to >= context->max_sequences || from == to ||
       end > context->sequences[from].length || context->sequences[to].length != 0) {
      return fail(ERR_INVALID_ARGUMENT, "no such sequences, no such end, or the copy is not empty");
   }
   perhaps_hang(SEQ_COPY);
#ifdef FAKE_NO_SHARE
   if (end > context->n_free) {
      return fail(ERR_CACHE_FULL, "the toy's cache is full");
   }
#endif
   for (uint32_t i = 0; i < end; i++) {
      uint32_t cell = context->sequences[from].cells[i];
#ifdef FAKE_NO_SHARE
      uint32_t copy             = take_cell(context);
      context->cells[copy].hash = context->cells[cell].hash;
      cell                      = copy;
#else
      context->cells[cell].references++;
#endif
      context->sequences[to].cells[i] = cell;
   }
   context->sequences[to].length = end;
#ifdef FAKE_COPY_SHORT
   context->sequences[to].length--;
#endif
#ifdef FAKE_COPY_SPOILS
   context->sequences[from].length--;
#endif
   return ERR_OK;
}

static MAYBE_UNUSED int batch_seq_remove(EngineContext *context, uint32_t sequence, uint32_t begin) {
   if (sequence >= context->max_sequences) {
      return fail(ERR_INVALID_ARGUMENT, "no such sequence");
   }
   perhaps_hang(SEQ_REMOVE);
   Sequence *one = &context->sequences[sequence];
#ifdef FAKE_REMOVE_NOTHING
   begin = one->length;
#endif
   while (one->length > begin) {
      drop_cell(context, one->cells[--one->length]);
   }
   return ERR_OK;
}

static MAYBE_UNUSED int batch_seq_range(const EngineContext *context, uint32_t sequence,
                                        uint32_t *begin, uint32_t *end) {
   if (sequence >= context->max_sequences) {
      return fail(ERR_INVALID_ARGUMENT, "no such sequence");
   }
   *begin = 0;
   *end   = context->sequences[sequence].length;
#ifdef FAKE_RANGE_BACKWARDS
   *begin = *end + 1;
#endif
   return ERR_OK;
}

static MAYBE_UNUSED uint64_t batch_cache_free(const EngineContext *context) {
   if (context->n_free < context->n_cells) {
      perhaps_hang(CACHE_FREE);
   }
   return context->n_free;
}

// A state: a mark, the number of hashes, and the hashes.
#define STATE_MARK  0x4554415453594F54ULL // "TOYSTATE"
#define STATE_WORDS 2

static MAYBE_UNUSED int batch_seq_save(EngineContext *context, uint32_t sequence, void *data,
                                       size_t capacity, size_t *size) {
   if (sequence >= context->max_sequences || context->sequences[sequence].length == 0) {
      return fail(ERR_INVALID_ARGUMENT, "no such sequence, or an empty one");
   }
   perhaps_hang(SEQ_SAVE);
   const Sequence *one    = &context->sequences[sequence];
   size_t          needed = (STATE_WORDS + one->length) * sizeof(uint64_t);
#ifdef FAKE_SAVE_NEEDS_NOTHING
   *size = 0;
   return ERR_OK;
#endif
#ifdef FAKE_SAVE_NEEDS_ALL
   *size = SIZE_MAX / 2;
   return fail(ERR_BUFFER_TOO_SMALL, "all the memory there is");
#endif
   if (capacity < needed) {
      *size = needed;
      return fail(ERR_BUFFER_TOO_SMALL, "no room for the toy's state");
   }
#ifdef FAKE_SAVE_NEEDS_MORE
   *size = needed + 1;
   return fail(ERR_BUFFER_TOO_SMALL, "a byte more");
#endif
   uint64_t word = STATE_MARK;
   memcpy(data, &word, sizeof word);
   word = one->length;
   memcpy((char *)data + sizeof word, &word, sizeof word);
   for (uint32_t i = 0; i < one->length; i++) {
      memcpy((char *)data + (STATE_WORDS + i) * sizeof word, &context->cells[one->cells[i]].hash, sizeof word);
   }
   *size = needed;
#ifdef FAKE_SAVE_WROTE_MORE
   *size = needed + 1;
#endif
   return ERR_OK;
}

static MAYBE_UNUSED int batch_seq_restore(EngineContext *context, uint32_t sequence, const void *data,
                                          size_t size) {
   uint64_t head[STATE_WORDS] = {0};
   if (size >= sizeof head) {
      memcpy(head, data, sizeof head);
   }
   if (sequence >= context->max_sequences || context->sequences[sequence].length != 0 ||
       head[0] != STATE_MARK || head[1] == 0 || head[1] > context->context_length ||
       size != (STATE_WORDS + head[1]) * sizeof(uint64_t)) {
      return fail(ERR_INVALID_ARGUMENT, "no such sequence, one that is not empty, or no state of the toy's");
   }
   if (head[1] > context->n_free) {
      return fail(ERR_CACHE_FULL, "the toy's cache is full");
   }
   perhaps_hang(SEQ_RESTORE);
#ifdef FAKE_RESTORE_NOTHING
   return ERR_OK;
#endif
   Sequence *one = &context->sequences[sequence];
   for (uint32_t i = 0; i < head[1]; i++) {
      uint32_t cell = take_cell(context);
      memcpy(&context->cells[cell].hash, (const char *)data + (STATE_WORDS + i) * sizeof(uint64_t),
             sizeof(uint64_t));
      one->cells[i] = cell;
   }
   one->length = (uint32_t)head[1];
#ifdef FAKE_RESTORE_SHORT
   one->length--;
#endif
   return ERR_OK;
}


///////////////////////
// Stream and tier 0 //
///////////////////////

static void result_of(EngineToken token, TokenResult *result) {
   memset(result, 0, sizeof *result);
   result->text_len = spelled(token, &result->text);
   result->token_id = token;
   result->flags    = ENGINE_RESULT_ID;
}

static MAYBE_UNUSED int stream_generate(EngineModel *model, const EngineRequest *request) {
   uint64_t hash = 0;
   if (request->pick != NULL && request->pick->uses != 0) {
      return fail(ERR_UNSUPPORTED, "the toy's own loop is greedy");
   }
   if (request->tokens == NULL) {
      hash = appended(hash, TOKEN_BOS);
   }
   size_t n = request->tokens != NULL ? request->n_tokens : request->text_len;
   for (size_t i = 0; i < n; i++) {
      EngineToken token = request->tokens != NULL ? request->tokens[i] : (unsigned char)request->text[i];
      mind(token);
      hash = appended(hash, token);
   }
   TokenResult result;
   uint32_t    finish = ENGINE_FINISH_LENGTH;
   for (uint32_t i = 0; i < request->max_tokens; i++) {
      sleep_us(default_step_us);
      EngineToken token = greedy(hash, model->eog_every);
      if (token == TOKEN_EOS) {
         finish = ENGINE_FINISH_STOP;
         break;
      }
      result_of(token, &result);
      if (request->on_token(request->user, &result) != 0) {
         return ERR_CANCELLED;
      }
      hash = appended(hash, token);
   }
#ifndef FAKE_NO_END_ELEMENT
   TokenResult end = {0};
   end.finish = finish;
   request->on_token(request->user, &end);
#endif
#ifdef FAKE_TOKEN_AFTER_END
   result_of('x', &result);
   request->on_token(request->user, &result);
#endif
   (void)finish;
   return ERR_OK;
}

static EngineModel *tier0_model;
static MAYBE_UNUSED TokenResult tier0_results[4097];

int engine_load_model(const char *model_path) {
#ifdef FAKE_CRASH_IN_LOAD
   crash();
#endif
#ifdef FAKE_HANG_IN_LOAD
   hang();
#endif
#ifdef FAKE_LOAD_CODE
   (void)model_path;
   return fail(FAKE_LOAD_CODE, "the toy would not load");
#else
   EngineModel *model = NULL;
   int          code  = model_open(model_path, &model);
   if (code != ERR_OK) {
      return code;
   }
   model_free(tier0_model);
   tier0_model = model;
   return ERR_OK;
#endif
}

#ifndef FAKE_MISSING_SYMBOL
int engine_generate(const char *prompt, TokenResult **results) {
#  ifdef FAKE_CRASH_IN_GENERATE
   crash();
#  endif
#  ifdef FAKE_HANG_IN_GENERATE
   hang();
#  endif
#  ifdef FAKE_LEAK_MEMORY
   volatile char *lost = malloc(1 << 20);
   for (size_t i = 0; lost != NULL && i < 1 << 20; i += 4096) {
      lost[i] = 1;
   }
#  endif
#  ifdef FAKE_GARBAGE_RESULTS
   (void)prompt;
   *results = NOWHERE;
   return ERR_OK;
#  else
   if (tier0_model == NULL) {
      return fail(ERR_INVALID_ARGUMENT, "the toy has no model");
   }
   uint64_t hash = appended(0, TOKEN_BOS);
   for (const char *c = prompt; *c != 0; c++) {
      mind((unsigned char)*c);
      hash = appended(hash, (unsigned char)*c);
   }
   uint32_t most = tier0_max_tokens != 0 && tier0_max_tokens < 4096 ? tier0_max_tokens : 4096;
   uint32_t n = 0, finish = ENGINE_FINISH_LENGTH;
   for (; n < most; n++) {
      sleep_us(default_step_us);
      EngineToken token = greedy(hash, tier0_model->eog_every);
      if (token == TOKEN_EOS) {
         finish = ENGINE_FINISH_STOP;
         break;
      }
      result_of(token, &tier0_results[n]);
      hash = appended(hash, token);
   }
   memset(&tier0_results[n], 0, sizeof tier0_results[n]);
   tier0_results[n].finish = finish;
   *results = tier0_results;
#     ifdef FAKE_NO_END_MARKER
   static TokenResult endless[70000];
   for (size_t i = 0; i < sizeof endless / sizeof *endless; i++) {
      result_of('x', &endless[i]);
   }
   *results = endless;
#     endif
#     ifdef FAKE_GARBAGE_TEXT
   tier0_results[0].text = NOWHERE;
#     endif
   return ERR_OK;
#  endif
}
#endif

void engine_shutdown(void) {
#ifdef FAKE_CRASH_IN_SHUTDOWN
   crash();
#endif
#ifdef FAKE_HANG_IN_SHUTDOWN
   hang();
#endif
   model_free(tier0_model);
   tier0_model = NULL;
   host        = NULL;
}


////////////////
// Embeddings //
////////////////

static MAYBE_UNUSED int embed_embed(EngineModel *model, const EngineEmbedParams *params,
                                    float *vectors, size_t capacity) {
   (void)model;
   if (capacity < params->n_inputs * N_EMBEDDING) {
      return ERR_BUFFER_TOO_SMALL;
   }
   sleep_us(FAKE_EMBED_US);
   perhaps_hang(EMBED);
   size_t width = N_EMBEDDING;
#ifdef FAKE_SHORT_VECTORS
   width--;
#endif
   for (size_t i = 0; i < params->n_inputs; i++) {
      uint64_t hash = 0;
      for (size_t j = 0; j < params->lengths[i]; j++) {
         hash = appended(hash, params->inputs[i][j]);
      }
      for (size_t j = 0; j < width; j++) {
         vectors[i * N_EMBEDDING + j] = (float)(mixed(hash + j) >> 40) / (float)(1 << 24) - 0.5f;
      }
   }
   return ERR_OK;
}


////////////////
// Extensions //
////////////////

#ifndef FAKE_NO_GET_EXTENSION
#  ifdef FAKE_TABLE_SIZE
#     define SIZE_OF(table) (FAKE_TABLE_SIZE)
#  else
#     define SIZE_OF(table) ((uint32_t)sizeof(table))
#  endif

const void *engine_get_extension(const char *id) {
#  ifdef FAKE_NO_EXTENSIONS
   (void)id;
#  elif defined(FAKE_GARBAGE_TABLE)
   return strncmp(id, "engine.", 7) == 0 ? NOWHERE : NULL;
#  else
   static const EngineModels models = {SIZE_OF(EngineModels), models_load,       models_unload,
                                       models_info,           models_meta_count, models_meta_get};
   if (strcmp(id, ENGINE_EXT_MODELS) == 0) {
      return &models;
   }
#     ifndef FAKE_NO_MEMORY
   static const EngineMemory memory = {SIZE_OF(EngineMemory), memory_device_count, memory_device_get,
#        ifdef FAKE_NO_ESTIMATE
                                       NULL,
#        else
                                       memory_estimate,
#        endif
                                       memory_usage};
   if (strcmp(id, ENGINE_EXT_MEMORY) == 0) {
      return &memory;
   }
#     endif
#     ifndef FAKE_NO_TOKENIZER
   static const EngineTokenizer tokenizer = {SIZE_OF(EngineTokenizer), tokenizer_vocab,
                                             tokenizer_tokenize, tokenizer_detokenize,
                                             tokenizer_chat_template};
   if (strcmp(id, ENGINE_EXT_TOKENIZER) == 0) {
      return &tokenizer;
   }
#     endif
#     ifndef FAKE_NO_BATCH
   static const EngineBatching batch = {SIZE_OF(EngineBatching), batch_create, batch_destroy, batch_info,
#        ifdef FAKE_NULL_SLOT
                                        NULL,
#        else
                                        batch_step,
#        endif
                                        batch_collect, batch_fetch,
#        ifdef FAKE_NO_CANCEL
                                        NULL,
#        else
                                        batch_cancel,
#        endif
                                        batch_seq_copy, batch_seq_remove, batch_seq_range,
                                        batch_cache_free,
#        ifdef FAKE_NO_SAVE
                                        NULL, NULL};
#        else
                                        batch_seq_save, batch_seq_restore};
#        endif
   if (strcmp(id, ENGINE_EXT_BATCH) == 0) {
      return &batch;
   }
#     endif
   static const EngineStreaming stream = {SIZE_OF(EngineStreaming), stream_generate};
   if (strcmp(id, ENGINE_EXT_STREAM) == 0) {
      return &stream;
   }
   static const EngineEmbedding embed = {SIZE_OF(EngineEmbedding), embed_embed};
   if (strcmp(id, ENGINE_EXT_EMBED) == 0) {
      return &embed;
   }
#  endif
   return NULL;
}
#endif
