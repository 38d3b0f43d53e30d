// engine.batch/1: contexts with a KV cache of counted cells, and their steps. A part of fake_engine.c, which includes it.

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
#ifdef FAKE_PICKS
   Wish        *wishes; // per row
   float       *shaped; // max_rows * N_VOCAB
   EngineToken *picked; // per sequence, by the last step that picked one
#endif
   uint64_t     step_us, token_us, steps;
   volatile sig_atomic_t cancelled;
};

static MAYBE_UNUSED void batch_destroy(EngineContext *context) {
   if (context == NULL) {
      return;
   }
   sleep_us(FAKE_DESTROY_US);
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
#ifdef FAKE_PICKS
   free(context->wishes);
   free(context->shaped);
   free(context->picked);
#endif
   free(context);
}

static MAYBE_UNUSED int batch_create(EngineModel *model, const EngineContextParams *params,
                                     EngineContext **result) {
   if (params->max_sequences == 0 || params->max_sequences > MOST_SEQUENCES) {
      return fail(ERR_INVALID_ARGUMENT, "the toy takes 1 to 4096 sequences");
   }
   // [load]: one at a time.
   static int made = 0;
   made++;
   if (made == FAKE_HANG_IN_CREATE) {
      hang();
   }
   if (made == FAKE_CRASH_IN_CREATE) {
      crash();
   }
   if (made > FAKE_CONTEXTS) {
      return fail(ERR_OOM_RAM, "no memory for another of the toy's contexts");
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
#ifdef FAKE_PICKS
   context->wishes = calloc((size_t)context->max_rows + 1, sizeof *context->wishes);
   context->shaped = calloc((size_t)context->max_rows * N_VOCAB + 1, sizeof *context->shaped);
   context->picked = calloc(context->max_sequences, sizeof *context->picked);
   complete = complete && context->wishes != NULL && context->shaped != NULL && context->picked != NULL;
#endif
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
#ifdef FAKE_PICKS
   mine.flags |= ENGINE_CONTEXT_CHAIN | ENGINE_CONTEXT_LATE_MASK;
   mine.max_candidates = N_VOCAB;
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
#ifdef FAKE_PICKS
         if (j == 0 && slice->tokens[j] == ENGINE_TOKEN_PREVIOUS && slice->position > 0) {
            continue;
         }
#endif
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
#if defined(FAKE_PICKS)
   (void)pick; // its wish says so
#elif defined(FAKE_TOP)
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
         EngineToken token = slice->tokens[j];
#ifdef FAKE_PICKS
         if (token == ENGINE_TOKEN_PREVIOUS) {
            token = context->picked[slice->sequence];
         }
#endif
         mind(token);
         uint64_t hash = appended(hash_of(context, sequence), token);
         uint32_t cell = take_cell(context);
         context->cells[cell].hash           = hash;
         sequence->cells[sequence->length++] = cell;
         if (j + slice->n_rows >= slice->n_tokens) {
            context->wanted[row] = candidates_wanted(slice->pick);
            float *out           = context->rows + row * N_VOCAB;
            for (int id = 0; id < N_VOCAB; id++) {
               out[id] = logit(hash, id, context->model->eog_every);
            }
#ifdef FAKE_PICKS
            wish_of(&context->wishes[row], slice, j + slice->n_rows - slice->n_tokens);
            shape(&context->wishes[row], out, context->shaped + row * N_VOCAB);
#   ifndef FAKE_CHAIN_FORGETS
            context->picked[slice->sequence] = drawn(&context->wishes[row], context->shaped + row * N_VOCAB);
#   endif
#endif
            row++;
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
