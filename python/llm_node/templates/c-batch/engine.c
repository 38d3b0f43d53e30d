// @ID@: an engine that computes what the node schedules. It offers models, memory, tokenizer and batch;
// continuous batching, sampling, streaming and chat are the node's work.
//
// Its model is a text of some lines: a token is likely where it followed the same few tokens in that text.
// A token is a byte, and END the end of a line. What belongs to this model is marked YOUR WORK: put your own
// in its place, and ask `llm-node engine check .` after each change.

#include "engine_api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { END = 256, N_VOCAB = 257, N_CONTEXT = 1024, LONGEST_TEXT = 1 << 16, LOOK_BACK = 16, MOST_SEQUENCES = 256 };

static const EngineHost *host;

// Says why, and returns the code: the text reaches whoever asked.
static int fail(int code, const char *why) {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

// What a host of another version gives room for.
static void fill(void *out, const void *mine, size_t size) {
   uint32_t room = *(const uint32_t *)out;
   memcpy((char *)out + sizeof room, (const char *)mine + sizeof room, (room < size ? room : size) - sizeof room);
}

EngineInfo *engine_get_info(void) {
   static EngineInfo info = {ENGINE_ABI_VERSION, "@ID@", "0.1.0"}; // as in the manifest
   return &info;
}

static void make_vocab(void);

int engine_init(EngineConfig *config) {
   host = ENGINE_HAS(config, host) ? config->host : NULL;
   make_vocab();
   return ERR_OK;
}

void engine_shutdown(void) {
   host = NULL; // models and contexts are gone by now
}

// Tier 0 is not offered: the node uses the tables below.
int engine_load_model(const char *model_path) {
   (void)model_path;
   return fail(ERR_UNSUPPORTED, "this engine loads models through engine.models/1");
}

int engine_generate(const char *prompt, TokenResult **out) {
   (void)prompt, (void)out;
   return fail(ERR_UNSUPPORTED, "this engine computes through engine.batch/1");
}

////////////
// models //
////////////

struct EngineModel {
   EngineToken text[LONGEST_TEXT]; // YOUR WORK: the weights. Here: the text, as tokens
   size_t      text_len;
   uint64_t    cache_bytes; // of its contexts
};

static int model_load(const EngineModelParams *params, EngineModel **out) {
   FILE *file = fopen(params->path, "rb");
   if (file == NULL) {
      return fail(ERR_NOT_FOUND, "the model file cannot be opened");
   }
   EngineModel *model = calloc(1, sizeof *model);
   if (model == NULL) {
      fclose(file);
      return fail(ERR_OOM_RAM, "no memory for the model");
   }
   // YOUR WORK: read the model, and believe nothing that stands in it before you have checked it.
   for (int byte; model->text_len < LONGEST_TEXT && (byte = fgetc(file)) != EOF; model->text_len++) {
      model->text[model->text_len] = byte == '\n' ? END : byte;
   }
   fclose(file);
   if (model->text_len == 0) {
      free(model);
      return fail(ERR_MODEL_CORRUPT, "the model file is empty, or cannot be read");
   }
   *out = model; // last of all: after a failure it stays as it was
   return ERR_OK;
}

static void model_unload(EngineModel *model) {
   free(model);
}

static int model_info(const EngineModel *model, EngineModelInfo *info) {
   EngineModelInfo mine = {0};
   mine.flags           = ENGINE_MODEL_GENERATES;
   mine.architecture    = "lines";
   mine.format          = "@ID@";
   mine.n_parameters    = model->text_len;
   mine.size_bytes      = model->text_len;
   mine.n_vocab         = N_VOCAB;
   mine.n_context       = N_CONTEXT;
   fill(info, &mine, sizeof mine);
   return ERR_OK;
}

static size_t model_meta_count(const EngineModel *model) {
   (void)model;
   return 0;
}

static int model_meta_get(const EngineModel *model, size_t index, EngineStr *key, EngineStr *value) {
   (void)model, (void)index, (void)key, (void)value;
   return ERR_NOT_FOUND;
}

////////////
// memory //
////////////

static uint32_t device_count(void) {
   return 0; // what it takes is the host's memory: ENGINE_DEVICE_HOST, which is not in the list
}

static int device_get(uint32_t index, EngineDevice *device) {
   (void)index, (void)device;
   return ERR_NOT_FOUND;
}

static void write_use(uint64_t cache_bytes, EngineMemoryUse *uses, size_t capacity, size_t *count) {
   EngineMemoryUse use = {0};
   use.device          = ENGINE_DEVICE_HOST;
   use.weights         = sizeof(EngineModel);
   use.cache           = cache_bytes;
   use.cache_per_token = sizeof(EngineToken);
   if (capacity > 0) {
      uses[0] = use;
   }
   *count = 1;
}

static uint32_t length_of(const EngineContextParams *params) {
   return params->context_length != 0 ? params->context_length : N_CONTEXT;
}

static int estimate(const EngineModelParams *model, const struct EngineContextParams *context,
                    EngineMemoryUse *uses, size_t capacity, size_t *count) {
   (void)model;
   uint64_t cells = context == NULL ? 0 : (uint64_t)context->max_sequences * length_of(context);
   if (context != NULL && context->cache_tokens > cells) {
      cells = context->cache_tokens;
   }
   write_use(cells * sizeof(EngineToken), uses, capacity, count);
   return ERR_OK;
}

static int usage(const EngineModel *model, EngineMemoryUse *uses, size_t capacity, size_t *count) {
   write_use(model->cache_bytes, uses, capacity, count);
   return ERR_OK;
}

///////////////
// tokenizer //
///////////////

// YOUR WORK: the vocabulary. Here: every byte, and "</s>" for END.
static const char end_name[] = "</s>";
static uint8_t    vocab_bytes[256 + sizeof end_name - 1];
static uint32_t   vocab_offsets[N_VOCAB + 1], vocab_attributes[N_VOCAB];

static void make_vocab(void) { // once, before any thread asks for it
   for (uint32_t i = 0; i < 256; i++) {
      vocab_bytes[i]      = (uint8_t)i;
      vocab_offsets[i]    = i;
      vocab_attributes[i] = ENGINE_ATTR_BYTE;
   }
   memcpy(vocab_bytes + 256, end_name, sizeof end_name - 1);
   vocab_offsets[END]     = 256;
   vocab_offsets[N_VOCAB] = 256 + sizeof end_name - 1;
   vocab_attributes[END]  = ENGINE_ATTR_CONTROL | ENGINE_ATTR_EOG;
}

static int vocab(const EngineModel *model, EngineVocab *out) {
   (void)model;
   EngineVocab mine       = {0};
   mine.n_tokens          = N_VOCAB;
   mine.bytes             = vocab_bytes;
   mine.offsets           = vocab_offsets;
   mine.attributes        = vocab_attributes;
   mine.eos               = END;
   mine.bos = mine.eot = mine.pad = mine.sep = mine.mask = ENGINE_TOKEN_NONE;
   fill(out, &mine, sizeof mine);
   return ERR_OK;
}

static int tokenize(const EngineModel *model, const char *text, size_t text_len, uint32_t flags,
                    EngineToken *tokens, size_t capacity, size_t *count) {
   (void)model;
   size_t n = 0;
   for (size_t i = 0; i < text_len; n++) {
      EngineToken token = (unsigned char)text[i];
      size_t      len   = 1;
      if ((flags & ENGINE_TOKENIZE_PARSE_SPECIAL) != 0 && text_len - i >= sizeof end_name - 1 &&
          memcmp(text + i, end_name, sizeof end_name - 1) == 0) {
         token = END;
         len   = sizeof end_name - 1;
      }
      if (n < capacity) { // count all, write what there is room for
         tokens[n] = token;
      }
      i += len;
   }
   *count = n;
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
}

static int detokenize(const EngineModel *model, const EngineToken *tokens, size_t n_tokens, char *text,
                      size_t capacity, size_t *count) {
   (void)model;
   size_t n = 0;
   for (size_t i = 0; i < n_tokens; i++) {
      if (tokens[i] < 0 || tokens[i] >= N_VOCAB) {
         return fail(ERR_INVALID_ARGUMENT, "a token is outside the vocabulary");
      }
      char        byte  = (char)tokens[i];
      const char *bytes = tokens[i] == END ? end_name : &byte;
      size_t      len   = tokens[i] == END ? sizeof end_name - 1 : 1;
      for (size_t j = 0; j < len; j++, n++) {
         if (n < capacity) {
            text[n] = bytes[j];
         }
      }
   }
   *count = n;
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
}

static int chat_template(const EngineModel *model, const char *name, EngineStr *source) {
   (void)model;
   static const char mine[] = "{% for message in messages %}{{ message.content }} {% endfor %}";
   if (name != NULL) {
      return ERR_NOT_FOUND;
   }
   source->data = mine;
   source->len  = sizeof mine - 1;
   return ERR_OK;
}

///////////
// batch //
///////////

// YOUR WORK: the cache. Here each sequence has cells of its own, and a cell holds a token.
typedef struct Sequence {
   uint32_t     length;
   EngineToken *cells; // context_length of them
} Sequence;

struct EngineContext {
   EngineModel *model;
   uint32_t     max_sequences, context_length, max_batch_tokens, max_rows;
   uint64_t     n_cells, n_free; // at most: with fewer asked for, each sequence has its own all the same
   EngineToken *cells;
   Sequence    *sequences;
   uint64_t     ticket; // of the last step
   size_t       n_rows; // of that step
   float       *rows;   // max_rows * N_VOCAB
};

static void context_destroy(EngineContext *context) {
   context->model->cache_bytes -= context->n_cells * sizeof(EngineToken);
   free(context->cells);
   free(context->sequences);
   free(context->rows);
   free(context);
}

static int context_create(EngineModel *model, const EngineContextParams *params, EngineContext **out) {
   if (params->max_sequences == 0 || params->max_sequences > MOST_SEQUENCES) {
      return fail(ERR_INVALID_ARGUMENT, "this engine takes 1 to 256 sequences at once");
   }
   if (length_of(params) > N_CONTEXT) {
      return fail(ERR_INVALID_ARGUMENT, "the model knows no sequences longer than 1024 tokens");
   }
   EngineContext *context = calloc(1, sizeof *context);
   if (context == NULL) {
      return fail(ERR_OOM_RAM, "no memory for a context");
   }
   context->model            = model;
   context->max_sequences    = params->max_sequences;
   context->context_length   = length_of(params);
   context->max_batch_tokens = params->max_batch_tokens != 0 ? params->max_batch_tokens : 512;
   context->max_rows         = params->max_rows != 0 ? params->max_rows : params->max_sequences;
   uint64_t all              = (uint64_t)context->max_sequences * context->context_length;
   context->n_cells          = params->cache_tokens > all ? params->cache_tokens : all;
   context->n_free           = context->n_cells;
   model->cache_bytes += context->n_cells * sizeof(EngineToken);
   context->cells     = calloc((size_t)all, sizeof *context->cells);
   context->sequences = calloc(context->max_sequences, sizeof *context->sequences);
   context->rows      = calloc((size_t)context->max_rows * N_VOCAB, sizeof *context->rows);
   if (context->cells == NULL || context->sequences == NULL || context->rows == NULL) {
      context_destroy(context);
      return fail(ERR_OOM_RAM, "no memory for the cache");
   }
   for (uint32_t i = 0; i < context->max_sequences; i++) {
      context->sequences[i].cells = context->cells + (size_t)i * context->context_length;
   }
   *out = context;
   return ERR_OK;
}

static int context_info(const EngineContext *context, EngineContextInfo *info) {
   EngineContextInfo mine = {0};
   mine.max_sequences     = context->max_sequences;
   mine.context_length    = context->context_length;
   mine.max_batch_tokens  = context->max_batch_tokens;
   mine.max_rows          = context->max_rows;
   mine.max_in_flight     = 1;
   mine.max_rollback      = UINT32_MAX;
   mine.cache_page        = 1;
   mine.cache_tokens      = context->n_cells;
   fill(info, &mine, sizeof mine);
   return ERR_OK;
}

static const EngineSlice *slice_at(const EngineBatch *batch, uint32_t index) {
   return (const EngineSlice *)(const void *)((const char *)batch->slices + index * batch->slice_stride);
}

// Everything is looked at before anything is changed.
static int check(const EngineContext *context, const EngineBatch *batch) {
   uint8_t  seen[MOST_SEQUENCES] = {0};
   uint64_t n_tokens = 0, n_rows = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice = slice_at(batch, i);
      if (slice->sequence >= context->max_sequences || seen[slice->sequence]++) {
         return fail(ERR_INVALID_ARGUMENT, "there is no such sequence, or it is there twice");
      }
      if (slice->position != context->sequences[slice->sequence].length) {
         return fail(ERR_INVALID_ARGUMENT, "a slice does not begin where its sequence ends");
      }
      if (slice->n_tokens == 0 || slice->n_rows > slice->n_tokens || slice->adapter != NULL) {
         return fail(ERR_INVALID_ARGUMENT, "a slice is empty, wants too many rows, or has an adapter");
      }
      if ((uint64_t)slice->position + slice->n_tokens > context->context_length) {
         return fail(ERR_INVALID_ARGUMENT, "a sequence grows beyond the context");
      }
      for (uint32_t j = 0; j < slice->n_tokens; j++) {
         if (slice->tokens[j] < 0 || slice->tokens[j] >= N_VOCAB) {
            return fail(ERR_INVALID_ARGUMENT, "a token is outside the vocabulary");
         }
      }
      n_tokens += slice->n_tokens;
      n_rows += slice->n_rows;
   }
   if (n_tokens == 0 || n_tokens > context->max_batch_tokens || n_rows > context->max_rows) {
      return fail(ERR_INVALID_ARGUMENT, "there are no tokens, or more tokens or rows than one step takes");
   }
   return ERR_OK;
}

