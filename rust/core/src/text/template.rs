//! Chat templates: the Jinja dialect of Hugging Face's `transformers`, compiled once per model.
//!
//! It owns the differences between that dialect and the engine, minijinja. Templates come with
//! models from anywhere, so what they may compute is bounded, and they see nothing but the request.
//! Which parts of their output may be control tokens is told by [`super::control`].

use std::{collections::HashSet, fmt::Write, sync::Arc};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, StringInput, ValueKind, from_args},
};

use super::{
    control::{
        ControlTokens, Disguise, Disguiser, Rendered, Words, is_mark, is_private, private, private_in,
    },
    conversation::Chat,
    list::{self, List, with_lists},
    offered::{Offered, Tools},
};
use crate::{
    engine::Vocabulary,
    error::{ErrorCode, Fault},
};

/// Instructions that a template may execute for one prompt. A conversation of a thousand messages
/// takes some hundred thousand.
const FUEL: u64 = 3_000_000;
const NAME: &str = "chat_template";

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The same, whose methods look past the marks of a disguise.
    marked: Environment<'static>,
    bos: String,
    eos: String,
    control: ControlTokens,
    source: String,
    words: Words,
    /// Private characters that the template holds itself.
    private: HashSet<u32>,
    offered: Arc<Offered>,
}

/// What a template is given of a request.
struct Conversation {
    messages: Value,
    tools: Value,
    variables: Value,
    /// The tools once more.
    offered: Option<Arc<Tools>>,
}

impl ChatTemplate {
    /// Compiles `source` for a model with this vocabulary.
    pub fn compile(source: &str, vocabulary: &Vocabulary) -> Result<Self, Fault> {
        let source = with_line_feeds(source);
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_syntax(whitespace()?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function(list::NAME, List::value);
        environment.add_test("iterable", is_iterable);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, with_lists(&without_generation_blocks(&source)).into_owned())
            .map_err(|error| {
                Fault::new(
                    ErrorCode::UnsupportedFeature,
                    format!("The model's chat template cannot be read: {}", describe(&error)),
                )
            })?;
        let mut marked = environment.clone();
        marked.set_unknown_method_callback(marked_method);
        marked.add_filter("trim", marked_trim);
        marked.add_filter("length", marked_length);
        let text = |token: Option<_>| {
            String::from_utf8_lossy(token.map_or(&[][..], |it| vocabulary.token_bytes(it))).into_owned()
        };
        let control = vocabulary.control_tokens().clone();
        let mut private = HashSet::new();
        private_in(&source, &mut private);
        Ok(Self {
            environment,
            marked,
            bos: text(vocabulary.bos),
            eos: text(vocabulary.eos),
            words: Words::of(&source, &control),
            control,
            private,
            offered: Arc::default(),
            source,
        })
    }

    /// What it was compiled from, with line feeds alone.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What it makes of a conversation that spells no control tokens, with the beginning of an answer or
    /// without. For finding out about the template.
    pub fn render_plain(&self, chat: &Chat, begins: bool, unix_seconds: i64) -> Result<String, Fault> {
        let mut conversation = self.conversation(chat)?;
        if !begins {
            let given = conversation.variables;
            conversation.variables = context! { add_generation_prompt => false, ..given };
        }
        self.run(&self.environment, &conversation, unix_seconds).map_err(|error| failed(&error))
    }

    /// The prompt for a conversation, up to where the model's answer begins. `unix_seconds` is the
    /// time that `strftime_now` tells, in UTC.
    pub fn render(&self, chat: &Chat, unix_seconds: i64) -> Result<Rendered, Fault> {
        let conversation = self.conversation(chat)?;
        let plain =
            self.run(&self.environment, &conversation, unix_seconds).map_err(|error| failed(&error))?;
        if !self.control.occur_in(&plain) {
            return Ok(Rendered::plain(plain));
        }
        let mut used = self.private.clone();
        private(&conversation.messages, &mut used);
        private(&conversation.variables, &mut used);
        used.extend(conversation.offered.iter().flat_map(|it| it.private()));
        for disguise in [Disguise::Characters, Disguise::Marks, Disguise::Tokens] {
            let Some(disguiser) = Disguiser::new(&self.control, &self.words, disguise, &used) else {
                continue;
            };
            let environment = if disguise == Disguise::Marks { &self.marked } else { &self.environment };
            let disguised = conversation.in_disguise(&disguiser);
            // A template that fails now has looked at what was changed.
            let Ok(text) = self.run(environment, &disguised, unix_seconds) else { continue };
            let uncovered = disguiser.take_off(&text);
            if uncovered.0 == plain || disguise == Disguise::Tokens {
                return Ok(disguiser.cut(uncovered));
            }
        }
        let message = "The conversation holds the texts of control tokens in places where the model's chat \
                       template does not tell them from its own. Leave them out.";
        Err(invalid(message, "messages"))
    }

