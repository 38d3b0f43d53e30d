// An engine that costs nothing: what is left of the time is the node's own.
//
// engine.batch/1 over a "model" that is any file at all. Its vocabulary is the 256 bytes and one token
// that ends an answer. After each letter comes the next one of the alphabet, after z a space, and after
// anything else an a, so that a lost or doubled token shows in the text. Rows of logits are made once, at
// start-up; a step only notes which of them belongs to which row.
//
// Settings: step_us = N waits so many microseconds in each step, the way a device makes the host wait; row_us
// = N computes for so many microseconds of the thread's processor time for each row of a step, the way a small
// model does on a CPU. What a process took beyond rows times N is the host's.

#include "engine_api.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_BYTES = 256, END = N_BYTES, N_VOCAB = N_BYTES + 1, N_CONTEXT = 1 << 17, MAX_SEQUENCES = 1024 };

struct EngineModel {
   int loaded;
};

struct EngineContext {
   uint32_t      max_sequences;
   uint32_t      context_length;
   uint64_t      cache_tokens;
   uint64_t      cache_used;
   uint64_t      ticket;
   long          step_us;
   long          row_us;
   int64_t       surplus_ns;
   size_t        n_rows;
   const float **rows;   // of the last step
   uint32_t     *lengths; // of each sequence
};

static const EngineHost *host;
static EngineModel       model;
static float             rows[N_VOCAB][N_VOCAB]; // what follows each token
static uint8_t           bytes[N_BYTES + 5];
static uint32_t          offsets[N_VOCAB + 1];
static uint32_t          attributes[N_VOCAB];