// YOUR WORK: the forward pass. Here: how often each token followed the last ones of the sequence in the
// text, the more of them the better; and what was said is a little likelier again, the later it was said.
static void compute(const EngineModel *model, const Sequence *sequence, float *row) {
   double weights[N_VOCAB];
   for (int token = 0; token < N_VOCAB; token++) {
      weights[token] = 1e-4;
   }
   for (size_t at = 0; at < model->text_len; at++) {
      double weight = 1e-2;
      for (uint32_t back = 1; back <= LOOK_BACK && back <= at && back <= sequence->length; back++) {
         if (model->text[at - back] != sequence->cells[sequence->length - back]) {
            break;
         }
         weight *= 20;
      }
      weights[model->text[at]] += weight;
   }
   double again = 1e-3;
   for (uint32_t i = sequence->length; i > 0; i--, again *= 0.9) {
      weights[sequence->cells[i - 1]] += again;
   }
   for (int token = 0; token < N_VOCAB; token++) {
      row[token] = (float)log(weights[token]);
   }
}

static int step(EngineContext *context, const EngineBatch *batch, uint64_t *ticket) {
   int code = check(context, batch);
   if (code != ERR_OK) {
      return code;
   }
   context->n_rows = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice *slice    = slice_at(batch, i);
      Sequence          *sequence = &context->sequences[slice->sequence];
      for (uint32_t j = 0; j < slice->n_tokens; j++) {
         sequence->cells[sequence->length++] = slice->tokens[j];
         context->n_free--;
         if (j + slice->n_rows >= slice->n_tokens) { // one of the last n_rows
            compute(context->model, sequence, context->rows + context->n_rows++ * N_VOCAB);
         }
      }
   }
   *ticket = ++context->ticket;
   return ERR_OK;
}

