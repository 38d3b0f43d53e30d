//! The engine that `llm-node engine new` makes, as its author would get it wrong: each mistake is one change of
//! its source, and is found by the check that it violates.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use llm_node_conformance::{Status, Subject};
use support::{checked, compile, each, scratch, subject, template, template_model};

const PATIENCE: Duration = Duration::from_secs(30);

/// What is changed in the source, into what, and the check that finds it.
type Mistake = (&'static [(&'static str, &'static str)], &'static str);

const MISTAKES: &[Mistake] = &[
    // Life.
    (
        &[(
            "   host = ENGINE_HAS",
            "   static int once;\n   if (once++) return ERR_INTERNAL;\n   host = ENGINE_HAS",
        )],
        "life.again",
    ),
    (
        &[
            ("   host = ENGINE_HAS", "   setlocale(LC_ALL, \"C.UTF-8\");\n   host = ENGINE_HAS"),
            ("#include <math.h>", "#include <locale.h>\n#include <math.h>"),
        ],
        "life.process",
    ),
    (
        &[
            ("   host = ENGINE_HAS", "   umask(0);\n   host = ENGINE_HAS"),
            ("#include <math.h>", "#include <math.h>\n#include <sys/stat.h>"),
        ],
        "life.process",
    ),
    (
        &[
            ("   host = ENGINE_HAS", "   if (chdir(\"/\")) return ERR_INTERNAL;\n   host = ENGINE_HAS"),
            ("#include <math.h>", "#include <math.h>\n#include <unistd.h>"),
        ],
        "file.imports",
    ),
    (
        &[(
            "   int code = check(context, batch);",
            "   printf(\"step\\n\");\n   int code = check(context, batch);",
        )],
        "life.stdout",
    ),
    (
        &[(
            "   int code = check(context, batch);",
            "   fprintf(stderr, \"step\\n\");\n   int code = check(context, batch);",
        )],
        "life.stderr",
    ),
    (&[("static int model_load(", "ENGINE_API int model_load(")], "file.exports"),
    (
        &[("strcmp(id, ENGINE_EXT_MODELS) == 0 ", "strncmp(id, ENGINE_EXT_MODELS, 13) == 0 ")],
        "life.extensions",
    ),
    (
        &[("(const void *)&models\n", "memcpy(malloc(sizeof models), &models, sizeof models)\n")],
        "life.extensions",
    ),
    (&[("{sizeof memory, device_count,", "{sizeof memory, NULL,")], "life.extensions"),
    // Models.
    (
        &[("   if (model->text_len == 0) {", "   *out = model;\n   if (model->text_len == 0) {")],
        "models.bad-files",
    ),
    (
        &[("      return fail(ERR_NOT_FOUND, \"the model file cannot be opened\");", "      exit(1);")],
        "models.bad-files",
    ),
    (
        &[("      return fail(ERR_NOT_FOUND, \"the model file cannot be opened\");", "      return -1;")],
        "models.bad-files",
    ),
    (
        &[(
            "      return fail(ERR_NOT_FOUND, \"the model file cannot be opened\");",
            "      return ERR_NOT_FOUND;",
        )],
        "models.says-why",
    ),
    (&[("   if (file == NULL) {", "   if (0) {")], "models.bad-files"),
    (&[("   fclose(file);\n   if (model->text_len", "   if (model->text_len")], "models.again"),
    (
        &[("   free(model);\n}\n\nstatic int model_info", "   (void)model;\n}\n\nstatic int model_info")],
        "models.again",
    ),
    (
        &[
            (
                "EngineModel *model = calloc(1, sizeof *model);",
                "static EngineModel one;\n   EngineModel *model = &one;\n   model->text_len = 0;",
            ),
            ("   free(model);\n}\n\nstatic int model_info", "   (void)model;\n}\n\nstatic int model_info"),
        ],
        "models.two",
    ),
    (
        &[(
            "   return ERR_NOT_FOUND;\n}\n\n////////////\n// memory",
            "   return ERR_OK;\n}\n\n////////////\n// memory",
        )],
        "models.metadata",
    ),
    (&[("(room < size ? room : size) - sizeof room", "size - sizeof room")], "models.struct-size"),
    (&[("mine.flags           = ENGINE_MODEL_GENERATES;", "")], "models.load"),
    // Memory.
    (&[("   model->cache_bytes += context->n_cells * sizeof(EngineToken);\n", "")], "memory.usage"),
    (&[("   context->model->cache_bytes -= context->n_cells * sizeof(EngineToken);\n", "")], "memory.usage"),
    (
        &[(
            "uint64_t cells = context == NULL ? 0 : (uint64_t)context->max_sequences * length_of(context);",
            "uint64_t cells = 0;",
        )],
        "memory.promise",
    ),
    (
        &[("write_use(cells * sizeof(EngineToken), uses", "write_use((cells << 20) + (1 << 30), uses")],
        "memory.promise",
    ),
    (
        &[(
            "write_use(cells * sizeof(EngineToken), uses",
            "static uint64_t more;\n   write_use((cells + more++) * sizeof(EngineToken), uses",
        )],
        "memory.estimate",
    ),
    (
        &[(
            "   if (capacity > 0) {\n      uses[0] = use;\n   }\n   *count = 1;",
            "   if (capacity > 0) {\n      uses[0] = use;\n      *count = 1;\n   }",
        )],
        "memory.capacity",
    ),
    (&[("   if (capacity > 0) {\n      uses[0] = use;\n   }", "   uses[0] = use;")], "memory.capacity"),
    (&[("use.device          = ENGINE_DEVICE_HOST;", "use.device = 0;")], "memory.estimate"),
    (&[("use.weights         = sizeof(EngineModel);", "")], "memory.weights"),
    (
        &[(
            "   *out = context;\n",
            "   for (long i = 0; i < 200; i++) memset(malloc(1 << 20), 1, 1 << 20);\n   *out = context;\n",
        )],
        "memory.truth",
    ),
    (
        &[(
            "   return 0; // what it takes is the host's memory",
            "   return 1; // what it takes is the host's memory",
        )],
        "memory.devices",
    ),
    // Tokenizer.
    (&[("mine.n_vocab         = N_VOCAB;", "mine.n_vocab = N_VOCAB - 1;")], "tokenizer.vocabulary"),
    (&[("   vocab_offsets[N_VOCAB] = 256 + sizeof end_name - 1;\n", "")], "tokenizer.vocabulary"),
    (&[("mine.eos               = END;", "mine.eos = N_VOCAB;")], "tokenizer.vocabulary"),
    (
        &[(
            "vocab_attributes[END]  = ENGINE_ATTR_CONTROL | ENGINE_ATTR_EOG;",
            "vocab_attributes[END] = ENGINE_ATTR_CONTROL;",
        )],
        "tokenizer.end",
    ),
    (&[("EngineToken token = (unsigned char)text[i];", "EngineToken token = text[i];")], "tokenizer.tokens"),
    (&[("if (n < capacity) { // count all", "if (n <= capacity) { // count all")], "tokenizer.capacity"),
    (
        &[(
            "   *count = n;\n   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;\n}\n\nstatic int detokenize",
            "   *count = n < capacity ? n : capacity;\n   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;\n}\n\nstatic int detokenize",
        )],
        "tokenizer.capacity",
    ),
    (
        &[(
            "   *count = n;\n   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;\n}\n\nstatic int detokenize",
            "   *count = n;\n   return ERR_OK;\n}\n\nstatic int detokenize",
        )],
        "tokenizer.capacity",
    ),
    (
        &[(
            "for (size_t i = 0; i < text_len; n++) {",
            "for (size_t i = 0; i < text_len && text[i] != 0; n++) {",
        )],
        "tokenizer.round-trip",
    ),
    (&[("(flags & ENGINE_TOKENIZE_PARSE_SPECIAL) != 0 && text_len", "text_len")], "tokenizer.special"),
    (&[("(flags & ENGINE_TOKENIZE_PARSE_SPECIAL) != 0 && text_len", "0 && text_len")], "tokenizer.special"),
    (&[("mine.bos = mine.eot", "mine.bos = 1;\n   mine.adds_bos = 1;\n   mine.eot")], "tokenizer.special"),
    (
        &[(
            "if (tokens[i] < 0 || tokens[i] >= N_VOCAB) {\n         return fail(ERR_INVALID_ARGUMENT, \"a token is outside the vocabulary\");\n      }\n      char",
            "char",
        )],
        "tokenizer.outside",
    ),
    (
        &[(
            "size_t      len   = tokens[i] == END ? sizeof end_name - 1 : 1;",
            "size_t len = tokens[i] == END ? 0 : 1;",
        )],
        "tokenizer.pieces",
    ),
    (
        &[("   if (name != NULL) {\n      return ERR_NOT_FOUND;\n   }\n", "   (void)name;\n")],
        "tokenizer.template",
    ),
    // Whoever sleeps here finds what others have counted, however busy the machine is.
    (
        &[
            ("#include <math.h>", "#include <math.h>\n#include <threads.h>"),
            (
                "   (void)model;\n   size_t n = 0;\n   for (size_t i = 0; i < text_len; n++) {",
                "   (void)model;\n   static volatile size_t n;\n   n = 0;\n   thrd_sleep(&(struct timespec){.tv_nsec = 1000000}, NULL);\n   for (size_t i = 0; i < text_len; n++) {",
            ),
        ],
        "tokenizer.threads",
    ),
    // What a context says of itself.
    (
        &[(
            "mine.max_sequences     = context->max_sequences;",
            "mine.max_sequences = context->max_sequences + 1;",
        )],
        "batch.invalid-sequences",
    ),
    (
        &[(
            "mine.max_sequences     = context->max_sequences;",
            "mine.max_sequences = context->max_sequences - 1;",
        )],
        "batch.create",
    ),
    (
        &[(
            "mine.context_length    = context->context_length;",
            "mine.context_length = context->context_length + 4;",
        )],
        "batch.length",
    ),
    (
        &[("mine.max_rows          = context->max_rows;", "mine.max_rows = 4 * context->max_rows;")],
        "batch.limits",
    ),
    (&[("mine.max_in_flight     = 1;", "")], "batch.create"),
    (
        &[("mine.cache_tokens      = context->n_cells;", "mine.cache_tokens = context->n_cells - 1;")],
        "batch.create",
    ),
    // Steps.
    (
        &[(
            "row.logits = context->rows + i * N_VOCAB;",
            "row.logits = context->rows + (n_rows - 1 - i) * N_VOCAB;",
        )],
        "batch.together",
    ),
    (&[("j + slice->n_rows >= slice->n_tokens", "j < slice->n_rows")], "batch.several-rows"),
    (
        &[
            (
                "         sequence->cells[sequence->length++] = slice->tokens[j];\n         context->n_free--;\n",
                "",
            ),
            (
                "context->rows + context->n_rows++ * N_VOCAB);\n         }\n",
                "context->rows + context->n_rows++ * N_VOCAB);\n         }\n         sequence->cells[sequence->length++] = slice->tokens[j];\n         context->n_free--;\n",
            ),
        ],
        "batch.last-token",
    ),
    (
        &[("compute(context->model, sequence,", "compute(context->model, &context->sequences[0],")],
        "batch.together",
    ),
    (
        &[(
            "compute(context->model, sequence,",
            "compute(context->model, &context->sequences[slice_at(batch, 0)->sequence],",
        )],
        "batch.together",
    ),
    (
        &[(
            "context->cells + (size_t)i * context->context_length;",
            "context->cells + (size_t)i * context->max_sequences;",
        )],
        "batch.together",
    ),
    (
        &[
            (
                "      Sequence          *sequence = &context->sequences[slice->sequence];\n",
                "      Sequence          *sequence = &context->sequences[slice->sequence];\n      Sequence fresh = {0, sequence->cells + sequence->length};\n",
            ),
            ("         context->n_free--;\n", "         context->n_free--;\n         fresh.length++;\n"),
            ("compute(context->model, sequence,", "compute(context->model, &fresh,"),
        ],
        "batch.cut",
    ),
    (
        &[(
            "compute(context->model, sequence,",
            "context->rows[context->n_rows * N_VOCAB] = 0;\n            if (context->ticket % 3 != 2) compute(context->model, sequence,",
        )],
        "batch.repeat",
    ),
    (
        &[("row[token] = (float)log(weights[token]);", "row[token] = (float)log(weights[token] - 1e-3);")],
        "batch.rows",
    ),
    (&[("row.n         = N_VOCAB;", "row.n = N_VOCAB - 1;")], "batch.rows"),
    (&[("row.dtype     = ENGINE_F32;", "row.dtype = 3;")], "batch.rows"),
    (&[("row.stage     = ENGINE_STAGE_LOGITS;", "row.stage = ENGINE_STAGE_TOKEN;")], "batch.rows"),
    (&[("row.token     = ENGINE_TOKEN_NONE;", "")], "batch.stages"),
    (
        &[(
            "(const char *)batch->slices + index * batch->slice_stride",
            "(const char *)batch->slices + index * sizeof(EngineSlice)",
        )],
        "batch.strides",
    ),
    (
        &[(
            "(char *)rows + i * row_stride, &row, row_stride < sizeof row ? row_stride : sizeof row",
            "(char *)rows + i * sizeof row, &row, sizeof row",
        )],
        "batch.strides",
    ),
    (&[("&row, row_stride < sizeof row ? row_stride : sizeof row", "&row, sizeof row")], "batch.strides"),
    // What is refused.
    (&[(" || seen[slice->sequence]++", "")], "batch.invalid"),
    (
        &[("if (slice->position != context->sequences[slice->sequence].length) {", "if (0) {")],
        "batch.invalid",
    ),
    (
        &[("if (slice->tokens[j] < 0 || slice->tokens[j] >= N_VOCAB) {", "if (slice->tokens[j] < 0) {")],
        "batch.invalid",
    ),
    (
        &[(
            "if (slice->tokens[j] < 0 || slice->tokens[j] >= N_VOCAB) {",
            "if (slice->tokens[j] >= N_VOCAB) {",
        )],
        "batch.invalid",
    ),
    (&[("slice->n_rows > slice->n_tokens || ", "")], "batch.invalid"),
    (
        &[("slice->n_tokens == 0 || ", ""), ("n_tokens == 0 || n_tokens > context", "n_tokens > context")],
        "batch.invalid",
    ),
    (&[(" || n_rows > context->max_rows", "")], "batch.invalid"),
    (
        &[(
            "         return fail(ERR_INVALID_ARGUMENT, \"a slice does not begin where its sequence ends\");",
            "         return ERR_INTERNAL;",
        )],
        "batch.invalid",
    ),
    (
        &[
            (
                "      n_tokens += slice->n_tokens;\n",
                "      n_tokens += slice->n_tokens;\n      ((EngineContext *)context)->n_free -= slice->n_tokens;\n",
            ),
            ("         context->n_free--;\n", ""),
        ],
        "batch.invalid",
    ),
    (
        &[("if ((uint64_t)slice->position + slice->n_tokens > context->context_length) {", "if (0) {")],
        "batch.length",
    ),
    (
        &[("from >= context->max_sequences || to >= context->max_sequences || from == to ||\n       ", "")],
        "batch.invalid-sequences",
    ),
    (&[(" || context->sequences[to].length != 0", "")], "batch.invalid-sequences"),
    (&[("end > context->sequences[from].length || ", "")], "batch.invalid-sequences"),
    // Tickets and rows.
    (&[("*ticket = ++context->ticket;", "*ticket = context->ticket++;")], "batch.tickets"),
    (
        &[
            (
                "   int code = check(context, batch);",
                "   context->ticket++;\n   int code = check(context, batch);",
            ),
            ("*ticket = ++context->ticket;", "*ticket = context->ticket;"),
        ],
        "batch.tickets",
    ),
    (&[("ticket == 0 || ticket != context->ticket || ", "")], "batch.tickets"),
    (
        &[
            ("static int step(", "static _Thread_local uint64_t tickets;\nstatic int step("),
            ("*ticket = ++context->ticket;", "*ticket = context->ticket = ++tickets;"),
        ],
        "batch.contexts",
    ),
    (
        &[(
            "   if (begin < one->length) {\n",
            "   if (begin < one->length) {\n      memset(context->rows, 0, N_VOCAB * sizeof(float));\n",
        )],
        "batch.rows-stay",
    ),
    (
        &[(
            "   context->n_rows = 0;\n",
            "   context->n_rows = 0;\n   context->rows = calloc((size_t)context->max_rows * N_VOCAB, sizeof *context->rows);\n",
        )],
        "batch.steady",
    ),
    (&[("   free(context->rows);\n", "")], "batch.destroy"),
    (
        &[
            (
                "static int context_create(",
                "static float shared[4096 * N_VOCAB];\n\nstatic int context_create(",
            ),
            ("calloc((size_t)context->max_rows * N_VOCAB, sizeof *context->rows);", "shared;"),
            ("   free(context->rows);\n", ""),
        ],
        "batch.contexts",
    ),
    // The cache.
    (&[("      one->length = begin;", "      one->length = 0;")], "batch.remove"),
    (&[("      one->length = begin;", "      one->length = begin + (begin > 0);")], "batch.remove"),
    (
        &[(
            "   if (begin < one->length) {\n",
            "   if (begin < one->length) {\n      memset(context->cells, 0, (size_t)context->max_sequences * context->context_length * sizeof(EngineToken));\n",
        )],
        "batch.remove",
    ),
    (&[("      context->n_free += one->length - begin;\n", "")], "batch.rows"),
    (
        &[("      context->n_free += one->length - begin;\n", "      context->n_free += one->length;\n")],
        "batch.account",
    ),
    (
        &[(
            "   memcpy(context->sequences[to].cells, context->sequences[from].cells, end * sizeof(EngineToken));\n",
            "",
        )],
        "batch.copy",
    ),
    (
        &[(
            "context->sequences[from].cells, end * sizeof(EngineToken)",
            "context->sequences[from].cells, (end - 1) * sizeof(EngineToken)",
        )],
        "batch.copy",
    ),
    (
        &[(
            "   memcpy(context->sequences[to].cells, context->sequences[from].cells, end * sizeof(EngineToken));\n",
            "   context->sequences[to].cells = context->sequences[from].cells;\n",
        )],
        "batch.copy",
    ),
    (
        &[(
            "   context->sequences[to].length = end;\n",
            "   context->sequences[to].length = context->sequences[from].length;\n",
        )],
        "batch.copy",
    ),
    (&[("   context->n_free -= end;\n", "")], "batch.account"),
    (
        &[(
            "*end   = context->sequences[sequence].length;",
            "*end = context->sequences[sequence].length + 1;",
        )],
        "batch.rows",
    ),
    (&[("   return context->n_free;", "   return context->n_cells - context->n_free;")], "batch.rows"),
    // A cancel that stays.
    (
        &[
            (
                "// tables //",
                "// tables //\n////////////\nstatic volatile int cancelled;\nstatic void cancel(EngineContext *context) {\n   (void)context;\n   cancelled = 1;\n}\n//",
            ),
            (".cache_free = cache_free};", ".cache_free = cache_free, .cancel = cancel};"),
            ("static int step(", "static volatile int cancelled;\nstatic int step("),
            (
                "   int code = check(context, batch);",
                "   if (cancelled) return ERR_CANCELLED;\n   int code = check(context, batch);",
            ),
        ],
        "batch.cancel",
    ),
];

