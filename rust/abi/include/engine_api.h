// engine_api.h - the C ABI between llm-node (the host) and an inference engine (the plug-in).
// ABI version 1. This file is the specification; everything else in the project follows it.
//
// An engine is one shared library with a manifest.json beside it. Five functions make an engine
// (tier 0, below). Everything else is an optional extension: a table of functions which the host
// asks for by name, engine_get_extension("engine.batch/1"), and does without when it gets NULL.
//
//   tier 0              one model, one prompt at a time, all tokens at the end        (frozen)
//   engine.models/1     several models, each a handle, and what they are
//   engine.memory/1     devices; the memory a model needs before it is loaded, and holds after
//   engine.tokenizer/1  vocabulary, tokenise, detokenise, chat template
//   engine.batch/1      one forward pass over a batch that the HOST schedules      (preferred)
//   engine.serve/1      requests that the ENGINE schedules: submit, poll, cancel       (DRAFT)
//   engine.stream/1     one request at a time, token by token, with cancel
//   engine.embed/1      embeddings and reranking
//   engine.adapters/1   LoRA adapters                                                  (DRAFT)
//
// A DRAFT is there so that its id and its place are taken. No engine uses it yet, the host does not
// ask for it, and it may still change without a new revision. Everything else is only added to.
//
//
// RULES, which hold for every function in this file
//
//  Versions   engine_get_info()->abi_version is compared before anything else is called; it must
//             equal the host's. ABI 1 is only ever added to: a new extension is a new id, a change
//             that old callers cannot survive is a new revision of the id (".../2"), and a member
//             is only ever added at the END of a struct that begins with struct_size.
//  Growth     Who provides a struct writes its own sizeof into struct_size first. Who is given it
//             reads or writes no member beyond that size: see ENGINE_HAS. A struct marked Frozen
//             never changes. EngineSlice and EngineRow, which are passed in arrays, come with
//             their stride. No struct has padding at its end.
//  Memory     Nobody frees what the other side allocated. A pointer that the host passes in is
//             valid during the call only. A pointer that the engine hands out is the engine's, and
//             stays valid until the moment which its comment names. Handles are destroyed by the
//             function that belongs to them, and all of them by engine_shutdown.
//  Text       EngineStr and (pointer, length) pairs are BYTES, without a terminating zero: a token
//             may hold part of a UTF-8 character. A lone `const char*` is zero-terminated UTF-8;
//             a file path is zero-terminated in the file system's own encoding (UTF-8 on Windows).
//  Errors     Every `int` result is an ERR_ code. On failure out-parameters are untouched unless
//             stated. Say why with host->set_error() on the same thread before returning. Host and
//             engine take a code they do not know for ERR_INTERNAL.
//  Unwinding  Nothing unwinds through this ABI: no C++ exception, no Rust panic, no longjmp. A C++
//             engine catches everything at each entry point, a Rust engine uses catch_unwind.
//  Process    The engine leaves the process as it found it: no signal handlers, no terminate
//             handler, no exit or abort for a bad model, no fork, no setenv or chdir, no network,
//             nothing on stdout. It logs through the host.
//  Unloading  The host never unmaps an engine. Even so, when engine_shutdown returns, every thread
//             that the engine started has ended.
//
//  Threads    Each function carries one of these tags:
//    [main]   No other call into this engine is running.
//    [load]   One at a time per engine. [step] and [any] calls may be running meanwhile.
//    [step]   One at a time per context, or per model where there is no context; calls for
//             different contexts may run at once. The OS thread may change from call to call: keep
//             nothing in thread-local state, and select the device at each entry (cudaSetDevice,
//             an autorelease pool on macOS).
//    [any]    Any thread, any number at once.
//
#ifndef ENGINE_API_H
#define ENGINE_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ENGINE_ABI_VERSION 1

// Exported functions. Build the rest with hidden visibility, so that two engines which both carry
// the same library never meet: -fvisibility=hidden -Wl,--exclude-libs,ALL
#ifndef ENGINE_API
#  if defined(_WIN32)
#    define ENGINE_API __declspec(dllexport)
#  elif defined(__GNUC__)
#    define ENGINE_API __attribute__((visibility("default")))
#  else
#    define ENGINE_API
#  endif
#endif

// Does the struct that `p` points to reach as far as `member`?
#define ENGINE_HAS(p, member) \
   ((size_t)(p)->struct_size >= (size_t)((const char *)(&(p)->member + 1) - (const char *)(p)))

// Does the extension table `p` offer the function `fn`?
#define ENGINE_CAN(p, fn) ((p) != NULL && ENGINE_HAS(p, fn) && (p)->fn != NULL)

