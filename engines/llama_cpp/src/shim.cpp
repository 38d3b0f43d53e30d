#include "shim.h"

#include "ggml-backend-impl.h"
#include "llama-ext.h"
#include "llama-io.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#ifdef __linux__
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifdef SHIM_OPENMP
#include <sys/syscall.h>

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

// The cells of a sequence, into an empty one of the same context or of another of the same model, whose state may
// be described otherwise. False, and nothing was done, where they lie on a device.
template <typename Describe>
bool copy_cells(llama_context * source, llama_seq_id from, llama_context * target, llama_seq_id to,
                Describe && describe) {
    llama_synchronize(source);
    llama_synchronize(target);
    state_source written;
    llama_get_memory(source)->state_write(written, from);
    if (!on_host(written.pieces)) {
        return false;
    }
    describe(written.description);
    state_target read(written.description);
    llama_get_memory(target)->state_read(read, to);
    copy_pieces(std::move(written.pieces), std::move(read.pieces));
    return true;
}

// Ends the idle threads of OpenMP's team of the calling thread, which otherwise live as long as that thread.
// While a process has more of them than processors, libgomp lets all of its threads look for each other for
// a moment only, and sleep: each barrier of a pass costs a switch then.
void end_idle_threads() {
#ifdef SHIM_OPENMP
    omp_pause_resource_all(2); // omp_pause_hard
#endif
}

// Weights that are computed with where they lie in the host's memory: not on a device, not repacked.
template <typename Take> void for_plain_weights(const llama_model * model, Take && take) {
    for (const auto & [name, tensor] : model->tensors_by_name) {
        if (tensor->buffer != nullptr && ggml_backend_buffer_is_host(tensor->buffer)) {
            take(name, *tensor);
        }
    }
}

// The size of all of these. What two tensors share counts once: a model may use one weight as two, and then
// both are the same bytes of its file. (A model that was not really loaded has no addresses, only names.)
size_t plain_weights_size(const llama_model * model) {
    std::set<const void *> addresses;
    std::set<std::string>  names;
    size_t                 sum = 0;
    for_plain_weights(model, [&](const std::string & name, const ggml_tensor & tensor) {
        const bool is_new =
            tensor.data != nullptr ? addresses.insert(tensor.data).second : names.insert(name).second;
        if (is_new) {
            const ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor.buffer);
            sum += GGML_PAD(ggml_backend_buft_get_alloc_size(type, &tensor), ggml_backend_buft_get_alignment(type));
        }
    });
    return sum;
}

#ifdef __linux__
using range = std::pair<uintptr_t, uintptr_t>;

// Where the weights lie that are computed with where they are, in order. `all`: those as well of which a token
// needs but a row.
std::vector<range> plain_weights(const llama_model * model, bool all) {
    const auto & tensors = model->tensors_by_name;
    const bool   has_output =
        std::any_of(tensors.begin(), tensors.end(), [](const auto & it) { return it.first == "output.weight"; });
    std::vector<range> ranges;
    for_plain_weights(model, [&](const std::string & name, const ggml_tensor & tensor) {
        if (all || !has_output || name != "token_embd.weight") {
            const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
            ranges.emplace_back(begin, begin + ggml_nbytes(&tensor));
        }
    });
    std::sort(ranges.begin(), ranges.end());
    return ranges;
}

// What the host maps of the model's files, of which these ranges are used.
std::vector<range> mapped_files(const std::vector<range> & used) {
    std::vector<range> files;
    std::ifstream      maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        uintptr_t begin = 0;
        uintptr_t end   = 0;
        uint64_t  inode = 0;
        // Only what is mapped from a file to be read can be had again.
        if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " r--%*c %*x %*x:%*x %" SCNu64, &begin, &end,
                        &inode) != 3 ||
            inode == 0) {
            continue;
        }
        const auto next = std::lower_bound(used.begin(), used.end(), range{begin, 0});
        if (next != used.end() && next->first < end) {
            files.emplace_back(begin, end);
        }
    }
    return files;
}

