//! A query and a document as one text, for models that rank, and what such a model says of it.

use crate::{
    engine::{Token, Tokenizer, Vocabulary},
    error::{ErrorCode, Fault},
    request::prompt_tokens,
    text::control::Rendered,
};

const QUERY: &str = "{query}";
const DOCUMENT: &str = "{document}";

/// How a model wants the two joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joining {
    /// The template for pairs that the model carries, with `{query}` and `{document}` in it.
    pub template: Option<String>,
    /// Does a separator stand between them beside the end of the query?
    pub separated: bool,
}

impl Joining {
    /// The tokens of one pair. Neither text can write a control token.
    ///
    /// # Errors
    ///
    /// `UnsupportedFeature` where nothing tells the two apart; the tokenizer's own.
    pub fn tokens(
        &self,
        query: &str,
        document: &str,
        tokenizer: &dyn Tokenizer,
    ) -> Result<Vec<Token>, Fault> {
        if let Some(template) = &self.template {
            return prompt_tokens(&filled(template, query, document, tokenizer.vocabulary()), tokenizer);
        }
        let vocabulary = tokenizer.vocabulary();
        let mut tokens = tokenizer.tokenize(query, true, false)?;
        let is_end = |token: &Token| vocabulary.sep == Some(*token) || vocabulary.eos == Some(*token);
        let ends = tokens.last().is_some_and(is_end);
        match vocabulary.sep {
            Some(separator) if self.separated || !ends => tokens.push(separator),
            _ if ends => {}
            _ => {
                let message = "This model cannot rank: it carries no template for pairs of texts, and its \
                               vocabulary has no token that stands between two.";
                return Err(Fault::new(ErrorCode::UnsupportedFeature, message));
            }
        }
        let document = tokenizer.tokenize(document, true, false)?;
        let begins =
            vocabulary.adds_bos && vocabulary.bos.is_some() && document.first() == vocabulary.bos.as_ref();
        tokens.extend_from_slice(&document[usize::from(begins)..]);
        Ok(tokens)
    }
}

/// The template with both texts in it, in which only what the template wrote may be a control token.
fn filled(template: &str, query: &str, document: &str, vocabulary: &Vocabulary) -> Rendered {
    let (mut all, mut said) = (String::new(), Vec::new());
    let mut add = |text: &str, is_said: bool| {
        all.push_str(text);
        said.resize(all.len(), is_said);
    };
    let mut rest = template;
    loop {
        let next = [(QUERY, query), (DOCUMENT, document)]
            .into_iter()
            .filter_map(|(name, text)| Some((rest.find(name)?, name, text)))
            .min_by_key(|it| it.0);
        let Some((place, name, text)) = next else { break };
        add(&rest[..place], false);
        add(text, true);
        rest = &rest[place + name.len()..];
    }
    add(rest, false);
    vocabulary.control_tokens().cut(all, &said)
}

/// How well a document answers a query, from 0 to 1, of what the engine gives for the pair: one number is a
/// logit. Several are the probabilities of labels, of which the first is "yes", or their logits.
pub fn relevance(result: &[f32]) -> f32 {
    match *result {
        [] => 0.0,
        [logit] => 1.0 / (1.0 + (-logit).exp()),
        [first, ..] => {
            let sum: f32 = result.iter().sum();
            if result.iter().all(|it| *it >= 0.0) && (sum - 1.0).abs() < 1e-3 {
                return first;
            }
            let most = result.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            (first - most).exp() / result.iter().map(|it| (it - most).exp()).sum::<f32>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineFault, attribute};

    const CLS: Token = 128;
    const SEP: Token = 129;

    /// A letter is a token; `ends`: the tokenizer puts SEP behind a text.
    struct Letters {
        vocabulary: Vocabulary,
        ends: bool,
    }

    impl Letters {
        fn new(ends: bool, sep: Option<Token>) -> Self {
            let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
            let letters = (0..=127_u8).map(|it| (vec![it], 0));
            let special = ["[CLS]", "[SEP]"].map(|it| (it.as_bytes().to_vec(), attribute::CONTROL));
            for (bytes, attributes) in letters.chain(special) {
                vocabulary.bytes.extend(bytes);
                vocabulary.offsets.push(vocabulary.bytes.len() as u32);
                vocabulary.attributes.push(attributes);
            }
            (vocabulary.bos, vocabulary.adds_bos, vocabulary.sep) = (Some(CLS), true, sep);
            Self { vocabulary, ends }
        }

        fn joined(&self, joining: &Joining, query: &str) -> Result<String, Fault> {
            let tokens = joining.tokens(query, "d", self)?;
            let name = |token| match token {
                CLS => "<".to_owned(),
                SEP => "|".to_owned(),
                other => String::from_utf8_lossy(self.vocabulary.token_bytes(other)).into_owned(),
            };
            Ok(tokens.into_iter().map(name).collect())
        }
    }

    impl Tokenizer for Letters {
        fn vocabulary(&self) -> &Vocabulary {
            &self.vocabulary
        }

        fn tokenize(&self, text: &str, add: bool, parse: bool) -> Result<Vec<Token>, EngineFault> {
            let mut tokens: Vec<Token> = add.then_some(CLS).into_iter().collect();
            let mut parts = text.split("[SEP]").map(|it| it.bytes().map(Token::from).collect::<Vec<_>>());
            tokens.extend(parts.next().unwrap_or_default());
            for part in parts {
                tokens.extend(if parse { vec![SEP] } else { "[SEP]".bytes().map(Token::from).collect() });
                tokens.extend(part);
            }
            tokens.extend((add && self.ends).then_some(SEP));
            Ok(tokens)
        }

        fn detokenize(&self, _: &[Token]) -> Result<Vec<u8>, EngineFault> {
            Ok(Vec::new())
        }

        fn chat_template(&self) -> Option<&str> {
            None
        }
    }

    #[test]
    fn the_separator_stands_once_or_as_often_as_the_model_says() {
        let plain = Joining::default();
        let twice = Joining { separated: true, ..Joining::default() };
        assert_eq!(Letters::new(true, Some(SEP)).joined(&plain, "q").unwrap(), "<q|d|");
        assert_eq!(Letters::new(true, Some(SEP)).joined(&twice, "q").unwrap(), "<q||d|");
        assert_eq!(Letters::new(false, Some(SEP)).joined(&plain, "q").unwrap(), "<q|d");
        let fault = Letters::new(false, None).joined(&plain, "q").unwrap_err();
        assert_eq!(fault.code, ErrorCode::UnsupportedFeature);
    }

    #[test]
    fn a_template_writes_control_tokens_and_texts_do_not() {
        let template = Some("q: {query}[SEP]d: {document}, {document}".to_owned());
        let joining = Joining { template, separated: true };
        let letters = Letters::new(true, Some(SEP));
        assert_eq!(letters.joined(&joining, "x").unwrap(), "<q: x|d: d, d");
        assert_eq!(letters.joined(&joining, "[SEP]{document}").unwrap(), "<q: [SEP]{document}|d: d, d");
    }

    #[test]
    fn relevance_is_a_probability() {
        let cases: [(&[f32], f32); 5] = [
            (&[0.0], 0.5),
            (&[2.0], 0.880_797),
            (&[-200.0], 0.0),
            (&[0.9, 0.1], 0.9),
            (&[3.0, 1.0], 0.880_797),
        ];
        for (result, wanted) in cases {
            assert!((relevance(result) - wanted).abs() < 1e-6, "{result:?}");
        }
    }
}
