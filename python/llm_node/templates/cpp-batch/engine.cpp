// @ID@: an engine that computes what the node schedules. It offers models, memory, tokenizer and batch;
// continuous batching, sampling, streaming and chat are the node's work.
//
// Its model is a text of some lines: a token is likely where it followed the same few tokens in that text.
// A token is a byte, and END the end of a line. What belongs to this model is marked YOUR WORK: put your own
// in its place, and ask `llm-node engine check .` after each change.

#include "engine_api.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr EngineToken END       = 256;
constexpr uint32_t    N_VOCAB   = 257;
constexpr uint32_t    N_CONTEXT = 1024;
constexpr size_t      LOOK_BACK = 16;
constexpr uint32_t    MOST_SEQUENCES = 256;
constexpr std::string_view END_NAME  = "</s>";

const EngineHost *host;

// Why a call fails: a code of the header, and words for whoever asked.
struct Failure : std::runtime_error {
   int code;
   Failure(int code, const char *why) : std::runtime_error(why), code(code) {}
};

int fail(int code, const char *why) noexcept {
   if (ENGINE_CAN(host, set_error)) {
      host->set_error(host, why);
   }
   return code;
}

// Nothing unwinds through the ABI: every function that can throw runs in here.
template <typename Body> int guarded(Body body) noexcept {
   try {
      body();
      return ERR_OK;
   } catch (const Failure &failure) {
      return fail(failure.code, failure.what());
   } catch (const std::bad_alloc &) {
      return fail(ERR_OOM_RAM, "there is no memory left");
   } catch (const std::exception &error) {
      return fail(ERR_INTERNAL, error.what());
   } catch (...) {
      return fail(ERR_INTERNAL, "something that is no exception was thrown");
   }
}

void require(bool condition, const char *why) {
   if (!condition) {
      throw Failure(ERR_INVALID_ARGUMENT, why);
   }
}

// What a host of another version gives room for.
template <typename T> void fill(T *out, T mine) {
   mine.struct_size = out->struct_size;
   std::memcpy(static_cast<void *>(out), &mine, std::min<size_t>(out->struct_size, sizeof mine));
}

} // namespace

extern "C" EngineInfo *engine_get_info(void) {
   static EngineInfo info = {ENGINE_ABI_VERSION, "@ID@", "0.1.0"}; // as in the manifest
   return &info;
}

extern "C" int engine_init(EngineConfig *config) {
   host = ENGINE_HAS(config, host) ? config->host : nullptr;
   return ERR_OK;
}

extern "C" void engine_shutdown(void) {
   host = nullptr; // models and contexts are gone by now
}

// Tier 0 is not offered: the node uses the tables below.
extern "C" int engine_load_model(const char *) {
   return fail(ERR_UNSUPPORTED, "this engine loads models through engine.models/1");
}

extern "C" int engine_generate(const char *, TokenResult **) {
   return fail(ERR_UNSUPPORTED, "this engine computes through engine.batch/1");
}

////////////
// models //
////////////

struct EngineModel {
   std::vector<EngineToken> text;            // YOUR WORK: the weights. Here: the text, as tokens
   uint64_t                 cache_bytes = 0; // of its contexts
};

