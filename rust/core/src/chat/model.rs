//! A model's chat template with all that was found out about it: how it takes conversations, how the model
//! calls tools and marks reasoning.
//!
//! Probed once, when the model is loaded.

use std::{fmt, sync::Arc};

use super::{
    conversation::{Choice, Conversation},
    derive::{self, Tokens, Underivable},
    families,
    habits::Habits,
    parse::{Known, Watch},
    render::objects,
    syntax::{Family, ReasoningSyntax, ToolSyntax},
};
use crate::{
    engine::Vocabulary,
    error::{ErrorCode, Fault},
    text::{control::Rendered, conversation::Chat, template::ChatTemplate},
};

/// The time that probes tell a template, in Unix seconds.
const PROBED_AT: i64 = 1_700_000_000;

/// Which syntax of tool calls a model gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SyntaxChoice {
    /// The one that its template bears or that follows from it.
    #[default]
    Found,
    /// The family of that name.
    Named(String),
    /// None: it has no tools.
    None,
}

impl SyntaxChoice {
    /// Of a load option: a family's name, or `none`.
    pub fn of(name: &str) -> Result<Self, Fault> {
        if name == "none" {
            return Ok(SyntaxChoice::None);
        }
        if families::names().any(|it| it == name) {
            return Ok(SyntaxChoice::Named(name.to_owned()));
        }
        let names: Vec<_> = families::names().chain(["none"]).collect();
        let message = format!("there is no tool syntax '{name}'; known are {}", names.join(", "));
        Err(Fault::new(ErrorCode::InvalidRequest, message).param("tool_syntax"))
    }
}

/// A conversation as the model is asked it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// All that the model reads.
    pub prompt: Rendered,
    /// What to look for in the answer.
    pub watch: Watch,
    /// The beginning of the answer, with which the prompt ends.
    pub begun: String,
    /// What was said and is not shown to the model.
    pub unseen: Vec<String>,
}

/// A model's chat template and what is known about it.
#[derive(Clone, Debug)]
pub struct ModelChat {
    template: ChatTemplate,
    habits: Habits,
    tools: Result<Arc<ToolSyntax>, Underivable>,
    reasoning: Option<Arc<ReasoningSyntax>>,
}

impl ModelChat {
    /// Asks the template.
    pub fn of(template: ChatTemplate, vocabulary: &Vocabulary, choice: &SyntaxChoice) -> Self {
        let tokens = Tokens::of(vocabulary);
        let render = |conversation: &Conversation, habits: &Habits, begins: bool| {
            template.render_plain(&objects(conversation, habits), begins, PROBED_AT).ok()
        };
        let habits = Habits::of(&render);
        let by_habits = |conversation: &Conversation| render(conversation, &habits, false);
        let source = template.source();
        let reasoning = derive::reasoning_syntax(&by_habits, source, tokens);
        let found = || {
            families::marked(source, tokens)
                .map_or_else(|| derive::tool_syntax(&by_habits, tokens, reasoning.as_ref()), Ok)
        };
        let tools = match choice {
            SyntaxChoice::None => Err(Underivable("the model is loaded without a tool syntax".to_owned())),
            SyntaxChoice::Named(name) => families::named(name, tokens)
                .ok_or_else(|| Underivable(format!("there is no syntax '{name}'"))),
            SyntaxChoice::Found => found(),
        };
        Self { habits, tools: tools.map(Arc::new), reasoning: reasoning.map(Arc::new), template }
    }

    /// The source of its template.
    pub fn source(&self) -> &str {
        self.template.source()
    }

    /// How it takes conversations.
    pub fn habits(&self) -> &Habits {
        &self.habits
    }

    /// How it calls tools, or why that is not known.
    pub fn calls(&self) -> Result<&Arc<ToolSyntax>, &Underivable> {
        self.tools.as_ref()
    }

    /// How it marks what it thinks.
    pub fn reasoning(&self) -> Option<&ReasoningSyntax> {
        self.reasoning.as_deref()
    }

