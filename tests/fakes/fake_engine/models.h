// engine.models/1: a file with a mark and lines of metadata. A part of fake_engine.c, which includes it.

struct EngineModel {
   uint64_t file_bytes, eog_every, estimate_bytes;
   char    *taken; // beyond its word
   uint32_t n_context, devices[FAKE_DEVICES], n_devices;
   size_t   n_metadata;
   char    *text; // the file, cut into the strings below
   char    *keys[MOST_METADATA], *values[MOST_METADATA];
   uint64_t cache_bytes; // of its contexts
};

static uint64_t metadata_number(const EngineModel *model, const char *key, uint64_t otherwise) {
   for (size_t i = 0; i < model->n_metadata; i++) {
      if (strcmp(model->keys[i], key) == 0) {
         return strtoull(model->values[i], NULL, 10);
      }
   }
   return otherwise;
}

static void model_free(EngineModel *model) {
   if (model != NULL) {
      free(model->text);
      free(model->taken);
      free(model);
   }
}

static int model_open(const char *path, EngineModel **result) {
   FILE *file = fopen(path, "rb");
   if (file == NULL) {
      return fail(ERR_NOT_FOUND, "the toy finds no such file");
   }
#ifdef FAKE_TELL_OPENINGS
   if (ENGINE_CAN(host, log)) {
      host->log(host, ENGINE_LOG_INFO, "the toy opens a model");
   }
#endif
   EngineModel *model = calloc(1, sizeof *model);
   char        *text  = calloc(1, 65537);
   if (model == NULL || text == NULL) {
      fclose(file);
      free(text);
      free(model);
      return ERR_OOM_RAM;
   }
   model->text = text;
   size_t length = fread(text, 1, 65536, file);
   fclose(file);
   if (length < 4 || memcmp(text, "TOY1", 4) != 0) {
      model_free(model);
      return fail(ERR_MODEL_CORRUPT, "the file does not begin with TOY1");
   }
   model->file_bytes = length;
   for (char *line = strtok(text + 4, "\r\n"); line != NULL; line = strtok(NULL, "\r\n")) {
      char *equals = strchr(line, '=');
      if (equals != NULL && model->n_metadata < MOST_METADATA) {
         *equals = 0;
         model->keys[model->n_metadata] = line;
         model->values[model->n_metadata++] = equals + 1;
      }
   }
   model->n_context      = (uint32_t)metadata_number(model, "n_context", 2048);
   model->eog_every      = metadata_number(model, "eog_every", FAKE_EOG_EVERY);
   model->estimate_bytes = metadata_number(model, "estimate_bytes", model->file_bytes);
   *result = model;
   return ERR_OK;
}

// Those that are named, else all.
static MAYBE_UNUSED void model_place(EngineModel *model, const EngineModelParams *params) {
   size_t named = ENGINE_HAS(params, n_devices) ? params->n_devices : 0;
   model->n_devices = 0;
   for (uint32_t i = 0; i < (named > 0 ? named : device_count) && i < FAKE_DEVICES; i++) {
      model->devices[model->n_devices++] = named > 0 ? params->devices[i] : i;
   }
}

// What a load takes beyond what is said of it, and how long it lasts.
static MAYBE_UNUSED int model_take(EngineModel *model) {
   uint64_t bytes = metadata_number(model, "takes_bytes", 0);
   sleep_us(metadata_number(model, "load_us", 0));
   if (bytes > 0) {
      model->taken = malloc(bytes);
      if (model->taken == NULL) {
         return fail(ERR_OOM_RAM, "no memory for what the toy hides");
      }
      memset(model->taken, 1, bytes);
   }
   return ERR_OK;
}

static MAYBE_UNUSED int models_load(const EngineModelParams *params, EngineModel **model) {
#ifdef FAKE_CRASH_IN_LOAD
   crash();
#endif
#ifdef FAKE_HANG_IN_LOAD
   hang();
#endif
#ifdef FAKE_LOAD_CODE
   (void)params, (void)model;
   return fail(FAKE_LOAD_CODE, "the toy would not load");
#else
#  ifdef FAKE_LAYERS_TOO_MANY
   if (params->gpu_layers == FAKE_LAYERS_TOO_MANY) {
      return fail(ERR_LOAD_FAILED, "the toy does not load so many layers");
   }
#  endif
   EngineModel *loaded = NULL;
   int          code   = model_open(params->path, &loaded);
   if (code == ERR_OK) {
      model_place(loaded, params);
      code           = model_take(loaded);
   }
   if (code != ERR_OK) {
      model_free(loaded);
      return code;
   }
   for (int i = 0; i <= 4; i++) {
      if (ENGINE_HAS(params, user) && params->progress != NULL &&
          params->progress(params->user, (float)i / 4.0f) != 0) {
         model_free(loaded);
         return ERR_CANCELLED;
      }
   }
#  ifdef FAKE_NULL_MODEL
   model_free(loaded);
   loaded = NULL;
#  endif
   *model = loaded;
   return ERR_OK;
#endif
}

static MAYBE_UNUSED void models_unload(EngineModel *model) {
   model_free(model);
}

static MAYBE_UNUSED int models_info(const EngineModel *model, EngineModelInfo *info) {
   EngineModelInfo mine = {0};
   mine.struct_size  = info->struct_size;
   mine.flags        = ENGINE_MODEL_GENERATES | ENGINE_MODEL_EMBEDS;
   mine.architecture = "toy";
   mine.format       = "toy";
   mine.quantization = NULL;
   mine.n_parameters = 258;
   mine.size_bytes   = model->file_bytes;
   mine.n_vocab      = N_VOCAB;
   mine.n_context    = model->n_context;
   mine.n_embedding  = N_EMBEDDING;
   mine.max_streams  = 1;
#ifdef FAKE_NULL_ARCHITECTURE
   mine.architecture = NULL;
#endif
#ifdef FAKE_HUGE_VOCAB
   mine.n_vocab = 0xFFFFFFFF;
#endif
   memcpy(info, &mine, info->struct_size < sizeof mine ? info->struct_size : sizeof mine);
   return ERR_OK;
}

static MAYBE_UNUSED size_t models_meta_count(const EngineModel *model) {
   return model->n_metadata;
}

static MAYBE_UNUSED int models_meta_get(const EngineModel *model, size_t index, EngineStr *key,
                                        EngineStr *value) {
   if (index >= model->n_metadata) {
      return ERR_NOT_FOUND;
   }
   key->data   = model->keys[index];
   key->len    = strlen(key->data);
   value->data = model->values[index];
   value->len  = strlen(value->data);
   return ERR_OK;
}
