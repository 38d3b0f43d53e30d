// libggml's ggml_backend_load_all() looks in the folder that the engine was compiled in. A definition in the
// program comes before the library's, for the program and for libllama alike; this one loads what the
// engine loads: the backends beside its own libraries.

#include "ggml-backend.h"

extern "C" void ggml_backend_load_all(void) {
    static const bool loaded = (ggml_backend_load_all_from_path(ENGINE_LIBRARIES), true);
    (void) loaded;
}
