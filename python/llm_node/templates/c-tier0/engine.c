// @ID@: an engine of tier 0, the least there is. One model, one prompt at a time, all tokens at the end.
//
// Its model is a text of some lines, and its answer goes on from the prompt as those lines do. What belongs
// to that model is marked YOUR WORK: put your own in its place.

#include "engine_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 256, LONGEST_TEXT = 1 << 20 };

static const EngineHost *host;
static uint32_t          max_tokens;
static TokenResult       results[MOST_TOKENS + 1]; // one more: the element that ends the list

// YOUR WORK: the model. Here it is a text.
static char  *text;
static size_t text_len;

// Says why, and returns the code: the text reaches whoever asked.
static int fail(int code, const char *why) {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

EngineInfo *engine_get_info(void) {
   static EngineInfo info = {ENGINE_ABI_VERSION, "@ID@", "0.1.0"}; // as in the manifest
   return &info;
}

int engine_init(EngineConfig *config) {
   host       = ENGINE_HAS(config, host) ? config->host : NULL;
   max_tokens = ENGINE_HAS(config, max_tokens) && config->max_tokens != 0 ? config->max_tokens : MOST_TOKENS;
   if (max_tokens > MOST_TOKENS) {
      max_tokens = MOST_TOKENS;
   }
   return ERR_OK;
}

int engine_load_model(const char *model_path) {
   FILE *file = fopen(model_path, "rb");
   if (file == NULL) {
      return fail(ERR_NOT_FOUND, "the model file cannot be opened");
   }
   // YOUR WORK: read the model, and believe nothing that stands in it before you have checked it.
   char *read = malloc(LONGEST_TEXT);
   if (read == NULL) {
      fclose(file);
      return fail(ERR_OOM_RAM, "no memory for the model");
   }
   size_t len = fread(read, 1, LONGEST_TEXT, file);
   fclose(file);
   if (len == 0) {
      free(read);
      return fail(ERR_MODEL_CORRUPT, "the model file is empty, or cannot be read");
   }
   free(text);
   text     = read;
   text_len = len;
   return ERR_OK;
}

// YOUR WORK: where the answer goes on. Here: after the place in the text that has most in common with the
// end of what was said.
static size_t place_after(const char *said, size_t said_len) {
   size_t best = 0, most = 0;
   for (size_t at = 1; at < text_len; at++) {
      size_t common = 0;
      while (common < at && common < said_len && text[at - 1 - common] == said[said_len - 1 - common]) {
         common++;
      }
      if (common > most) {
         best = at;
         most = common;
      }
   }
   return best;
}

int engine_generate(const char *prompt, TokenResult **out) {
   if (text == NULL) {
      return fail(ERR_INVALID_ARGUMENT, "no model is loaded");
   }
   size_t   at = place_after(prompt, strlen(prompt));
   uint32_t n  = 0, finish = ENGINE_FINISH_LENGTH;
   memset(results, 0, sizeof results);
   while (n < max_tokens) {
      if (at >= text_len || text[at] == '\n') {
         finish = ENGINE_FINISH_STOP; // the line is said
         break;
      }
      results[n].text     = text + at++; // memory of the engine's own, that stays until the next call
      results[n].text_len = 1;
      n++;
   }
   results[n].finish = finish; // its text is NULL: here the list ends
   *out              = results;
   return ERR_OK;
}

void engine_shutdown(void) {
   free(text);
   text     = NULL;
   text_len = 0;
   host     = NULL;
}
