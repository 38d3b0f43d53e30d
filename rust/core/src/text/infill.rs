//! Text between two texts: what a model of code is to write where the cursor stands.
//!
//! Such models have tokens that mark the text before the gap, the text behind it, and the gap. Their names differ
//! and are no part of the tokenizer's interface, so they are known here by their text, as in llama.cpp. The
//! order is that of llama.cpp's server, whose clients it serves: <https://arxiv.org/pdf/2409.12186>.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Token, Tokenizer, Vocabulary},
    error::{ErrorCode, Fault},
};

const PREFIX: [&str; 8] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const SUFFIX: [&str; 8] = [
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const MIDDLE: [&str; 8] = [
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const REPOSITORY: [&str; 5] = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FILE: [&str; 1] = ["<|file_sep|>"];

/// Stands before each further text where the vocabulary has no token for it.
const SNIPPET: &str = "\n\n--- snippet ---\n\n";

/// A gap, and what stands around it. All of it is text, in which the names of special tokens are letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Infill {
    /// Before the gap.
    pub prefix: String,
    /// Behind the gap.
    pub suffix: String,
    /// Further texts that the model may want to know, the least important one first.
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// A further text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extra {
    /// The name of its file.
    pub name: String,
    /// What stands in it.
    pub text: String,
}

/// A vocabulary's tokens for gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FimTokens {
    prefix: Token,
    suffix: Token,
    middle: Token,
    repository: Option<Token>,
    file: Option<Token>,
}

impl FimTokens {
    /// Those of a vocabulary, if it has the three that are needed.
    pub fn of(vocabulary: &Vocabulary) -> Option<Self> {
        let find = |names: &[&str]| {
            (0..vocabulary.len() as Token)
                .find(|&token| names.iter().any(|name| name.as_bytes() == vocabulary.token_bytes(token)))
        };
        Some(Self {
            prefix: find(&PREFIX)?,
            suffix: find(&SUFFIX)?,
            middle: find(&MIDDLE)?,
            repository: find(&REPOSITORY),
            file: find(&FILE),
        })
    }
}

impl Infill {
    /// Bytes of all its texts.
    pub fn size(&self) -> usize {
        let extra: usize = self.extra.iter().map(|it| it.name.len() + it.text.len()).sum();
        self.prefix.len() + self.suffix.len() + extra
    }