// Codes are only ever added. 0 to 9 are those of the first design of this interface.
enum {
   ERR_OK               = 0,
   ERR_OOM_VRAM         = 1,
   ERR_OOM_RAM          = 2,
   ERR_MODEL_CORRUPT    = 3,
   ERR_TIMEOUT          = 4,
   ERR_CANCELLED        = 5,
   ERR_UNSUPPORTED      = 6,
   ERR_INTERNAL         = 7,
   ERR_ABI_MISMATCH     = 8,
   ERR_LOAD_FAILED      = 9,
   ERR_INVALID_ARGUMENT = 10,
   ERR_NOT_FOUND        = 11,
   ERR_BUFFER_TOO_SMALL = 12, // the length out-parameter says how much is needed; the host calls
                              // again with room for so much
   ERR_CACHE_FULL       = 13, // the step does not fit the KV cache now; nothing was changed
   ERR_DEVICE_LOST      = 14  // the device is gone for this process; only a restart helps
};

typedef int32_t EngineToken;
#define ENGINE_TOKEN_NONE     (-1)
#define ENGINE_TOKEN_PREVIOUS (-2) // see EngineSlice.tokens

// Bytes, not zero-terminated. Frozen.
typedef struct EngineStr {
   const char *data;
   size_t      len;
} EngineStr;

// One engine-specific setting, as it stands in the node's configuration. Unknown keys are ignored,
// with a warning in the log. Frozen.
typedef struct EngineOption {
   const char *key;
   const char *value;
} EngineOption;


////////////
// TIER 0 //
////////////
//
// Frozen: these five functions, EngineInfo and TokenResult stay as they are in ABI version 1.

// Frozen for all ABI versions: abi_version is the first member, for ever.
typedef struct EngineInfo {
   uint32_t    abi_version; // ENGINE_ABI_VERSION
   const char *engine_id;   // the manifest's "id"
   const char *version;     // the manifest's "version"
} EngineInfo;

enum {
   ENGINE_LOG_DEBUG = 0,
   ENGINE_LOG_INFO  = 1,
   ENGINE_LOG_WARN  = 2,
   ENGINE_LOG_ERROR = 3
};

// What the host offers the engine. Valid until engine_shutdown returns.
typedef struct EngineHost {
   uint32_t    struct_size;
   uint32_t    abi_version;
   const char *name;    // "llm-node"
   const char *version;
   void       *private_data; // the host's own

   // One message; no line feed is needed. It is copied, and appears in the node's log under the
   // engine's id. Not to be called from a signal handler. [any]
   void (*log)(const struct EngineHost *host, int32_t severity, const char *message);

   // Why the call that is running on this thread is about to fail. Copied; the last one counts; it
   // is dropped if the call then returns ERR_OK. [any]
   void (*set_error)(const struct EngineHost *host, const char *message);

   // Extensions of the host. NULL: not offered. [any]
   const void *(*get_extension)(const struct EngineHost *host, const char *id);
} EngineHost;

typedef struct EngineConfig {
   uint32_t            struct_size;
   uint32_t            n_threads;        // CPU threads the engine may use; 0: its own choice
   const EngineHost   *host;
   const char         *engine_dir;       // where manifest.json is
   const char         *gpu_backend;      // the manifest's: "cuda", "metal", "cpu", ...
   uint64_t            vram_limit_bytes; // for the engine as a whole; 0: no limit
   uint64_t            ram_limit_bytes;
   uint32_t            context_length;   // tier 0 only; 0: the model's own
   uint32_t            max_tokens;       // tier 0 only: most per engine_generate; 0: no limit
   const EngineOption *options;
   size_t              n_options;
} EngineConfig;

enum {
   ENGINE_RESULT_ID      = 1 << 0, // token_id is set
   ENGINE_RESULT_LOGPROB = 1 << 1  // logprob is set
};

enum {
   ENGINE_FINISH_STOP      = 0, // an end-of-generation token, or a stop string
   ENGINE_FINISH_LENGTH    = 1,
   ENGINE_FINISH_CANCELLED = 2
};

// Frozen.
typedef struct TokenLogprob {
   EngineToken token_id;
   float       logprob; // natural logarithm
   const char *text;
   size_t      text_len;
} TokenLogprob;

// One generated token. An array of them ENDS WITH an element whose `text` is NULL; that element
// holds no token, and its `finish` says why generation ended. An element of all zeros is therefore
// a complete ending. An engine with the tokenizer extension may leave text empty (not NULL) and
// give the id alone. Frozen.
typedef struct TokenResult {
   const char         *text; // the token's bytes
   size_t              text_len;
   EngineToken         token_id;
   uint32_t            flags;   // ENGINE_RESULT_
   float               logprob; // natural logarithm
   uint32_t            finish;  // ENGINE_FINISH_, in the last element
   const TokenLogprob *top;     // the likeliest alternatives, best first
   size_t              n_top;
} TokenResult;

