//! `engine.tokenizer/1`: vocabulary, tokenise, detokenise, chat template.

use std::ffi::c_char;
use std::sync::PoisonError;

use llm_node_abi as abi;

use crate::instance::{Exported, ModelHandle};
use crate::models::view;
use crate::{Failure, Models, Token, guard, read};

/// Bits of [`Vocabulary::attributes`].
pub mod attribute {
    use llm_node_abi as abi;

    /// Special: never part of the answer's text.
    pub const CONTROL: u32 = abi::ENGINE_ATTR_CONTROL;
    /// Ends generation.
    pub const END_OF_GENERATION: u32 = abi::ENGINE_ATTR_EOG;
    /// One raw byte.
    pub const BYTE: u32 = abi::ENGINE_ATTR_BYTE;
    /// Must not be generated.
    pub const UNUSED: u32 = abi::ENGINE_ATTR_UNUSED;
}

/// A whole vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Token `i` is `bytes[offsets[i]..offsets[i + 1]]`: what it adds to the text in the middle of an
    /// answer; of a control token, its name.
    pub bytes: Vec<u8>,
    /// One more than there are tokens, rising.
    pub offsets: Vec<u32>,
    /// Per token, bits of [`attribute`].
    pub attributes: Vec<u32>,
    /// Beginning of sequence.
    pub bos: Option<Token>,
    /// End of sequence.
    pub eos: Option<Token>,
    /// End of turn.
    pub eot: Option<Token>,
    /// Padding.
    pub pad: Option<Token>,
    /// Separator.
    pub sep: Option<Token>,
    /// Mask.
    pub mask: Option<Token>,
    /// Does tokenising with specials put BOS first?
    pub adds_bos: bool,
    /// Does it put EOS last?
    pub adds_eos: bool,
}

impl Vocabulary {
    /// Appends a token.
    pub fn push(&mut self, text: &[u8], attributes: u32) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.bytes.extend_from_slice(text);
        self.offsets.push(self.bytes.len() as u32);
        self.attributes.push(attributes);
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.attributes.len()
    }

    /// Is there no token at all?
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty()
    }

    /// The bytes of a token; `None` for a number outside the vocabulary.
    pub fn token_bytes(&self, token: Token) -> Option<&[u8]> {
        let index = usize::try_from(token).ok()?;
        let begin = *self.offsets.get(index)? as usize;
        let end = *self.offsets.get(index + 1)? as usize;
        self.bytes.get(begin..end)
    }

    fn check(&self) -> Result<(), Failure> {
        let fits = self.offsets.len() == self.len() + 1
            && self.offsets.first() == Some(&0)
            && self.offsets.is_sorted()
            && self.offsets.last().is_some_and(|end| *end as usize == self.bytes.len());
        if fits { Ok(()) } else { Err(Failure::internal("the engine's vocabulary contradicts itself")) }
    }
}

/// `engine.tokenizer/1`. All of it is called from any thread, any number at once.
pub trait Tokenizer: Models {
    /// The whole vocabulary; asked once per model.
    fn vocabulary(model: &Self::Model) -> Result<Vocabulary, Failure>;

