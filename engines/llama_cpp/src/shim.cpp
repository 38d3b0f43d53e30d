#include "shim.h"

#include "llama-ext.h"
#include "llama-io.h"
#include "llama-memory.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef SHIM_OPENMP
#include <sys/syscall.h>
#include <unistd.h>

// omp.h comes with the compiler, not always.
extern "C" int omp_get_num_procs(void);
extern "C" int omp_get_thread_num(void);
extern "C" int omp_pause_resource_all(int kind);
// What `#pragma omp parallel num_threads(...)` becomes; named here, so that this file needs no -fopenmp.
extern "C" void GOMP_parallel(void (*body)(void *), void * data, unsigned threads, unsigned flags);
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

// Part of a tensor that llama.cpp would write to a state, or read from one.
struct piece {
    char * data; // NULL: not in the host's memory
    size_t size;

    piece(const ggml_tensor * tensor, size_t offset, size_t size)
        : data(ggml_backend_buffer_is_host(tensor->buffer) ? static_cast<char *>(tensor->data) + offset : nullptr),
          size(size) {}
};

// Takes a state apart: what describes the cells is kept, what is in them is only pointed at.
class state_source final : public llama_io_write_i {
public:
    void write(const void * src, size_t size) override {
        const auto * const bytes = static_cast<const char *>(src);
        description.insert(description.end(), bytes, bytes + size);
    }

    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        pieces.emplace_back(tensor, offset, size);
    }

    size_t n_bytes() override { return description.size(); }

    std::vector<char>  description;
    std::vector<piece> pieces;
};

// Gives the description back, and takes note of where the contents of the cells are to go.
class state_target final : public llama_io_read_i {
public:
    explicit state_target(const std::vector<char> & description) : description(description) {}

    void read(void * dst, size_t size) override {
        if (size > description.size() - n_read) {
            throw std::runtime_error("the state of a sequence ends too soon");
        }
        std::memcpy(dst, description.data() + n_read, size);
        n_read += size;
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        pieces.emplace_back(tensor, offset, size);
    }

    size_t n_bytes() override { return n_read; }

    std::vector<piece> pieces;

private:
    const std::vector<char> & description;
    size_t                    n_read = 0;
};

bool on_host(const std::vector<piece> & pieces) {
    return std::all_of(pieces.begin(), pieces.end(), [](const piece & one) { return one.data != nullptr; });
}

// Both list the same bytes in the same order, but cut where the cells of each happen to lie.
void copy_pieces(std::vector<piece> from, std::vector<piece> to) {
    auto source = from.begin();
    for (piece & target : to) {
        while (target.size > 0) {
            if (source == from.end()) {
                throw std::runtime_error("the copy of a sequence is larger than the sequence");
            }
            const size_t size = std::min(source->size, target.size);
            std::memcpy(target.data, source->data, size);
            target.data += size;
            target.size -= size;
            source->data += size;
            source->size -= size;
            if (source->size == 0) {
                ++source;
            }
        }
    }
}

// What the builder adds to a graph, beyond a stand-in for the logits: fewer than this by far.
constexpr size_t probe_nodes = 256;

} // namespace

struct shim_rows {
    int64_t              n_vocab;
    int64_t              best;
    std::vector<int64_t> blocks;
    bool                 only_on_gpu;

    // Not before llama.cpp has taken the samplers, which it may refuse.
    bool usable = false;
    // The graph that is being built has got its operations.
    bool built = false;

    // In the graph of the last physical pass. llama.cpp keeps one graph with and one without rows; going
    // from one to the other it builds anew, and reusing one needs as many rows, so that these always
    // belong to the graph that ran last. All NULL: it had no rows.
    ggml_tensor * logits = nullptr;
    ggml_tensor * chosen = nullptr;
    ggml_tensor * values = nullptr;

    std::vector<llama_sampler *>          chains;
    std::vector<llama_sampler_seq_config> configs;
    ggml_backend_dev_t                    device = nullptr;
    ggml_backend_buffer_t                 memory = nullptr;

