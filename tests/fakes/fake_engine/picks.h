// EnginePick, done all the way. A part of fake_engine.c, which includes it.

#ifdef FAKE_PICKS
#   define MASK_WORDS ((N_VOCAB + 31) / 32)

// What a pick says of one row, copied.
typedef struct Wish {
   uint32_t stage, uses, n_candidates, top_k;
   float    repeat, frequency, presence, temperature, top_p, min_p, uniform;
   uint32_t counts[N_VOCAB]; // in the history
   float    bias[N_VOCAB];
   uint32_t mask[MASK_WORDS];
} Wish;

static int uses(const Wish *wish, uint32_t bits) {
   return (wish->uses & bits) != 0;
}

// `row`: of the slice's rows.
static void wish_of(Wish *wish, const EngineSlice *slice, uint32_t row) {
   const EnginePick *pick = slice->pick;
   memset(wish, 0, sizeof *wish);
   memset(wish->mask, 0xff, sizeof wish->mask);
   if (pick == NULL) {
      return;
   }
   wish->stage        = pick->stage;
   wish->uses         = pick->uses & 0x3ff;
   wish->n_candidates = pick->n_candidates < N_VOCAB ? pick->n_candidates : N_VOCAB;
   if (pick->uses != wish->uses) { // something that the toy does not know
      wish->stage = ENGINE_STAGE_LOGITS;
   }
   wish->repeat      = uses(wish, ENGINE_PICK_REPEAT) ? pick->repeat_penalty : 1;
   wish->frequency   = uses(wish, ENGINE_PICK_FREQUENCY) ? pick->frequency_penalty : 0;
   wish->presence    = uses(wish, ENGINE_PICK_PRESENCE) ? pick->presence_penalty : 0;
   wish->temperature = uses(wish, ENGINE_PICK_TEMPERATURE) ? pick->temperature : 1;
   wish->top_p       = uses(wish, ENGINE_PICK_TOP_P) ? pick->top_p : 1;
   wish->min_p       = uses(wish, ENGINE_PICK_MIN_P) ? pick->min_p : 0;
   wish->top_k       = uses(wish, ENGINE_PICK_TOP_K) ? pick->top_k : N_VOCAB;
#   ifdef FAKE_PICK_TOP_K_MORE
   wish->top_k++;
#   endif
#   ifdef FAKE_PICK_READS_ALL
   wish->counts[pick->history[0] & 0xff]++;
#   endif
   if (uses(wish, ENGINE_PICK_REPEAT | ENGINE_PICK_FREQUENCY | ENGINE_PICK_PRESENCE)) {
      for (size_t i = 0; i < pick->n_history; i++) {
         wish->counts[pick->history[i]]++;
      }
#   ifndef FAKE_PICK_FORGETS_ROWS
      for (uint32_t i = 0; i < row; i++) { // the slice's own tokens, behind that of its first row
         wish->counts[slice->tokens[slice->n_tokens - slice->n_rows + 1 + i]]++;
      }
#   endif
   }
#   ifndef FAKE_PICK_NO_BIAS
   for (uint32_t i = 0; uses(wish, ENGINE_PICK_BIAS) && i < pick->n_bias; i++) {
      wish->bias[pick->bias[i].token] += pick->bias[i].bias;
   }
#   endif
   if (uses(wish, ENGINE_PICK_MASK) && pick->masks != NULL && pick->masks[row] != NULL) {
      memcpy(wish->mask, pick->masks[row], sizeof wish->mask);
   }
   if (uses(wish, ENGINE_PICK_TEMPERATURE) && pick->uniforms != NULL) {
#   ifdef FAKE_PICK_ONE_UNIFORM
      wish->uniform = pick->uniforms[0];
#   else
      wish->uniform = pick->uniforms[row];
#   endif
   }
}

// The mask comes only now.
static void mask_late(Wish *wish, const uint32_t *mask) {
#   ifndef FAKE_PICK_NO_LATE_MASK
   if (uses(wish, ENGINE_PICK_LATE_MASK) && mask != NULL) {
      memcpy(wish->mask, mask, sizeof wish->mask);
   }
#   else
   (void)wish, (void)mask;
#   endif
}

static void shape(const Wish *wish, const float *logits, float *shaped) {
   for (int token = 0; token < N_VOCAB; token++) {
      float    logit = logits[token];
      uint32_t count = wish->counts[token];
      if (count > 0) {
         logit = logit > 0 ? logit / wish->repeat : logit * wish->repeat;
         logit -= wish->frequency * (float)count;
#   ifdef FAKE_PICK_PRESENCE_COUNTS
         logit -= wish->presence * (float)count;
#   else
         logit -= wish->presence;
#   endif
      }
      logit += wish->bias[token];
#   ifndef FAKE_PICK_NO_MASK
      if ((wish->mask[token / 32] >> (token % 32) & 1) == 0) {
         logit = -INFINITY;
      }
#   endif
      shaped[token] = logit;
   }
}

static EngineToken drawn(const Wish *wish, const float *shaped) {
   EngineToken order[N_VOCAB]; // best first, and equal ones by lower id
   for (EngineToken id = 0; id < N_VOCAB; id++) {
      int place = id;
      for (; place > 0 && shaped[id] > shaped[order[place - 1]]; place--) {
         order[place] = order[place - 1];
      }
      order[place] = id;
   }
   if (!uses(wish, ENGINE_PICK_TEMPERATURE)) {
      return order[0];
   }
   double   weights[N_VOCAB], sum = 0, so_far = 0;
   uint32_t n = wish->top_k < N_VOCAB ? wish->top_k : N_VOCAB;
   for (uint32_t i = 0; i < n; i++) {
      weights[i] = exp((shaped[order[i]] - shaped[order[0]]) / wish->temperature);
      sum += weights[i];
   }
   for (uint32_t i = 0; uses(wish, ENGINE_PICK_TOP_P) && i < n; i++) {
      so_far += weights[i];
      if (so_far >= wish->top_p * sum) {
         n = i + 1;
      }
   }
   while (n > 1 && weights[n - 1] < wish->min_p * weights[0]) {
      n--;
   }
   sum = so_far = 0;
   for (uint32_t i = 0; i < n; i++) {
      sum += weights[i];
   }
   for (uint32_t i = 0; i < n; i++) {
      so_far += weights[i];
      if (so_far > wish->uniform * sum) {
         return order[i];
      }
   }
   return order[n - 1];
}
#endif
