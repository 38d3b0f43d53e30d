//! A model's chat template with all that was found out about it: how it takes conversations, how the model
//! calls tools and marks reasoning.
//!
//! Probed once, when the model is loaded.

use std::{fmt, sync::Arc};

use super::{
    conversation::{Choice, Conversation, Thinking},
    derive::{self, Tokens, Underivable},
    families,
    habits::Habits,
    parse::{Known, Watch},
    render::{objects, with_variable},
    syntax::{Family, Frame, Literal, Messages, ReasoningSyntax, SaidSyntax, ToolSyntax},
};
use crate::{
    engine::Vocabulary,
    error::{ErrorCode, Fault},
    text::{control::Rendered, conversation::Chat, template::ChatTemplate},
};

/// The time that probes tell a template, in Unix seconds.
const PROBED_AT: i64 = 1_700_000_000;

/// The word for no syntax at all.
const OFF: &str = "off";

/// Which syntax of tool calls a model gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SyntaxChoice {
    /// The one that its template bears or that follows from it.
    #[default]
    Found,
    /// The family of that name.
    Named(String),
    /// None: it has no tools.
    Off,
}

impl SyntaxChoice {
    /// What may be asked for.
    pub fn names() -> impl Iterator<Item = &'static str> {
        families::names().chain([OFF])
    }

    /// Of a load option: a family's name, or `off`.
    pub fn of(name: &str) -> Result<Self, Fault> {
        if name == OFF {
            return Ok(SyntaxChoice::Off);
        }
        if families::names().any(|it| it == name) {
            return Ok(SyntaxChoice::Named(name.to_owned()));
        }
        let known: Vec<_> = Self::names().collect();
        let message = format!("there is no tool syntax '{name}'; known are {}", known.join(", "));
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
    /// The format of its answers, where that marks more than calls.
    format: Option<Arc<ToolSyntax>>,
    reasoning: Option<Arc<ReasoningSyntax>>,
    said: Option<Arc<SaidSyntax>>,
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
        let begins = |conversation: &Conversation| render(conversation, &habits, true);
        let source = template.source();
        let marked = families::marked(source, tokens);
        let (reasoning, said) = match marked.as_ref().map(|it| &it.frame) {
            Some(Frame::Elements(it)) => (Some(it.thoughts.clone()), Some(it.text.clone())),
            // Their headers tell.
            Some(Frame::Messages(_)) => (None, None),
            _ => {
                let mut reasoning = derive::reasoning_syntax(&by_habits, source, tokens);
                let said = derive::said_syntax(&by_habits, &begins, source, tokens, reasoning.as_mut());
                (reasoning, said)
            }
        };
        let format = marked.clone().filter(|it| it.frame != Frame::Plain).map(Arc::new);
        let found = || marked.map_or_else(|| derive::tool_syntax(&by_habits, tokens, reasoning.as_ref()), Ok);
        let tools = match choice {
            SyntaxChoice::Off => Err(Underivable("the model is loaded without a tool syntax".to_owned())),
            SyntaxChoice::Named(name) => families::named(name, tokens)
                .ok_or_else(|| Underivable(format!("there is no syntax '{name}'"))),
            SyntaxChoice::Found => found(),
        };
        let (reasoning, said) = (reasoning.map(Arc::new), said.map(Arc::new));
        Self { habits, tools: tools.map(Arc::new), format, reasoning, said, template }
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

    /// Is it known what of its answers is thought?
    pub fn tells_thoughts(&self) -> bool {
        let in_messages = |it: &Arc<ToolSyntax>| matches!(it.frame, Frame::Messages(_));
        self.reasoning.is_some() || self.format.as_ref().is_some_and(in_messages)
    }

    /// How its answers are written where it may call tools, and where it may not. `None`: nothing is known of that, or
    /// nothing but text and thoughts is marked.
    pub fn answers(&self, calls: bool) -> Option<&Arc<ToolSyntax>> {
        if calls { self.tools.as_ref().ok() } else { self.format.as_ref() }
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
        if begun.is_empty() {
            place -= self.mark_at_the_end(rendered.text());
        }
        let mut watch = Watch {
            tools: self.answers(!offered.is_empty()).cloned(),
            reasoning: self.reasoning.clone(),
            said: self.said.clone(),
            known: offered.iter().map(Known::of).collect(),
            thinks: false,
            says: false,
            parallel: conversation.parallel,
        };
        if let Choice::Among { names, .. } = &conversation.choice {
            watch.known.retain(|it| names.contains(&it.name));
        }
        let before = &rendered.text()[..place];
        watch.thinks = watch.reasoning.as_ref().is_some_and(|it| ends_with(before, &it.open));
        watch.says = watch.said.as_ref().is_some_and(|it| ends_with(before, &it.open));
        let begun = rendered.text()[place..].to_owned();
        let mut unseen = Vec::new();
        if conversation.names_people() && !self.habits.names {
            unseen.push("messages.name".to_owned());
        }
        if let Thinking::On { effort: Some(effort), .. } = conversation.thinking
            && self.habits.switch.is_none()
            && self.habits.efforts.and_then(|it| it.word(effort)).is_none()
        {
            unseen.push("thinking".to_owned());
        }
        Ok(Asked { prompt: rendered, watch, begun, unseen })
    }

    /// Bytes at the end of a prompt that are the beginning of a mark: Functionary's is `>>>`, and for whom the text
    /// is comes from the model.
    fn mark_at_the_end(&self, prompt: &str) -> usize {
        let Some(said) = &self.said else { return 0 };
        let open = said.open.text().trim();
        let begins = |it: &usize| open.is_char_boundary(*it) && prompt.ends_with(&open[..*it]);
        (1..open.len()).rev().find(begins).unwrap_or(0)
    }

    /// A prompt that ends with the beginning of the answer, and where that stands in it.
    fn begun(&self, mut chat: Chat, begun: &str, unix_seconds: i64) -> Result<(Rendered, usize), Fault> {
        let variables = chat.variables.unwrap_or_else(|| "{}".to_owned());
        chat.variables = Some(with_variable("add_generation_prompt", "false", &variables));
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

/// Does the prompt end inside what that mark has opened?
fn ends_with(prompt: &str, mark: &Literal) -> bool {
    let open = mark.text().trim();
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
        if let Some(Frame::Messages(messages)) = self.format.as_ref().map(|it| &it.frame) {
            let Messages { thoughts, text, .. } = messages;
            writeln!(f, "  messages: {thoughts:?} {text:?}")?;
        }
        if let Some(reasoning) = self.reasoning() {
            writeln!(f, "  reasoning: {:?} {:?}", reasoning.open.text(), reasoning.close.text())?;
        }
        if let Some(said) = &self.said {
            writeln!(f, "  says: {:?} {:?}", said.open.text(), said.close.text())?;
        }
        writeln!(f, "  habits: {:?}", self.habits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{
        conversation::{Effort, Message, Part, Tool, ToolInput},
        parse::{Found, Parser},
    };

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

    /// As Phi-4 mini has it: tools stand in the system message, as text, and calls are not rendered.
    const PHI: &str = "{% for m in messages %}{% if m.role == 'system' and 'tools' in m and m.tools is not none %}\
        <|system|>{{ m.content }}<|tool|>{{ m.tools }}<|/tool|><|end|>{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>\
        {% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

    /// As Functionary 3.2 has it: the prompt ends with the mark that says for whom the text is.
    const FUNCTIONARY: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
        {{ '>>>all\\n' + m.content }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{{ '>>>' }}{% endif %}{# >>>${recipient} #}";

    /// What an answer to a question is read as.
    fn read(model: &ModelChat, conversation: &Conversation, answer: &str) -> Vec<Found> {
        let asked = model.render(conversation, 0).unwrap();
        let (mut parser, mut out) = (Parser::new(Arc::new(asked.watch)), Vec::new());
        parser.push(&asked.begun, &mut Vec::new());
        parser.push(answer, &mut out);
        parser.finish(true, &mut out);
        out.into_iter().map(|it| it.found).collect()
    }

    #[test]
    fn tools_may_stand_in_the_system_message() {
        let model = model(PHI, &SyntaxChoice::Found);
        let asked = Conversation { tools: vec![tool("f")], ..of(vec![user("q")]) };
        let prompt = model.render(&asked, 0).unwrap().prompt.into_text();
        assert!(prompt.starts_with("<|system|><|tool|>[{\"name\": \"f\", "), "{prompt}");
        assert!(prompt.ends_with("<|/tool|><|end|><|user|>q<|end|><|assistant|>"), "{prompt}");
        for mark in ["functools", ""] {
            let answer = format!("{mark}[{{\"name\": \"f\", \"arguments\": {{\"input\": \"x\"}}}}]");
            let call = [Found::CallBegan("f".into()), Found::Input("x".into()), Found::CallEnded];
            assert_eq!(read(&model, &asked, &answer), call);
        }
        assert_eq!(read(&model, &asked, "functools are"), [Found::Text("functools are".into())]);
    }

    #[test]
    fn a_mark_that_the_prompt_ends_with_belongs_to_the_answer() {
        let model = model(FUNCTIONARY, &SyntaxChoice::Found);
        let plain = of(vec![user("q")]);
        assert_eq!(read(&model, &plain, "all\nHi"), [Found::Text("Hi".into())]);
        let again = of(vec![user("q"), said("Hm")]);
        assert_eq!(read(&model, &again, "!"), [Found::Text("!".into())]);
    }

    #[test]
    fn an_effort_without_a_switch_for_it_is_told() {
        let plain = model("{{ messages[-1].content }}", &SyntaxChoice::Found);
        let asked = |model: &ModelChat, effort| {
            let thinking = Thinking::On { effort, budget: None };
            model.render(&Conversation { thinking, ..of(vec![user("q")]) }, 0).unwrap().unseen
        };
        assert_eq!(asked(&plain, Some(Effort::Low)), ["thinking"]);
        assert!(asked(&plain, None).is_empty());
        assert!(asked(&model(TEMPLATE, &SyntaxChoice::Found), Some(Effort::Low)).is_empty());
    }

    #[test]
    fn an_effort_is_said_in_the_template_s_own_words() {
        let end = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let prompt = |source: &str, thinking| {
            let model = model(&format!("{source}{end}"), &SyntaxChoice::Found);
            let asked = model.render(&Conversation { thinking, ..of(vec![user("q")]) }, 0).unwrap();
            assert!(asked.unseen.is_empty(), "{source}");
            asked.prompt.into_text()
        };
        // As Kimi K3, Muse Glimmer, DeepSeek V4 and Hy3 have it.
        let refuses = "{% if thinking is undefined %}{% set thinking = true %}{% endif %}{% if thinking %}\
            {% set it = thinking_effort or 'max' %}{% if it not in ['low', 'high', 'max'] %}\
            {{ raise_exception(it) }}{% endif %}{{ it }} {% endif %}";
        let shows = "{{ reasoning_strength or 'high' }} ";
        let compares = "{% if enable_thinking %}{% if reasoning_effort == 'max' %}hard {% else %}on {% endif %}{% endif %}";
        let one = "{% if (reasoning_effort or 'no_think') not in ['low', 'high', 'no_think'] %}\
            {{ raise_exception('no') }}{% endif %}{{ reasoning_effort or 'no_think' }} ";
        let with = |effort| Thinking::On { effort: Some(effort), budget: None };
        for (source, thinking, expected) in [
            (refuses, Thinking::Model, "max q"),
            (refuses, Thinking::Off, "q"),
            (refuses, with(Effort::Minimal), "low q"),
            (refuses, with(Effort::Medium), "high q"),
            (refuses, with(Effort::Max), "max q"),
            (shows, with(Effort::Low), "low q"),
            (shows, with(Effort::Medium), "medium q"),
            (shows, with(Effort::Max), "high q"),
            (compares, with(Effort::Medium), "on q"),
            (compares, with(Effort::Max), "hard q"),
            (one, Thinking::Model, "no_think q"),
            (one, Thinking::Off, "no_think q"),
            (one, with(Effort::Low), "low q"),
            (one, Thinking::On { effort: None, budget: None }, "high q"),
        ] {
            assert_eq!(prompt(source, thinking), expected, "{source} {thinking:?}");
        }
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
        for model in [model("{{ messages }}", &SyntaxChoice::Found), model(TEMPLATE, &SyntaxChoice::Off)] {
            let fault = model.render(&conversation, 0).unwrap_err();
            assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::UnsupportedFeature, Some("tools")));
        }
        assert!(SyntaxChoice::of("martian").is_err());
        assert_eq!(SyntaxChoice::of("hermes"), Ok(SyntaxChoice::Named("hermes".into())));
    }
}
