// engine.batch/1: copying, removing, saving and restoring sequences. A part of fake_engine.c, which includes it.

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