    /// Can it be offered tools: are they shown to it, are its calls understood, and does it see what came of
    /// them? A named family is taken at its word.
    pub fn has_tools(&self) -> bool {
        let named = |it: &ToolSyntax| matches!(it.family, Family::Named(_));
        self.habits.shows_tools && self.calls().is_ok_and(|it| self.habits.shows_results || named(it))
    }

    /// The prompt for a conversation, and what to look for in the answer.
    pub fn render(&self, conversation: &Conversation, unix_seconds: i64) -> Result<Asked, Fault> {
        let offered = conversation.offered();
        if !offered.is_empty() && !self.has_tools() {
            let why = match self.calls() {
                Err(Underivable(why)) => format!("how it writes a call is not known: {why}"),
                Ok(_) if !self.habits.shows_tools => "its chat template does not show them to it".to_owned(),
                Ok(_) => "its chat template does not show it what came of a call".to_owned(),
            };
            let message = format!("This model cannot be offered tools: {why}.");
            return Err(Fault::new(ErrorCode::UnsupportedFeature, message).param("tools"));
        }
        let chat = objects(conversation, &self.habits);
        let mut rendered = self.template.render(&chat, unix_seconds)?;
        let begun = conversation.prefill().unwrap_or_default();
        // Where the model's own words begin.
        let mut place = rendered.text().len();
        if !begun.is_empty() {
            (rendered, place) = self.begun(chat, begun, unix_seconds)?;
        }
        let mut watch = Watch {
            tools: self.tools.as_ref().ok().filter(|_| !offered.is_empty()).cloned(),
            reasoning: self.reasoning.clone(),
            known: offered.iter().map(Known::of).collect(),
            thinks: false,
            parallel: conversation.parallel,
        };
        if let Choice::Among { names, .. } = &conversation.choice {
            watch.known.retain(|it| names.contains(&it.name));
        }
        watch.thinks = watch.reasoning.as_ref().is_some_and(|it| ends_open(&rendered.text()[..place], it));
        let begun = rendered.text()[place..].to_owned();
        let unseen = (conversation.names_people() && !self.habits.names).then(|| "messages.name".to_owned());
        Ok(Asked { prompt: rendered, watch, begun, unseen: unseen.into_iter().collect() })
    }

    /// A prompt that ends with the beginning of the answer, and where that stands in it.
    fn begun(&self, mut chat: Chat, begun: &str, unix_seconds: i64) -> Result<(Rendered, usize), Fault> {
        let variables = chat.variables.unwrap_or_default();
        let inner = variables.trim().trim_start_matches('{').trim_start();
        let separator = if inner.starts_with('}') || inner.is_empty() { "" } else { ", " };
        let end = if inner.is_empty() { "}" } else { inner };
        chat.variables = Some(format!("{{\"add_generation_prompt\": false{separator}{end}"));
        let rendered = self.template.render(&chat, unix_seconds)?;
        // Templates trim what messages say.
        let found = [begun, begun.trim_end(), begun.trim()]
            .into_iter()
            .filter(|it| !it.is_empty())
            .find_map(|it| rendered.text().rfind(it).map(|at| (at, at + it.len())));
        let Some((place, end)) = found else {
            let message = "The model's chat template does not show the beginning of an answer, so the last \
                           message cannot be the assistant's.";
            return Err(Fault::new(ErrorCode::UnsupportedFeature, message).param("messages"));
        };
        Ok((rendered.cut(end), place))
    }
}

/// Does the prompt end inside reasoning that it has opened?
fn ends_open(prompt: &str, reasoning: &ReasoningSyntax) -> bool {
    let open = reasoning.open.text().trim();
    !open.is_empty() && prompt.trim_end().ends_with(open)
}

