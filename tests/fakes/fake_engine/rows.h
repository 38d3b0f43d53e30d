// engine.batch/1: the rows of a step, true and false. A part of fake_engine.c, which includes it.

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
#ifdef FAKE_NAN_AFTER // so many rows
   static unsigned described;
   if (described++ >= FAKE_NAN_AFTER) {
      logits[0] = NAN;
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
static MAYBE_UNUSED void cut_down(EngineContext *context, const float *logits, size_t index, EngineRow *row) {
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

#ifdef FAKE_PICKS
// Goes as far as is wished.
static void go_on(EngineContext *context, const uint32_t *late_mask, size_t index, EngineRow *row) {
   Wish  *wish   = &context->wishes[index];
   float *shaped = context->shaped + index * N_VOCAB;
   mask_late(wish, late_mask);
   shape(wish, context->rows + index * N_VOCAB, shaped);
#   ifdef FAKE_PICK_SHAPES_LOGITS
   row->logits = shaped;
   return;
#   endif
   if (wish->stage == ENGINE_STAGE_LOGITS || (wish->stage == ENGINE_STAGE_TOP && wish->n_candidates == 0)) {
      return;
   }
   context->wanted[index] = wish->n_candidates;
   cut_down(context, shaped, index, row);
   if (wish->stage >= ENGINE_STAGE_TOKEN) {
      row->stage   = ENGINE_STAGE_TOKEN;
      row->token   = drawn(wish, shaped);
      row->logprob = shaped[row->token] - row->log_sum;
   }
}
#endif

static MAYBE_UNUSED int batch_collect(EngineContext *context, uint64_t ticket,
                                      const uint32_t *const *late_masks, EngineRow *rows,
                                      size_t n_rows, size_t row_stride) {
   (void)late_masks; // without picks no row goes as far as to need one
   if (ticket == 0 || ticket != context->ticket || n_rows != context->n_rows) {
      return fail(ERR_INVALID_ARGUMENT, "not the last ticket, or not the rows that it has");
   }
#ifdef FAKE_ROWS_UNWRITTEN
   (void)rows, (void)row_stride;
#else
   for (size_t i = 0; i < n_rows; i++) {
      EngineRow row;
      describe(context, i, &row);
#   ifdef FAKE_PICKS
      go_on(context, late_masks == NULL ? NULL : late_masks[i], i, &row);
#   else
      if (context->wanted[i] > 0) {
         cut_down(context, context->rows + i * N_VOCAB, i, &row);
      }
#   endif
#   ifdef FAKE_TOP_UNASKED
      context->wanted[i] = 4;
      cut_down(context, context->rows + i * N_VOCAB, i, &row);
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