// Never fails, starts nothing, touches no device. The result is valid for the life of the process.
// It is the first function called. [main]
ENGINE_API EngineInfo *engine_get_info(void);

// Called once, before everything that follows, and again after engine_shutdown. [main]
ENGINE_API int engine_init(EngineConfig *config);

// Makes the model at `model_path` (a file, or a directory) the one model of tier 0, in the place of
// the one before it. An engine with engine.models/1 may answer ERR_UNSUPPORTED. [main]
ENGINE_API int engine_load_model(const char *model_path);

// Generates, and blocks until it is done. The host sets *results to NULL before the call; NULL
// after it means no tokens. The array and all it points to belong to the engine, and are valid
// until the next call of engine_generate, engine_load_model or engine_shutdown. [main]
ENGINE_API int engine_generate(const char *prompt, TokenResult **results);

// Ends all threads, frees everything, handles included. engine_init may follow. [main]
ENGINE_API void engine_shutdown(void);

// OPTIONAL. The table of functions called `id`, or NULL. Always the same pointer for the same id,
// valid for the life of the process. It may be asked before engine_init; the functions in the table
// may not be called before it. Ids are "engine.NAME/REVISION"; your own are
// "com.example.NAME/REVISION". [any]
ENGINE_API const void *engine_get_extension(const char *id);


/////////////////////
// engine.models/1 //
/////////////////////

#define ENGINE_EXT_MODELS "engine.models/1"

typedef struct EngineModel EngineModel;

typedef struct EngineModelParams {
   uint32_t            struct_size;
   int32_t             gpu_layers; // layers to put on the devices; negative: all
   const char         *path;       // a file, or a directory
   const uint32_t     *devices;    // indices as in engine.memory/1; NULL: the engine's choice
   size_t              n_devices;
   const EngineOption *options;
   size_t              n_options;

   // May be NULL. Called on the loading thread. A result other than 0 ends the load, with
   // ERR_CANCELLED.
   int32_t (*progress)(void *user, float fraction);
   void *user;
} EngineModelParams;

enum {
   ENGINE_MODEL_GENERATES = 1 << 0,
   ENGINE_MODEL_EMBEDS    = 1 << 1,
   ENGINE_MODEL_RANKS     = 1 << 2,
   ENGINE_MODEL_RECURRENT = 1 << 3 // state cannot be cut back to an earlier position
};

// Strings are valid until the model is unloaded.
typedef struct EngineModelInfo {
   uint32_t    struct_size;
   uint32_t    flags;        // ENGINE_MODEL_
   const char *architecture; // "llama", "qwen3", ...
   const char *format;       // "gguf", "safetensors", ...
   const char *quantization; // "Q4_K_M", "bf16", ...; NULL: not known
   uint64_t    n_parameters;
   uint64_t    size_bytes;
   uint32_t    n_vocab;      // the width of a row of logits
   uint32_t    n_context;    // the longest sequence it was trained for
   uint32_t    n_embedding;  // the width of one embedding; of one rank result if ENGINE_MODEL_RANKS
   uint32_t    max_streams;  // engine.stream/1: calls of generate that may run at once; 0 means 1
} EngineModelInfo;

typedef struct EngineModels {
   uint32_t struct_size;

   // Loads all of it or nothing. [load]
   int (*load)(const EngineModelParams *params, EngineModel **model);

   // The model's contexts, adapters and requests are gone, and no call on it is running. [load]
   void (*unload)(EngineModel *model);

   // [any]
   int (*info)(const EngineModel *model, EngineModelInfo *info);

   // The model file's own metadata: keys as in GGUF where there is one ("general.name",
   // "llama.context_length"), values as text, arrays and objects as JSON. The views are valid until
   // the model is unloaded. [any]
   size_t (*meta_count)(const EngineModel *model);
   int (*meta_get)(const EngineModel *model, size_t index, EngineStr *key, EngineStr *value);
} EngineModels;


/////////////////////
// engine.memory/1 //
/////////////////////

#define ENGINE_EXT_MEMORY "engine.memory/1"
#define ENGINE_DEVICE_HOST UINT32_MAX // plain memory of the host

enum {
   ENGINE_DEVICE_CPU        = 0,
   ENGINE_DEVICE_GPU        = 1, // memory of its own
   ENGINE_DEVICE_INTEGRATED = 2, // shares the host's memory
   ENGINE_DEVICE_OTHER      = 3
};