/// One line for each thing that was found, for people and for tests.
impl fmt::Display for ModelChat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.calls() {
            Ok(syntax) => {
                writeln!(f, "  family: {}", syntax.family.as_str())?;
                if let Some((open, close)) = &syntax.section {
                    writeln!(f, "  section: {:?} {:?}", open.text(), close.text())?;
                }
                writeln!(f, "  call: {:?} {:?}", syntax.call.0.text(), syntax.call.1.text())?;
                writeln!(f, "  between: {:?}", syntax.between.text())?;
                writeln!(f, "  body: {}", syntax.body)?;
                let ToolSyntax { anywhere, bare, parallel, .. } = &**syntax;
                writeln!(f, "  anywhere: {anywhere}, bare: {bare}, parallel: {parallel}")?;
            }
            Err(Underivable(why)) => {
                writeln!(f, "  no calls: {}", why.chars().take(160).collect::<String>())?;
            }
        }
        if let Some(reasoning) = self.reasoning() {
            writeln!(f, "  reasoning: {:?} {:?}", reasoning.open.text(), reasoning.close.text())?;
        }
        writeln!(f, "  habits: {:?}", self.habits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::conversation::{Message, Part, Thinking, Tool, ToolInput};

    const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}\
        {% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% for c in m.tool_calls or [] %}\n<call>\n\
        {\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}\n</call>{% endfor %}\
        <|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}\
        {% endif %}{# </think> #}";

    fn model(source: &str, choice: &SyntaxChoice) -> ModelChat {
        let vocabulary = Vocabulary::default();
        ModelChat::of(ChatTemplate::compile(source, &vocabulary).unwrap(), &vocabulary, choice)
    }

    fn user(text: &str) -> Message {
        Message::User { parts: vec![Part::Text(text.into())], name: None }
    }

    fn said(text: &str) -> Message {
        Message::Assistant { reasoning: String::new(), text: text.into(), calls: vec![] }
    }

    fn of(messages: Vec<Message>) -> Conversation {
        Conversation { messages, ..Conversation::default() }
    }

    fn tool(name: &str) -> Tool {
        let input = ToolInput::Text(None);
        Tool { name: name.into(), description: None, input, strict: false }
    }

    #[test]
    fn an_answer_that_is_begun_ends_the_prompt() {
        let model = model(TEMPLATE, &SyntaxChoice::Found);
        let asked = model.render(&of(vec![user("q"), said("<think>hm ")]), 0).unwrap();
        assert_eq!(asked.prompt.text(), "<|user|>q<|end|><|assistant|><think>hm");
        assert_eq!((asked.begun.as_str(), asked.watch.thinks), ("<think>hm", false));
        let asked = model.render(&of(vec![user("q"), said("")]), 0).unwrap();
        assert!(asked.prompt.text().ends_with("<|assistant|>") && asked.begun.is_empty());
    }

    #[test]
    fn the_prompt_says_whether_the_answer_begins_in_reasoning() {
        let model = model(TEMPLATE, &SyntaxChoice::Found);
        let thinking = |it| Conversation { thinking: it, ..of(vec![user("q")]) };
        let thinks = |it| model.render(&thinking(it), 0).unwrap().watch.thinks;
        assert!(thinks(Thinking::On { effort: None, budget: None }));
        assert!(!thinks(Thinking::Off) && !thinks(Thinking::Model));
    }

    #[test]
    fn tools_are_looked_for_where_they_are_offered() {
        let found = model(TEMPLATE, &SyntaxChoice::Found);
        let mut conversation = Conversation { tools: vec![tool("f"), tool("g")], ..of(vec![user("q")]) };
        let asked = found.render(&conversation, 0).unwrap();
        assert!(asked.watch.tools.is_some() && asked.watch.known.len() == 2);
        conversation.choice = Choice::Among { names: vec!["g".into()], required: false };
        assert_eq!(found.render(&conversation, 0).unwrap().watch.known.len(), 1);
        conversation.choice = Choice::None;
        let asked = found.render(&conversation, 0).unwrap();
        assert!(asked.watch.tools.is_none() && !asked.prompt.text().contains("function"));

        conversation.choice = Choice::Auto;
        for model in [model("{{ messages }}", &SyntaxChoice::Found), model(TEMPLATE, &SyntaxChoice::None)] {
            let fault = model.render(&conversation, 0).unwrap_err();
            assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::UnsupportedFeature, Some("tools")));
        }
        assert!(SyntaxChoice::of("martian").is_err());
        assert_eq!(SyntaxChoice::of("hermes"), Ok(SyntaxChoice::Named("hermes".into())));
    }
}
