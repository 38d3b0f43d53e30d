#include "shim.h"

#include "llama-ext.h"

#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <string>

#ifdef SHIM_OPENMP
extern "C" int omp_pause_resource_all(int kind); // omp.h comes with the compiler, not always
#endif

namespace {

// A failed assertion of ggml, turned into something that can be caught. Not derived from
// std::exception: llama.cpp catches those on the way and would go on as if nothing had happened.
struct assertion {
    std::string message;
};

// Depth of guarded calls on this thread. Assertions on llama.cpp's own worker threads cannot be
// caught by anybody, and end the process.
thread_local int guarded_depth = 0;

void (*report_abort)(const char *) = nullptr;

// Without the folder in which llama.cpp was built.
const char * without_folder(const char * message) {
    const char * const llama = std::strstr(message, "/llama.cpp/src/");
    const char * const ggml = std::strstr(message, "/llama.cpp/ggml/");
    const char * const found = llama != nullptr ? llama : ggml;
    return found != nullptr ? found + 1 : message;
}

void on_abort(const char * message) {
    message = without_folder(message);
    if (guarded_depth > 0) {
        throw assertion{message};
    }
    if (report_abort != nullptr) {
        report_abort(message);
    }
}

struct guard {
    guard() { ++guarded_depth; }
    ~guard() { --guarded_depth; }
    guard(const guard &)             = delete;
    guard & operator=(const guard &) = delete;
};

void say(shim_fault * fault, shim_code code, const char * message) noexcept {
    fault->code = code;
    std::strncpy(fault->message, message, sizeof(fault->message) - 1);
    fault->message[sizeof(fault->message) - 1] = '\0';
}

template <typename Result, typename Call>
Result guarded(shim_fault * fault, Result otherwise, Call && call) noexcept {
    fault->code       = SHIM_OK;
    fault->message[0] = '\0';
    try {
        const guard here;
        return call();
    } catch (const assertion & failed) {
        say(fault, SHIM_ASSERTION, failed.message.c_str());
    } catch (const std::bad_alloc &) {
        say(fault, SHIM_NO_MEMORY, "out of memory");
    } catch (const std::exception & error) {
        say(fault, SHIM_EXCEPTION, error.what());
    } catch (...) {
        say(fault, SHIM_EXCEPTION, "an exception of unknown type");
    }
    return otherwise;
}

} // namespace

void shim_install(void (*report)(const char * message)) {
    report_abort = report;
    ggml_set_abort_callback(on_abort);
}

void shim_load_backends(const char * directory, shim_fault * fault) {
    guarded(fault, 0, [&] {
        ggml_backend_load_all_from_path(directory);
        return 0;
    });
}

gguf_context * shim_gguf_open(const char * path, shim_fault * fault) {
    return guarded<gguf_context *>(fault, nullptr, [&] {
        return gguf_init_from_file(path, gguf_init_params{/*no_alloc =*/true, /*ctx =*/nullptr});
    });
}

llama_model * shim_model_load(const char * path, const llama_model_params * params, shim_fault * fault) {
    return guarded<llama_model *>(fault, nullptr, [&] { return llama_model_load_from_file(path, *params); });
}

void shim_model_free(llama_model * model, shim_fault * fault) {
    guarded(fault, 0, [&] {
        llama_model_free(model);
        return 0;
    });
}

llama_context * shim_context_create(llama_model * model, const llama_context_params * params,
                                    shim_fault * fault) {
    return guarded<llama_context *>(fault, nullptr, [&] { return llama_init_from_model(model, *params); });
}

void shim_context_free(llama_context * context, shim_fault * fault) {
    guarded(fault, 0, [&] {
        llama_free(context);
#ifdef SHIM_OPENMP
        // Else the idle threads live on until the thread that calls this ends. 2: omp_pause_hard.
        omp_pause_resource_all(2);
#endif
        return 0;
    });
}

int32_t shim_decode(llama_context * context, const llama_batch * batch, shim_fault * fault) {
    return guarded<int32_t>(fault, -4, [&] { return llama_decode(context, *batch); });
}

float * shim_logits(llama_context * context, shim_fault * fault) {
    return guarded<float *>(fault, nullptr, [&] { return llama_get_logits(context); });
}

float * shim_embedding(llama_context * context, llama_seq_id sequence, shim_fault * fault) {
    return guarded<float *>(fault, nullptr, [&] { return llama_get_embeddings_seq(context, sequence); });
}

int32_t shim_tokenize(const llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens,
                      int32_t capacity, bool add_special, bool parse_special, shim_fault * fault) {
    return guarded<int32_t>(fault, INT32_MIN, [&] {
        return llama_tokenize(vocab, text, text_len, tokens, capacity, add_special, parse_special);
    });
}

int32_t shim_piece(const llama_vocab * vocab, llama_token token, char * buffer, int32_t capacity,
                   shim_fault * fault) {
    return guarded<int32_t>(fault, INT32_MIN, [&] {
        return llama_token_to_piece(vocab, token, buffer, capacity, /*lstrip =*/0, /*special =*/true);
    });
}

bool shim_sequence_remove(llama_context * context, llama_seq_id sequence, llama_pos begin,
                          shim_fault * fault) {
    return guarded(fault, false,
                   [&] { return llama_memory_seq_rm(llama_get_memory(context), sequence, begin, -1); });
}

void shim_sequence_copy(llama_context * context, llama_seq_id from, llama_seq_id to, llama_pos end,
                        shim_fault * fault) {
    guarded(fault, 0, [&] {
        llama_memory_seq_cp(llama_get_memory(context), from, to, end < 0 ? -1 : 0, end);
        return 0;
    });
}

void shim_memory_clear(llama_context * context, shim_fault * fault) {
    guarded(fault, 0, [&] {
        if (llama_memory_t memory = llama_get_memory(context)) {
            llama_memory_clear(memory, /*data =*/false);
        }
        return 0;
    });
}

size_t shim_memory(const llama_context * context, shim_use * uses, size_t capacity, shim_fault * fault) {
    return guarded<size_t>(fault, 0, [&] {
        std::map<ggml_backend_dev_t, shim_use> by_device;
        for (const auto & [type, bytes] : llama_get_memory_breakdown(context)) {
            const ggml_backend_dev_t device =
                ggml_backend_buft_is_host(type) ? nullptr : ggml_backend_buft_get_device(type);
            // Buffer types of the CPU backend that repack weights are not "host" buffers, and yet
            // lie in the host's memory.
            const bool on_host = device == nullptr ||
                                 ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ||
                                 ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_ACCEL;
            shim_use & use = by_device[on_host ? nullptr : device];
            use.device     = on_host ? nullptr : device;
            use.model += bytes.model;
            use.context += bytes.context;
            use.compute += bytes.compute;
        }
        size_t count = 0;
        for (const auto & [device, use] : by_device) {
            if (count < capacity) {
                uses[count] = use;
            }
            ++count;
        }
        return count;
    });
}