    shim_rows(int64_t n_vocab, int64_t best, std::vector<int64_t> blocks, bool only_on_gpu)
        : n_vocab(n_vocab), best(best), blocks(std::move(blocks)), only_on_gpu(only_on_gpu) {}
    ~shim_rows() {
        for (llama_sampler * const chain : chains) {
            llama_sampler_free(chain);
        }
        ggml_backend_buffer_free(memory);
    }
    shim_rows(const shim_rows &)             = delete;
    shim_rows & operator=(const shim_rows &) = delete;

    void attach(uint32_t n_sequences);
    void build(ggml_context * ctx, ggml_cgraph * graph, ggml_tensor * of);
    bool supported() const;
};

namespace {

// Blocks of each row, as chosen for it, and what follows the last block.
ggml_tensor * gather(ggml_context * ctx, ggml_tensor * from, ggml_tensor * chosen, int64_t block) {
    const int64_t       count  = from->ne[0] / block;
    const int64_t       rest   = from->ne[0] - count * block;
    const int64_t       n_rows = from->ne[1];
    const size_t        size   = ggml_element_size(from);
    ggml_tensor * const blocks = ggml_view_3d(ctx, from, block, count, n_rows, block * size, from->nb[1], 0);
    ggml_tensor * const taken  = ggml_get_rows(ctx, blocks, chosen);
    ggml_tensor * const joined = ggml_reshape_2d(ctx, taken, block * chosen->ne[0], n_rows);
    if (rest == 0) {
        return joined;
    }
    return ggml_concat(ctx, joined, ggml_view_2d(ctx, from, rest, n_rows, from->nb[1], count * block * size), 0);
}

bool on_gpu(ggml_backend_dev_t device) {
    if (device == nullptr) {
        return false;
    }
    const auto type = ggml_backend_dev_type(device);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

// llama.cpp copies whole rows to the host for sequences without a sampler only. So each has one, which
// gives it nothing to copy either, and the first adds to the graph what is to be found on the device, for
// all rows at once.
const char * silent_name(const llama_sampler *) {
    return "rows";
}

void silent_apply_on_host(llama_sampler *, llama_token_data_array *) {}

bool silent_init(llama_sampler *, ggml_backend_buffer_type_t, uint32_t) {
    return true;
}

void silent_apply(llama_sampler *, ggml_context *, ggml_cgraph *, llama_sampler_data * data) {
    data->logits = nullptr;
}

bool builder_init(llama_sampler * sampler, ggml_backend_buffer_type_t type, uint32_t) {
    auto & rows = *static_cast<shim_rows *>(sampler->ctx);
    rows.device = ggml_backend_buft_get_device(type);
    rows.usable = (!rows.only_on_gpu || on_gpu(rows.device)) && rows.supported();
    return true;
}

void builder_apply(llama_sampler * sampler, ggml_context * ctx, ggml_cgraph * graph, llama_sampler_data * data) {
    auto &              rows = *static_cast<shim_rows *>(sampler->ctx);
    ggml_tensor * const row  = data->logits;
    data->logits             = nullptr;
    if (rows.built || !rows.usable) {
        return;
    }
    rows.built = true;
    if (row->view_src == nullptr) {
        // llama.cpp counts nodes, with a tensor of its own.
        rows.build(ctx, graph, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, rows.n_vocab, 1));
        return;
    }
    // It is a view of all logits with a row of zeros added, which nobody computes unless it is used.
    ggml_tensor * const padded = row->view_src;
    rows.build(ctx, graph, padded->op == GGML_OP_PAD ? padded->src[0] : padded);
}

void builder_reset(llama_sampler * sampler) {
    auto & rows = *static_cast<shim_rows *>(sampler->ctx);
    rows.built  = false;
    rows.logits = rows.chosen = rows.values = nullptr;
}

llama_sampler_i silent_calls() {
    llama_sampler_i calls = {};
    calls.name = silent_name;
    calls.apply = silent_apply_on_host;
    calls.backend_init = silent_init;
    calls.backend_apply = silent_apply;
    return calls;
}

llama_sampler_i builder_calls() {
    llama_sampler_i calls = silent_calls();
    calls.backend_init = builder_init;
    calls.backend_apply = builder_apply;
    calls.backend_reset = builder_reset;
    return calls;
}

llama_sampler_i silent  = silent_calls();
llama_sampler_i builder = builder_calls();

} // namespace

