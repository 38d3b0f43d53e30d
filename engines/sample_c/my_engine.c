// The smallest engine there is: five functions, and it is one.
//
//    cc -shared -fPIC -I<folder of engine_api.h> -o libmy_engine.so my_engine.c

#include "engine_api.h"

static EngineInfo info = {.abi_version = ENGINE_ABI_VERSION, .engine_id = "my_engine", .version = "1.0.0"};

EngineInfo* engine_get_info(void) { return &info; }
int engine_init(EngineConfig* config) { return ERR_OK; }
int engine_load_model(const char* model_path) { return ERR_OK; }
int engine_generate(const char* prompt, TokenResult** results) { return ERR_OK; }
void engine_shutdown(void) {}
