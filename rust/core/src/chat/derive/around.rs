//! The marks around what a model thinks and what it says.

use super::{
    super::{
        conversation::Conversation,
        families::known,
        syntax::{Literal, ReasoningSyntax, SaidSyntax},
    },
    Render, SAID, THOUGHT, Tokens,
    marks::{common_prefix, mark_begin},
    probe,
};

/// Finds the marks of reasoning: in what the template makes of it, else among those that are known.
/// `source` is the template's.
pub fn reasoning_syntax(render: Render<'_>, source: &str, tokens: Tokens<'_>) -> Option<ReasoningSyntax> {
    let said = render(&probe(SAID, "", &[]))?;
    let found = render(&probe(SAID, THOUGHT, &[])).and_then(|thought| {
        let at = thought.rfind(THOUGHT)?;
        let before = thought[..at].trim_end();
        let begin = before.rfind('<').filter(|it| before.len() - it < 64)?;
        let open = &thought[begin..at];
        // Where it stands before what is said as well, it begins a message.
        if open.trim().is_empty() || said[..said.rfind(SAID)?].trim_end().ends_with(open.trim()) {
            return None;
        }
        let behind = &thought[at + THOUGHT.len()..];
        let close = first_mark(behind)?;
        (behind.trim_start().len() > close.trim_start().len()).then(|| (open.to_owned(), close.to_owned()))
    });
    let known = || {
        let pair = known::REASONING.iter().find(|it| source.contains(it.1))?;
        Some((pair.0.to_owned(), pair.1.to_owned()))
    };
    let (open, close) = found.or_else(known)?;
    Some(ReasoningSyntax { open: tokens.literal(open), close: tokens.literal(close) })
}

/// The mark that a text begins with, and the white space before it.
fn first_mark(text: &str) -> Option<&str> {
    let mark = text.trim_start();
    let end = if mark.starts_with('<') {
        mark.find('>')?
    } else if mark.starts_with('[') {
        mark.find(']')?
    } else {
        return None;
    };
    Some(&text[..=text.len() - mark.len() + end])
}

/// Finds the marks of what is said: those that the template writes where an answer begins, beyond what it ends a
/// prompt with, else among those that are known. What stands between reasoning and them becomes the end of
/// reasoning. `begins` renders with the beginning of an answer.
pub fn said_syntax(
    render: Render<'_>,
    begins: Render<'_>,
    source: &str,
    tokens: Tokens<'_>,
    reasoning: Option<&mut ReasoningSyntax>,
) -> Option<SaidSyntax> {
    let asked = |conversation: Conversation| Conversation { tools: Vec::new(), ..conversation };
    let written = |text: &str, thought: &str| {
        let rendered = render(&asked(probe(text, thought, &[])))?;
        let (before, behind) = rendered.rsplit_once(SAID)?;
        Some((before.to_owned(), behind.to_owned()))
    };
    let found = || {
        let (before, behind) = written(SAID, "")?;
        let mut question = asked(probe(SAID, "", &[]));
        question.messages.pop();
        let same = common_prefix(&before, &begins(&question)?);
        let mut open = before[mark_begin(&before, same)..].trim();
        if let Some(reasoning) = &reasoning {
            open = open.strip_prefix(reasoning.open.text().trim()).unwrap_or(open).trim_start();
            open = open.strip_prefix(reasoning.close.text().trim()).unwrap_or(open).trim_start();
        }
        let close = first_mark(&behind).unwrap_or_default();
        (open.starts_with('<') && open.ends_with('>')).then(|| (open.to_owned(), close.to_owned()))
    };
    let known = || {
        let (_, open, close) = known::SAID.iter().find(|it| source.contains(it.0))?;
        Some(((*open).to_owned(), (*close).to_owned()))
    };
    let (open, close) = found().or_else(known)?;
    if let Some(reasoning) = reasoning
        && let Some((before, _)) = written(SAID, THOUGHT)
        && let Some((_, behind)) = before.rsplit_once(THOUGHT)
        && let Some(between) = behind.trim_end().strip_suffix(open.trim())
        && between.trim().starts_with(reasoning.close.text().trim())
    {
        reasoning.close = tokens.literal(between);
    }
    Some(SaidSyntax { open: tokens.literal(open), close: tokens.literal(close), end: Literal::default() })
}
