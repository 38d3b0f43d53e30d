//! @ID@: an engine that computes what the node schedules. It offers models, memory, tokenizer and batch;
//! continuous batching, sampling, streaming and chat are the node's work.
//!
//! Its model is a text of some lines: a token is likely where it followed the same few tokens in that text. A
//! token is a byte, and END the end of a line. What belongs to this model is marked YOUR WORK: put your own in
//! its place, and ask `llm-node engine check .` after each change.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use llm_node_sdk::{
    Batch, Batching, Config, ContextInfo, ContextParams, Device, Engine, Failure, Masks, Memory, MemoryUse,
    ModelInfo, ModelParams, Models, Row, Rows, Token, Tokenizer, Vocabulary, abi, attribute, export_engine,
};

const END: Token = 256;
const N_VOCAB: usize = 257;
const N_CONTEXT: u32 = 1024;
const LOOK_BACK: usize = 16;
const MOST_SEQUENCES: u32 = 256;

struct Tiny;

impl Engine for Tiny {
    const ID: &'static CStr = c"@ID@"; // as in the manifest
    const VERSION: &'static CStr = c"0.1.0";

    fn init(_config: &Config) -> Result<Self, Failure> {
        Ok(Self)
    }
}

struct Model {
    /// YOUR WORK: the weights. Here: the text, as tokens.
    text: Vec<Token>,
    /// Of its contexts.
    cache_bytes: AtomicU64,
}

fn read_text(path: &Path) -> Result<Vec<Token>, Failure> {
    // YOUR WORK: read the model, and believe nothing that stands in it before you have checked it.
    let text = fs::read(path).map_err(|error| Failure::not_found(error.to_string()))?;
    if text.is_empty() {
        return Err(Failure::invalid("the model file is empty"));
    }
    let token = |byte: &u8| if *byte == b'\n' { END } else { Token::from(*byte) };
    Ok(text.iter().take(1 << 16).map(token).collect())
}

impl Models for Tiny {
    type Model = Model;

    fn load(&self, params: &ModelParams, progress: &mut dyn FnMut(f32) -> bool) -> Result<Model, Failure> {
        let text = read_text(&params.path)?;
        if !progress(1.0) {
            return Err(Failure::new(abi::ERR_CANCELLED, "the load was cancelled"));
        }
        Ok(Model { text, cache_bytes: AtomicU64::new(0) })
    }

    fn info(model: &Model) -> ModelInfo {
        ModelInfo {
            generates: true,
            architecture: CString::from(c"lines"),
            format: CString::from(c"@ID@"),
            n_parameters: model.text.len() as u64,
            size_bytes: model.text.len() as u64,
            n_vocab: N_VOCAB as u32,
            n_context: N_CONTEXT,
            ..ModelInfo::default()
        }
    }
}

fn uses(text: &[Token], cache: u64) -> Vec<MemoryUse> {
    vec![MemoryUse {
        device: None, // the host's memory
        weights: size_of_val(text) as u64,
        cache,
        cache_per_token: size_of::<Token>() as u64,
        ..MemoryUse::default()
    }]
}

impl Memory for Tiny {
    fn devices(&self) -> Vec<Device> {
        Vec::new() // what it takes is the host's memory
    }

    fn device_memory(&self, _index: u32) -> (u64, u64) {
        (0, 0)
    }

    fn estimate(&self, model: &ModelParams, context: Option<&ContextParams>) -> Result<Vec<MemoryUse>, Failure> {
        let cells = context.map_or(0, cells);
        Ok(uses(&read_text(&model.path)?, cells * size_of::<Token>() as u64))
    }

    fn usage(model: &Model) -> Result<Vec<MemoryUse>, Failure> {
        Ok(uses(&model.text, model.cache_bytes.load(Ordering::Relaxed)))
    }
}

const END_NAME: &[u8] = b"</s>";

impl Tokenizer for Tiny {
    // YOUR WORK: the vocabulary. Here: every byte, and "</s>" for END.
    fn vocabulary(_model: &Model) -> Result<Vocabulary, Failure> {
        let mut vocabulary = Vocabulary { eos: Some(END), ..Vocabulary::default() };
        for byte in 0..=u8::MAX {
            vocabulary.push(&[byte], attribute::BYTE);
        }
        vocabulary.push(END_NAME, attribute::CONTROL | attribute::END_OF_GENERATION);
        Ok(vocabulary)
    }

    fn tokenize(_: &Model, text: &[u8], _add_special: bool, parse_special: bool) -> Result<Vec<Token>, Failure> {
        let (mut tokens, mut left) = (Vec::with_capacity(text.len()), text);
        while let [first, rest @ ..] = left {
            (left, tokens) = match left.strip_prefix(END_NAME).filter(|_| parse_special) {
                Some(rest) => (rest, pushed(tokens, END)),
                None => (rest, pushed(tokens, Token::from(*first))),
            };
        }
        Ok(tokens)
    }

    fn chat_template(_model: &Model, name: Option<&str>) -> Option<String> {
        let source = "{% for message in messages %}{{ message.content }} {% endfor %}";
        name.is_none().then(|| source.to_owned())
    }
}

fn pushed(mut tokens: Vec<Token>, token: Token) -> Vec<Token> {
    tokens.push(token);
    tokens
}

/// YOUR WORK: the cache. Here a sequence is its tokens.
struct Context {
    model: Arc<Model>,
    info: ContextInfo,
    sequences: Vec<Vec<Token>>,
    /// Of the last step.
    rows: Vec<Vec<f32>>,
}