    fn conversation(&self, chat: &Chat) -> Result<Conversation, Fault> {
        let messages = json(&chat.messages, "messages")?;
        if messages.kind() != ValueKind::Seq {
            return Err(invalid("messages must be an array of messages", "messages"));
        }
        let offered = match &chat.tools {
            Some(tools) => Some(self.offered.tools(tools, |text| json(text, "tools"))?),
            None => None,
        };
        let variables = match &chat.variables {
            Some(variables) => json(variables, "chat_template_kwargs")?,
            None => context! {},
        };
        if variables.kind() != ValueKind::Map {
            return Err(invalid("chat_template_kwargs must be an object", "chat_template_kwargs"));
        }
        let tools = offered.as_ref().map_or(Value::from(()), |it| it.value().clone());
        Ok(Conversation { messages, tools, variables, offered })
    }

    fn run(
        &self,
        environment: &Environment<'_>,
        conversation: &Conversation,
        unix_seconds: i64,
    ) -> Result<String, Error> {
        let Conversation { messages, tools, variables, .. } = conversation;
        let given = context! {
            messages,
            tools,
            documents => Value::from(()),
            strftime_now => Value::from_function(move |format: String| strftime(unix_seconds, &format)),
        };
        let defaults = context! {
            bos_token => &self.bos,
            eos_token => &self.eos,
            add_generation_prompt => true,
        };
        // Of two variables with one name the first counts.
        let all = context! { ..given, ..variables.clone(), ..defaults };
        environment.get_template(NAME)?.render(all)
    }
}

impl Conversation {
    fn in_disguise(&self, disguiser: &Disguiser<'_>) -> Self {
        Self {
            messages: disguiser.put_on(&self.messages),
            tools: self.offered.as_ref().map_or_else(|| self.tools.clone(), |it| it.in_disguise(disguiser)),
            variables: disguiser.put_on(&self.variables),
            offered: self.offered.clone(),
        }
    }
}

/// As Jinja reads a source: every line ends in one line feed. It drops one at the end, as minijinja does.
fn with_line_feeds(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// As `transformers` sets up Jinja.
fn whitespace() -> Result<SyntaxConfig, Fault> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| {
        Fault::new(ErrorCode::Internal, format!("The template engine is misconfigured: {error}"))
    })
}

/// The methods of Python's values: those of `pycompat`, and what it lacks.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), "rsplit", [_, ..]) = (value.as_str(), method, args) {
        let (separator, most): (&str, Option<i64>) = from_args(args)?;
        if separator.is_empty() {
            return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: empty separator"));
        }
        let parts =
            most.and_then(|it| usize::try_from(it).ok()).map_or(usize::MAX, |it| it.saturating_add(1));
        let mut parts: Vec<_> = text.rsplitn(parts, separator).map(Value::from).collect();
        parts.reverse();
        return Ok(Value::from(parts));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// The same in a disguise of marks: what is asked of a text is asked of it without them, and what cuts it
/// loses none that stands before its token.
fn marked_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str().filter(|it| it.contains(is_mark)) else {
        return python_method(state, value, method, args);
    };
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(args)?;
            let (begin, end) = (method != "rstrip", method != "lstrip");
            Ok(Value::from(stripped(text, characters, begin, end)))
        }
        "split" | "rsplit" => {
            let parts: Vec<Value> = python_method(state, value, method, args)?.try_iter()?.collect();
            let last = parts.len().saturating_sub(1);
            // The separator is gone, and with it what a mark before it was there for.
            let part = |(index, part): (usize, Value)| match part.as_str() {
                Some(text) if index < last => Value::from(text.trim_end_matches(is_mark)),
                _ => part,
            };
            Ok(parts.into_iter().enumerate().map(part).collect())
        }
        "startswith" | "endswith" | "count" => {
            let plain: String = text.chars().filter(|it| !is_mark(*it)).collect();
            python_method(state, &Value::from(plain), method, args)
        }
        _ => python_method(state, value, method, args),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a filter")]
