//! `engine.tokenizer/1`: the vocabulary, copied once, and the model's own tokenizer behind the port
//! [`Tokenizer`].

use std::ffi::{CString, c_char};
use std::sync::Arc;

use llm_node_abi::{
    ENGINE_ATTR_EOG, ENGINE_TOKEN_NONE, ENGINE_TOKENIZE_ADD_SPECIAL, ENGINE_TOKENIZE_PARSE_SPECIAL,
    ERR_BUFFER_TOO_SMALL, ERR_NOT_FOUND, EngineStr, EngineToken, EngineTokenizer, EngineVocab, Growing,
};
use llm_node_core::engine::{EngineFault, Token, Tokenizer, Vocabulary};

use crate::callbacks::checked;
use crate::error::EngineError;
use crate::model::{Model, c_name};
use crate::readable::{self, TEXT_LIMIT};

/// The tokenizer of a model, which it keeps loaded.
#[derive(Debug)]
pub struct ModelTokenizer {
    model: Arc<Model>,
    table: EngineTokenizer,
    vocabulary: Vocabulary,
    chat_template: Option<String>,
}

impl ModelTokenizer {
    /// Copies the vocabulary and the default chat template.
    pub fn new(model: &Arc<Model>) -> Result<Self, EngineError> {
        let table =
            model.engine().tables().tokenizer.ok_or_else(|| EngineError::unsupported("tokenizer.vocab"))?;
        let vocabulary = vocabulary(model, &table)?;
        let mut tokenizer = Self { model: Arc::clone(model), table, vocabulary, chat_template: None };
        tokenizer.chat_template = tokenizer.template(None)?;
        Ok(tokenizer)
    }

    /// The model's chat template called `name`, if it has one.
    pub fn named_chat_template(&self, name: &str) -> Result<Option<String>, EngineError> {
        self.template(Some(&c_name("tokenizer.chat_template", name)?))
    }