    /// Text to tokens. `add_special` adds BOS and EOS if the model wants them; `parse_special` reads
    /// `<|eot|>` in the text as that token instead of its letters.
    fn tokenize(
        model: &Self::Model,
        text: &[u8],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, Failure>;

    /// Tokens to the bytes they stand for. As it is, the bytes of the vocabulary one after the other.
    fn detokenize(
        model: &Self::Model,
        vocabulary: &Vocabulary,
        tokens: &[Token],
    ) -> Result<Vec<u8>, Failure> {
        let _ = model;
        let mut text = Vec::new();
        for &token in tokens {
            text.extend_from_slice(
                vocabulary
                    .token_bytes(token)
                    .ok_or_else(|| Failure::invalid(format!("token {token} is not in the vocabulary")))?,
            );
        }
        Ok(text)
    }

    /// The source of the chat template called `name`; `None`: the default one. Asked once per name.
    fn chat_template(model: &Self::Model, name: Option<&str>) -> Option<String> {
        let _ = (model, name);
        None
    }
}

/// The table of an engine's functions.
pub const fn table<E: Exported + Tokenizer>() -> abi::EngineTokenizer {
    abi::EngineTokenizer {
        struct_size: size_of::<abi::EngineTokenizer>() as u32,
        vocab: Some(vocab::<E>),
        tokenize: Some(tokenize::<E>),
        detokenize: Some(detokenize::<E>),
        chat_template: Some(chat_template::<E>),
    }
}

fn vocabulary<E: Exported + Tokenizer>(handle: &ModelHandle<E>) -> Result<&Vocabulary, Failure> {
    handle
        .vocabulary
        .get_or_init(|| {
            let vocabulary = E::vocabulary(&handle.model)?;
            vocabulary.check()?;
            Ok(vocabulary)
        })
        .as_ref()
        .map_err(Clone::clone)
}

unsafe extern "C" fn vocab<E: Exported + Tokenizer>(
    model: *const abi::EngineModel,
    vocab: *mut abi::EngineVocab,
) -> abi::Code {
    guard::code("vocab", || {
        // SAFETY: the host passes a handle of ours and a struct of its own.
        unsafe {
            let found = vocabulary::<E>(ModelHandle::<E>::from_raw(model)?)?;
            let or_none = |token: Option<Token>| token.unwrap_or(abi::ENGINE_TOKEN_NONE);
            let value = abi::EngineVocab {
                struct_size: 0,
                n_tokens: found.len() as u32,
                bytes: found.bytes.as_ptr(),
                offsets: found.offsets.as_ptr(),
                attributes: found.attributes.as_ptr(),
                bos: or_none(found.bos),
                eos: or_none(found.eos),
                eot: or_none(found.eot),
                pad: or_none(found.pad),
                sep: or_none(found.sep),
                mask: or_none(found.mask),
                adds_bos: u32::from(found.adds_bos),
                adds_eos: u32::from(found.adds_eos),
            };
            read::fill(vocab, &value, "vocab")
        }
    })
}

/// Copies into the host's buffer, and says how much there is in any case.
///
/// # Safety
///
/// `target` is valid for writes of `capacity` elements, `count` of one.
unsafe fn copy_out<T: Copy>(
    found: &[T],
    target: *mut T,
    capacity: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    if count.is_null() || (target.is_null() && capacity > 0) {
        return Err(Failure::invalid("the buffer or count is NULL"));
    }
    let fitting = found.len().min(capacity);
    // SAFETY: passed on to the caller; NULL only with a capacity of 0.
    unsafe {
        if fitting > 0 {
            std::ptr::copy_nonoverlapping(found.as_ptr(), target, fitting);
        }
        count.write(found.len());
    }
    if fitting < found.len() {
        return Err(Failure::new(
            abi::ERR_BUFFER_TOO_SMALL,
            format!("there are {} elements, and room for {capacity}", found.len()),
        ));
    }
    Ok(())
}

unsafe extern "C" fn tokenize<E: Exported + Tokenizer>(
    model: *const abi::EngineModel,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    tokens: *mut Token,
    capacity: usize,
    count: *mut usize,
) -> abi::Code {
    guard::code("tokenize", || {
        // SAFETY: the host passes a handle of ours and buffers of its own.
        unsafe {
            let handle = ModelHandle::<E>::from_raw(model)?;
            let text = read::slice(text.cast::<u8>(), text_len, "text")?;
            let found = E::tokenize(
                &handle.model,
                text,
                flags & abi::ENGINE_TOKENIZE_ADD_SPECIAL != 0,
                flags & abi::ENGINE_TOKENIZE_PARSE_SPECIAL != 0,
            )?;
            copy_out(&found, tokens, capacity, count)
        }
    })
}

unsafe extern "C" fn detokenize<E: Exported + Tokenizer>(
    model: *const abi::EngineModel,
    tokens: *const Token,
    n_tokens: usize,
    text: *mut c_char,
    capacity: usize,
    count: *mut usize,
) -> abi::Code {
    guard::code("detokenize", || {
        // SAFETY: the host passes a handle of ours and buffers of its own.
        unsafe {
            let handle = ModelHandle::<E>::from_raw(model)?;
            let tokens = read::slice(tokens, n_tokens, "tokens")?;
            let found = E::detokenize(&handle.model, vocabulary::<E>(handle)?, tokens)?;
            copy_out(&found, text.cast::<u8>(), capacity, count)
        }
    })
}

unsafe extern "C" fn chat_template<E: Exported + Tokenizer>(
    model: *const abi::EngineModel,
    name: *const c_char,
    source: *mut abi::EngineStr,
) -> abi::Code {
    guard::code("chat_template", || {
        // SAFETY: the host passes a handle of ours and a terminated name or NULL.
        let (handle, name) = unsafe { (ModelHandle::<E>::from_raw(model)?, read::text(name)) };
        if source.is_null() {
            return Err(Failure::invalid("source is NULL"));
        }
        let mut templates = handle.templates.lock().unwrap_or_else(PoisonError::into_inner);
        let found = templates.entry(name.clone()).or_insert_with(|| {
            E::chat_template(&handle.model, name.as_deref()).map(|text| text.into_bytes().into_boxed_slice())
        });
        let Some(found) = found else {
            return Err(Failure::not_found(match name {
                None => "the model has no chat template".to_owned(),
                Some(name) => format!("the model has no chat template called {name}"),
            }));
        };
        // SAFETY: checked above. The text stays in the handle, whose entries are never taken out.
        unsafe { source.write(view(found)) };
        Ok(())
    })
}
