// The smallest engine that really answers. Its "model" is any text file, and its answer goes on from
// the last words of the prompt the way the text goes on from them: a Markov chain over words.
//
// Tier 0 alone, about a hundred lines. What to look at:
//
//  - Each failure returns a code, and says why through host->set_error before it does.
//  - Nobody frees the other side's memory: results live here until the next call, as the header says.
//  - A token is a view into the model's own text: nothing is copied.
//  - The same prompt gives the same answer: the random numbers are seeded with it.

#include "engine_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Word {
   const char *text; // with the space before it
   size_t      len;
} Word;

static const EngineHost *host;
static uint32_t          max_tokens;
static char             *text;    // the model: " once upon a time ...", one space before each word
static Word             *words;   // where they are in it
static size_t            n_words;
static TokenResult      *results; // of the last engine_generate

static int fail(int code, const char *why) {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

EngineInfo *engine_get_info(void) {
   static EngineInfo info = {.abi_version = ENGINE_ABI_VERSION, .engine_id = "sample_markov", .version = "1.0.0"};
   return &info;
}

int engine_init(EngineConfig *config) {
   host       = config->host;
   max_tokens = ENGINE_HAS(config, max_tokens) && config->max_tokens != 0 ? config->max_tokens : 64;
   results    = malloc((max_tokens + 1) * sizeof *results); // one more: the element that ends the list
   return results != NULL ? ERR_OK : ERR_OOM_RAM;
}

static void unload(void) {
   free(text);
   free(words);
   text    = NULL;
   words   = NULL;
   n_words = 0;
}

static int is_space(int c) {
   return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

int engine_load_model(const char *model_path) {
   FILE *file = fopen(model_path, "rb");
   if (file == NULL) {
      return fail(ERR_NOT_FOUND, "the text file cannot be opened");
   }
   long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
   if (size <= 0 || size > 64L << 20) {
      fclose(file);
      return fail(ERR_MODEL_CORRUPT, "the model must be a text file of 1 byte to 64 MiB");
   }
   unload();
   rewind(file);
   char *raw = malloc((size_t)size);
   text      = malloc(2 * (size_t)size + 1);
   words     = malloc(((size_t)size / 2 + 1) * sizeof *words);
   if (raw == NULL || text == NULL || words == NULL || fread(raw, 1, (size_t)size, file) != (size_t)size) {
      fclose(file);
      free(raw);
      unload();
      return fail(ERR_LOAD_FAILED, "the text file cannot be read into memory");
   }
   fclose(file);
   char *end = text;
   for (long i = 0; i < size; i++) {
      if (is_space(raw[i])) {
         continue;
      }
      if (i == 0 || is_space(raw[i - 1])) {
         words[n_words].text  = end;
         words[n_words++].len = 0;
         *end++               = ' ';
         words[n_words - 1].len++;
      }
      *end++ = raw[i];
      words[n_words - 1].len++;
   }
   free(raw);
   return n_words >= 2 ? ERR_OK : fail(ERR_MODEL_CORRUPT, "the text has fewer than two words");
}

// Does `word` say the same as these bytes, which have no space before them?
static int says(const Word *word, const char *bytes, size_t len) {
   return word->len == len + 1 && memcmp(word->text + 1, bytes, len) == 0;
}

// A word of the text after which to go on: one that equals the last one of the prompt, if there is one.
static size_t begin(const char *prompt, uint64_t random) {
   size_t end = strlen(prompt);
   while (end > 0 && is_space(prompt[end - 1])) {
      end--;
   }
   size_t start = end;
   while (start > 0 && !is_space(prompt[start - 1])) {
      start--;
   }
   for (size_t tried = 0; tried < n_words; tried++) {
      size_t i = (size_t)(random % n_words + tried) % n_words;
      if (says(&words[i], prompt + start, end - start)) {
         return i;
      }
   }
   return n_words - 1;
}

int engine_generate(const char *prompt, TokenResult **out) {
   if (n_words == 0) {
      return fail(ERR_INVALID_ARGUMENT, "no model is loaded");
   }
   uint64_t random = 14695981039346656037ULL; // FNV-1a of the prompt, then a linear congruence
   for (const char *c = prompt; *c != 0; c++) {
      random = (random ^ (unsigned char)*c) * 1099511628211ULL;
   }
   size_t   at     = begin(prompt, random >> 16);
   uint32_t n      = 0;
   uint32_t finish = ENGINE_FINISH_LENGTH;
   while (n < max_tokens) {
      random = random * 6364136223846793005ULL + 1442695040888963407ULL;
      // Go on after this word, or, by chance, after another place where it stands.
      for (size_t i = (size_t)(random >> 33) % n_words, tried = 0; tried < n_words; i = (i + 1) % n_words, tried++) {
         if (says(&words[i], words[at].text + 1, words[at].len - 1)) {
            at = i;
            break;
         }
      }
      at = (at + 1) % n_words;
      memset(&results[n], 0, sizeof results[n]);
      results[n].text     = words[at].text;
      results[n].text_len = words[at].len;
      n++;
      if (n >= 8 && strchr(".!?", words[at].text[words[at].len - 1]) != NULL) {
         finish = ENGINE_FINISH_STOP;
         break;
      }
   }
   memset(&results[n], 0, sizeof results[n]); // text == NULL: here it ends ...
   results[n].finish = finish;                // ... and this is why
   *out              = results;
   return ERR_OK;
}

void engine_shutdown(void) {
   unload();
   free(results);
   results = NULL;
   host    = NULL;
}
