//! Requests made to order: prompts of a given length that no other request has, unless they are to share
//! their beginning.

use fastrand::Rng;

use crate::plan::{Part, Plan, Prompts};

/// Writes the requests of a plan.
pub(crate) struct Requests<'a> {
    plan: &'a Plan,
    head: String,
    /// As it stands in a body, with the comma that leads on where it is a list of numbers.
    prefix: Vec<u8>,
    source: Source,
    own_tokens: u32,
    body: Vec<u8>,
}

enum Source {
    /// Text that is ready for a JSON string, with its length in tokens, the shortest first.
    Words(Vec<(Vec<u8>, u32)>),
    Ids {
        low: u32,
        high: u32,
    },
}

impl<'a> Requests<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        let headers: Vec<String> =
            plan.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n{}",
            plan.path,
            plan.host,
            headers.concat()
        );
        let mut prefix = Vec::new();
        let source = match &plan.prompts {
            Prompts::Words { start, words } => {
                prefix.extend(escaped(start));
                let mut words: Vec<_> = words.iter().map(|word| (escaped(&word.text), word.tokens)).collect();
                words.sort_by_key(|(_, tokens)| *tokens);
                Source::Words(words)
            }
            Prompts::Ids { low, high } => Source::Ids { low: *low, high: *high },
        };
        let own_tokens = plan.prompt_tokens - plan.prefix_tokens;
        source.write(&mut Rng::with_seed(plan.prefix_seed), plan.prefix_tokens, &mut prefix);
        if own_tokens == 0 && prefix.last() == Some(&b',') {
            prefix.pop();
        }
        Self { plan, head, prefix, source, own_tokens, body: Vec::new() }
    }

    /// The whole request of this index, behind what `output` holds.
    pub(crate) fn write(&mut self, index: u64, output: &mut Vec<u8>) {
        let mut rng = Rng::with_seed(mixed(self.plan.seed, index));
        let seed = rng.u32(..1 << 31);
        self.body.clear();
        for part in &self.plan.body {
            match part {
                Part::Text(text) => self.body.extend_from_slice(text.as_bytes()),
                Part::OutputTokens => push_number(&mut self.body, self.plan.output_tokens_of(index)),
                Part::Seed => push_number(&mut self.body, seed),
                Part::Prompt => {
                    let ids = matches!(self.source, Source::Ids { .. });
                    if ids {
                        self.body.push(b'[');
                    }
                    self.body.extend_from_slice(&self.prefix);
                    self.source.write(&mut rng, self.own_tokens, &mut self.body);
                    if ids {
                        if self.body.last() == Some(&b',') {
                            self.body.pop();
                        }
                        self.body.push(b']');
                    }
                }
            }
        }
        output.extend_from_slice(self.head.as_bytes());
        output.extend_from_slice(b"Content-Length: ");
        push_number(output, self.body.len() as u32);
        output.extend_from_slice(b"\r\n\r\n");
        output.extend_from_slice(&self.body);
    }
}

impl Source {
    /// `tokens` tokens; numbers with a comma behind each.
    fn write(&self, rng: &mut Rng, tokens: u32, output: &mut Vec<u8>) {
        match self {
            Source::Words(words) => {
                let mut left = tokens;
                let mut fitting = words.len();
                loop {
                    while fitting > 0 && words[fitting - 1].1 > left {
                        fitting -= 1;
                    }
                    // Nothing is short enough for what is left: the prompt stays so much shorter.
                    if fitting == 0 {
                        return;
                    }
                    let (text, tokens) = &words[rng.usize(..fitting)];
                    output.extend_from_slice(text);
                    left -= tokens;
                }
            }
            Source::Ids { low, high } => {
                for _ in 0..tokens {
                    push_number(output, rng.u32(*low..*high));
                    output.push(b',');
                }
            }
        }
    }
}

