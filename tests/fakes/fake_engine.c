// fake_engine.c - a whole toy engine, and a liar for every rule of engine_api.h. One source to compile; its parts,
// by call, lie in fake_engine/.
//
// Built without any -D it is a GOOD engine, quick and deterministic, with the extensions models,
// memory, tokenizer, batch, stream and embed:
//
//    cc -std=c99 -shared -fPIC -I rust/abi/include -o libfake_engine.so tests/fakes/fake_engine.c
//
// Its models are files that begin with "TOY1"; format "toy", architecture "toy". The rest of the file
// may hold lines "key=value", which become the model's metadata. Known keys:
//
//    n_context=N        longest sequence it says it was trained for              (default 2048)
//    eog_every=N        one position in N or so ends the answer; 0: none does    (default 64)
//    estimate_bytes=N   what the weights take                                    (default: the file's size)
//    takes_bytes=N      what it really takes of the host's memory, beside that    (default 0)
//    load_us=N          microseconds that a load takes                           (default 0)
//
// A token is one byte (0 to 255), BOS (256, "<s>") or EOS (257, "</s>"). A row of logits is a hash of the
// whole sequence up to its token, so the greedy text depends on every earlier token at its place, and a
// host that mixes up two sequences, or loses a token of one, gets another text. Small letters and the
// space are likelier than all else. The hashes are kept in the cells of a KV cache with reference
// counts, so that seq_copy, seq_remove and ERR_CACHE_FULL are real.
//
// Options, of engine_init or of a context (which counts more): "step_us" and "token_us" are the
// microseconds that a step takes, and each of its tokens on top.
//
// -DFAKE_...=VALUE
//    ENGINE_ID="fake"  ENGINE_VERSION="1.0.0"  ABI_VERSION=1
//    STEP_US=0  TOKEN_US=0        defaults of the options
//    TOKENIZE_NS=0                nanoseconds that the tokenizer takes for a byte
//    EOG_EVERY=64                 default of the key
//    ESTIMATE_BYTES=N             what estimate and usage say for every model, all in all
//    DEVICES=1                    how many there are, where it runs on GPUs; 9 at most. Of those of fake_nvml.c it has
//                                 the ones that CUDA_VISIBLE_DEVICES names, in that order. A model for which none is
//                                 named lies on all of them
//    DEVICE_BYTES=8589934592ULL   memory of each; what is free of it, a test may write into the file free_bytes beside
//                                 the library, a line for each
//    DEVICE_KIND=ENGINE_DEVICE_GPU  what each of them is
//    INIT_CODE=N                  engine_init returns N, saying "the toy would not start"
//    LOAD_CODE=N                  loading a model returns N, saying "the toy would not load"
//    CRASH_ON_BYTE=N              a step (or tier 0, stream) with token N dies of signal 11
//    HANG_ON_BYTE=N               ... never returns
//    CRASH_AFTER_STEPS=N          step N + 1 dies of signal 11
//    MOST_SEQUENCES=4096          a context for more of them is refused
//    CONTEXTS=N                   no more of them are made, one after the other
//    HANG_IN_CREATE=N             the making of the Nth never returns
//    CRASH_IN_CREATE=N            ... dies of signal 11
//    EMBED_US=0                   what an embedding takes
//    DESTROY_US=0                 what the end of a context takes
//    TABLE_SIZE=N                 every table's struct_size (0, 0xFFFFFFFF, ...)
//    HANG_IN_CALL=NAME            never returns from it, where it happens between steps: TOKENIZE (of what
//                                 begins with "!"), EMBED, SEQ_REMOVE, SEQ_COPY, SEQ_SAVE, SEQ_RESTORE,
//                                 CACHE_FREE (once something is in the cache)
//
// -DFAKE_..., fewer features
//    NO_EXTENSIONS   tier 0 alone        NO_GET_EXTENSION   nor the symbol
//    MEMORY_ALONE    tier 0 and engine.memory/1
//    NO_BATCH  NO_TOKENIZER  NO_MEMORY  NO_ESTIMATE  NO_CHAT_TEMPLATE  NO_CANCEL  NO_SHARE
//    NO_SAVE
//    ROWS_F16  ROWS_BF16   logits in half the width
//
// -DFAKE_..., more of them
//    TELL_OPENINGS   its log says whenever it opens a model's file
//    TELL_DEVICES    it says which GPUs its environment names, when it is looked at and when it starts
//    TOP=N           rows are cut down to N candidates, for picks that use nothing
//    PICKS           rows go as far as is wished, whatever picks use; with late masks, and in chains
//
// -DFAKE_..., lies and accidents
//    at loading     CRASH_IN_CONSTRUCTOR  HANG_IN_CONSTRUCTOR  MISSING_SYMBOL (engine_generate)  NULL_INFO
//                   GARBAGE_INFO  GARBAGE_ID  NULL_ID  UNTERMINATED_ID  VERSION_NOT_UTF8  GARBAGE_TABLE  NULL_SLOT
//    in init        CRASH_IN_INIT  ABORT_IN_INIT  HANG_IN_INIT  EXIT_IN_INIT  UNKNOWN_CODE (4711)
//                   FORK_IN_INIT (a helper that lives for ten minutes)
//                   PRINTF  SOCKET_IN_INIT  SIGNAL_IN_INIT  SETENV_IN_INIT  WRITE_PAST_CONFIG  LEAK_DESCRIPTORS
//    in load        CRASH_IN_LOAD  HANG_IN_LOAD  NULL_MODEL  NULL_ARCHITECTURE  HUGE_VOCAB
//    the memory     NO_SUCH_DEVICE  ESTIMATE_NOTHING
//    in generate    CRASH_IN_GENERATE  HANG_IN_GENERATE  NO_END_MARKER  GARBAGE_RESULTS  GARBAGE_TEXT  LEAK_MEMORY
//    the tokenizer  OFFSETS_FALL  VOCAB_TOO_SHORT  SPECIAL_OUT_OF_RANGE  TOKENS_OUT_OF_RANGE  COUNT_TOO_LARGE
//                   REFUSE_TEXT (one with "?")  EOS_IS_NO_END
//    the batch      NULL_CONTEXT  ZERO_LIMITS  CRASH_IN_STEP  HANG_IN_STEP  TICKETS_JUMP  NAN_LOGITS  NULL_LOGITS
//                   CROOKED_LOGITS  ROW_TOO_NARROW  ROWS_UNWRITTEN  STAGE_TOO_FAR  UNKNOWN_DTYPE  RANGE_BACKWARDS
//                   SAVE_NEEDS_NOTHING  SAVE_NEEDS_ALL  SAVE_NEEDS_MORE  SAVE_WROTE_MORE  RESTORE_NOTHING
//                   RESTORE_SHORT  REMOVE_NOTHING  REMOVE_LEAKS  COPY_SHORT  COPY_SPOILS  TICKET_ZERO
//                   FEWER_SEQUENCES  SHORTER_CONTEXT  FEWER_ROWS  SMALLER_CACHE  ENDLESS_SEQUENCES
//    the candidates, with TOP
//                   TOP_NOTHING  TOP_TOO_MANY  TOP_OUTSIDE  TOP_NEGATIVE  TOP_TWICE  TOP_UNSORTED  TOP_NULL_IDS
//                   TOP_CROOKED_IDS  TOP_NULL_LOGITS  TOP_UNASKED
//    the picks, with PICKS
//                   PICK_NO_BIAS  PICK_NO_MASK  PICK_NO_LATE_MASK  PICK_PRESENCE_COUNTS  PICK_FORGETS_ROWS
//                   PICK_TOP_K_MORE  PICK_ONE_UNIFORM  PICK_READS_ALL  PICK_SHAPES_LOGITS  CHAIN_FORGETS
//    the stream     TOKEN_AFTER_END  NO_END_ELEMENT
//    embed          SHORT_VECTORS
//    at the end     CRASH_IN_SHUTDOWN  HANG_IN_SHUTDOWN  THREAD_LEFT
//
#if !defined(_WIN32)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "engine_api.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if !defined(_WIN32)
#  include <unistd.h>
#  ifdef FAKE_SOCKET_IN_INIT
#     include <netinet/in.h>
#     include <sys/socket.h>
#  endif
#  ifdef FAKE_LEAK_DESCRIPTORS
#     include <fcntl.h>
#  endif
#  ifdef FAKE_THREAD_LEFT
#     include <pthread.h>
#  endif
#endif

