// engine.stream/1 and the functions of tier 0. A part of fake_engine.c, which includes it.

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
   if (code == ERR_OK) {
      code = model_take(model);
   }
   if (code != ERR_OK) {
      model_free(model);
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