fn marked_trim(value: StringInput<'_>, characters: Option<String>) -> String {
    stripped(value.as_str(), characters.as_deref(), true, true).to_owned()
}

fn marked_length(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.chars().filter(|it| !is_mark(*it)).count()),
        None => minijinja::filters::length(value),
    }
}

/// `text.strip(characters)`, which does not end at a mark. One that stands before what is left stays.
fn stripped<'a>(text: &'a str, characters: Option<&str>, begin: bool, end: bool) -> &'a str {
    let goes = |it: char| is_mark(it) || characters.map_or(it.is_whitespace(), |all| all.contains(it));
    let mut rest = text;
    if begin {
        rest = rest.trim_start_matches(goes);
        let before = &text[..text.len() - rest.len()];
        let mark = before.chars().next_back().filter(|it| is_mark(*it)).map_or(0, char::len_utf8);
        rest = &text[before.len() - mark..];
    }
    if end { rest.trim_end_matches(goes) } else { rest }
}

/// What a template says when a conversation is not to its liking ("roles must alternate"): a private
/// mark tells its words from minijinja's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// As in Python, where `None` is not: templates ask before they take the length of `tools`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

fn failed(error: &Error) -> Fault {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return invalid(
                format!("The model's chat template refuses this conversation: {message}"),
                "messages",
            );
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        let message = format!(
            "The model's chat template takes more than {FUEL} steps to render this conversation, and no more are \
             allowed. Send fewer messages or tools, or give the model another template (--chat-template)."
        );
        return invalid(message, "messages");
    }
    invalid(
        format!("The model's chat template cannot render this conversation: {}", describe(error)),
        "messages",
    )
}

fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => {
            format!("line {line}: {}", error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
        }
        None => error.to_string(),
    }
}

fn invalid(message: impl Into<String>, param: &str) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, message).param(param)
}

fn json(text: &str, param: &str) -> Result<Value, Fault> {
    serde_json::from_str(text).map_err(|error| invalid(format!("{param} is not JSON: {error}"), param))
}

/// `datetime.now().strftime(format)`, in UTC.
fn strftime(unix_seconds: i64, format: &str) -> Result<String, Error> {
    let bad = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    let now =
        chrono::DateTime::from_timestamp(unix_seconds, 0).ok_or_else(|| bad("the time is out of range"))?;
    let mut text = String::new();
    write!(text, "{}", now.format(format)).map_err(|_| bad("the format is unknown"))?;
    Ok(text)
}

/// `tojson` as `transformers` defines it: Python's `json.dumps` with `ensure_ascii=False`, and no
/// escaping for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a filter")]
fn to_json(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(value) if !value.is_none() => {
            Some(" ".repeat(usize::try_from(value.clone()).map_or(0, |it| it.min(16))))
        }
        _ => None,
    };
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    kwargs.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two texts")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = PythonStyle { indent, item, key, ensure_ascii, depth: 0, filled: false };
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, style);
    let outcome = if sort_keys {
        // serde_json keeps the keys of its own maps sorted.
        serde_json::to_value(value).and_then(|sorted| serde::Serialize::serialize(&sorted, &mut serializer))
    } else {
        serde::Serialize::serialize(value, &mut serializer)
    };
    outcome.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python's layout of JSON.
struct PythonStyle {
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    depth: usize,
    filled: bool,
}