static int collect(EngineContext *context, uint64_t ticket, const uint32_t *const *late_masks, EngineRow *rows,
                   size_t n_rows, size_t row_stride) {
   (void)late_masks;
   if (ticket == 0 || ticket != context->ticket || n_rows != context->n_rows) {
      return fail(ERR_INVALID_ARGUMENT, "this is not the last step, or not the number of its rows");
   }
   for (size_t i = 0; i < n_rows; i++) {
      EngineRow row = {0};
      row.stage     = ENGINE_STAGE_LOGITS;
      row.dtype     = ENGINE_F32;
      row.n         = N_VOCAB;
      row.token     = ENGINE_TOKEN_NONE;
      row.logprob = row.log_sum = row.log_sum_t = NAN;
      row.logits = context->rows + i * N_VOCAB;
      memcpy((char *)rows + i * row_stride, &row, row_stride < sizeof row ? row_stride : sizeof row);
   }
   return ERR_OK;
}

static int seq_copy(EngineContext *context, uint32_t from, uint32_t to, uint32_t end) {
   if (from >= context->max_sequences || to >= context->max_sequences || from == to ||
       end > context->sequences[from].length || context->sequences[to].length != 0) {
      return fail(ERR_INVALID_ARGUMENT, "there is no such sequence or end, or the copy is not empty");
   }
   memcpy(context->sequences[to].cells, context->sequences[from].cells, end * sizeof(EngineToken));
   context->sequences[to].length = end;
   context->n_free -= end;
   return ERR_OK;
}