void shim_rows::attach(uint32_t n_sequences) {
    for (uint32_t sequence = 0; sequence < n_sequences; ++sequence) {
        chains.push_back(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        // llama.cpp goes through them in the order of the sequences.
        llama_sampler * const own =
            sequence == 0 ? llama_sampler_init(&builder, this) : llama_sampler_init(&silent, nullptr);
        llama_sampler_chain_add(chains.back(), own);
        configs.push_back({static_cast<llama_seq_id>(sequence), chains.back()});
    }
}

void shim_rows::build(ggml_context * ctx, ggml_cgraph * graph, ggml_tensor * of) {
    if (of->type != GGML_TYPE_F32 || of->ne[0] != n_vocab || !ggml_is_matrix(of) || !ggml_is_contiguous(of)) {
        usable = false;
        return;
    }
    if (of->ne[1] == 0) {
        return;
    }
    ggml_tensor * numbers = of;
    // The best one's part of the whole tells what the row adds up to, and cannot overflow.
    ggml_tensor * parts       = ggml_soft_max(ctx, of);
    ggml_tensor * all_chosen  = nullptr;
    const auto    choose_from = [&](ggml_tensor * from) {
        ggml_tensor * const found = ggml_top_k(ctx, from, static_cast<int>(best));
        all_chosen                = all_chosen == nullptr ? found : ggml_concat(ctx, all_chosen, found, 0);
        return found;
    };
    for (const int64_t block : blocks) {
        const int           length = static_cast<int>(block);
        ggml_tensor * const maxima = ggml_pool_2d(ctx, numbers, GGML_OP_POOL_MAX, length, 1, length, 1, 0, 0);
        ggml_tensor * const found  = choose_from(maxima);
        numbers                    = gather(ctx, numbers, found, block);
        parts                      = gather(ctx, parts, found, block);
    }
    ggml_tensor * const found = choose_from(numbers);
    logits                    = of;
    chosen                    = all_chosen;
    values                    = ggml_concat(ctx, gather(ctx, numbers, found, 1), gather(ctx, parts, found, 1), 0);
    for (ggml_tensor * const result : {chosen, values}) {
        ggml_set_output(result);
        ggml_build_forward_expand(graph, result);
    }
}

bool shim_rows::supported() const {
    if (device == nullptr) {
        return true; // the processor
    }
    const ggml_init_params params = {
        /*.mem_size   =*/probe_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(probe_nodes, false),
        /*.mem_buffer =*/nullptr,
        /*.no_alloc   =*/true,
    };
    const std::unique_ptr<ggml_context, void (*)(ggml_context *)> ctx(ggml_init(params), ggml_free);
    ggml_cgraph * const graph = ggml_new_graph_custom(ctx.get(), probe_nodes, false);
    shim_rows           probe(n_vocab, best, blocks, only_on_gpu);
    probe.build(ctx.get(), graph, ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_vocab, 2));
    for (int index = 0; index < ggml_graph_n_nodes(graph); ++index) {
        if (!ggml_backend_dev_supports_op(device, ggml_graph_node(graph, index))) {
            return false;
        }
    }
    return true;
}

shim_rows * shim_rows_create(uint32_t n_sequences, uint32_t n_vocab, uint32_t best, const uint32_t * blocks,
                             size_t n_blocks, bool only_on_gpu, shim_fault * fault) {
    return guarded<shim_rows *>(fault, nullptr, [&] {
        auto rows = std::make_unique<shim_rows>(n_vocab, best, std::vector<int64_t>(blocks, blocks + n_blocks),
                                                only_on_gpu);
        rows->attach(n_sequences);
        return rows.release();
    });
}

void shim_rows_free(shim_rows * rows, shim_fault * fault) {
    guarded(fault, 0, [&] {
        delete rows;
        return 0;
    });
}

bool shim_rows_usable(const shim_rows * rows) {
    return rows->usable;
}

size_t shim_rows_count(const shim_rows * rows) {
    return rows->logits == nullptr ? 0 : static_cast<size_t>(rows->logits->ne[1]);
}