impl Drop for Context {
    fn drop(&mut self) {
        let bytes = self.info.cache_tokens * size_of::<Token>() as u64;
        self.model.cache_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn length(params: &ContextParams) -> u32 {
    if params.context_length == 0 { N_CONTEXT } else { params.context_length }
}

fn cells(params: &ContextParams) -> u64 {
    params.cache_tokens.max(u64::from(params.max_sequences) * u64::from(length(params)))
}

fn require(condition: bool, why: &str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::invalid(why)) }
}

impl Context {
    fn sequence(&mut self, number: u32) -> Result<&mut Vec<Token>, Failure> {
        let one = self.sequences.get_mut(number as usize);
        one.ok_or_else(|| Failure::invalid("there is no such sequence"))
    }

    /// Everything is looked at before anything is changed. The SDK has looked whether slices are whole.
    fn check(&mut self, batch: &Batch<'_>) -> Result<(), Failure> {
        let (mut seen, mut n_tokens, mut n_rows) = (vec![false; self.sequences.len()], 0, 0);
        for slice in batch.iter() {
            let end = self.sequence(slice.sequence)?.len();
            require(slice.position as usize == end, "a slice does not begin where its sequence ends")?;
            require(!seen[slice.sequence as usize], "a sequence is there twice")?;
            seen[slice.sequence as usize] = true;
            let fits = end + slice.tokens.len() <= self.info.context_length as usize;
            require(fits, "a sequence grows beyond the context")?;
            let known = slice.tokens.iter().all(|token| (0..N_VOCAB as Token).contains(token));
            require(known, "a token is outside the vocabulary")?;
            n_tokens += slice.tokens.len();
            n_rows += slice.rows as usize;
        }
        let fits = n_tokens <= self.info.max_batch_tokens as usize && n_rows <= self.info.max_rows as usize;
        require(fits, "there are more tokens or rows than one step takes")
    }
}

/// YOUR WORK: the forward pass. Here: how often each token followed the last ones of the sequence in the text,
/// the more of them the better; and what was said is a little likelier again, the later it was said.
fn compute(model: &Model, sequence: &[Token]) -> Vec<f32> {
    let mut weights = [1e-4_f64; N_VOCAB];
    for (at, token) in model.text.iter().enumerate() {
        let pairs = model.text[..at].iter().rev().zip(sequence.iter().rev()).take(LOOK_BACK);
        let common = pairs.take_while(|(one, other)| one == other).count();
        weights[*token as usize] += 1e-2 * 20_f64.powi(common as i32);
    }
    let mut again = 1e-3;
    for token in sequence.iter().rev() {
        weights[*token as usize] += again;
        again *= 0.9;
    }
    weights.iter().map(|weight| weight.ln() as f32).collect()
}

impl Batching for Tiny {
    type Context = Context;

    fn create(&self, model: &Arc<Model>, params: &ContextParams) -> Result<(Context, ContextInfo), Failure> {
        let sequences = params.max_sequences;
        require((1..=MOST_SEQUENCES).contains(&sequences), "this engine takes 1 to 256 sequences at once")?;
        require(length(params) <= N_CONTEXT, "the model knows no sequences longer than 1024 tokens")?;
        let or = |asked: u32, otherwise: u32| if asked == 0 { otherwise } else { asked };
        let info = ContextInfo {
            max_sequences: sequences,
            context_length: length(params),
            max_batch_tokens: or(params.max_batch_tokens, 512),
            max_rows: or(params.max_rows, sequences),
            max_rollback: u32::MAX,
            cache_tokens: cells(params),
            ..ContextInfo::default()
        };
        model.cache_bytes.fetch_add(info.cache_tokens * size_of::<Token>() as u64, Ordering::Relaxed);
        let context = Context {
            model: Arc::clone(model),
            info: info.clone(),
            sequences: vec![Vec::new(); sequences as usize],
            rows: Vec::new(),
        };
        Ok((context, info))
    }

    fn step(context: &mut Context, batch: &Batch<'_>, _ticket: u64) -> Result<(), Failure> {
        context.check(batch)?;
        context.rows.clear();
        for slice in batch.iter() {
            for (index, token) in slice.tokens.iter().enumerate() {
                let sequence = &mut context.sequences[slice.sequence as usize];
                sequence.push(*token);
                if index + slice.rows as usize >= slice.tokens.len() {
                    // One of the last rows.
                    context.rows.push(compute(&context.model, sequence));
                }
            }
        }
        Ok(())
    }

    fn collect<'a>(
        context: &'a mut Context,
        _ticket: u64,
        _late_masks: Option<Masks<'_>>,
        rows: &mut Rows<'a>,
    ) -> Result<(), Failure> {
        context.rows.iter().try_for_each(|row| rows.push(Row::logits(row)))
    }

    fn copy(context: &mut Context, from: u32, to: u32, end: u32) -> Result<(), Failure> {
        let beginning = context.sequence(from)?.get(..end as usize).map(<[Token]>::to_vec);
        let copy = context.sequence(to)?;
        require(copy.is_empty(), "the copy is not empty")?;
        *copy = beginning.ok_or_else(|| Failure::invalid("there is no such end"))?;
        Ok(())
    }

    fn remove(context: &mut Context, sequence: u32, begin: u32) -> Result<(), Failure> {
        context.sequence(sequence)?.truncate(begin as usize);
        Ok(())
    }

    fn range(context: &Context, sequence: u32) -> Result<(u32, u32), Failure> {
        let one = context.sequences.get(sequence as usize);
        one.map(|one| (0, one.len() as u32)).ok_or_else(|| Failure::invalid("there is no such sequence"))
    }

    fn cache_free(context: &Context) -> u64 {
        let held: usize = context.sequences.iter().map(Vec::len).sum();
        context.info.cache_tokens - held as u64
    }
}

export_engine!(Tiny: models, memory, tokenizer, batch);