static int seq_remove(EngineContext *context, uint32_t sequence, uint32_t begin) {
   if (sequence >= context->max_sequences) {
      return fail(ERR_INVALID_ARGUMENT, "there is no such sequence");
   }
   Sequence *one = &context->sequences[sequence];
   if (begin < one->length) {
      context->n_free += one->length - begin;
      one->length = begin;
   }
   return ERR_OK;
}

static int seq_range(const EngineContext *context, uint32_t sequence, uint32_t *begin, uint32_t *end) {
   if (sequence >= context->max_sequences) {
      return fail(ERR_INVALID_ARGUMENT, "there is no such sequence");
   }
   *begin = 0;
   *end   = context->sequences[sequence].length;
   return ERR_OK;
}

static uint64_t cache_free(const EngineContext *context) {
   return context->n_free;
}

////////////
// tables //
////////////

const void *engine_get_extension(const char *id) {
   static const EngineModels    models    = {sizeof models, model_load, model_unload, model_info, model_meta_count,
                                             model_meta_get};
   static const EngineMemory    memory    = {sizeof memory, device_count, device_get, estimate, usage};
   static const EngineTokenizer tokenizer = {sizeof tokenizer, vocab, tokenize, detokenize, chat_template};
   static const EngineBatching  batch     = {
      .struct_size = sizeof batch, .create = context_create, .destroy = context_destroy, .info = context_info,
      .step = step, .collect = collect, .seq_copy = seq_copy, .seq_remove = seq_remove, .seq_range = seq_range,
      .cache_free = cache_free};
   return strcmp(id, ENGINE_EXT_MODELS) == 0      ? (const void *)&models
          : strcmp(id, ENGINE_EXT_MEMORY) == 0    ? (const void *)&memory
          : strcmp(id, ENGINE_EXT_TOKENIZER) == 0 ? (const void *)&tokenizer
          : strcmp(id, ENGINE_EXT_BATCH) == 0     ? (const void *)&batch
                                                  : NULL;
}