// Where weights and caches can lie. An engine for the CPU has one device of kind CPU, or none at all;
// what it takes is plain memory of the host: ENGINE_DEVICE_HOST, which is not in the list. Strings are
// valid until engine_shutdown.
typedef struct EngineDevice {
   uint32_t    struct_size;
   uint32_t    kind;        // ENGINE_DEVICE_
   const char *name;        // "CUDA0"
   const char *description; // "NVIDIA H200"
   const char *bus_id;      // PCI, "0000:c1:00.0"; NULL: none. The same in every engine: this is
                            // how the host adds up what they use of one device.
   uint64_t    total_bytes;
   uint64_t    free_bytes;  // now
} EngineDevice;

// What one model takes on one device. Frozen.
typedef struct EngineMemoryUse {
   uint32_t device; // index below device_count(), or ENGINE_DEVICE_HOST
   uint32_t reserved;
   uint64_t weights;
   uint64_t cache;              // KV cache and recurrent state
   uint64_t compute;            // everything else
   uint64_t cache_per_token;    // what `cache` grows by per token of capacity ...
   uint64_t cache_per_sequence; // ... and per sequence
} EngineMemoryUse;

struct EngineContextParams;

typedef struct EngineMemory {
   uint32_t struct_size;

   // [any]
   uint32_t (*device_count)(void);
   int (*device_get)(uint32_t index, EngineDevice *device);

   // What load(model) and create(context) would take together, without doing either: reads the
   // model's headers only. `context` may be NULL. Writes at most `capacity` elements, one per
   // device concerned; *count is how many there are. May be NULL. [load]
   int (*estimate)(const EngineModelParams *model, const struct EngineContextParams *context,
                   EngineMemoryUse *uses, size_t capacity, size_t *count);

   // What a loaded model takes now, its contexts included. [any]
   int (*usage)(const EngineModel *model, EngineMemoryUse *uses, size_t capacity, size_t *count);
} EngineMemory;


////////////////////////
// engine.tokenizer/1 //
////////////////////////

#define ENGINE_EXT_TOKENIZER "engine.tokenizer/1"

// Attributes of a token.
enum {
   ENGINE_ATTR_CONTROL = 1 << 0, // special: never part of the answer's text
   ENGINE_ATTR_EOG     = 1 << 1, // ends generation; the host takes eos and eot for such, too
   ENGINE_ATTR_BYTE    = 1 << 2, // one raw byte
   ENGINE_ATTR_UNUSED  = 1 << 3  // must not be generated
};

// The whole vocabulary at once, for grammars and streaming. Views are valid until the model is
// unloaded. Token i is bytes[offsets[i] .. offsets[i + 1]): exactly what it adds to the text in the
// middle of an answer (a space, not the tokenizer's mark for one); of a control token, its name.
typedef struct EngineVocab {
   uint32_t        struct_size;
   uint32_t        n_tokens;
   const uint8_t  *bytes;
   const uint32_t *offsets;    // n_tokens + 1
   const uint32_t *attributes; // n_tokens, ENGINE_ATTR_
   EngineToken     bos, eos, eot, pad, sep, mask; // or ENGINE_TOKEN_NONE
   uint32_t        adds_bos, adds_eos; // 0 or 1: does ENGINE_TOKENIZE_ADD_SPECIAL add it?
} EngineVocab;

enum {
   ENGINE_TOKENIZE_ADD_SPECIAL   = 1 << 0, // add BOS and EOS if the model wants them
   ENGINE_TOKENIZE_PARSE_SPECIAL = 1 << 1  // "<|eot|>" in the text is that token, not its letters
};

typedef struct EngineTokenizer {
   uint32_t struct_size;

   // [any]
   int (*vocab)(const EngineModel *model, EngineVocab *vocab);

   // Both write at most `capacity` elements and always set *count to the number there are;
   // ERR_BUFFER_TOO_SMALL if that is more. tokenize answers ERR_INVALID_ARGUMENT for a text that it
   // cannot take: a client hears why. detokenize writes what the vocabulary has for each token, so of a
   // control token its name. [any]
   int (*tokenize)(const EngineModel *model, const char *text, size_t text_len, uint32_t flags,
                   EngineToken *tokens, size_t capacity, size_t *count);
   int (*detokenize)(const EngineModel *model, const EngineToken *tokens, size_t n_tokens,
                     char *text, size_t capacity, size_t *count);

   // The model's Jinja chat template called `name`; NULL: the default one. ERR_NOT_FOUND if there
   // is none. The host renders it. Valid until the model is unloaded. [any]
   int (*chat_template)(const EngineModel *model, const char *name, EngineStr *source);
} EngineTokenizer;


