// The model: a row of logits is a hash of all tokens up to it. A part of fake_engine.c, which includes it.

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