#ifndef FAKE_ENGINE_ID
#  define FAKE_ENGINE_ID "fake"
#endif
#ifndef FAKE_ENGINE_VERSION
#  define FAKE_ENGINE_VERSION "1.0.0"
#endif
#ifndef FAKE_ABI_VERSION
#  define FAKE_ABI_VERSION ENGINE_ABI_VERSION
#endif
#ifndef FAKE_STEP_US
#  define FAKE_STEP_US 0
#endif
#ifndef FAKE_TOKEN_US
#  define FAKE_TOKEN_US 0
#endif
#ifndef FAKE_DESTROY_US
#  define FAKE_DESTROY_US 0
#endif
#ifndef FAKE_EMBED_US
#  define FAKE_EMBED_US 0
#endif
#ifndef FAKE_TOKENIZE_NS
#  define FAKE_TOKENIZE_NS 0
#endif
#ifndef FAKE_EOG_EVERY
#  define FAKE_EOG_EVERY 64
#endif
#ifdef FAKE_UNKNOWN_CODE
#  define FAKE_INIT_CODE 4711
#endif
#ifndef FAKE_DEVICES
#  define FAKE_DEVICES 1
#endif
#ifndef FAKE_DEVICE_KIND
#  define FAKE_DEVICE_KIND ENGINE_DEVICE_GPU
#endif
#ifndef FAKE_DEVICE_BYTES
#  define FAKE_DEVICE_BYTES 8589934592ULL
#endif
#ifndef FAKE_CRASH_ON_BYTE
#  define FAKE_CRASH_ON_BYTE (-1000)
#endif
#ifndef FAKE_HANG_ON_BYTE
#  define FAKE_HANG_ON_BYTE (-1000)
#endif