///////////////////////////////
// engine.adapters/1 (DRAFT) //
///////////////////////////////

#define ENGINE_EXT_ADAPTERS "engine.adapters/1"

typedef struct EngineAdapter EngineAdapter;

typedef struct EngineAdapters {
   uint32_t struct_size;
   int (*load)(EngineModel *model, const char *path, EngineAdapter **adapter); // [load]
   void (*unload)(EngineAdapter *adapter);                                     // [load]
} EngineAdapters;


/////////////////////////////////////////////////////
// Picking a token, shared by batch, serve, stream //
/////////////////////////////////////////////////////

// From a row of logits to a token there is one fixed chain:
//
//    LOGITS   the model's own output, the whole vocabulary
//       |     1. penalties   2. bias   3. mask        these three make the "shaped" logits
//    TOP      the n_candidates largest shaped logits, best first; equal ones by lower id
//       |     4. temperature 5. top_k  6. top_p  7. min_p   8. draw
//    TOKEN    the token, and the n_candidates largest shaped logits beside it
//
// The host says how far it would LIKE the engine to go; the engine says how far it WENT, and the
// host walks the rest of the chain. Going less far is always right: an engine on the CPU always
// answers LOGITS. Going on with something unknown or approximate never is: an engine that does not
// do everything that `uses` names stays at LOGITS.
enum {
   ENGINE_STAGE_LOGITS = 0,
   ENGINE_STAGE_TOP    = 1,
   ENGINE_STAGE_TOKEN  = 2
};

// Bits of EnginePick.uses: the members that matter. All others are to be left unread.
enum {
   ENGINE_PICK_REPEAT      = 1 << 0, // repeat_penalty over history
   ENGINE_PICK_FREQUENCY   = 1 << 1, // frequency_penalty over history
   ENGINE_PICK_PRESENCE    = 1 << 2, // presence_penalty over history
   ENGINE_PICK_BIAS        = 1 << 3,
   ENGINE_PICK_MASK        = 1 << 4,
   ENGINE_PICK_LATE_MASK   = 1 << 5, // the masks come with collect()
   ENGINE_PICK_TEMPERATURE = 1 << 6, // without it: greedy, and steps 5 to 8 fall away
   ENGINE_PICK_TOP_K       = 1 << 7, // the top_k best stay
   ENGINE_PICK_TOP_P       = 1 << 8, // the fewest, best first, that add up to top_p stay
   ENGINE_PICK_MIN_P       = 1 << 9  // those with min_p times the best one's probability stay
};
// Steps 6 to 8 see probabilities that add up to 1 over what the steps before them left.

// Frozen.
typedef struct EngineBias {
   EngineToken token;
   float       bias; // added to the logit; -INFINITY forbids
} EngineBias;

typedef struct EnginePick {
   uint32_t struct_size;
   uint32_t stage;        // ENGINE_STAGE_: the furthest that is wanted
   uint32_t uses;         // ENGINE_PICK_
   uint32_t n_candidates; // TOP: how many. TOKEN: how many beside the token, for logprobs
   float    repeat_penalty;    // logit > 0: divided by it; else multiplied by it
   float    frequency_penalty; // subtracted once per occurrence
   float    presence_penalty;  // subtracted once if it occurs
   float    temperature;       // > 0
   float    top_p;
   float    min_p;
   uint32_t top_k;
   uint32_t n_bias;
   const EngineBias *bias;
   const EngineToken *history; // what the penalties look at, for the first row of the slice; later
   size_t             n_history; // rows look at the slice's tokens in between as well

   // One per row. Bit i % 32 of word i / 32 is set if token i is allowed; (n_vocab + 31) / 32
   // words. NULL: all are.
   const uint32_t *const *masks;

   // One per row, in [0, 1): the draw is the first candidate, best first, at which the cumulated
   // probability exceeds it. The engine has no random state, so the same numbers give the same
   // tokens in every engine. Unused by engine.serve and engine.stream: EngineRequest.seed.
   const float *uniforms;
} EnginePick;


////////////////////
// engine.batch/1 //
////////////////////
//
// The host owns the schedule: which sequences take part in the next forward pass, with how many
// tokens each. The engine owns the weights and the KV cache, and runs the pass.
//
//    step(batch 1)    the device works ...        the host meanwhile computes grammar masks
//    collect(1)       ... rows: logits, or candidates, or tokens
//    step(batch 2)    the chosen tokens of the running sequences, a piece of a new prompt, ...
//
// A sequence is a number from 0 to max_sequences - 1. It comes into being when tokens are put into
// it and is gone when they are all removed. Speculative decoding is a slice with n_rows > 1 and a
// seq_remove; prefix caching is seq_copy from a sequence that the host keeps.