static int fail(int code, const char *why) {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

static int next_of(int token) {
   if (token >= 'a' && token < 'z') {
      return token + 1;
   }
   return token == 'z' ? ' ' : 'a';
}

ENGINE_API EngineInfo *engine_get_info(void) {
   static EngineInfo info = {.abi_version = ENGINE_ABI_VERSION, .engine_id = "null_engine", .version = "1.0.0"};
   return &info;
}

ENGINE_API int engine_init(EngineConfig *config) {
   host = config->host;
   for (int token = 0; token < N_VOCAB; token++) {
      rows[token][next_of(token)] = 10.0f;
      offsets[token]              = (uint32_t)token;
      if (token < N_BYTES) {
         bytes[token] = (uint8_t)token;
      }
   }
   memcpy(bytes + N_BYTES, "<end>", 5);
   offsets[N_VOCAB] = sizeof bytes;
   attributes[END]  = ENGINE_ATTR_CONTROL | ENGINE_ATTR_EOG;
   return ERR_OK;
}

ENGINE_API void engine_shutdown(void) {
   host = NULL;
}

// Tier 0 is not what this engine is for.
ENGINE_API int engine_load_model(const char *model_path) {
   (void)model_path;
   return fail(ERR_UNSUPPORTED, "this engine generates through engine.batch/1 only");
}

ENGINE_API int engine_generate(const char *prompt, TokenResult **results) {
   (void)prompt;
   (void)results;
   return fail(ERR_UNSUPPORTED, "this engine generates through engine.batch/1 only");
}

static int models_load(const EngineModelParams *params, EngineModel **out) {
   (void)params;
   model.loaded = 1;
   *out         = &model;
   return ERR_OK;
}

static void models_unload(EngineModel *it) {
   it->loaded = 0;
}

static int models_info(const EngineModel *it, EngineModelInfo *info) {
   (void)it;
   info->flags        = ENGINE_MODEL_GENERATES;
   info->architecture = "null";
   info->format       = "null";
   info->quantization = NULL;
   info->n_parameters = 0;
   info->size_bytes   = 0;
   info->n_vocab      = N_VOCAB;
   info->n_context    = N_CONTEXT;
   info->n_embedding  = 0;
   info->max_streams  = 0;
   return ERR_OK;
}

static size_t meta_count(const EngineModel *it) {
   (void)it;
   return 0;
}

static int meta_get(const EngineModel *it, size_t index, EngineStr *key, EngineStr *value) {
   (void)it;
   (void)index;
   (void)key;
   (void)value;
   return fail(ERR_NOT_FOUND, "there is no metadata");
}

static int vocab(const EngineModel *it, EngineVocab *out) {
   (void)it;
   out->n_tokens   = N_VOCAB;
   out->bytes      = bytes;
   out->offsets    = offsets;
   out->attributes = attributes;
   out->bos = out->pad = out->sep = out->mask = ENGINE_TOKEN_NONE;
   out->eos = out->eot = END;
   out->adds_bos = out->adds_eos = 0;
   return ERR_OK;
}

static int tokenize(const EngineModel *it, const char *text, size_t text_len, uint32_t flags, EngineToken *tokens,
                    size_t capacity, size_t *count) {
   (void)it;
   (void)flags;
   *count = text_len;
   if (text_len > capacity) {
      return ERR_BUFFER_TOO_SMALL;
   }
   for (size_t i = 0; i < text_len; i++) {
      tokens[i] = (unsigned char)text[i];
   }
   return ERR_OK;
}

static int detokenize(const EngineModel *it, const EngineToken *tokens, size_t n_tokens, char *text, size_t capacity,
                      size_t *count) {
   (void)it;
   size_t length = 0;
   for (size_t i = 0; i < n_tokens; i++) {
      if (tokens[i] >= 0 && tokens[i] < N_BYTES) {
         if (length < capacity) {
            text[length] = (char)tokens[i];
         }
         length++;
      }
   }
   *count = length;
   return length <= capacity ? ERR_OK : ERR_BUFFER_TOO_SMALL;
}

static int chat_template(const EngineModel *it, const char *name, EngineStr *source) {
   static const char text[] = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
   (void)it;
   if (name != NULL) {
      return fail(ERR_NOT_FOUND, "there is one template, and it has no name");
   }
   source->data = text;
   source->len  = sizeof text - 1;
   return ERR_OK;
}

static void destroy(EngineContext *context) {
   free(context->rows);
   free(context->lengths);
   free(context);
}

static int create(EngineModel *it, const EngineContextParams *params, EngineContext **out) {
   (void)it;
   EngineContext *context = calloc(1, sizeof *context);
   if (context == NULL) {
      return ERR_OOM_RAM;
   }
   context->max_sequences  = params->max_sequences < MAX_SEQUENCES ? params->max_sequences : MAX_SEQUENCES;
   context->context_length = params->context_length != 0 ? params->context_length : N_CONTEXT;
   context->cache_tokens   = params->cache_tokens != 0 ? params->cache_tokens
                                                       : (uint64_t)context->max_sequences * context->context_length;
   context->rows           = calloc(context->max_sequences, sizeof *context->rows);
   context->lengths        = calloc(context->max_sequences, sizeof *context->lengths);
   for (size_t i = 0; i < params->n_options; i++) {
      if (strcmp(params->options[i].key, "step_us") == 0) {
         context->step_us = strtol(params->options[i].value, NULL, 10);
      } else if (strcmp(params->options[i].key, "row_us") == 0) {
         context->row_us = strtol(params->options[i].value, NULL, 10);
      }
   }
   if (context->rows == NULL || context->lengths == NULL) {
      destroy(context);
      return ERR_OOM_RAM;
   }
   *out = context;
   return ERR_OK;
}

static int info(const EngineContext *context, EngineContextInfo *out) {
   out->flags            = 0;
   out->max_sequences    = context->max_sequences;
   out->context_length   = context->context_length;
   out->max_batch_tokens = 8192;
   out->max_rows         = context->max_sequences;
   out->max_in_flight    = 1;
   out->max_rollback     = UINT32_MAX;
   out->max_candidates   = 0;
   out->cache_page       = 1;
   out->n_decode_sizes   = 0;
   out->cache_tokens     = context->cache_tokens;
   out->decode_sizes     = NULL;
   return ERR_OK;
}

static const EngineSlice *slice_at(const EngineBatch *batch, uint32_t index) {
   return (const EngineSlice *)((const char *)batch->slices + index * batch->slice_stride);
}

static int64_t clock_ns(clockid_t clock) {
   struct timespec now;
   clock_gettime(clock, &now);
   return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// The thread's own time is asked for twice or so: each time is a call into the kernel, which would be in the
// way of whom the host wakes. What a step computes too long, the next computes less.
static void compute(EngineContext *context, int64_t ns) {
   const int64_t end = clock_ns(CLOCK_THREAD_CPUTIME_ID) + ns - context->surplus_ns;
   int64_t       left;
   while ((left = end - clock_ns(CLOCK_THREAD_CPUTIME_ID)) > 0) {
      const int64_t pause = clock_ns(CLOCK_MONOTONIC) + left;
      while (clock_ns(CLOCK_MONOTONIC) < pause) {
      }
   }
   context->surplus_ns = -left;
}

static int step(EngineContext *context, const EngineBatch *batch, uint64_t *ticket) {
   uint64_t tokens = 0;
   size_t   n_rows = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice = slice_at(batch, i);
      if (slice->sequence >= context->max_sequences || slice->position != context->lengths[slice->sequence]) {
         return fail(ERR_INVALID_ARGUMENT, "a slice does not begin where its sequence ends");
      }
      tokens += slice->n_tokens;
      n_rows += slice->n_rows;
   }
   if (context->cache_used + tokens > context->cache_tokens) {
      return ERR_CACHE_FULL;
   }
   if (n_rows > context->max_sequences) {
      return fail(ERR_INVALID_ARGUMENT, "more rows than sequences");
   }
   context->n_rows = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice = slice_at(batch, i);
      context->lengths[slice->sequence] += slice->n_tokens;
      for (uint32_t row = slice->n_tokens - slice->n_rows; row < slice->n_tokens; row++) {
         EngineToken token                = slice->tokens[row];
         context->rows[context->n_rows++] = rows[token >= 0 && token < N_VOCAB ? token : END];
      }
   }
   context->cache_used += tokens;
   if (context->step_us > 0) {
      struct timespec pause = {context->step_us / 1000000, context->step_us % 1000000 * 1000};
      nanosleep(&pause, NULL);
   }
   if (context->row_us > 0) {
      compute(context, (int64_t)n_rows * context->row_us * 1000);
   }
   *ticket = ++context->ticket;
   return ERR_OK;
}