namespace {

std::vector<EngineToken> read_text(const char *path) {
   std::ifstream file(path, std::ios::binary);
   if (!file) {
      throw Failure(ERR_NOT_FOUND, "the model file cannot be opened");
   }
   // YOUR WORK: read the model, and believe nothing that stands in it before you have checked it.
   std::vector<EngineToken> text;
   for (std::istreambuf_iterator<char> byte(file), end; byte != end && text.size() < 65536; ++byte) {
      text.push_back(*byte == '\n' ? END : static_cast<unsigned char>(*byte));
   }
   if (text.empty()) {
      throw Failure(ERR_MODEL_CORRUPT, "the model file is empty, or cannot be read");
   }
   return text;
}

int model_load(const EngineModelParams *params, EngineModel **out) {
   return guarded([&] {
      auto model  = std::make_unique<EngineModel>();
      model->text = read_text(params->path);
      *out        = model.release(); // last of all: after a failure it stays as it was
   });
}

void model_unload(EngineModel *model) {
   delete model;
}

int model_info(const EngineModel *model, EngineModelInfo *info) {
   EngineModelInfo mine = {};
   mine.flags           = ENGINE_MODEL_GENERATES;
   mine.architecture    = "lines";
   mine.format          = "@ID@";
   mine.n_parameters    = model->text.size();
   mine.size_bytes      = model->text.size();
   mine.n_vocab         = N_VOCAB;
   mine.n_context       = N_CONTEXT;
   fill(info, mine);
   return ERR_OK;
}

size_t model_meta_count(const EngineModel *) {
   return 0;
}

int model_meta_get(const EngineModel *, size_t, EngineStr *, EngineStr *) {
   return ERR_NOT_FOUND;
}

////////////
// memory //
////////////

uint32_t device_count() {
   return 0; // what it takes is the host's memory: ENGINE_DEVICE_HOST, which is not in the list
}

int device_get(uint32_t, EngineDevice *) {
   return ERR_NOT_FOUND;
}

void write_use(uint64_t weights, uint64_t cache_bytes, EngineMemoryUse *uses, size_t capacity, size_t *count) {
   EngineMemoryUse use = {};
   use.device          = ENGINE_DEVICE_HOST;
   use.weights         = weights;
   use.cache           = cache_bytes;
   use.cache_per_token = sizeof(EngineToken);
   if (capacity > 0) {
      uses[0] = use;
   }
   *count = 1;
}

uint32_t length_of(const EngineContextParams *params) {
   return params->context_length != 0 ? params->context_length : N_CONTEXT;
}

uint64_t cells_of(const EngineContextParams *params) {
   return std::max<uint64_t>(params->cache_tokens, uint64_t{params->max_sequences} * length_of(params));
}

int estimate(const EngineModelParams *model, const EngineContextParams *context, EngineMemoryUse *uses,
             size_t capacity, size_t *count) {
   return guarded([&] {
      uint64_t cells = context == nullptr ? 0 : cells_of(context);
      write_use(read_text(model->path).size() * sizeof(EngineToken), cells * sizeof(EngineToken), uses, capacity,
                count);
   });
}

int usage(const EngineModel *model, EngineMemoryUse *uses, size_t capacity, size_t *count) {
   write_use(model->text.size() * sizeof(EngineToken), model->cache_bytes, uses, capacity, count);
   return ERR_OK;
}

///////////////
// tokenizer //
///////////////

// YOUR WORK: the vocabulary. Here: every byte, and "</s>" for END.
struct Vocabulary {
   std::string           bytes;
   std::vector<uint32_t> offsets, attributes;

   Vocabulary() {
      for (uint32_t i = 0; i < 256; i++) {
         offsets.push_back(i);
         attributes.push_back(ENGINE_ATTR_BYTE);
         bytes.push_back(static_cast<char>(i));
      }
      offsets.push_back(256);
      attributes.push_back(ENGINE_ATTR_CONTROL | ENGINE_ATTR_EOG);
      bytes += END_NAME;
      offsets.push_back(static_cast<uint32_t>(bytes.size()));
   }

   std::string_view of(EngineToken token) const {
      return std::string_view(bytes).substr(offsets[token], offsets[token + 1] - offsets[token]);
   }
};

const Vocabulary &vocabulary() {
   static const Vocabulary one;
   return one;
}

int vocab(const EngineModel *, EngineVocab *out) {
   return guarded([&] {
      EngineVocab mine = {};
      mine.n_tokens    = N_VOCAB;
      mine.bytes       = reinterpret_cast<const uint8_t *>(vocabulary().bytes.data());
      mine.offsets     = vocabulary().offsets.data();
      mine.attributes  = vocabulary().attributes.data();
      mine.eos         = END;
      mine.bos = mine.eot = mine.pad = mine.sep = mine.mask = ENGINE_TOKEN_NONE;
      fill(out, mine);
   });
}

int tokenize(const EngineModel *, const char *text, size_t text_len, uint32_t flags, EngineToken *tokens,
             size_t capacity, size_t *count) {
   std::string_view left(text, text_len);
   size_t           n = 0;
   for (; !left.empty(); n++) {
      bool is_end = (flags & ENGINE_TOKENIZE_PARSE_SPECIAL) != 0 && left.substr(0, END_NAME.size()) == END_NAME;
      if (n < capacity) { // count all, write what there is room for
         tokens[n] = is_end ? END : static_cast<unsigned char>(left.front());
      }
      left.remove_prefix(is_end ? END_NAME.size() : 1);
   }
   *count = n;
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
}

int detokenize(const EngineModel *, const EngineToken *tokens, size_t n_tokens, char *text, size_t capacity,
               size_t *count) {
   size_t n = 0;
   for (size_t i = 0; i < n_tokens; i++) {
      if (tokens[i] < 0 || static_cast<uint32_t>(tokens[i]) >= N_VOCAB) {
         return fail(ERR_INVALID_ARGUMENT, "a token is outside the vocabulary");
      }
      for (char byte : vocabulary().of(tokens[i])) {
         if (n < capacity) {
            text[n] = byte;
         }
         n++;
      }
   }
   *count = n;
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
}

int chat_template(const EngineModel *, const char *name, EngineStr *source) {
   static constexpr std::string_view mine = "{% for message in messages %}{{ message.content }} {% endfor %}";
   if (name != nullptr) {
      return ERR_NOT_FOUND;
   }
   *source = {mine.data(), mine.size()};
   return ERR_OK;
}

} // namespace

