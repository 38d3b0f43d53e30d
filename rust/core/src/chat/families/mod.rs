//! Syntaxes that no template tells: models that write something else than their template renders, and
//! templates that show tools and render no call.
//!
//! Chosen by a mark in the template or by the operator, never by a model's name. A line in [`FAMILIES`], and a
//! file where reading needs more than literals.

pub(crate) mod known;
pub(crate) mod messages;

use super::{
    derive::Tokens,
    syntax::{
        Body, Elements, Family, Frame, Hole, InputSyntax, Literal, Object, ReasoningSyntax, SaidSyntax,
        Shape, Tags, ToolSyntax,
    },
};

/// A syntax that has a name.
struct Named {
    name: &'static str,
    /// Templates of the family hold all marks of one of these; none: it is chosen by name alone.
    marks: &'static [&'static [&'static str]],
    syntax: fn(Tokens<'_>) -> ToolSyntax,
}

/// The first whose marks fit counts.
const FAMILIES: [Named; 10] = [
    Named {
        name: "harmony",
        marks: &[
            &["<|channel|>analysis", "<|channel|>commentary", "to=functions"],
            &["<|channel|>analysis", "<|start|>assistant to="],
        ],
        syntax: harmony,
    },
    Named { name: "atem", marks: &[&["<atem:function_calls>", "<|start|>assistant to="]], syntax: atem },
    Named { name: "kimi_k3", marks: &[&["'<|open|>' + tag", "<|end_of_msg|>"]], syntax: kimi_k3 },
    Named { name: "llama3", marks: &[&["<|python_tag|>", "ipython", "\"parameters\": "]], syntax: llama3 },
    Named { name: "functionary", marks: &[&[">>>all\\n", ">>>${recipient}"]], syntax: functionary },
    Named {
        name: "lfm2",
        marks: &[&["<|tool_call_start|>"], &["<|tool_list_start|>"], &["\"List of tools: [\""]],
        syntax: lfm2,
    },
    Named { name: "granite3", marks: &[&["<|tool_call|>", "<|start_of_role|>"]], syntax: granite3 },
    Named { name: "functools", marks: &[&["<|/tool|>", "<|end|>"]], syntax: functools },
    Named { name: "hermes", marks: &[&["xml_tools", "<tool_call>"]], syntax: hermes },
    Named { name: "pythonic", marks: &[], syntax: pythonic },
];

/// Their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|it| it.name)
}

/// The family of that name.
pub fn named(name: &str, tokens: Tokens<'_>) -> Option<ToolSyntax> {
    FAMILIES.iter().find(|it| it.name == name).map(|it| (it.syntax)(tokens))
}

/// The family whose marks the template bears.
pub fn marked(source: &str, tokens: Tokens<'_>) -> Option<ToolSyntax> {
    let fits = |it: &&Named| it.marks.iter().any(|all| all.iter().all(|it| source.contains(it)));
    FAMILIES.iter().find(fits).map(|it| (it.syntax)(tokens))
}

fn plain(name: &'static str, body: Body) -> ToolSyntax {
    ToolSyntax {
        section: None,
        call: (Literal::default(), Literal::default()),
        between: Literal::default(),
        body,
        anywhere: false,
        bare: false,
        family: Family::Named(name),
        parallel: true,
        frame: Frame::Plain,
    }
}

fn object(name_key: &str, input_key: &str, list: bool) -> Body {
    let (name_key, input_key) = (name_key.to_owned(), input_key.to_owned());
    Body::Object(Object { name_key, input_key, shape: Shape::Flat, list })
}

/// gpt-oss. One call ends its answer.
fn harmony(_: Tokens<'_>) -> ToolSyntax {
    let body = Body::Pattern { pieces: vec![Hole::Input], input: InputSyntax::Json };
    ToolSyntax { parallel: false, frame: Frame::Messages(&messages::HARMONY), ..plain("harmony", body) }
}

/// Muse Glimmer: messages again, and in those for tools calls in tags.
fn atem(tokens: Tokens<'_>) -> ToolSyntax {
    let tags = Tags {
        before_key: tokens.literal("<atem:parameter name=\""),
        after_key: tokens.literal("\">"),
        kind: None,
        after_value: tokens.literal("</atem:parameter>\n"),
    };
    let pieces = vec![Hole::Name, Hole::Lit(tokens.literal("\">\n")), Hole::Input];
    ToolSyntax {
        section: Some((
            tokens.literal("<atem:function_calls>\n"),
            tokens.literal("\n</atem:function_calls>"),
        )),
        call: (tokens.literal("<atem:invoke name=\""), tokens.literal("</atem:invoke>")),
        between: tokens.literal("\n"),
        frame: Frame::Messages(&messages::ATEM),
        ..plain("atem", Body::Pattern { pieces, input: InputSyntax::Tagged(tags) })
    }
}

/// Kimi K3: elements of four control tokens, whose tags say of a value which type of JSON it has.
fn kimi_k3(tokens: Tokens<'_>) -> ToolSyntax {
    let open = |tag: &str| tokens.literal(format!("<|open|>{tag}<|sep|>"));
    let close = |tag: &str| tokens.literal(format!("<|close|>{tag}<|sep|>"));
    let tags = Tags {
        before_key: tokens.literal("<|open|>argument key=\""),
        after_key: tokens.literal("\" type=\""),
        kind: Some(("string".to_owned(), tokens.literal("\"<|sep|>"))),
        after_value: close("argument"),
    };
    let lit = |text: &str| Hole::Lit(tokens.literal(text));
    let pieces = vec![Hole::Name, lit("\" index=\""), Hole::Id, lit("\"<|sep|>"), Hole::Input];
    ToolSyntax {
        section: Some((open("tools"), close("tools"))),
        call: (tokens.literal("<|open|>call tool=\""), close("call")),
        anywhere: true,
        frame: Frame::Elements(Box::new(Elements {
            thoughts: ReasoningSyntax { open: open("think"), close: close("think") },
            text: SaidSyntax { open: open("response"), close: close("response"), end: close("message") },
        })),
        ..plain("kimi_k3", Body::Pattern { pieces, input: InputSyntax::Tagged(tags) })
    }
}

/// Llama 3.1 to 3.3: an object without a mark, or behind `<|python_tag|>`; several with a semicolon between
/// them. Its template renders one call for a message.
fn llama3(tokens: Tokens<'_>) -> ToolSyntax {
    ToolSyntax {
        call: (tokens.literal("<|python_tag|>"), Literal::default()),
        between: tokens.literal("; "),
        bare: true,
        parallel: false,
        ..plain("llama3", object("name", "parameters", false))
    }
}

/// Functionary 3.2: each part is behind `>>>` and for whom it is, text for `all`.
fn functionary(tokens: Tokens<'_>) -> ToolSyntax {
    let pieces = vec![Hole::Name, Hole::Lit(tokens.literal("\n")), Hole::Input];
    ToolSyntax {
        call: (tokens.literal(">>>"), Literal::default()),
        anywhere: true,
        ..plain("functionary", Body::Pattern { pieces, input: InputSyntax::Json })
    }
}

/// LFM2 and LFM2.5: Python's calls between two tokens.
fn lfm2(tokens: Tokens<'_>) -> ToolSyntax {
    ToolSyntax {
        section: Some((tokens.literal("<|tool_call_start|>"), tokens.literal("<|tool_call_end|>"))),
        ..plain("lfm2", Body::Python)
    }
}

/// Granite 3: a list behind one token.
fn granite3(tokens: Tokens<'_>) -> ToolSyntax {
    ToolSyntax {
        section: Some((tokens.literal("<|tool_call|>"), Literal::default())),
        ..plain("granite3", object("name", "arguments", true))
    }
}

/// Phi-4 mini: a list behind this word, or behind a token that is not shown.
fn functools(tokens: Tokens<'_>) -> ToolSyntax {
    ToolSyntax {
        section: Some((tokens.literal("functools"), Literal::default())),
        bare: true,
        ..plain("functools", object("name", "arguments", true))
    }
}

/// Hermes, Qwen and many others, whose templates mostly render it. SmolLM3's shows it to the model alone.
fn hermes(tokens: Tokens<'_>) -> ToolSyntax {
    ToolSyntax {
        call: (tokens.literal("<tool_call>\n"), tokens.literal("\n</tool_call>")),
        between: tokens.literal("\n"),
        bare: true,
        ..plain("hermes", object("name", "arguments", false))
    }
}

/// Llama 4 and others: an answer that is a list of Python's calls.
fn pythonic(_: Tokens<'_>) -> ToolSyntax {
    ToolSyntax { bare: true, ..plain("pythonic", Body::Python) }
}