#define ENGINE_EXT_BATCH "engine.batch/1"

typedef struct EngineContext EngineContext;

typedef struct EngineContextParams {
   uint32_t            struct_size;
   uint32_t            max_sequences;
   uint32_t            context_length;   // of the longest sequence; 0: the model's own
   uint32_t            max_batch_tokens; // most tokens in one step; 0: the engine's choice
   uint32_t            max_rows;         // most rows in one step; 0: max_sequences
   uint32_t            rollback;         // tokens that seq_remove should be able to take back,
                                         // where that costs memory (recurrent models)
   uint64_t            cache_tokens;     // KV cache for all sequences together; 0: max_sequences *
                                         // context_length
   const EngineOption *options;          // "cache_type_k" = "q8_0", ...
   size_t              n_options;
} EngineContextParams;

enum {
   ENGINE_CONTEXT_SHARE       = 1 << 0, // seq_copy shares memory: it costs next to nothing
   ENGINE_CONTEXT_ASYNC       = 1 << 1, // step returns before the device is done
   ENGINE_CONTEXT_CHAIN       = 1 << 2, // ENGINE_TOKEN_PREVIOUS is understood; and whether a row
                                        // reaches TOKEN depends on `uses` alone
   ENGINE_CONTEXT_LATE_MASK   = 1 << 3, // masks that come with collect are applied on the device
   ENGINE_CONTEXT_MIX_ADAPTER = 1 << 4  // slices of one step may differ in their adapter
};

// What was made of the parameters: at least what was asked for, or create fails; of max_rows alone it may
// be less, down to max_sequences. The pointer is valid until the context is destroyed.
typedef struct EngineContextInfo {
   uint32_t        struct_size;
   uint32_t        flags; // ENGINE_CONTEXT_
   uint32_t        max_sequences;
   uint32_t        context_length;
   uint32_t        max_batch_tokens;
   uint32_t        max_rows;
   uint32_t        max_in_flight;  // steps under way at once: step waits while there are more; 1, 2
   uint32_t        max_rollback;   // seq_remove may take back so many tokens, or a whole sequence;
                                   // UINT32_MAX: any number
   uint32_t        max_candidates; // of ENGINE_STAGE_TOP; 0: that stage is never reached
   uint32_t        cache_page;     // tokens per page of the cache; 1: no pages
   uint32_t        n_decode_sizes;
   uint32_t        reserved;
   uint64_t        cache_tokens;   // capacity
   const uint32_t *decode_sizes;   // a hint: numbers of one-token slices for which a graph is
                                   // captured. The engine pads to the next by itself.
} EngineContextInfo;

// Consecutive tokens of one sequence.
typedef struct EngineSlice {
   uint32_t           sequence;
   uint32_t           position; // of tokens[0]; it must be where the sequence ends
   uint32_t           n_tokens;
   uint32_t           n_rows;   // rows wanted, for the LAST n_rows tokens of the slice; mostly 0, 1
   const EngineToken *tokens;   // With ENGINE_CONTEXT_CHAIN, tokens[0] may be
                                // ENGINE_TOKEN_PREVIOUS: the token that the engine picked for this
                                // sequence in the step before, which the host has not yet seen.
   const EnginePick  *pick;     // for these rows; NULL: ENGINE_STAGE_LOGITS
   EngineAdapter     *adapter;  // NULL: the bare model. One and the same, with one scale, for all
   float              adapter_scale; // the life of a sequence: the cache depends on it
   uint32_t           reserved;
} EngineSlice;

// Each sequence takes part at most once.
typedef struct EngineBatch {
   uint32_t           struct_size;
   uint32_t           n_slices;
   size_t             slice_stride; // sizeof(EngineSlice), as the host knows it
   const EngineSlice *slices;
} EngineBatch;

enum {
   ENGINE_F32  = 0,
   ENGINE_F16  = 1,
   ENGINE_BF16 = 2
};