///////////
// batch //
///////////

// YOUR WORK: the cache. Here a sequence is its tokens.
struct EngineContext {
   EngineModel *model;
   uint32_t     context_length, max_batch_tokens, max_rows;
   uint64_t     n_cells;
   std::vector<std::vector<EngineToken>> sequences;
   uint64_t           ticket = 0; // of the last step
   size_t             n_rows = 0; // of that step
   std::vector<float> rows;       // max_rows * N_VOCAB

   EngineContext(EngineModel *model, const EngineContextParams &params)
      : model(model), context_length(length_of(&params)),
        max_batch_tokens(params.max_batch_tokens != 0 ? params.max_batch_tokens : 512),
        max_rows(params.max_rows != 0 ? params.max_rows : params.max_sequences), n_cells(cells_of(&params)),
        sequences(params.max_sequences), rows(size_t{max_rows} * N_VOCAB) {
      for (auto &sequence : sequences) {
         sequence.reserve(context_length); // so that no step has to
      }
      model->cache_bytes += n_cells * sizeof(EngineToken);
   }
   ~EngineContext() { model->cache_bytes -= n_cells * sizeof(EngineToken); }
   EngineContext(const EngineContext &) = delete;

   std::vector<EngineToken> &sequence(uint32_t number) {
      require(number < sequences.size(), "there is no such sequence");
      return sequences[number];
   }
};

