//! `engine.tokenizer/1`.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use llm_node_abi::{ERR_BUFFER_TOO_SMALL, ERR_INVALID_ARGUMENT};
use llm_node_core::engine::{Token, Tokenizer};
use llm_node_host::{EngineError, Model, ModelTokenizer};

use crate::bench::Bench;
use crate::check::{Check, Finding, Level, Stop, Verdict, ensure};
use crate::raw::calls::{self, Filled};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "tokenizer.vocabulary",
        level: Level::Must,
        what: "The vocabulary is as wide as a row, its offsets rise, its special tokens are in it; the template is text.",
        contract: "Token i is bytes[offsets[i] .. offsets[i + 1])",
        mend: "Give n_vocab + 1 rising offsets into bytes, and ENGINE_TOKEN_NONE for a special token that there is not.",
        after: &["models.load"],
        ask: vocabulary,
    },
    Check {
        name: "tokenizer.end",
        level: Level::Should,
        what: "A model that generates has a token that ends generation, and eos and eot are marked as such.",
        contract: "ends generation; the host takes eos and eot for such, too",
        mend: "Set ENGINE_ATTR_EOG on eos, eot and every other token that ends an answer.",
        after: &["tokenizer.vocabulary"],
        ask: end,
    },
    Check {
        name: "tokenizer.tokens",
        level: Level::Must,
        what: "Texts of many scripts become tokens of the vocabulary, the same each time.",
        contract: "tokenize answers ERR_INVALID_ARGUMENT for a text that it cannot take",
        mend: "Return tokens from 0 to n_vocab - 1, or ERR_INVALID_ARGUMENT with the reason in set_error.",
        after: &["tokenizer.vocabulary"],
        ask: tokens,
    },
    Check {
        name: "tokenizer.capacity",
        level: Level::Must,
        what: "With room for nothing, for one too few, and for just enough, the count is the same, and nothing more \
               is written.",
        contract: "Both write at most `capacity` elements and always set *count to the number there are",
        mend: "Count to the end whatever the capacity is, write only below it, and compare the two at the end.",
        after: &["tokenizer.tokens"],
        ask: capacity,
    },
    Check {
        name: "tokenizer.round-trip",
        level: Level::Must,
        what: "Tokens of a text become that text again, but for a space at its begin.",
        contract: "exactly what it adds to the text in the middle of an answer (a space, not the tokenizer's mark for \
                   one)",
        mend: "Let tokenize keep every byte of the text, and the vocabulary have spaces for the tokenizer's marks.",
        after: &["tokenizer.tokens"],
        ask: round_trip,
    },
    Check {
        name: "tokenizer.pieces",
        level: Level::Must,
        what: "detokenize writes what the vocabulary has, token by token.",
        contract: "detokenize writes what the vocabulary has for each token, so of a control token its name.",
        mend: "Let vocab and detokenize read the same table.",
        after: &["tokenizer.vocabulary"],
        ask: pieces,
    },
    Check {
        name: "tokenizer.special",
        level: Level::Must,
        what: "BOS is added when that is asked for and adds_bos says so, and names of control tokens are them only \
               when that is asked for.",
        contract: "\"<|eot|>\" in the text is that token, not its letters",
        mend: "Look at both flags: ADD_SPECIAL for what is put around the text, PARSE_SPECIAL for what is in it.",
        after: &["tokenizer.tokens"],
        ask: special,
    },
    Check {
        name: "tokenizer.outside",
        level: Level::Must,
        what: "detokenize refuses what is no token, and does not read beyond its tables.",
        contract: "Every `int` result is an ERR_ code.",
        mend: "Return ERR_INVALID_ARGUMENT for a token below 0 or from n_vocab on.",
        after: &["tokenizer.vocabulary"],
        ask: outside,
    },
    Check {
        name: "tokenizer.struct-size",
        level: Level::Must,
        what: "vocab writes nothing behind the end of a struct of an older or a newer host.",
        contract: "Who is given it reads or writes no member beyond that size",
        mend: "Copy min(vocab->struct_size, sizeof mine) bytes of a struct of your own.",
        after: &["tokenizer.vocabulary"],
        ask: struct_size,
    },
    Check {
        name: "tokenizer.template",
        level: Level::Must,
        what: "A chat template that does not exist is not found.",
        contract: "The model's Jinja chat template called `name`; NULL: the default one. ERR_NOT_FOUND if there is \
                   none.",
        mend: "Compare the name, and return ERR_NOT_FOUND for one that the model does not have.",
        after: &["tokenizer.vocabulary"],
        ask: template,
    },
    Check {
        name: "tokenizer.threads",
        level: Level::Must,
        what: "Sixteen threads tokenise and detokenise at once, and each gets what it would get alone.",
        contract: "[any] Any thread, any number at once.",
        mend: "Keep no scratch memory in static variables or in the model: put it on the stack.",
        after: &["tokenizer.round-trip"],
        ask: threads,
    },
];