    /// The prompt, and whether all further texts are in it: the first ones are left out where it would be longer
    /// than `most` tokens. Prefix and suffix never are.
    ///
    /// # Errors
    ///
    /// `UnsupportedFeature` where the model has no tokens for gaps; the tokenizer's own.
    pub fn tokens(&self, tokenizer: &dyn Tokenizer, most: u64) -> Result<(Vec<Token>, bool), Fault> {
        let vocabulary = tokenizer.vocabulary();
        let fim = vocabulary.fim_tokens().ok_or_else(|| {
            let message = "This model cannot fill a gap: its vocabulary has no tokens that mark one.";
            Fault::new(ErrorCode::UnsupportedFeature, message).param("suffix")
        })?;
        let plain = |text: &str| tokenizer.tokenize(text, false, false);

        let mut gap = vec![fim.prefix];
        gap.extend(plain(&self.prefix)?);
        gap.push(fim.suffix);
        gap.extend(plain(&self.suffix)?);
        gap.push(fim.middle);
        let bos = vocabulary.bos.filter(|_| vocabulary.adds_bos);

        let mut head: Vec<Token> = bos.into_iter().collect();
        if let Some(repository) = fim.repository.filter(|_| !self.extra.is_empty()) {
            head.push(repository);
            head.extend(plain("repository\n")?);
        }
        let mut own = Vec::new();
        if let Some(file) = fim.file.filter(|_| !self.extra.is_empty()) {
            own.push(file);
            own.extend(plain("file\n")?);
        }

        let room = most.saturating_sub((head.len() + own.len() + gap.len()) as u64);
        let mut chosen: Vec<Vec<Token>> = Vec::new();
        let mut taken = 0;
        for extra in self.extra.iter().rev() {
            // Tokenising takes long where a text is long.
            if taken + vocabulary.least_tokens(&extra.text) > room {
                break;
            }
            let mut tokens = match fim.file {
                Some(file) => [vec![file], plain(&format!("{}\n", extra.name))?].concat(),
                None => plain(SNIPPET)?,
            };
            tokens.extend(plain(&extra.text)?);
            taken += tokens.len() as u64;
            if taken > room {
                break;
            }
            chosen.push(tokens);
        }
        let is_whole = chosen.len() == self.extra.len();
        let extra = chosen.into_iter().rev().flatten();
        Ok((head.into_iter().chain(extra).chain(own).chain(gap).collect(), is_whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineFault;

    /// A letter is a token; behind all letters stand the tokens for gaps.
    struct Letters(Vocabulary);

    const GAPS: [&str; 5] =
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"];

    impl Letters {
        fn new(gaps: &[&str], bos: bool) -> Self {
            let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
            let letters = (0..=127_u8).map(|it| vec![it]);
            for bytes in letters.chain(gaps.iter().map(|it| it.as_bytes().to_vec())) {
                vocabulary.bytes.extend(bytes);
                vocabulary.offsets.push(vocabulary.bytes.len() as u32);
                vocabulary.attributes.push(0);
            }
            (vocabulary.bos, vocabulary.adds_bos) = (bos.then_some(1), bos);
            Self(vocabulary)
        }

        fn shown(&self, (tokens, is_whole): (Vec<Token>, bool)) -> (String, bool) {
            let bytes = tokens.into_iter().flat_map(|it| self.0.token_bytes(it).to_vec()).collect();
            (String::from_utf8(bytes).unwrap(), is_whole)
        }
    }

    impl Tokenizer for Letters {
        fn vocabulary(&self) -> &Vocabulary {
            &self.0
        }

        fn tokenize(&self, text: &str, _: bool, _: bool) -> Result<Vec<Token>, EngineFault> {
            Ok(text.bytes().map(Token::from).collect())
        }

        fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, EngineFault> {
            Ok(tokens.iter().flat_map(|&it| self.0.token_bytes(it).to_vec()).collect())
        }

        fn chat_template(&self) -> Option<&str> {
            None
        }
    }

    fn infill(extra: &[(&str, &str)]) -> Infill {
        let extra = extra.iter().map(|&(name, text)| Extra { name: name.into(), text: text.into() });
        Infill { prefix: "a".into(), suffix: "b".into(), extra: extra.collect() }
    }

    #[test]
    fn a_gap_stands_behind_what_is_around_it() {
        let letters = Letters::new(&GAPS, true);
        let tokens = infill(&[]).tokens(&letters, 100).unwrap();
        let plain = "\u{1}<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>";
        assert_eq!(letters.shown(tokens), (plain.into(), true));
        let spelled = Infill { prefix: GAPS[1].into(), ..infill(&[]) };
        let (tokens, _) = spelled.tokens(&letters, 100).unwrap();
        assert_eq!(tokens.iter().filter(|&&it| it >= 128).count(), 3, "what is spelled is letters");
    }

    #[test]
    fn further_texts_come_first_and_go_first() {
        let letters = Letters::new(&GAPS, false);
        let (x, y) = (("x.py", "11"), ("y.py", "2"));
        let gap = "<|file_sep|>file\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>";
        let head = "<|repo_name|>repository\n";
        let both = infill(&[x, y]).tokens(&letters, 100).unwrap();
        let length = both.0.len() as u64;
        let whole = format!("{head}<|file_sep|>x.py\n11<|file_sep|>y.py\n2{gap}");
        assert_eq!(letters.shown(both), (whole, true));
        assert!(infill(&[x, y]).tokens(&letters, length).unwrap().1);
        let one = infill(&[x, y]).tokens(&letters, length - 1).unwrap();
        assert_eq!(letters.shown(one), (format!("{head}<|file_sep|>y.py\n2{gap}"), false));
        let none = infill(&[x, y]).tokens(&letters, 0).unwrap();
        assert_eq!(letters.shown(none), (format!("{head}{gap}"), false));
        let bare = Letters::new(&GAPS[..3], false);
        let (text, _) = bare.shown(infill(&[x]).tokens(&bare, 100).unwrap());
        assert_eq!(text, "\n\n--- snippet ---\n\n11<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>");
    }

    #[test]
    fn a_model_without_such_tokens_says_so() {
        let fault = infill(&[]).tokens(&Letters::new(&GAPS[..2], true), 100).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::UnsupportedFeature, Some("suffix")));
    }
}