namespace {

int context_create(EngineModel *model, const EngineContextParams *params, EngineContext **out) {
   return guarded([&] {
      require(params->max_sequences > 0 && params->max_sequences <= MOST_SEQUENCES,
              "this engine takes 1 to 256 sequences at once");
      require(length_of(params) <= N_CONTEXT, "the model knows no sequences longer than 1024 tokens");
      *out = std::make_unique<EngineContext>(model, *params).release();
   });
}

void context_destroy(EngineContext *context) {
   delete context;
}

int context_info(const EngineContext *context, EngineContextInfo *info) {
   EngineContextInfo mine = {};
   mine.max_sequences     = static_cast<uint32_t>(context->sequences.size());
   mine.context_length    = context->context_length;
   mine.max_batch_tokens  = context->max_batch_tokens;
   mine.max_rows          = context->max_rows;
   mine.max_in_flight     = 1;
   mine.max_rollback      = UINT32_MAX;
   mine.cache_page        = 1;
   mine.cache_tokens      = context->n_cells;
   fill(info, mine);
   return ERR_OK;
}

const EngineSlice &slice_at(const EngineBatch *batch, uint32_t index) {
   const char *slices = reinterpret_cast<const char *>(batch->slices);
   return *reinterpret_cast<const EngineSlice *>(slices + index * batch->slice_stride);
}

// Everything is looked at before anything is changed.
void check(EngineContext &context, const EngineBatch *batch) {
   std::vector<bool> seen(context.sequences.size());
   uint64_t          n_tokens = 0, n_rows = 0;
   for (uint32_t i = 0; i < batch->n_slices; i++) {
      const EngineSlice &slice = slice_at(batch, i);
      require(slice.position == context.sequence(slice.sequence).size(),
              "a slice does not begin where its sequence ends");
      require(!seen[slice.sequence], "a sequence is there twice");
      seen[slice.sequence] = true;
      require(slice.n_tokens > 0 && slice.n_rows <= slice.n_tokens && slice.adapter == nullptr,
              "a slice is empty, wants too many rows, or has an adapter");
      require(uint64_t{slice.position} + slice.n_tokens <= context.context_length,
              "a sequence grows beyond the context");
      require(std::all_of(slice.tokens, slice.tokens + slice.n_tokens,
                          [](EngineToken token) { return token >= 0 && static_cast<uint32_t>(token) < N_VOCAB; }),
              "a token is outside the vocabulary");
      n_tokens += slice.n_tokens;
      n_rows += slice.n_rows;
   }
   require(n_tokens > 0 && n_tokens <= context.max_batch_tokens && n_rows <= context.max_rows,
           "there are no tokens, or more tokens or rows than one step takes");
}

// YOUR WORK: the forward pass. Here: how often each token followed the last ones of the sequence in the
// text, the more of them the better; and what was said is a little likelier again, the later it was said.
void compute(const EngineModel &model, const std::vector<EngineToken> &sequence, float *row) {
   double weights[N_VOCAB];
   std::fill(std::begin(weights), std::end(weights), 1e-4);
   for (size_t at = 0; at < model.text.size(); at++) {
      double weight = 1e-2;
      for (size_t back = 1; back <= std::min({LOOK_BACK, at, sequence.size()}); back++) {
         if (model.text[at - back] != sequence[sequence.size() - back]) {
            break;
         }
         weight *= 20;
      }
      weights[model.text[at]] += weight;
   }
   double again = 1e-3;
   for (auto token = sequence.rbegin(); token != sequence.rend(); ++token, again *= 0.9) {
      weights[*token] += again;
   }
   std::transform(std::begin(weights), std::end(weights), row,
                  [](double weight) { return static_cast<float>(std::log(weight)); });
}

int step(EngineContext *context, const EngineBatch *batch, uint64_t *ticket) {
   return guarded([&] {
      check(*context, batch);
      context->n_rows = 0;
      for (uint32_t i = 0; i < batch->n_slices; i++) {
         const EngineSlice &slice    = slice_at(batch, i);
         auto              &sequence = context->sequences[slice.sequence];
         for (uint32_t j = 0; j < slice.n_tokens; j++) {
            sequence.push_back(slice.tokens[j]);
            if (j + slice.n_rows >= slice.n_tokens) { // one of the last n_rows
               compute(*context->model, sequence, context->rows.data() + context->n_rows++ * N_VOCAB);
            }
         }
      }
      *ticket = ++context->ticket;
   });
}

int collect(EngineContext *context, uint64_t ticket, const uint32_t *const *, EngineRow *rows, size_t n_rows,
            size_t row_stride) {
   return guarded([&] {
      require(ticket != 0 && ticket == context->ticket && n_rows == context->n_rows,
              "this is not the last step, or not the number of its rows");
      for (size_t i = 0; i < n_rows; i++) {
         EngineRow row = {};
         row.stage     = ENGINE_STAGE_LOGITS;
         row.dtype     = ENGINE_F32;
         row.n         = N_VOCAB;
         row.token     = ENGINE_TOKEN_NONE;
         row.logprob = row.log_sum = row.log_sum_t = NAN;
         row.logits = context->rows.data() + i * N_VOCAB;
         std::memcpy(reinterpret_cast<char *>(rows) + i * row_stride, &row, std::min(row_stride, sizeof row));
      }
   });
}

int seq_copy(EngineContext *context, uint32_t from, uint32_t to, uint32_t end) {
   return guarded([&] {
      auto &source = context->sequence(from), &copy = context->sequence(to);
      require(from != to && end <= source.size() && copy.empty(), "there is no such end, or the copy is not empty");
      copy.assign(source.begin(), source.begin() + end);
   });
}

int seq_remove(EngineContext *context, uint32_t sequence, uint32_t begin) {
   return guarded([&] {
      auto &one = context->sequence(sequence);
      one.resize(std::min<size_t>(one.size(), begin));
   });
}

int seq_range(const EngineContext *context, uint32_t sequence, uint32_t *begin, uint32_t *end) {
   return guarded([&] {
      require(sequence < context->sequences.size(), "there is no such sequence");
      *begin = 0;
      *end   = static_cast<uint32_t>(context->sequences[sequence].size());
   });
}

uint64_t cache_free(const EngineContext *context) {
   uint64_t held = 0;
   for (const auto &sequence : context->sequences) {
      held += sequence.size();
   }
   return context->n_cells - held;
}

} // namespace

////////////
// tables //
////////////

extern "C" const void *engine_get_extension(const char *id) {
   static const EngineModels    models    = {sizeof models, model_load, model_unload, model_info, model_meta_count,
                                             model_meta_get};
   static const EngineMemory    memory    = {sizeof memory, device_count, device_get, estimate, usage};
   static const EngineTokenizer tokenizer = {sizeof tokenizer, vocab, tokenize, detokenize, chat_template};
   static const EngineBatching  batch     = {
      sizeof batch, context_create, context_destroy, context_info, step, collect, nullptr /* fetch */,
      nullptr /* cancel */, seq_copy, seq_remove, seq_range, cache_free, nullptr /* seq_save */,
      nullptr /* seq_restore */};
   std::string_view name = id;
   return name == ENGINE_EXT_MODELS      ? static_cast<const void *>(&models)
          : name == ENGINE_EXT_MEMORY    ? static_cast<const void *>(&memory)
          : name == ENGINE_EXT_TOKENIZER ? static_cast<const void *>(&tokenizer)
          : name == ENGINE_EXT_BATCH     ? static_cast<const void *>(&batch)
                                         : nullptr;
}
