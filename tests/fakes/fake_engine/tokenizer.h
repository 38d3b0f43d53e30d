// engine.tokenizer/1: a token is a byte. A part of fake_engine.c, which includes it.

static const char special_names[] = "<s></s>";
static uint8_t    vocab_bytes[256 + 7];
static uint32_t   vocab_offsets[N_VOCAB + 1];
static uint32_t   vocab_attributes[N_VOCAB];

static MAYBE_UNUSED int tokenizer_vocab(const EngineModel *model, EngineVocab *vocab) {
   (void)model;
   // Written anew with the same values by every call: harmless from several threads.
   for (uint32_t i = 0; i < 256; i++) {
      vocab_bytes[i]      = (uint8_t)i;
      vocab_offsets[i]    = i;
      vocab_attributes[i] = ENGINE_ATTR_BYTE;
   }
   memcpy(vocab_bytes + 256, special_names, 7);
   vocab_offsets[TOKEN_BOS]     = 256;
   vocab_offsets[TOKEN_EOS]     = 259;
   vocab_offsets[N_VOCAB]       = 263;
   vocab_attributes[TOKEN_BOS]  = ENGINE_ATTR_CONTROL;
   vocab_attributes[TOKEN_EOS]  = ENGINE_ATTR_CONTROL | ENGINE_ATTR_EOG;
#ifdef FAKE_EOS_IS_NO_END
   vocab_attributes[TOKEN_EOS] = ENGINE_ATTR_CONTROL;
#endif
   EngineVocab mine = {0};
   mine.struct_size = vocab->struct_size;
   mine.n_tokens    = N_VOCAB;
   mine.bytes       = vocab_bytes;
   mine.offsets     = vocab_offsets;
   mine.attributes  = vocab_attributes;
   mine.bos         = TOKEN_BOS;
   mine.eos         = TOKEN_EOS;
   mine.eot = mine.pad = mine.sep = mine.mask = ENGINE_TOKEN_NONE;
   mine.adds_bos    = 1;
#ifdef FAKE_OFFSETS_FALL
   vocab_offsets[10] = 200;
#endif
#ifdef FAKE_VOCAB_TOO_SHORT
   mine.n_tokens = 256;
#endif
#ifdef FAKE_SPECIAL_OUT_OF_RANGE
   mine.eos = N_VOCAB;
#endif
   memcpy(vocab, &mine, vocab->struct_size < sizeof mine ? vocab->struct_size : sizeof mine);
   return ERR_OK;
}

static MAYBE_UNUSED int tokenizer_tokenize(const EngineModel *model, const char *text,
                                           size_t text_len, uint32_t flags, EngineToken *tokens,
                                           size_t capacity, size_t *count) {
   (void)model;
   size_t n = 0;
   sleep_us((uint64_t)text_len * FAKE_TOKENIZE_NS / 1000);
   if (text_len > 0 && text[0] == '!') {
      perhaps_hang(TOKENIZE);
   }
#ifdef FAKE_REFUSE_TEXT
   if (memchr(text, '?', text_len) != NULL) {
      return fail(ERR_INVALID_ARGUMENT, "the toy takes no questions");
   }
#endif
   if ((flags & ENGINE_TOKENIZE_ADD_SPECIAL) != 0) {
      if (n < capacity) {
         tokens[n] = TOKEN_BOS;
      }
      n++;
   }
   for (size_t i = 0; i < text_len;) {
      EngineToken token  = (unsigned char)text[i];
      size_t      length = 1;
      if ((flags & ENGINE_TOKENIZE_PARSE_SPECIAL) != 0) {
         if (text_len - i >= 3 && memcmp(text + i, "<s>", 3) == 0) {
            token  = TOKEN_BOS;
            length = 3;
         } else if (text_len - i >= 4 && memcmp(text + i, "</s>", 4) == 0) {
            token  = TOKEN_EOS;
            length = 4;
         }
      }
      if (n < capacity) {
         tokens[n] = token;
      }
      n++;
      i += length;
   }
   *count = n;
#ifdef FAKE_TOKENS_OUT_OF_RANGE
   if (capacity > 0) {
      tokens[0] = N_VOCAB;
   }
#endif
#ifdef FAKE_COUNT_TOO_LARGE
   *count = capacity + 1;
   return ERR_OK;
#else
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
#endif
}

static size_t spelled(EngineToken token, const char **text) {
   if (token == TOKEN_BOS) {
      *text = special_names;
      return 3;
   }
   if (token == TOKEN_EOS) {
      *text = special_names + 3;
      return 4;
   }
   static const char bytes[] = {
#define FOUR(n) (char)(n), (char)(n + 1), (char)(n + 2), (char)(n + 3)
#define SIXTEEN(n) FOUR(n), FOUR(n + 4), FOUR(n + 8), FOUR(n + 12)
#define SIXTY_FOUR(n) SIXTEEN(n), SIXTEEN(n + 16), SIXTEEN(n + 32), SIXTEEN(n + 48)
      SIXTY_FOUR(0), SIXTY_FOUR(64), SIXTY_FOUR(128), SIXTY_FOUR(192)};
   *text = bytes + (token & 255);
   return 1;
}

static MAYBE_UNUSED int tokenizer_detokenize(const EngineModel *model, const EngineToken *tokens,
                                             size_t n_tokens, char *text, size_t capacity,
                                             size_t *count) {
   (void)model;
   size_t n = 0;
   for (size_t i = 0; i < n_tokens; i++) {
      if (tokens[i] < 0 || tokens[i] >= N_VOCAB) {
         return fail(ERR_INVALID_ARGUMENT, "a token is outside the toy's vocabulary");
      }
      const char *bytes;
      size_t      length = spelled(tokens[i], &bytes);
      for (size_t j = 0; j < length; j++, n++) {
         if (n < capacity) {
            text[n] = bytes[j];
         }
      }
   }
   *count = n;
   return n > capacity ? ERR_BUFFER_TOO_SMALL : ERR_OK;
}

static MAYBE_UNUSED int tokenizer_chat_template(const EngineModel *model, const char *name,
                                                EngineStr *source) {
   (void)model;
#ifdef FAKE_NO_CHAT_TEMPLATE
   (void)name, (void)source;
   return ERR_NOT_FOUND;
#else
   static const char text[] =
      "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
      "{% if add_generation_prompt %}[assistant] {% endif %}";
   if (name != NULL) {
      return ERR_NOT_FOUND;
   }
   source->data = text;
   source->len  = sizeof text - 1;
   return ERR_OK;
#endif
}