void shim_rows_best(const shim_rows * rows, llama_context * context, int32_t * chosen, float * values,
                    shim_fault * fault) {
    guarded(fault, 0, [&] {
        llama_synchronize(context);
        ggml_backend_tensor_get(rows->chosen, chosen, 0, ggml_nbytes(rows->chosen));
        ggml_backend_tensor_get(rows->values, values, 0, ggml_nbytes(rows->values));
        return 0;
    });
}

void shim_rows_copy(const shim_rows * rows, llama_context * context, size_t first, size_t count, float * logits,
                    shim_fault * fault) {
    guarded(fault, 0, [&] {
        llama_synchronize(context);
        const size_t row = rows->logits->nb[1];
        ggml_backend_tensor_get(rows->logits, logits, first * row, count * row);
        return 0;
    });
}

float * shim_rows_memory(shim_rows * rows, size_t n_floats, shim_fault * fault) {
    return guarded<float *>(fault, nullptr, [&] {
        ggml_backend_buffer_type_t type =
            rows->device == nullptr ? nullptr : ggml_backend_dev_host_buffer_type(rows->device);
        if (type == nullptr) {
            type = ggml_backend_cpu_buffer_type();
        }
        rows->memory = ggml_backend_buft_alloc_buffer(type, n_floats * sizeof(float));
        if (rows->memory == nullptr) {
            throw std::bad_alloc();
        }
        return static_cast<float *>(ggml_backend_buffer_get_base(rows->memory));
    });
}

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

llama_context * shim_context_create(llama_model * model, const llama_context_params * params, shim_rows * rows,
                                    shim_fault * fault) {
    return guarded<llama_context *>(fault, nullptr, [&] {
        llama_context_params own = *params;
        if (rows != nullptr) {
            own.samplers   = rows->configs.data();
            own.n_samplers = rows->configs.size();
        }
        return llama_init_from_model(model, own);
    });
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

#ifdef SHIM_OPENMP
uint32_t shim_processors(void) {
    return static_cast<uint32_t>(omp_get_num_procs());
}

void shim_team(uint32_t threads, int32_t * ids) {
    const auto body = [](void * ids) {
        static_cast<int32_t *>(ids)[omp_get_thread_num()] = static_cast<int32_t>(syscall(SYS_gettid));
    };
    GOMP_parallel(body, ids, threads, /*flags =*/0);
}
#endif

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
        const llama_memory_t memory = llama_get_memory(context);
        llama_memory_seq_cp(memory, from, to, end < 0 ? -1 : 0, end);
        const llama_memory_context_ptr update = memory->init_update(context, /*optimize =*/false);
        if (llama_memory_status_is_fail(update->get_status()) ||
            (update->get_status() == LLAMA_MEMORY_STATUS_SUCCESS && !update->apply())) {
            throw std::runtime_error("the copy of a sequence could not be made");
        }
        return 0;
    });
}

bool shim_sequence_copy_cells(llama_context * context, llama_seq_id from, llama_seq_id to,
                              shim_fault * fault) {
    return guarded(fault, false, [&] {
        const llama_memory_t memory = llama_get_memory(context);
        llama_synchronize(context);
        state_source source;
        memory->state_write(source, from);
        if (!on_host(source.pieces)) {
            return false;
        }
        state_target target(source.description);
        memory->state_read(target, to);
        copy_pieces(std::move(source.pieces), std::move(target.pieces));
        return true;
    });
}

size_t shim_state_size(llama_context * context, llama_seq_id sequence, shim_fault * fault) {
    return guarded<size_t>(fault, 0, [&] { return llama_state_seq_get_size_ext(context, sequence, 0); });
}

size_t shim_state_save(llama_context * context, llama_seq_id sequence, uint8_t * data, size_t size,
                       shim_fault * fault) {
    return guarded<size_t>(
        fault, 0, [&] { return llama_state_seq_get_data_ext(context, data, size, sequence, 0); });
}

size_t shim_state_restore(llama_context * context, llama_seq_id sequence, const uint8_t * data, size_t size,
                          shim_fault * fault) {
    return guarded<size_t>(
        fault, 0, [&] { return llama_state_seq_set_data_ext(context, data, size, sequence, 0); });
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