// Rows come in the order of the slices, and within a slice in the order of its tokens. Log-sums and
// logprob are of the shaped logits, over the whole vocabulary, and NaN where not computed.
typedef struct EngineRow {
   uint32_t           stage;    // ENGINE_STAGE_: how far the engine went
   uint32_t           dtype;    // of logits
   uint32_t           n;        // number of candidates: n_vocab at LOGITS; at TOP at least 1, and
                                // at most n_candidates
   EngineToken        token;    // at TOKEN; else ENGINE_TOKEN_NONE
   float              logprob;  // of token, at temperature 1
   float              log_sum;  // log of the sum of exp(logit)
   float              log_sum_t; // log of the sum of exp(logit / temperature), for top_p
   uint32_t           reserved;
   const EngineToken *ids;      // the candidates, best first; NULL at LOGITS, where candidate i is
                                // token i
   const void        *logits;   // theirs
} EngineRow;

typedef struct EngineBatching {
   uint32_t struct_size;

   // [load]
   int (*create)(EngineModel *model, const EngineContextParams *params, EngineContext **context);
   void (*destroy)(EngineContext *context);

   // [any]
   int (*info)(const EngineContext *context, EngineContextInfo *info);

   // Submits one forward pass; *ticket counts up by one: the first is 1, and 0 is none. A step that
   // fails has no ticket. The engine may return at once and let the device work
   // (ENGINE_CONTEXT_ASYNC), but it has copied all it needs from `batch`. It cuts the batch into what
   // the device takes by itself. ERR_INVALID_ARGUMENT for a sequence, a position or a
   // token that there is not, for a sequence that would outgrow context_length, and for more tokens or
   // rows than max_batch_tokens and max_rows, or none. ERR_CACHE_FULL, ERR_INVALID_ARGUMENT: nothing
   // was changed. Any other failure, here or in collect: the sequences concerned may hold part of their
   // slice, and the host asks seq_range. [step]
   int (*step)(EngineContext *context, const EngineBatch *batch, uint64_t *ticket);

   // Waits for that step and describes its rows; n_rows is the sum over its slices. A step without
   // rows need not be collected; one with rows may be more than once. ERR_INVALID_ARGUMENT for a
   // ticket that was not given, or whose rows are gone. `late_masks`: one pointer per row, as
   // EnginePick.masks, for picks with ENGINE_PICK_LATE_MASK; else NULL. Rows point into the engine's
   // memory, which the device has written (pinned, not pageable), and are valid until max_in_flight
   // further steps are submitted. [step]
   int (*collect)(EngineContext *context, uint64_t ticket, const uint32_t *const *late_masks,
                  EngineRow *rows, size_t n_rows, size_t row_stride);

   // The whole row at ENGINE_STAGE_LOGITS, for a row that was collected at a later stage and left
   // the host wanting more (candidates that do not add up to top_p). May be NULL: then the host
   // wishes for TOP only where n_candidates are sure to be enough. [step]
   int (*fetch)(EngineContext *context, uint64_t ticket, size_t row, EngineRow *out);

   // Asks the step that is running to end with ERR_CANCELLED. At best it takes effect between two
   // kernels; it may have none, and has none on a step that begins later. May be NULL. [any]
   void (*cancel)(EngineContext *context);

   // Cache operations happen, in order, after the steps submitted before them. [step]
   //
   // Makes positions [0, end) of `from` the beginning of `to`, which must be empty.
   // ERR_UNSUPPORTED if only the whole of `from` can be copied, and end is not its end.
   int (*seq_copy)(EngineContext *context, uint32_t from, uint32_t to, uint32_t end);
   // Removes positions from `begin` on; none where the sequence ends before. 0 always succeeds;
   // ERR_UNSUPPORTED beyond max_rollback, and the sequence is unchanged.
   int (*seq_remove)(EngineContext *context, uint32_t sequence, uint32_t begin);
   // Positions [*begin, *end) are held. *begin > 0 where old ones slid out of the attention window.
   int (*seq_range)(const EngineContext *context, uint32_t sequence, uint32_t *begin,
                    uint32_t *end);
   // Tokens that the cache can still take, whole pages counted as full; cache_tokens where no sequence
   // has any.
   uint64_t (*cache_free)(const EngineContext *context);

   // Both or neither may be NULL. With them the host lets a sequence wait in its own memory. They
   // happen in order, as the cache operations above. [step]
   //
   // Writes all that the cache holds of a sequence, which stays as it is. The bytes are opaque, and
   // good for every context of the same model that an engine of the same build made with the same
   // parameters. *size is how many there are; with ERR_BUFFER_TOO_SMALL, how many are needed, never
   // 0, and `data` is untouched: capacity 0 asks for that, and takes next to no time.
   // ERR_INVALID_ARGUMENT for an empty sequence, ERR_UNSUPPORTED for a model that cannot.
   int (*seq_save)(EngineContext *context, uint32_t sequence, void *data, size_t capacity,
                   size_t *size);
   // Makes the sequence, which must be empty, what was saved of this or another one. seq_range is
   // what it was at the save, except that *begin may be higher, by positions that no later token
   // looks at. With a max_rollback other than UINT32_MAX, what was restored cannot be cut back.
   // ERR_CACHE_FULL, and ERR_INVALID_ARGUMENT for bytes that are no such state: nothing was changed.
   // Any other failure: the sequence is empty.
   int (*seq_restore)(EngineContext *context, uint32_t sequence, const void *data, size_t size);
} EngineBatching;