// Of what the host maps of the model's files, lets the kernel take the pages back that no weight is used from:
// those whose weights were copied to a device, or repacked. llama.cpp unmaps them only before the first weight
// that is used in place and behind the last; often these are small ones in all parts of the file, and the
// model is in memory twice. Should anybody read such a page, it comes from the file again.
void release_copied_pages(const llama_model * model) {
    const std::vector<range> used    = plain_weights(model, /*all =*/true);
    const uintptr_t          page    = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto               release = [page](uintptr_t begin, uintptr_t end) {
        begin = (begin + page - 1) / page * page;
        end   = end / page * page;
        if (begin < end) {
            // Refused where pages are locked, as somebody wanted it.
            madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
        }
    };
    for (auto [begin, end] : mapped_files(used)) {
        auto next = std::lower_bound(used.begin(), used.end(), range{begin, 0});
        for (; next != used.end() && next->first < end; ++next) {
            release(begin, next->first);
            begin = std::max(begin, next->second);
        }
        release(begin, end);
    }
}

// The size of a huge page; 0: the kernel gives none to who asks.
uintptr_t huge_page() {
    const std::string folder = "/sys/kernel/mm/transparent_hugepage/";
    std::string       modes;
    std::getline(std::ifstream(folder + "enabled"), modes);
    uintptr_t size = 0;
    std::ifstream(folder + "hpage_pmd_size") >> size;
    return modes.find("[never]") == std::string::npos ? size : 0;
}

// Puts memory of the process alone, in huge pages, in the place of a mapped file's. False: the file's is there still.
bool move_to_huge_pages(uintptr_t begin, uintptr_t end, uintptr_t huge) {
    const size_t size = end - begin;
    void * const room = mmap(nullptr, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) {
        return false;
    }
    const auto   first = reinterpret_cast<uintptr_t>(room);
    const size_t head  = (huge - first % huge) % huge;
    void * const whole = reinterpret_cast<void *>(first + head);
    void * const place = reinterpret_cast<void *>(begin);
    madvise(whole, size, MADV_HUGEPAGE);
    std::memcpy(whole, place, size);
    mprotect(whole, size, PROT_READ);
    const bool moved = mremap(whole, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) != MAP_FAILED;
    munmap(room, head);
    munmap(moved ? reinterpret_cast<char *>(whole) + size : whole, moved ? huge - head : size + huge - head);
    return moved;
}

// All of these, which are whole huge pages, on all processors: a new page costs its time where it is first written to,
// and in a virtual machine several times what the copy costs.
void move_to_huge_pages(const std::vector<range> & runs, uintptr_t huge) {
    const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1U, 8U);
    // What is moved at once lies in memory twice meanwhile.
    const uintptr_t    most = std::max<uintptr_t>(huge, (64 << 20) / threads / huge * huge);
    std::vector<range> parts;
    for (auto [begin, end] : runs) {
        for (; begin < end; begin += most) {
            parts.emplace_back(begin, std::min(begin + most, end));
        }
    }
    std::atomic<size_t> next{0};
    const auto          move = [&] {
        for (size_t at = next++; at < parts.size(); at = next++) {
            if (!move_to_huge_pages(parts[at].first, parts[at].second, huge)) {
                next = parts.size();
            }
        }
    };
    std::vector<std::thread> others;
    try {
        while (others.size() + 1 < std::min<size_t>(threads, parts.size())) {
            others.emplace_back(move);
        }
    } catch (const std::system_error &) {
        // Those that could be started, and this one, do all of it.
    }
    move();
    for (std::thread & other : others) {
        other.join();
    }
}

// A token reads all weights from end to end. In the small pages of a mapped file each four thousand bytes are an
// address to be looked up, and where the processor stops to fetch ahead. So those are copied that are computed with
// where they lie: a huge page stands in their place where half of it or more is theirs.
void weights_to_huge_pages(const llama_model * model) {
    const uintptr_t huge = huge_page();
    if (huge == 0) {
        return;
    }
    const std::vector<range> used    = plain_weights(model, /*all =*/false);
    const auto               nearest = [huge](uintptr_t it) { return (it + huge / 2) / huge * huge; };
    std::vector<range>       runs;
    for (const auto & [file, file_end] : mapped_files(used)) {
        const uintptr_t least = (file + huge - 1) / huge * huge;
        const uintptr_t most  = file_end / huge * huge;
        auto            next  = std::lower_bound(used.begin(), used.end(), range{file, 0});
        while (next != used.end() && next->first < file_end) {
            range run = *next;
            for (++next; next != used.end() && nearest(next->first) <= nearest(run.second); ++next) {
                run.second = std::max(run.second, next->second);
            }
            const uintptr_t begin = std::max(nearest(run.first), least);
            const uintptr_t end   = std::min(nearest(run.second), most);
            if (begin < end) {
                runs.emplace_back(begin, end);
            }
        }
    }
    move_to_huge_pages(runs, huge);
}
#endif

