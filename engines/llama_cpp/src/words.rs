//! What it takes llama.cpp to cut a text into words before it is tokenised. Pure.
//!
//! Vocabularies made by byte-pair encoding bring a regular expression each. Some of them llama.cpp has
//! written out by hand. The others it gives to `std::regex`, which in GNU's library calls itself for every
//! character of a match: a long run of letters is a deep stack, and a longer one the end of the process. So a
//! text goes in on a stack that is large enough for its longest run, and one that would need too large a
//! stack, or minutes, is refused.

/// Stack for a character of a match. Measured: 320 bytes, whatever the expression (GCC 12, -O3).
const STACK_PER_CHARACTER: usize = 1024;
/// Stack for all else.
const STACK: usize = 512 << 10;
/// Characters in a row for which any thread's own stack is large enough.
const SHORT: usize = 500;
/// Most characters in a row: 64 MB of a stack of 200.
const MOST_IN_A_ROW: usize = 200_000;
/// Where a run costs the square of its length, the most that all runs may cost together: a run of 10,000
/// takes 2 s (white space of `deepseek-llm`) to 7 s (digits of `superbpe`).
const MOST_SQUARES: u64 = 100_000_000;

/// `tokenizer.ggml.pre` of the expressions that are written out by hand, or match one character at a time.
/// A name that is missing here only costs its texts the bounds of the others.
const BY_HAND: [&str; 57] = [
    "a.x-4.0",
    "chatglm-bpe",
    "codeshell",
    "command-r",
    "dbrx",
    "deepseek-r1-qwen",
    "exaone",
    "exaone4",
    "f2llmv2",
    "falcon-h1",
    "falcon3",
    "gemma4",
    "gigachat",
    "glm4",
    "glm5",
    "gpt-2",
    "granite-docling",
    "granite-embed-multi-311m",
    "grok-2",
    "hunyuan",
    "jais",
    "jina-de",
    "jina-es",
    "jina-v1-en",
    "jina-v2-code",
    "jina-v2-de",
    "jina-v2-es",
    "jina-v5-nano",
    "kimi-k2",
    "kormo",
    "laguna",
    "lfm2",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "megrez",
    "mellum",
    "mellum2",
    "midm-2.0",
    "minerva-7b",
    "mmbert",
    "modern-bert",
    "mpt",
    "olmo",
    "phi-2",
    "pixtral",
    "qwen2",
    "qwen35",
    "refact",
    "roberta-bpe",
    "sarvam-moe",
    "smaug-bpe",
    "smollm",
    "solar-open",
    "stablelm2",
    "starcoder",
    "trillion",
];

/// How the words of a vocabulary's texts are found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Words {
    /// By code that takes no stack for them.
    ByHand,
    /// By `std::regex`.
    Matched {
        /// A word may go on over single spaces.
        over_spaces: bool,
        /// Runs of these cost the square of their length.
        squares: Option<fn(char) -> bool>,
    },
}

/// What a text needs to be tokenised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Whatever stack the thread has.
    Nothing,
    /// A stack of so many bytes.
    Stack(usize),
}

impl Words {
    /// Of a vocabulary made by byte-pair encoding; `pre` is its file's `tokenizer.ggml.pre`.
    pub(crate) fn of(pre: &str) -> Self {
        if BY_HAND.contains(&pre) {
            return Self::ByHand;
        }
        Self::Matched {
            over_spaces: pre == "exaone-moe",
            squares: match pre {
                // `\s+$` is tried at each space anew, `(?=(\d{3})+(?!\d))` at each digit.
                "deepseek-llm" => Some(|one| one.is_whitespace() && !matches!(one, '\r' | '\n')),
                "superbpe" => Some(char::is_numeric),
                _ => None,
            },
        }
    }