/// The engine of this source, with the model of the template.
fn built(name: &str, source: &str) -> Subject {
    let folder = scratch(name);
    let (file, library) = (folder.join("engine.c"), folder.join("libtiny.so"));
    std::fs::write(&file, source).unwrap();
    compile(&file, &library, &[]);
    subject(library, ("tiny", "0.1.0"), template_model())
}

/// The source with these changes, or which of them is of something that does not stand there once.
fn changed(source: &str, changes: &[(&str, &str)]) -> Result<String, String> {
    changes.iter().try_fold(source.to_owned(), |wrong, (from, to)| match wrong.matches(from).count() {
        1 => Ok(wrong.replace(from, to)),
        times => Err(format!("{from:?} stands {times} times in the template")),
    })
}

/// A template, what is changed in it, the check that finds it, and the words by which its author finds the place.
type Told = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static [&'static str]);

const TOLD: &[Told] = &[
    (
        "c-batch",
        &[(
            "   memcpy(context->sequences[to].cells, context->sequences[from].cells, end * sizeof(EngineToken));\n",
            "",
        )],
        "batch.copy",
        &["Let seq_copy give sequence", "the last one too"],
    ),
    (
        "c-batch",
        &[(
            "context->sequences[from].cells, end * sizeof(EngineToken)",
            "context->sequences[from].cells, (end - 1) * sizeof(EngineToken)",
        )],
        "batch.copy",
        &["Let seq_copy give sequence", "the last one too"],
    ),
    (
        "c-batch",
        &[(
            "   context->sequences[to].length = end;\n",
            "   context->sequences[to].length = context->sequences[from].length;\n",
        )],
        "batch.copy",
        &["Let seq_copy end `to` at `end`"],
    ),
    (
        "c-batch",
        &[(
            "   memcpy(context->sequences[to].cells, context->sequences[from].cells, end * sizeof(EngineToken));\n",
            "   context->sequences[to].cells = context->sequences[from].cells;\n",
        )],
        "batch.copy",
        &["Count who holds each cell", "after the copy"],
    ),
    (
        "c-batch",
        &[(
            "   context->sequences[to].length = end;\n",
            "   context->sequences[to].length = end;\n   context->sequences[from].cells[0] = 1;\n",
        )],
        "batch.copy",
        &["Let seq_copy leave sequence"],
    ),
    (
        "c-batch",
        &[("   context->n_free -= end;\n", "")],
        "batch.account",
        &["Take what a copy puts into the cache from cache_free"],
    ),
    (
        "c-batch",
        &[("      context->n_free += one->length - begin;\n", "      context->n_free += one->length;\n")],
        "batch.account",
        &["Give what seq_remove takes out of the cache"],
    ),
    (
        "c-batch",
        &[(
            "for (size_t i = 0; i < text_len; n++) {",
            "for (size_t i = 0; i < text_len && text[i] != 0; n++) {",
        )],
        "tokenizer.round-trip",
        &["part at byte 4", "Look at tokenize"],
    ),
    (
        "c-batch",
        &[(
            "char        byte  = (char)tokens[i];",
            "char        byte  = tokens[i] == '\\t' ? ' ' : (char)tokens[i];",
        )],
        "tokenizer.round-trip",
        &["Let detokenize write of each token what vocab has for it"],
    ),
    (
        "c-tier0",
        &[("text + at++;", "at++ < text_len ? prompt : text;")],
        "tier0.results",
        &["when the prompt's memory was overwritten", "must not point into the prompt"],
    ),
    (
        "c-tier0",
        &[
            (
                "      results[n].text     = text + at++;",
                "      static char letters[MOST_TOKENS];\n      letters[n] = text[at++];\n      results[n].text = letters + n;",
            ),
            (
                "   *out              = results;\n",
                "   *out = malloc(sizeof results);\n   memcpy(*out, results, sizeof results);\n   free(*out);\n",
            ),
        ],
        "tier0.results",
        &["Keep the array of results", "not freed before"],
    ),
    (
        "c-tier0",
        &[(
            "   size_t   at = place_after(prompt, strlen(prompt));\n",
            "   static const char *before;\n   size_t at = place_after(prompt, strlen(before != NULL ? before : prompt));\n   before = prompt;\n",
        )],
        "tier0.results",
        &["signal", "who has kept its address dies of reading it"],
    ),
];

/// What is said of each is of the mistake that was made, and not of another that the same check finds.
#[test]
fn what_is_said_leads_to_the_place() {
    let numbered: Vec<_> = TOLD.iter().enumerate().collect();
    let complaints = each(&numbered, |(index, (name, changes, check, words))| {
        let wrong = match changed(&template(name), changes) {
            Ok(wrong) => wrong,
            Err(why) => return Some(why),
        };
        let outcomes = checked(&built(&format!("told-{index}"), &wrong), &[check], PATIENCE);
        let Status::Failed(finding) = &outcomes[0].status else {
            return Some(format!("{:?}: {check} says {:?}", changes[0].1, outcomes[0].status));
        };
        let mend = finding.mend.as_deref().unwrap_or(outcomes[0].check.mend);
        let said = format!("{}\n{mend}\n{}", finding.seen, finding.script.join("\n"));
        let lacks: Vec<_> = words.iter().filter(|it| !said.contains(**it)).collect();
        (!lacks.is_empty()).then(|| format!("{:?}: {lacks:?} is not in\n{said}", changes[0].1))
    });
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), TOLD.len(), complaints.join("\n"));
}

#[test]
fn every_mistake_is_found_by_the_check_that_it_violates() {
    let source = template("c-batch");
    let numbered: Vec<_> = MISTAKES.iter().enumerate().collect();
    let complaints = each(&numbered, |(index, (changes, check))| {
        let wrong = match changed(&source, changes) {
            Ok(wrong) => wrong,
            Err(why) => return Some(why),
        };
        let outcomes = checked(&built(&format!("mistake-{index}"), &wrong), &[check], PATIENCE);
        match &outcomes[0].status {
            Status::Failed(_) => None,
            other => Some(format!("{:?}: {check} says {other:?}", changes[0].1)),
        }
    });
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), MISTAKES.len(), complaints.join("\n"));
}
