// @ID@: an engine of tier 0, the least there is. One model, one prompt at a time, all tokens at the end.
//
// Its model is a text of some lines, and its answer goes on from the prompt as those lines do. What belongs
// to that model is marked YOUR WORK: put your own in its place.

#include "engine_api.h"

#include <algorithm>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr uint32_t MOST_TOKENS = 256;

const EngineHost        *host;
uint32_t                 max_tokens;
std::vector<TokenResult> results; // of the last engine_generate

// YOUR WORK: the model. Here it is a text.
std::string text;

// Says why, and returns the code: the text reaches whoever asked.
int fail(int code, const char *why) noexcept {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

// Nothing unwinds through the ABI: every function that can throw runs in here.
template <typename Body> int guarded(Body body) noexcept {
   try {
      return body();
   } catch (const std::exception &error) {
      return fail(ERR_INTERNAL, error.what());
   } catch (...) {
      return fail(ERR_INTERNAL, "something that is no exception was thrown");
   }
}

// YOUR WORK: where the answer goes on. Here: after the place in the text that has most in common with the
// end of what was said.
size_t place_after(std::string_view said) {
   size_t best = 0, most = 0;
   for (size_t at = 1; at < text.size(); at++) {
      size_t common = 0;
      while (common < at && common < said.size() && text[at - 1 - common] == said[said.size() - 1 - common]) {
         common++;
      }
      if (common > most) {
         best = at;
         most = common;
      }
   }
   return best;
}

} // namespace

extern "C" EngineInfo *engine_get_info(void) {
   static EngineInfo info = {ENGINE_ABI_VERSION, "@ID@", "0.1.0"}; // as in the manifest
   return &info;
}

extern "C" int engine_init(EngineConfig *config) {
   host       = ENGINE_HAS(config, host) ? config->host : nullptr;
   max_tokens = ENGINE_HAS(config, max_tokens) && config->max_tokens != 0 ? config->max_tokens : MOST_TOKENS;
   return ERR_OK;
}

extern "C" int engine_load_model(const char *model_path) {
   return guarded([&] {
      std::ifstream file(model_path, std::ios::binary);
      if (!file) {
         return fail(ERR_NOT_FOUND, "the model file cannot be opened");
      }
      // YOUR WORK: read the model, and believe nothing that stands in it before you have checked it.
      std::string read{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
      if (read.empty()) {
         return fail(ERR_MODEL_CORRUPT, "the model file is empty, or cannot be read");
      }
      text = std::move(read);
      return static_cast<int>(ERR_OK);
   });
}

extern "C" int engine_generate(const char *prompt, TokenResult **out) {
   return guarded([&] {
      if (text.empty()) {
         return fail(ERR_INVALID_ARGUMENT, "no model is loaded");
      }
      size_t at  = place_after(prompt);
      size_t end = std::min(text.find('\n', at), text.size());
      results.clear();
      for (; at < end && results.size() < max_tokens; at++) {
         TokenResult token = {};
         token.text        = text.data() + at; // memory of the engine's own, that stays until the next call
         token.text_len    = 1;
         results.push_back(token);
      }
      TokenResult last = {}; // its text is NULL: here the list ends
      last.finish      = at < end ? ENGINE_FINISH_LENGTH : ENGINE_FINISH_STOP;
      results.push_back(last);
      *out = results.data();
      return static_cast<int>(ERR_OK);
   });
}

extern "C" void engine_shutdown(void) {
   text.clear();
   results.clear();
   host = nullptr;
}