    /// What this text needs; or why it cannot be tokenised.
    pub(crate) fn needs(self, text: &[u8]) -> Result<Needs, String> {
        let Self::Matched { over_spaces, squares } = self else { return Ok(Needs::Nothing) };
        if text.len() <= SHORT {
            return Ok(Needs::Nothing);
        }
        let text = String::from_utf8_lossy(text);
        let squares = squares.map_or(0, |is_it| sum_of_squares(&text, is_it));
        if squares > MOST_SQUARES {
            return Err(format!(
                "the text cannot be tokenised: it holds too many spaces or digits in a row, which would take \
                 this model's tokenizer minutes; {} in a row are possible",
                MOST_SQUARES.isqrt()
            ));
        }
        let longest = longest_run(&text, over_spaces);
        if longest > MOST_IN_A_ROW {
            return Err(format!(
                "the text cannot be tokenised: it holds {longest} characters that this model's tokenizer may \
                 take for one word, of at most {MOST_IN_A_ROW}; break them up by spaces or line feeds"
            ));
        }
        if longest <= SHORT {
            Ok(Needs::Nothing)
        } else {
            Ok(Needs::Stack(STACK + longest * STACK_PER_CHARACTER))
        }
    }
}

/// Characters of the longest run that an expression may match at once. It is what is not white space with the
/// white space behind it: no expression goes on from there, but for one that takes letters with single spaces
/// between.
fn longest_run(text: &str, over_spaces: bool) -> usize {
    let (mut longest, mut run, mut letters) = (0, 0, 0);
    let (mut was_blank, mut was_space) = (false, false);
    for one in text.chars() {
        let is_blank = one.is_whitespace();
        // One character before a word belongs to it.
        run = if was_blank && !is_blank { 2 } else { run + 1 };
        longest = longest.max(run);
        if over_spaces {
            letters = match one {
                ' ' if !was_space => letters + 1,
                _ if one.is_ascii_alphabetic() || (!one.is_ascii() && !is_blank) => letters + 1,
                _ => 1,
            };
            longest = longest.max(letters);
        }
        (was_blank, was_space) = (is_blank, one == ' ');
    }
    longest
}

fn sum_of_squares(text: &str, is_it: fn(char) -> bool) -> u64 {
    let (mut sum, mut run) = (0_u64, 0_u64);
    for one in text.chars() {
        run = if is_it(one) { run + 1 } else { 0 };
        // The next odd number makes the next square.
        sum += (2 * run).saturating_sub(1);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(text: &str, over_spaces: bool) -> usize {
        longest_run(text, over_spaces)
    }

    #[test]
    fn runs_end_where_no_expression_goes_on() {
        for (text, expected) in
            [("", 0), ("abc", 3), ("abc def", 4), ("a bcd", 4), ("--\n\n\nab", 5), ("漢字", 2)]
        {
            assert_eq!(longest(text, false), expected, "{text:?}");
        }
        for (text, expected) in [("ab cd ef", 8), ("ab  cd", 4), ("ab1cd", 5), ("ab\ncd", 3), ("ä ö", 3)] {
            assert_eq!(longest(text, true), expected, "{text:?}");
        }
    }

    #[test]
    fn squares_are_of_runs() {
        let sum = |text: &str| sum_of_squares(text, char::is_numeric);
        assert_eq!([sum(""), sum("1"), sum("123"), sum("12a345")], [0, 1, 9, 13]);
    }

    #[test]
    fn names_are_sorted_and_of_this_llama_cpp() {
        const ALL: &[&str] = include!(concat!(env!("OUT_DIR"), "/pre_tokenizers.rs"));
        assert!(BY_HAND.is_sorted());
        assert!(BY_HAND.iter().all(|name| ALL.contains(name)));
    }

    #[test]
    fn only_long_runs_need_anything() {
        let matched = Words::of("gpt-4o");
        assert_eq!(Words::of("qwen2").needs("x".repeat(1 << 20).as_bytes()), Ok(Needs::Nothing));
        assert_eq!(matched.needs("word ".repeat(100_000).as_bytes()), Ok(Needs::Nothing));
        let Ok(Needs::Stack(size)) = matched.needs("x".repeat(MOST_IN_A_ROW).as_bytes()) else { panic!() };
        assert!(size >= MOST_IN_A_ROW * STACK_PER_CHARACTER);
        let refusal = matched.needs("x".repeat(MOST_IN_A_ROW + 1).as_bytes()).unwrap_err();
        assert!(refusal.contains("200001 characters"), "{refusal}");
        let spaces = format!("{}1", " ".repeat(10_001));
        assert!(matched.needs(spaces.as_bytes()).is_ok());
        assert!(Words::of("deepseek-llm").needs(spaces.as_bytes()).is_err());
        assert!(Words::of("deepseek-llm").needs(&spaces.as_bytes()[1..]).is_ok());
    }
}
