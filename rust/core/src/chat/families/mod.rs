//! Syntaxes that no template tells: models that write something else than their template renders, and
//! templates that show tools and render no call.
//!
//! Chosen by a mark in the template or by the operator, never by a model's name. A line in [`FAMILIES`], and a
//! file where reading needs more than literals.

pub(crate) mod harmony;
pub(crate) mod known;

use super::{
    derive::Tokens,
    syntax::{Body, Family, Hole, InputSyntax, Literal, Object, Shape, ToolSyntax},
};

/// A syntax that has a name.
struct Named {
    name: &'static str,
    /// Templates of the family hold all marks of one of these; none: it is chosen by name alone.
    marks: &'static [&'static [&'static str]],
    syntax: fn(Tokens<'_>) -> ToolSyntax,
}

/// The first whose marks fit counts.
const FAMILIES: [Named; 8] = [
    Named {
        name: "harmony",
        marks: &[
            &["<|channel|>analysis", "<|channel|>commentary", "to=functions"],
            &["<|channel|>analysis", "<|start|>assistant to="],
        ],
        syntax: harmony,
    },
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
    }
}

fn object(name_key: &str, input_key: &str, list: bool) -> Body {
    let (name_key, input_key) = (name_key.to_owned(), input_key.to_owned());
    Body::Object(Object { name_key, input_key, shape: Shape::Flat, list })
}

/// gpt-oss. One call ends its answer.
fn harmony(_: Tokens<'_>) -> ToolSyntax {
    ToolSyntax { parallel: false, ..plain("harmony", Body::Harmony) }
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
