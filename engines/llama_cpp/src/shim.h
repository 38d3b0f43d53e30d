// What the engine calls instead of llama.h wherever a C++ exception or a failed assertion could come
// out: every function here catches both and reports them in a shim_fault. It also wraps what only C++
// headers of llama.cpp offer: the memory breakdown, and access to what a sequence holds.
#pragma once

#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum shim_code {
    SHIM_OK        = 0,
    SHIM_ASSERTION = 1, // GGML_ASSERT or GGML_ABORT failed on the calling thread
    SHIM_NO_MEMORY = 2, // std::bad_alloc
    SHIM_EXCEPTION = 3, // any other exception
};

typedef struct shim_fault {
    int32_t code; // shim_code
    char    message[1020];
} shim_fault;

typedef struct shim_use {
    ggml_backend_dev_t device; // NULL: plain memory of the host
    uint64_t           model;
    uint64_t           context;
    uint64_t           compute;
} shim_use;

// Makes ggml_abort() throw while a function of this file runs on the same thread, and tell `report`
// otherwise. The process still dies in the second case: ggml_abort() never returns.
void shim_install(void (*report)(const char * message));

void shim_load_backends(const char * directory, shim_fault * fault);

struct gguf_context * shim_gguf_open(const char * path, shim_fault * fault);

struct llama_model * shim_model_load(const char * path, const struct llama_model_params * params,
                                     shim_fault * fault);
void shim_model_free(struct llama_model * model, shim_fault * fault);

struct llama_context * shim_context_create(struct llama_model * model,
                                           const struct llama_context_params * params,
                                           shim_fault * fault);
void shim_context_free(struct llama_context * context, shim_fault * fault);

// Linux only. How many processors OpenMP counts, and an empty parallel region whose threads write the
// kernel's number of each into `ids`.
uint32_t shim_processors(void);
void     shim_team(uint32_t threads, int32_t * ids);

int32_t shim_decode(struct llama_context * context, const struct llama_batch * batch, shim_fault * fault);
float * shim_logits(struct llama_context * context, shim_fault * fault);
float * shim_embedding(struct llama_context * context, llama_seq_id sequence, shim_fault * fault);

int32_t shim_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len,
                      llama_token * tokens, int32_t capacity, bool add_special, bool parse_special,
                      shim_fault * fault);
int32_t shim_piece(const struct llama_vocab * vocab, llama_token token, char * buffer, int32_t capacity,
                   shim_fault * fault);

bool shim_sequence_remove(struct llama_context * context, llama_seq_id sequence, llama_pos begin,
                          shim_fault * fault);
// Positions up to `end`, or all of them if it is negative. Done when it returns: llama.cpp itself puts
// the copy between parts of a split cache off until the next pass, and what is saved from the copy or
// restored into the source until then would be wrong.
void shim_sequence_copy(struct llama_context * context, llama_seq_id from, llama_seq_id to, llama_pos end,
                        shim_fault * fault);
// The same for the whole of a sequence in a split cache, cell by cell: llama.cpp copies the whole part,
// the empty cells too. `to` must be empty. False, and nothing was done, where cells lie on a device.
bool shim_sequence_copy_cells(struct llama_context * context, llama_seq_id from, llama_seq_id to,
                              shim_fault * fault);
// Is the context's memory one KV cache and nothing else? Sequence 0 must be empty.
bool shim_is_plain_cache(struct llama_context * context, shim_fault * fault);
// The whole of a sequence out of a unified cache into an empty one of another context of the same model, which
// has `streams` parts. Both are plain caches. False, and nothing was done, where cells lie on a device.
bool shim_sequence_take_cells(struct llama_context * pool, llama_seq_id from, struct llama_context * context,
                              llama_seq_id to, uint32_t streams, shim_fault * fault);
void shim_memory_clear(struct llama_context * context, shim_fault * fault);

// State of a sequence as llama_state_seq_*_ext have it. 0: llama.cpp refused, and said why in its log.
size_t shim_state_size(struct llama_context * context, llama_seq_id sequence, shim_fault * fault);
size_t shim_state_save(struct llama_context * context, llama_seq_id sequence, uint8_t * data, size_t size,
                       shim_fault * fault);
size_t shim_state_restore(struct llama_context * context, llama_seq_id sequence, const uint8_t * data,
                          size_t size, shim_fault * fault);

// Writes at most `capacity` uses and returns how many there are.
size_t shim_memory(const struct llama_context * context, shim_use * uses, size_t capacity,
                   shim_fault * fault);

#ifdef __cplusplus
}
#endif
