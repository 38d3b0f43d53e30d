// engine.embed/1. A part of fake_engine.c, which includes it.

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