/// Different for every pair, so that neighbouring seeds do not share requests (SplitMix64's finaliser).
fn mixed(seed: u64, index: u64) -> u64 {
    let mut value = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The inside of a JSON string.
fn escaped(text: &str) -> Vec<u8> {
    let quoted = serde_json::Value::from(text).to_string();
    quoted.as_bytes()[1..quoted.len() - 1].to_vec()
}

fn push_number(output: &mut Vec<u8>, mut number: u32) {
    let mut digits = [0; 10];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    output.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(changes: &Value) -> Plan {
        let mut plan = json!({
            "address": "127.0.0.1:1", "host": "h", "path": "/p",
            "body": [{"text": "{\"p\":\""}, "prompt", {"text": "\",\"n\":"}, "output_tokens",
                     {"text": ",\"s\":"}, "seed", {"text": "}"}],
            "prompts": {"words": {"start": "a\"", "words": [
                {"text": " one", "tokens": 1}, {"text": " two", "tokens": 2}, {"text": " four", "tokens": 4},
            ]}},
            "prompt_tokens": 50, "seed": 1, "output_tokens": 7,
            "arrivals": {"closed": {"concurrency": 1}}, "limit": {"requests": 1},
        });
        for (key, value) in changes.as_object().unwrap() {
            plan[key] = value.clone();
        }
        Plan::parse(&plan.to_string()).unwrap()
    }

    fn body(plan: &Plan, index: u64) -> Value {
        let mut output = b"before".to_vec();
        Requests::new(plan).write(index, &mut output);
        let text = String::from_utf8(output).unwrap();
        let (head, body) = text.strip_prefix("before").unwrap().split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /p HTTP/1.1\r\nHost: h\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        serde_json::from_str(body).unwrap()
    }

    fn tokens(text: &str) -> u32 {
        let count = |word| match word {
            "one" => 1,
            "two" => 2,
            "four" => 4,
            _ => panic!("{word}"),
        };
        text.strip_prefix("a\"").unwrap().split_whitespace().map(count).sum()
    }

    #[test]
    fn words_add_up_and_differ() {
        let plan = plan(&json!({"short_output_tokens": 3, "short_every": 2}));
        let all: Vec<Value> = (0..4).map(|index| body(&plan, index)).collect();
        for (index, body) in all.iter().enumerate() {
            assert_eq!(tokens(body["p"].as_str().unwrap()), 50);
            assert_eq!(body["n"], if index % 2 == 1 { 3 } else { 7 });
        }
        assert_ne!(all[0]["p"], all[1]["p"]);
        assert_ne!(all[0]["s"], all[1]["s"]);
        assert_eq!(all[3], body(&plan, 3));
    }

    #[test]
    fn ids_share_what_they_are_told_to() {
        let body_parts = json!([{"text": "{\"p\":"}, "prompt", {"text": "}"}]);
        let ids = json!({"ids": {"low": 3, "high": 4_000_000_000_u32}});
        for (all, shared) in [(1, 0), (20, 8), (20, 20)] {
            let with = |seed: u64| {
                plan(&json!({"body": body_parts, "prompts": ids, "prompt_tokens": all,
                             "prefix_tokens": shared, "prefix_seed": 9, "seed": seed}))
            };
            let lists: Vec<Vec<u64>> = [(1, 0), (1, 1), (2, 0)]
                .into_iter()
                .map(|(seed, index)| serde_json::from_value(body(&with(seed), index)["p"].clone()).unwrap())
                .collect();
            for list in &lists {
                assert_eq!(list.len(), all);
                assert_eq!(list[..shared], lists[0][..shared]);
            }
            if shared < all {
                assert_ne!(lists[0][shared], lists[1][shared]);
                assert_ne!(lists[0][shared], lists[2][shared]);
            }
        }
    }

    #[test]
    fn a_plan_that_cannot_be_carried_out_is_refused() {
        let json = r#"{"address": "127.0.0.1:1", "host": "h\r\nX: y", "path": "/", "body": [],
            "prompts": {"ids": {"low": 1, "high": 2}}, "prompt_tokens": 1, "seed": 0, "output_tokens": 1,
            "arrivals": {"closed": {"concurrency": 1}}, "limit": {"requests": 1}}"#;
        assert!(Plan::parse(json).unwrap_err().to_string().contains("control character"));
        assert!(Plan::parse(&json.replace("\\r\\nX: y", "")).is_ok());
    }
}