#ifdef __linux__
ggml_backend_buffer_t (*allocate)(ggml_backend_buffer_type_t, size_t) = nullptr;

// Writing zeros into a new cache would make all of it resident, and take a third of a second for each GB. Pages that
// are given back read as zeros, and cost memory once something is written into them.
void give_back(ggml_backend_buffer_t buffer, uint8_t value) {
    auto * const begin = static_cast<char *>(buffer->context);
    const size_t page  = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t head  = std::min((page - reinterpret_cast<uintptr_t>(begin) % page) % page, buffer->size);
    const size_t whole = (buffer->size - head) / page * page;
    // What ggml allocates is memory of the process alone: no file, and shared with nobody.
    if (value != 0 || whole == 0 || madvise(begin + head, whole, MADV_DONTNEED) != 0) {
        std::memset(begin, value, buffer->size);
        return;
    }
    std::memset(begin, 0, head);
    std::memset(begin + head + whole, 0, buffer->size - head - whole);
}

ggml_backend_buffer_t allocate_lazily(ggml_backend_buffer_type_t type, size_t size) {
    const ggml_backend_buffer_t buffer = allocate(type, size);
    if (buffer != nullptr) {
        buffer->iface.clear = give_back;
    }
    return buffer;
}
#endif

} // namespace

void shim_install(void (*report)(const char * message)) {
    report_abort = report;
    ggml_set_abort_callback(on_abort);
#ifdef __linux__
    auto & type = ggml_backend_cpu_buffer_type()->iface;
    if (type.alloc_buffer != allocate_lazily) {
        allocate          = type.alloc_buffer;
        type.alloc_buffer = allocate_lazily;
    }
#endif
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
    return guarded<llama_model *>(fault, nullptr, [&] {
        llama_model * const model = llama_model_load_from_file(path, *params);
        // Where there is AMX, weights are repacked by a team of threads.
        end_idle_threads();
        if (model != nullptr && !params->no_alloc) {
#ifdef __linux__
            release_copied_pages(model);
            if (params->load_mode == LLAMA_LOAD_MODE_AUTO) {
                weights_to_huge_pages(model);
            }
#endif
#ifdef __GLIBC__
            malloc_trim(0); // what the file's header took, with a large vocabulary some 10 MB
#endif
        }
        return model;
    });
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
        end_idle_threads();
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
    return guarded(fault, false, [&] { return copy_cells(context, from, context, to, [](std::vector<char> &) {}); });
}

bool shim_is_plain_cache(llama_context * context, shim_fault * fault) {
    return guarded(fault, false, [&] {
        state_source source;
        llama_get_memory(context)->state_write(source, 0);
        // The state of an empty sequence: how many parts the cache has, and how many cells each one holds, 0.
        uint32_t streams = 0;
        if (source.description.size() < sizeof(streams)) {
            return false;
        }
        std::memcpy(&streams, source.description.data(), sizeof(streams));
        return streams > 0 && source.description.size() == (1 + size_t{streams}) * sizeof(uint32_t);
    });
}

bool shim_sequence_take_cells(llama_context * pool, llama_seq_id from, llama_context * context, llama_seq_id to,
                              uint32_t streams, shim_fault * fault) {
    return guarded(fault, false, [&] {
        // As a cache of so many parts would have written it: what one part holds comes first, and the others
        // hold no cell. A single sequence is read into its own part, whichever it came from.
        return copy_cells(pool, from, context, to, [streams](std::vector<char> & description) {
            std::memcpy(description.data(), &streams, sizeof(streams));
            description.resize(description.size() + (streams - 1) * sizeof(uint32_t));
        });
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
        // Of mapped files, llama.cpp counts all between the first weight that is used and the last.
        by_device[nullptr].model = plain_weights_size(llama_get_model(context));
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
            use.model += ggml_backend_buft_is_host(type) ? 0 : bytes.model;
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