impl PythonStyle {
    fn open<W: std::io::Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn close<W: std::io::Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }

    fn element<W: std::io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.line(out)
    }

    fn line<W: std::io::Write + ?Sized>(&self, out: &mut W) -> std::io::Result<()> {
        if let Some(indent) = &self.indent {
            out.write_all(b"\n")?;
            for _ in 0..self.depth {
                out.write_all(indent.as_bytes())?;
            }
        }
        Ok(())
    }
}

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.element(out, first)
    }

    fn end_array_value<W: std::io::Write + ?Sized>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.element(out, first)
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: std::io::Write + ?Sized>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }

    /// As Python's `repr`: with an exponent of two digits below 1e-4 and from 1e16.
    fn write_f64<W: std::io::Write + ?Sized>(&mut self, out: &mut W, value: f64) -> std::io::Result<()> {
        let short = format!("{value:e}");
        let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
        match exponent.parse::<i32>() {
            Ok(exponent) if !(-4..16).contains(&exponent) => {
                let sign = if exponent < 0 { '-' } else { '+' };
                write!(out, "{digits}e{sign}{:02}", exponent.abs())
            }
            _ => write!(out, "{value:?}"),
        }
    }

    fn write_string_fragment<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> std::io::Result<()> {
        if !self.ensure_ascii {
            return out.write_all(text.as_bytes());
        }
        for character in text.chars() {
            // A disguise is taken off where it shows.
            if character.is_ascii() || is_private(character) {
                write!(out, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// `{% generation %}` marks the model's own words for training; here it means nothing. It becomes a
/// condition that is always true, which keeps its whitespace control.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let (before, tag) = rest.split_at(begin + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[..end];
        let word = inner.trim_matches(|it: char| it.is_whitespace() || it == '-' || it == '+');
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inner.replacen(word, replacement, 1));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::attribute;

    fn chat(messages: &str) -> Chat {
        Chat { messages: messages.to_owned(), tools: None, variables: None }
    }

    fn vocabulary() -> Vocabulary {
        Vocabulary {
            bytes: b"<s></s>".to_vec(),
            offsets: vec![0, 3, 7],
            attributes: vec![attribute::CONTROL; 2],
            bos: Some(0),
            eos: Some(1),
            ..Vocabulary::default()
        }
    }

    fn render(source: &str, messages: &str) -> Result<String, Fault> {
        let rendered =
            ChatTemplate::compile(source, &vocabulary())?.render(&chat(messages), 1_700_000_000)?;
        Ok(rendered.into_text())
    }

    #[test]
    fn chatml() {
        let source = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}\n{% endif %}\n";
        let text = render(source, r#"[{"role":"user","content":"<Hi> & \"you\""}]"#).unwrap();
        // As in Python: a block's line feed goes, an expression's stays.
        assert_eq!(text, "<|im_start|>user\n<Hi> & \"you\"<|im_end|>\n\n<|im_start|>assistant\n\n");
    }

    #[test]
    fn python_methods_and_loop_controls() {
        let source = "{%- set ns = namespace(n=0) -%}
{%- for m in messages -%}
{%- if m.role == 'skip' -%}{%- continue -%}{%- endif -%}
{%- set ns.n = ns.n + 1 -%}
{{ m['content'].strip().split('|')[-1].upper() }}{{ ',' if not loop.last }}
{%- if m.content.startswith('x') and m.get('name', 'none') == 'none' -%}!{%- endif -%}
{%- for key, value in m.items() -%}{{ key[0] }}{%- endfor -%}
{%- endfor -%}={{ ns.n }}{{ bos_token }}{{ eos_token }}{{ messages[0]['missing'] }}{{ messages[0].role is string }}";
        let messages = r#"[{"role":"user","content":" a|b "},{"role":"skip","content":"-"},{"role":"user","content":"xc"}]"#;
        assert_eq!(render(source, messages).unwrap(), "B,rcXC!rc=2<s></s>True");
    }

    #[test]
    fn rsplit_is_python_s() {
        let source = "{{ 'a-b-c'.rsplit('-', 1) }}{{ 'a-b-c'.rsplit('-') }}{{ 'abc'.rsplit('-', 2) }}";
        assert_eq!(render(source, "[]").unwrap(), "['a-b', 'c']['a', 'b', 'c']['abc']");
        assert!(render("{{ 'abc'.rsplit('') }}", "[]").is_err());
    }

    #[test]
    fn raise_exception_is_the_client_s_fault() {
        let source =
            "{% if messages[0].role != 'user' %}{{ raise_exception('Roles must alternate!') }}{% endif %}";
        let fault = render(source, r#"[{"role":"assistant","content":""}]"#).unwrap_err();
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
        assert_eq!(fault.param.as_deref(), Some("messages"));
        assert!(fault.message.ends_with("refuses this conversation: Roles must alternate!"), "{fault}");
    }

    #[test]
    fn tojson_is_python_s() {
        let messages = r#"[{"b": [1, 2.5, null, true, {}], "a": "<é'\">"}]"#;
        assert_eq!(
            render("{{ messages[0] | tojson }}", messages).unwrap(),
            r#"{"b": [1, 2.5, null, true, {}], "a": "<é'\">"}"#
        );
        assert_eq!(
            render("{{ messages[0] | tojson(indent=2) }}", messages).unwrap(),
            "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true,\n    {}\n  ],\n  \"a\": \"<é'\\\">\"\n}"
        );
        assert_eq!(
            render("{{ messages[0].a | tojson(ensure_ascii=true) }}", messages).unwrap(),
            r#""<\u00e9'\">""#
        );
        assert_eq!(
            render("{{ messages[0] | tojson(separators=(',', ':')) }}", messages).unwrap(),
            r#"{"b":[1,2.5,null,true,{}],"a":"<é'\">"}"#
        );
        let numbers = r#"[{"a": [1.0, 0.1, 0.0001, 1.5e-5, 1e15, 1e16, -1.25e100, 1e-300, 0.0]}]"#;
        assert_eq!(
            render("{{ messages[0].a | tojson }}", numbers).unwrap(),
            "[1.0, 0.1, 0.0001, 1.5e-05, 1000000000000000.0, 1e+16, -1.25e+100, 1e-300, 0.0]"
        );
    }

    #[test]
    fn the_time_is_the_caller_s() {
        let source = "{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }}";
        assert_eq!(render(source, "[]").unwrap(), "14 Nov 2023");
        assert!(render("{{ strftime_now('%Q') }}", "[]").is_err());
    }

    #[test]
    fn tools_and_variables() {
        let template = ChatTemplate::compile(
            "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ enable_thinking }}{{ add_generation_prompt }}{{ messages | length }}",
            &Vocabulary::default(),
        )
        .unwrap();
        let chat = Chat {
            messages: "[]".into(),
            tools: Some(r#"[{"function":{"name":"add"}}]"#.into()),
            variables: Some(
                r#"{"enable_thinking":false,"add_generation_prompt":false,"messages":[1,2]}"#.into(),
            ),
        };
        assert_eq!(template.render(&chat, 0).unwrap().text(), "addFalseFalse0");
    }

    #[test]
    fn nothing_is_not_iterable() {
        let source = "{% for it in [none, [], 'a', {}, 1, tools] %}{{ it is iterable }} {% endfor %}";
        assert_eq!(render(source, "[]").unwrap(), "False True True True False False ");
    }

    #[test]
    fn lists_change_where_a_template_asks_for_it() {
        let source = "{%- set ns = namespace(ids=[]) -%}{%- for it in [1, 2, 3] -%}{%- set _ = ns.ids.append(it) -%}{%- endfor -%}\
                      {{ ns.ids.pop(0) }} {{ ns.ids | length }} {{ ns.ids[0] }} {{ ns.ids == [] }} {{ ns.ids.pop() }}{{ ns.ids }}";
        assert_eq!(render(source, "[]").unwrap(), "1 2 2 False 3[2]");
        // Each prompt begins with new ones.
        let template = ChatTemplate::compile(source, &vocabulary()).unwrap();
        for _ in 0..2 {
            assert!(template.render(&chat("[]"), 0).unwrap().text().starts_with("1 2"));
        }
        assert!(render("{% set a = [] %}{% set _ = a.append(1) %}{{ a.pop(3) }}", "[]").is_err());
    }

    #[test]
    fn generation_blocks_are_transparent() {
        let source = "a {%- generation -%} b {%- endgeneration %} c {% if true %}d{% endif %}";
        assert_eq!(render(source, "[]").unwrap(), "ab c d");
    }

    #[test]
    fn bad_input_is_a_fault() {
        assert_eq!(
            ChatTemplate::compile("{% for %}", &Vocabulary::default()).unwrap_err().code,
            ErrorCode::UnsupportedFeature
        );
        assert_eq!(
            ChatTemplate::compile("{% frobnicate %}", &Vocabulary::default()).unwrap_err().code,
            ErrorCode::UnsupportedFeature
        );
        for messages in ["", "{}", "[", "1"] {
            let fault = render("", messages).unwrap_err();
            assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("messages")));
        }
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let in_macro = format!("{{% macro m() %}}{endless}{{% endmacro %}}{{{{ m() }}}}");
        for source in [endless, &in_macro] {
            let fault = render(source, "[]").unwrap_err();
            assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("messages")));
            assert!(
                fault.message.contains("more than 3000000 steps") && fault.message.contains("Send fewer"),
                "{fault}"
            );
        }
        let deep = "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}";
        assert_eq!(render(deep, "[]").unwrap_err().code, ErrorCode::InvalidRequest);
    }
}