////////////////////////////////////////////////
// engine.stream/1 and engine.serve/1 (DRAFT) //
////////////////////////////////////////////////

#define ENGINE_EXT_SERVE "engine.serve/1"
#define ENGINE_EXT_STREAM "engine.stream/1"

// One request, for an engine that runs the loop by itself. The host still counts tokens, cuts at
// stop strings and renders templates; `stop` only lets the engine end sooner.
typedef struct EngineRequest {
   uint32_t           struct_size;
   uint32_t           max_tokens;
   const EngineToken *tokens; // the prompt; NULL: `text` is, for an engine without tokenizer
   size_t             n_tokens;
   const char        *text;
   size_t             text_len;
   const EnginePick  *pick; // what to use of the chain; stage, masks, history, uniforms are unused:
                            // penalties look at prompt and answer. ERR_UNSUPPORTED if not all of
                            // `uses` is done. NULL: greedy
   uint64_t           seed;
   const EngineStr   *stop;
   size_t             n_stop;
   EngineAdapter     *adapter;
   float              adapter_scale;
   uint32_t           priority; // higher first

   // May be NULL. Before each token: which are allowed next (as EnginePick.masks, room for
   // n_words). A result other than 0 cancels the request. stream: on the thread of generate.
   // serve: on a thread of the engine, one at a time per request; it must not block.
   int32_t (*fill_mask)(void *user, uint32_t *mask, size_t n_words);

   // stream only. Each token, the ending element (text == NULL) last, on the thread of generate;
   // the token is valid during the call. A result other than 0 cancels: ERR_CANCELLED.
   int32_t (*on_token)(void *user, const TokenResult *token);
   void *user; // serve: valid until the request's ending event was polled
} EngineRequest;

typedef struct EngineStreaming {
   uint32_t struct_size;
   // Blocks until the request is done. [step], but up to max_streams calls per model at once.
   int (*generate)(EngineModel *model, const EngineRequest *request);
} EngineStreaming;

// engine.serve/1, DRAFT. `token` and all it points to are valid until the next poll of this model.
// Frozen once serve is.
typedef struct EngineEvent {
   uint64_t    request; // the id given to submit
   int32_t     status;  // ERR_OK; else the request failed, and this is its last event
   uint32_t    reserved;
   TokenResult token;   // text == NULL: the last event of this request
} EngineEvent;

// engine.serve/1, DRAFT.
typedef struct EngineServing {
   uint32_t struct_size;

   // Takes a request into the engine's queue and returns at once; everything is copied. [any]
   int (*submit)(EngineModel *model, uint64_t id, const EngineRequest *request);

   // Waits up to timeout_ms for at least one event; 0 events is no error. [step]
   int (*poll)(EngineModel *model, EngineEvent *events, size_t capacity, size_t *count,
               uint32_t timeout_ms);

   // The request's last event follows soon, with ENGINE_FINISH_CANCELLED. Unknown ids are ignored.
   // [any]
   void (*cancel)(EngineModel *model, uint64_t id);
} EngineServing;


////////////////////
// engine.embed/1 //
////////////////////

#define ENGINE_EXT_EMBED "engine.embed/1"

enum {
   ENGINE_POOL_MODEL = 0, // as the model says
   ENGINE_POOL_MEAN  = 1,
   ENGINE_POOL_CLS   = 2,
   ENGINE_POOL_LAST  = 3,
   ENGINE_POOL_RANK  = 4
};

typedef struct EngineEmbedParams {
   uint32_t                  struct_size;
   uint32_t                  pooling; // ENGINE_POOL_
   const EngineToken *const *inputs;  // n_inputs pointers, to lengths[i] tokens each
   const size_t             *lengths;
   size_t                    n_inputs;
} EngineEmbedParams;

typedef struct EngineEmbedding {
   uint32_t struct_size;
   // Writes n_inputs vectors of EngineModelInfo.n_embedding floats, one after the other, not
   // normalised. The engine splits into batches by itself. [step]
   int (*embed)(EngineModel *model, const EngineEmbedParams *params, float *vectors,
                size_t capacity);
} EngineEmbedding;

#ifdef __cplusplus
}
#endif

#endif