#define N_VOCAB 258
#define TOKEN_BOS 256
#define TOKEN_EOS 257
#define N_EMBEDDING 8
#define CACHE_BYTES_PER_TOKEN 64
#ifdef FAKE_MOST_SEQUENCES
#  define MOST_SEQUENCES FAKE_MOST_SEQUENCES
#else
#  define MOST_SEQUENCES 4096
#endif
#define MOST_METADATA 16
#define NOWHERE ((void *)(uintptr_t)0x10)

// Needed only by some of the lies.
#if defined(__GNUC__)
#  define MAYBE_UNUSED __attribute__((unused))
#else
#  define MAYBE_UNUSED
#endif

static MAYBE_UNUSED void crash(void) {
   // Not a write through a bad pointer: a compiler may do with that what it likes, and a sanitizer
   // would have its say.
   signal(SIGSEGV, SIG_DFL);
   raise(SIGSEGV);
}

static void sleep_us(uint64_t us) {
#if defined(_WIN32)
   clock_t end = clock() + (clock_t)(us * CLOCKS_PER_SEC / 1000000);
   while (clock() < end) {
   }
#else
   struct timespec left = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
   while (nanosleep(&left, &left) != 0 && errno == EINTR) {
   }
#endif
}

static MAYBE_UNUSED void hang(void) {
   for (;;) {
      sleep_us(1000000);
   }
}

enum { NO_CALL, TOKENIZE, EMBED, SEQ_REMOVE, SEQ_COPY, SEQ_SAVE, SEQ_RESTORE, CACHE_FREE };
#ifndef FAKE_CONTEXTS
#  define FAKE_CONTEXTS (1 << 30)
#endif
#ifndef FAKE_CRASH_IN_CREATE
#  define FAKE_CRASH_IN_CREATE 0
#endif
#ifndef FAKE_HANG_IN_CREATE
#  define FAKE_HANG_IN_CREATE 0
#endif
#ifndef FAKE_HANG_IN_CALL
#  define FAKE_HANG_IN_CALL NO_CALL
#endif

static MAYBE_UNUSED void perhaps_hang(int call) {
   if (call == FAKE_HANG_IN_CALL) {
      hang();
   }
}

// In this order: each uses what stands before it.
#include "fake_engine/hash.h"
#include "fake_engine/life.h"
#include "fake_engine/models.h"
#include "fake_engine/memory.h"
#include "fake_engine/tokenizer.h"
#include "fake_engine/picks.h"
#include "fake_engine/batch.h"
#include "fake_engine/rows.h"
#include "fake_engine/sequences.h"
#include "fake_engine/generate.h"
#include "fake_engine/embed.h"
#include "fake_engine/extensions.h"