static int collect(EngineContext *context, uint64_t ticket, const uint32_t *const *late_masks, EngineRow *out,
                   size_t n_rows, size_t row_stride) {
   (void)late_masks;
   if (ticket != context->ticket || n_rows != context->n_rows) {
      return fail(ERR_INVALID_ARGUMENT, "only the last step has rows");
   }
   for (size_t i = 0; i < n_rows; i++) {
      EngineRow *row = (EngineRow *)((char *)out + i * row_stride);
      row->stage     = ENGINE_STAGE_LOGITS;
      row->dtype     = ENGINE_F32;
      row->n         = N_VOCAB;
      row->token     = ENGINE_TOKEN_NONE;
      row->ids       = NULL;
      row->logits    = context->rows[i];
   }
   return ERR_OK;
}

static int seq_remove(EngineContext *context, uint32_t sequence, uint32_t begin) {
   if (sequence >= context->max_sequences || begin > context->lengths[sequence]) {
      return fail(ERR_INVALID_ARGUMENT, "there is no such position");
   }
   context->cache_used -= context->lengths[sequence] - begin;
   context->lengths[sequence] = begin;
   return ERR_OK;
}

static int seq_copy(EngineContext *context, uint32_t from, uint32_t to, uint32_t end) {
   if (from >= context->max_sequences || to >= context->max_sequences || end > context->lengths[from] ||
       context->lengths[to] != 0) {
      return fail(ERR_INVALID_ARGUMENT, "there is nothing such to copy");
   }
   if (context->cache_used + end > context->cache_tokens) {
      return ERR_CACHE_FULL;
   }
   context->lengths[to] = end;
   context->cache_used += end;
   return ERR_OK;
}

static int seq_range(const EngineContext *context, uint32_t sequence, uint32_t *begin, uint32_t *end) {
   if (sequence >= context->max_sequences) {
      return fail(ERR_INVALID_ARGUMENT, "there is no such sequence");
   }
   *begin = 0;
   *end   = context->lengths[sequence];
   return ERR_OK;
}

static uint64_t cache_free(const EngineContext *context) {
   return context->cache_tokens - context->cache_used;
}

ENGINE_API const void *engine_get_extension(const char *id) {
   static const EngineModels models = {.struct_size = sizeof models,
                                       .load        = models_load,
                                       .unload      = models_unload,
                                       .info        = models_info,
                                       .meta_count  = meta_count,
                                       .meta_get    = meta_get};
   static const EngineTokenizer tokenizer = {.struct_size   = sizeof tokenizer,
                                             .vocab         = vocab,
                                             .tokenize      = tokenize,
                                             .detokenize    = detokenize,
                                             .chat_template = chat_template};
   static const EngineBatching batching = {.struct_size = sizeof batching,
                                           .create      = create,
                                           .destroy     = destroy,
                                           .info        = info,
                                           .step        = step,
                                           .collect     = collect,
                                           .seq_copy    = seq_copy,
                                           .seq_remove  = seq_remove,
                                           .seq_range   = seq_range,
                                           .cache_free  = cache_free};
   if (strcmp(id, ENGINE_EXT_MODELS) == 0) {
      return &models;
   }
   if (strcmp(id, ENGINE_EXT_TOKENIZER) == 0) {
      return &tokenizer;
   }
   return strcmp(id, ENGINE_EXT_BATCH) == 0 ? &batching : NULL;
}
