// snapshot_engine.c - reads a folder as the hub has it: config.json, an index, the files of weights that it names,
// and a tokenizer. It understands none of them. Its answer says what it has found, so that a test can tell whether all
// of a model was there.

#include "engine_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "model-"
#define END  ".safetensors\""

static const EngineHost *host;
static char              answer[128];
static TokenResult       results[2];

static int fail(int code, const char *why) {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

EngineInfo *engine_get_info(void) {
   static EngineInfo info = {.abi_version = ENGINE_ABI_VERSION, .engine_id = "snapshot", .version = "1.0.0"};
   return &info;
}

int engine_init(EngineConfig *config) {
   host = config->host;
   return ERR_OK;
}

// Bytes of a file in the folder; with `into`, they themselves, ended by a zero. -1: it cannot be read.
static long read_file(const char *folder, const char *name, char **into) {
   char path[4096];
   snprintf(path, sizeof path, "%s/%s", folder, name);
   FILE *file = fopen(path, "rb");
   if (file == NULL) {
      return -1;
   }
   long  size  = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
   char *bytes = size < 0 ? NULL : calloc(1, (size_t)size + 1);
   rewind(file);
   if (bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
      size = -1;
   }
   fclose(file);
   if (into != NULL && size >= 0) {
      *into = bytes;
   } else {
      free(bytes);
   }
   return size;
}

int engine_load_model(const char *folder) {
   char *index = NULL;
   long  bytes = 0;
   int   files = 0;
   if (read_file(folder, "config.json", NULL) < 0 || read_file(folder, "tokenizer.json", NULL) < 0) {
      return fail(ERR_NOT_FOUND, "config.json or tokenizer.json cannot be read");
   }
   if (read_file(folder, "model.safetensors.index.json", &index) < 0) {
      return fail(ERR_NOT_FOUND, "the index cannot be read");
   }
   for (char *at = index, *end; (at = strstr(at, NAME)) != NULL && (end = strstr(at, END)) != NULL; at = end) {
      end += strlen(END) - 1;
      *end++    = 0; // in place of the quotation mark
      long size = read_file(folder, at, NULL);
      if (size < 0) {
         free(index);
         return fail(ERR_NOT_FOUND, "a file that the index names cannot be read");
      }
      bytes += size;
      files++;
   }
   free(index);
   snprintf(answer, sizeof answer, "%ld bytes in %d files", bytes, files);
   return files > 0 ? ERR_OK : fail(ERR_MODEL_CORRUPT, "the index names no file");
}

int engine_generate(const char *prompt, TokenResult **out) {
   (void)prompt;
   memset(results, 0, sizeof results);
   results[0].text     = answer;
   results[0].text_len = strlen(answer);
   results[1].finish   = ENGINE_FINISH_STOP;
   *out                = results;
   return ERR_OK;
}

void engine_shutdown(void) {
   host = NULL;
}
