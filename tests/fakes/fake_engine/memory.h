// engine.memory/1: devices, and what models and contexts say they take. A part of fake_engine.c, which includes it.

static MAYBE_UNUSED uint32_t memory_device_count(void) {
   return device_is_cpu ? 1 : device_count;
}

// What is free of it: a line for each device in a file beside the library, where a test says it there.
static uint64_t free_bytes_of(uint32_t index) {
   FILE    *file = fopen(free_file, "r");
   uint64_t bytes = FAKE_DEVICE_BYTES, line;
   for (uint32_t i = 0; file != NULL && i <= index && fscanf(file, "%" SCNu64, &line) == 1; i++) {
      bytes = line;
   }
   if (file != NULL) {
      fclose(file);
   }
   return bytes;
}

static MAYBE_UNUSED int memory_device_get(uint32_t index, EngineDevice *device) {
   if (index >= memory_device_count()) {
      return ERR_NOT_FOUND;
   }
   EngineDevice mine = {0};
   mine.struct_size = device->struct_size;
   mine.kind        = device_is_cpu ? ENGINE_DEVICE_CPU : FAKE_DEVICE_KIND;
   mine.name        = device_names[index];
   mine.description = "a toy device";
   mine.bus_id      = device_is_cpu ? NULL : device_buses[index];
   mine.total_bytes = FAKE_DEVICE_BYTES;
   mine.free_bytes  = free_bytes_of(index);
   memcpy(device, &mine, device->struct_size < sizeof mine ? device->struct_size : sizeof mine);
   return ERR_OK;
}

// Of each device the same.
static size_t uses_of(const EngineModel *model, uint64_t cache_bytes, EngineMemoryUse *uses, size_t capacity) {
   uint32_t parts = device_is_cpu ? 1 : model->n_devices;
   for (uint32_t i = 0; i < parts && i < capacity; i++) {
      EngineMemoryUse *use = &uses[i];
      memset(use, 0, sizeof *use);
      use->device          = device_is_cpu ? ENGINE_DEVICE_HOST : model->devices[i];
      use->weights         = model->estimate_bytes / parts;
      use->cache           = cache_bytes / parts;
      use->compute         = 4096;
#ifdef FAKE_ESTIMATE_BYTES
      uint64_t beside = use->cache + use->compute;
      use->weights = FAKE_ESTIMATE_BYTES > beside ? FAKE_ESTIMATE_BYTES - beside : 1;
#endif
      use->cache_per_token = CACHE_BYTES_PER_TOKEN / parts;
#ifdef FAKE_NO_SUCH_DEVICE
      use->device = 7;
#endif
#ifdef FAKE_ESTIMATE_NOTHING
      use->weights = use->cache = use->compute = use->cache_per_token = 0;
#endif
   }
   return parts;
}

static uint64_t cache_capacity(const EngineContextParams *params, uint32_t context_length) {
   if (params->cache_tokens != 0) {
      return params->cache_tokens;
   }
   return (uint64_t)params->max_sequences * context_length;
}

static MAYBE_UNUSED int memory_estimate(const EngineModelParams   *params,
                                        const EngineContextParams *context, EngineMemoryUse *uses,
                                        size_t capacity, size_t *count) {
   EngineModel *model = NULL;
   int          code  = model_open(params->path, &model);
   if (code != ERR_OK) {
      return code;
   }
   model_place(model, params);
   uint64_t cache = 0;
   if (context != NULL) {
      uint32_t length = context->context_length != 0 ? context->context_length : model->n_context;
      cache = cache_capacity(context, length) * CACHE_BYTES_PER_TOKEN;
   }
   *count = uses_of(model, cache, uses, capacity);
   model_free(model);
   return ERR_OK;
}

static MAYBE_UNUSED int memory_usage(const EngineModel *model, EngineMemoryUse *uses,
                                     size_t capacity, size_t *count) {
   *count = uses_of(model, model->cache_bytes, uses, capacity);
   return ERR_OK;
}