    fn template(&self, name: Option<&CString>) -> Result<Option<String>, EngineError> {
        const CALL: &str = "tokenizer.chat_template";
        let Some(function) = self.table.chat_template else { return Ok(None) };
        let mut source = EngineStr { data: std::ptr::null(), len: 0 };
        let result = checked(CALL, || {
            // SAFETY: [any]; name and source outlive the call.
            unsafe { function(self.model.as_ptr(), crate::parameters::optional(name), &raw mut source) }
        });
        match result {
            Ok(()) => {}
            Err(EngineError::Failed { code: ERR_NOT_FOUND, .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: valid until the model is unloaded, the header says.
        let bytes = unsafe { readable::bytes(source, TEXT_LIMIT) }
            .map_err(|problem| EngineError::misbehaved(CALL, format!("the template {problem}")))?;
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| EngineError::misbehaved(CALL, "the template is not UTF-8"))
    }
}

impl Tokenizer for ModelTokenizer {
    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, EngineFault> {
        const CALL: &str = "tokenizer.tokenize";
        let function = self.table.tokenize.ok_or_else(|| EngineError::unsupported(CALL))?;
        let flags = if add_special { ENGINE_TOKENIZE_ADD_SPECIAL } else { 0 }
            | if parse_special { ENGINE_TOKENIZE_PARSE_SPECIAL } else { 0 };
        // Few tokens are shorter than three bytes; a text of which that is not true costs a second call.
        let guess = text.len() / 3 + 16;
        let most = text.len().saturating_mul(8) + 1024;
        let tokens = filled(CALL, guess, most, |buffer: *mut EngineToken, capacity, count| {
            // SAFETY: [any]; the engine writes at most `capacity` tokens, for which there is room.
            unsafe {
                function(
                    self.model.as_ptr(),
                    text.as_ptr().cast(),
                    text.len(),
                    flags,
                    buffer,
                    capacity,
                    count,
                )
            }
        })?;
        self.model.check_tokens(CALL, &tokens)?;
        Ok(tokens)
    }

    fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, EngineFault> {
        const CALL: &str = "tokenizer.detokenize";
        let function = self.table.detokenize.ok_or_else(|| EngineError::unsupported(CALL))?;
        let guess = tokens.len() * 6 + 16;
        Ok(filled(CALL, guess, TEXT_LIMIT, |buffer: *mut u8, capacity, count| {
            // SAFETY: [any]; the engine writes at most `capacity` bytes, for which there is room.
            unsafe {
                function(
                    self.model.as_ptr(),
                    tokens.as_ptr(),
                    tokens.len(),
                    buffer.cast::<c_char>(),
                    capacity,
                    count,
                )
            }
        })?)
    }

    fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

/// Calls with a guessed capacity, and once more if it was too small.
fn filled<T: Copy + Default>(
    call: &'static str,
    guess: usize,
    most: usize,
    function: impl Fn(*mut T, usize, *mut usize) -> llm_node_abi::Code,
) -> Result<Vec<T>, EngineError> {
    let mut capacity = guess;
    for _ in 0..2 {
        let mut buffer = vec![T::default(); capacity];
        let mut count = usize::MAX;
        match checked(call, || function(buffer.as_mut_ptr(), capacity, &raw mut count)) {
            Ok(()) if count <= capacity => {
                buffer.truncate(count);
                return Ok(buffer);
            }
            Ok(()) => {
                return Err(EngineError::misbehaved(
                    call,
                    format!("it put {count} into room for {capacity}"),
                ));
            }
            Err(EngineError::Failed { code: ERR_BUFFER_TOO_SMALL, .. })
                if count > capacity && count <= most =>
            {
                capacity = count;
            }
            Err(EngineError::Failed { code: ERR_BUFFER_TOO_SMALL, .. }) => {
                return Err(EngineError::misbehaved(
                    call,
                    format!("room for {capacity} is too small, but {count} is what it needs"),
                ));
            }
            Err(error) => return Err(error),
        }
    }
    Err(EngineError::misbehaved(call, "the room that it asked for is too small"))
}

fn vocabulary(model: &Model, table: &EngineTokenizer) -> Result<Vocabulary, EngineError> {
    const CALL: &str = "tokenizer.vocab";
    let function = table.vocab.ok_or_else(|| EngineError::unsupported(CALL))?;
    let mut vocab = EngineVocab {
        struct_size: EngineVocab::SIZE,
        n_tokens: 0,
        bytes: std::ptr::null(),
        offsets: std::ptr::null(),
        attributes: std::ptr::null(),
        bos: ENGINE_TOKEN_NONE,
        eos: ENGINE_TOKEN_NONE,
        eot: ENGINE_TOKEN_NONE,
        pad: ENGINE_TOKEN_NONE,
        sep: ENGINE_TOKEN_NONE,
        mask: ENGINE_TOKEN_NONE,
        adds_bos: 0,
        adds_eos: 0,
    };
    // SAFETY: [any]; `vocab` is a local of the size that it says.
    checked(CALL, || unsafe { function(model.as_ptr(), &raw mut vocab) })?;

    let n_tokens = model.info().n_vocab;
    if vocab.n_tokens != n_tokens {
        return Err(EngineError::misbehaved(
            CALL,
            format!("{} tokens, but rows of logits are {n_tokens} wide", vocab.n_tokens),
        ));
    }
    let n_tokens = n_tokens as usize;
    let unusable = |what: &'static str| {
        move |problem: readable::Problem| EngineError::misbehaved(CALL, format!("{what} {problem}"))
    };
    // SAFETY: the views are valid until the model is unloaded, and have these lengths, the header says.
    let offsets = unsafe { readable::values(vocab.offsets, n_tokens + 1) }.map_err(unusable("offsets"))?;
    if offsets.windows(2).any(|pair| pair[0] > pair[1]) {
        return Err(EngineError::misbehaved(CALL, "offsets do not rise"));
    }
    let end = offsets.last().map_or(0, |end| *end as usize);
    // SAFETY: as above.
    let bytes = unsafe { readable::values(vocab.bytes, end) }.map_err(unusable("bytes"))?;
    // SAFETY: as above.
    let mut attributes =
        unsafe { readable::values(vocab.attributes, n_tokens) }.map_err(unusable("attributes"))?;
    let special = |what: &str, token: EngineToken| match token {
        ENGINE_TOKEN_NONE => Ok(None),
        token if usize::try_from(token).is_ok_and(|id| id < n_tokens) => Ok(Some(token)),
        token => Err(EngineError::misbehaved(CALL, format!("{what} is token {token} of {n_tokens}"))),
    };
    let (eos, eot) = (special("eos", vocab.eos)?, special("eot", vocab.eot)?);
    for (what, token) in [("eos", eos), ("eot", eot)] {
        let bits = token.and_then(|token| attributes.get_mut(usize::try_from(token).ok()?));
        if let Some(bits) = bits.filter(|bits| **bits & ENGINE_ATTR_EOG == 0) {
            // No answer would end by it.
            log::warn!("the engine does not mark {what} as an end of generation; it is taken for one");
            *bits |= ENGINE_ATTR_EOG;
        }
    }
    Ok(Vocabulary {
        bos: special("bos", vocab.bos)?,
        eos,
        eot,
        sep: special("sep", vocab.sep)?,
        adds_bos: vocab.adds_bos != 0,
        bytes,
        offsets,
        attributes,
        ..Vocabulary::default()
    })
}