/// Texts of several scripts, and what trips tokenizers.
const CORPUS: [&str; 18] = [
    "Hello, world!",
    " two  spaces and a tab\t.",
    "line\nline\r\nline\n\n",
    "The quick brown fox jumps over the lazy dog 0123456789.",
    "don't we'll I'm they've",
    "Grüße, déjà vu, naïve, Ελληνικά, Привет",
    "日本語のテキスト、漢字かな交じり。",
    "한국어 문장입니다.",
    "نص عربي من اليمين",
    "हिन्दी में एक वाक्य",
    "emoji 🙂👨‍👩‍👧‍👦🇩🇪 and e\u{301}",
    "zero\u{0}inside",
    "fn main() { println!(\"{}\", a[0] != b); }",
    "{\"key\": [1, 2.5e-3, null]}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x",
    "",
    "\u{feff}with a mark",
];

/// The tokens, or that the engine does not take the text, which is its right.
fn tokenized(tokenizer: &ModelTokenizer, text: &str) -> Result<Option<Vec<Token>>, Stop> {
    match tokenizer.tokenize(text, false, false) {
        Ok(tokens) => Ok(Some(tokens)),
        Err(fault) if fault.kind == llm_node_core::engine::EngineFaultKind::InvalidInput => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

fn vocabulary(bench: &Bench<'_>) -> Verdict {
    let tokenizer = bench.tokenizer()?;
    let vocabulary = tokenizer.vocabulary();
    let longest = vocabulary.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    ensure!(longest < 1 << 20, "A token of the vocabulary is {longest} bytes long.");
    Ok(())
}

fn end(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.tokenizer/1")?;
    if !model.info().generates {
        return Err(Stop::skip("the model does not generate"));
    }
    let (special, attributes) = calls::ends(&model).ok_or_else(|| Stop::skip("there is no vocabulary"))?;
    for (name, token) in ["eos", "eot"].into_iter().zip(special) {
        let Ok(index) = usize::try_from(token) else { continue };
        ensure!(
            attributes.get(index).is_some_and(|bits| bits & llm_node_abi::ENGINE_ATTR_EOG != 0),
            "{name} is token {token}, which has no ENGINE_ATTR_EOG."
        );
    }
    ensure!(
        attributes.iter().any(|bits| bits & llm_node_abi::ENGINE_ATTR_EOG != 0),
        "No token of the vocabulary has ENGINE_ATTR_EOG."
    );
    Ok(())
}

fn tokens(bench: &Bench<'_>) -> Verdict {
    let tokenizer = bench.tokenizer()?;
    let mut taken = 0;
    for text in CORPUS {
        bench.trail.begin();
        bench.trail.call(&format!("tokenizer.tokenize: {text:?}"));
        let Some(first) = tokenized(&tokenizer, text)? else { continue };
        ensure!(
            tokenized(&tokenizer, text)?.as_ref() == Some(&first),
            "{text:?} becomes other tokens when it is tokenised again."
        );
        taken += 1;
    }
    ensure!(taken > 0, "None of {} texts can be tokenised.", CORPUS.len());
    let long = "word ".repeat(bench.times(4_000, 100_000));
    bench.trail.call(&format!("tokenizer.tokenize: {} bytes", long.len()));
    tokenized(&tokenizer, &long)?;
    // "!" at the begin, which is special to some.
    bench.trail.call("tokenizer.tokenize: \"!\"");
    tokenized(&tokenizer, "!")?;
    Ok(())
}

fn holds<T>(what: &str, room: usize, needed: usize, filled: &Filled<T>) -> Verdict {
    ensure!(!filled.overrun, "{what} wrote beyond the {room} elements that it was given.");
    ensure!(
        filled.count == needed,
        "With room for {room} {what} set *count to {}, and there are {needed}.",
        filled.count as isize
    );
    let too_small = |error: &EngineError| matches!(error, EngineError::Failed { code, .. } if *code == ERR_BUFFER_TOO_SMALL);
    match &filled.result {
        Ok(()) => ensure!(room >= needed, "With room for {room} of {needed} {what} returned ERR_OK."),
        Err(error) => {
            ensure!(room < needed && too_small(error), "With room for {room} of {needed}: {error}.");
        }
    }
    Ok(())
}

fn capacity(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.tokenizer/1")?;
    let tokenizer = ModelTokenizer::new(&model)?;
    for text in CORPUS {
        let Some(tokens) = tokenized(&tokenizer, text)? else { continue };
        let needed = tokens.len();
        for room in [0, needed.saturating_sub(1), needed, needed + 7] {
            let Some(filled) = calls::tokenize(&model, text.as_bytes(), 0, room) else { continue };
            holds("tokenizer.tokenize", room, needed, &filled)?;
            if room >= needed {
                ensure!(
                    filled.elements[..needed] == tokens,
                    "{text:?} becomes other tokens with room for {room}."
                );
            }
        }
        let bytes = tokenizer.detokenize(&tokens)?;
        for room in [0, bytes.len().saturating_sub(1), bytes.len(), bytes.len() + 7] {
            let Some(filled) = calls::detokenize(&model, &tokens, room) else { continue };
            holds("tokenizer.detokenize", room, bytes.len(), &filled)?;
        }
    }
    Ok(())
}

fn round_trip(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.tokenizer/1")?;
    if !model.info().generates {
        return Err(Stop::skip("a model that only reads may overlook capitals, accents and spaces"));
    }
    let tokenizer = ModelTokenizer::new(&model)?;
    let vocabulary = tokenizer.vocabulary();
    let is_back = |bytes: &[u8], text: &str| {
        let back = bytes.strip_prefix(b" ").unwrap_or(bytes);
        bytes == text.as_bytes() || back == text.trim_start_matches(' ').as_bytes() || back == text.as_bytes()
    };
    for text in CORPUS {
        let Some(tokens) = tokenized(&tokenizer, text)? else { continue };
        let bytes = tokenizer.detokenize(&tokens)?;
        if is_back(&bytes, text) {
            continue;
        }
        // Which of the three is it: the tokens, what the vocabulary has for them, or what is written of them?
        let pieces: Vec<u8> =
            tokens.iter().flat_map(|token| vocabulary.token_bytes(*token)).copied().collect();
        let same = text.as_bytes().iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        let seen = format!(
            "{text:?} becomes the tokens {tokens:?}, and detokenize writes {:?} for these: the two part at byte {same}. \
             The vocabulary has {:?} for them.",
            String::from_utf8_lossy(&bytes),
            String::from_utf8_lossy(&pieces)
        );
        let mend = if is_back(&pieces, text) {
            "Let detokenize write of each token what vocab has for it, and all of it."
        } else if bytes == pieces {
            "Look at tokenize: its tokens are not those of the whole text. Or else vocab has other bytes for them than what \
             they stand for, as the tokenizer's mark for a space."
        } else {
            "Let detokenize write of each token what vocab has for it, and then look at tokenize: these are not the tokens of \
             the text either."
        };
        return Err(Stop::Finding(Finding { seen, mend: Some(mend.to_owned()), script: Vec::new() }));
    }
    Ok(())
}

fn pieces(bench: &Bench<'_>) -> Verdict {
    let tokenizer = bench.tokenizer()?;
    let vocabulary = tokenizer.vocabulary();
    let count = vocabulary.offsets.len().saturating_sub(1);
    let step = (count / bench.times(300, 5_000)).max(1);
    for token in (0..count).step_by(step) {
        let piece =
            &vocabulary.bytes[vocabulary.offsets[token] as usize..vocabulary.offsets[token + 1] as usize];
        // Between two others: what is at the begin may lose its space.
        let written = tokenizer.detokenize(&[token as Token, token as Token])?;
        ensure!(
            written == [piece, piece].concat(),
            "Token {token} is {:?} in the vocabulary, and two of it are written {:?}.",
            String::from_utf8_lossy(piece),
            String::from_utf8_lossy(&written)
        );
    }
    Ok(())
}

fn special(bench: &Bench<'_>) -> Verdict {
    let tokenizer = bench.tokenizer()?;
    let vocabulary = tokenizer.vocabulary();
    let Some(plain) = tokenized(&tokenizer, "Hello")? else {
        return Err(Stop::skip("it does not take \"Hello\""));
    };
    let around = tokenizer.tokenize("Hello", true, false)?;
    if let Some(bos) = vocabulary.bos {
        ensure!(
            (around.first() == Some(&bos)) == vocabulary.adds_bos || plain.first() == Some(&bos),
            "adds_bos is {}, bos is {bos}, and \"Hello\" with ADD_SPECIAL becomes {around:?}.",
            u32::from(vocabulary.adds_bos)
        );
        ensure!(
            plain.first() != Some(&bos),
            "\"Hello\" without ADD_SPECIAL becomes {plain:?}, which begins with bos."
        );
    }
    let control = vocabulary.attributes.iter().position(|bits| bits & llm_node_abi::ENGINE_ATTR_CONTROL != 0);
    let Some(control) = control else { return Ok(()) };
    let name =
        &vocabulary.bytes[vocabulary.offsets[control] as usize..vocabulary.offsets[control + 1] as usize];
    let Ok(name) = std::str::from_utf8(name) else { return Ok(()) };
    if name.is_empty() {
        return Ok(());
    }
    let (as_token, as_letters) = (tokenizer.tokenize(name, false, true)?, tokenized(&tokenizer, name)?);
    ensure!(
        as_token == [control as Token],
        "{name:?} is the name of token {control}, and with PARSE_SPECIAL becomes {as_token:?}."
    );
    if let Some(letters) = as_letters {
        ensure!(
            !letters.contains(&(control as Token)),
            "{name:?} without PARSE_SPECIAL becomes {letters:?}: a user's text could end an answer."
        );
    }
    Ok(())
}

fn outside(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.tokenizer/1")?;
    let n_vocab = i32::try_from(model.info().n_vocab).unwrap_or(i32::MAX);
    for token in [-1, -2, -1_000_000, n_vocab, i32::MAX, i32::MIN] {
        bench.trail.begin();
        bench.trail.call(&format!("tokenizer.detokenize: token {token} of {n_vocab}"));
        let Some(filled) = calls::detokenize(&model, &[0, token], 256) else { continue };
        ensure!(!filled.overrun, "tokenizer.detokenize of token {token} wrote beyond its room.");
        match filled.result {
            Err(EngineError::Failed { code, .. }) if code == ERR_INVALID_ARGUMENT => {}
            Err(EngineError::Failed { code, .. }) => {
                ensure!(code.name().is_some(), "tokenizer.detokenize of token {token} returned {code}.");
            }
            Err(error) => return Err(error.into()),
            Ok(()) => {
                return Err(Stop::seen(format!("tokenizer.detokenize took token {token} of {n_vocab}.")));
            }
        }
    }
    Ok(())
}

fn struct_size(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.tokenizer/1")?;
    if let Some(size) = calls::vocab_overrun(&model)? {
        return Err(Stop::seen(format!("tokenizer.vocab wrote behind the end of a struct of {size} bytes.")));
    }
    Ok(())
}

fn template(bench: &Bench<'_>) -> Verdict {
    let tokenizer = bench.tokenizer()?;
    let found = tokenizer.named_chat_template("a template that no model has")?;
    ensure!(found.is_none(), "There is a chat template called \"a template that no model has\".");
    Ok(())
}

const THREADS: usize = 16;
/// Of asking by all threads.
const AT_LEAST: Duration = Duration::from_millis(100);

fn threads(bench: &Bench<'_>) -> Verdict {
    let tokenizer = bench.tokenizer()?;
    let alone = |text: &str| -> Result<(Option<Vec<Token>>, Vec<u8>), Stop> {
        let tokens = tokenized(&tokenizer, text)?;
        let bytes = tokenizer.detokenize(tokens.as_deref().unwrap_or_default())?;
        Ok((tokens, bytes))
    };
    // Long enough that they meet.
    let texts: Vec<String> = CORPUS.iter().map(|text| text.repeat(4096 / text.len().max(1))).collect();
    let expected: Vec<_> = texts.iter().map(|text| alone(text)).collect::<Result<_, _>>()?;
    let times = bench.times(1, 10);
    bench.trail.call("tokenizer.tokenize: sixteen threads at once");
    // They begin together, and go on for some turns of the scheduler: on a busy machine each has a core for
    // milliseconds, and they would come one after the other.
    let begin = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        let (alone, expected, texts, begin) = (&alone, &expected, &texts, &begin);
        let asking: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || -> Verdict {
                    begin.wait();
                    let until = Instant::now() + AT_LEAST;
                    for turn in (0..).take_while(|it| *it < times * CORPUS.len() || Instant::now() < until) {
                        let index = (turn + thread) % CORPUS.len();
                        ensure!(
                            alone(&texts[index])? == expected[index],
                            "{:?} becomes other tokens when several threads tokenise at once.",
                            CORPUS[index]
                        );
                    }
                    Ok(())
                })
            })
            .collect();
        asking.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })
}

/// The model's tokens, where it has a tokenizer: those of a text, and else any.
pub(crate) fn some_tokens(model: &std::sync::Arc<Model>, text: &str) -> Result<Vec<Token>, Stop> {
    if !model.engine().offers("engine.tokenizer/1") {
        return Ok(vec![0, 1, 2]);
    }
    let tokenizer = ModelTokenizer::new(model)?;
    let tokens = tokenizer.tokenize(text, true, false)?;
    Ok(if tokens.is_empty() { vec![0] } else { tokens })
}
