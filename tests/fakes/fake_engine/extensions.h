// engine_get_extension, and the tables it hands out. A part of fake_engine.c, which includes it.

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
#     ifdef FAKE_MEMORY_ALONE
   if (strcmp(id, ENGINE_EXT_MEMORY) != 0) {
      return NULL;
   }
#     endif
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
