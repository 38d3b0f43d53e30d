//! What a model's chat template can bear, found out once by rendering probes.
//!
//! Templates are programs: some refuse a second system message, some drop it silently, some break on an
//! empty content or on two messages of one role. It is asked of the template itself what it does. It owns
//! the probing; what is done about a habit is `render`'s.

use super::{
    conversation::{Call, Conversation, Effort, Input, Json, Message, Part, ToolInput},
    derive::{SAID, THOUGHT, TOOLS, probe},
};

/// What a template can bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Does it show tools to the model?
    pub shows_tools: bool,
    /// Where it looks for them.
    pub tools: ToolsIn,
    /// Does it show what came of calls?
    pub shows_results: bool,
    /// Is a call's input wanted as a string that holds JSON, not as an object?
    pub encoded: bool,
    /// What stands for the text of a message that is nothing but calls.
    pub no_text: NoText,
    /// Is there a system message at the beginning?
    pub system: bool,
    /// And later ones?
    pub late_system: bool,
    /// May neighbours have the same role?
    pub neighbours: bool,
    /// Does it show which person a message is of?
    pub names: bool,
    /// May a message have several calls?
    pub several_calls: bool,
    /// Must ids have nine letters and digits?
    pub short_ids: bool,
    /// May a message with calls have both reasoning and text?
    pub text_beside_thoughts: bool,
    /// Does it bear tools without a description?
    pub undescribed: bool,
    /// Does it bear tools' schemas as clients write them?
    pub any_schema: bool,
    /// The key under which the reasoning of an answer shows up.
    pub reasoning: Option<&'static str>,
    /// The variable that switches thinking on and off.
    pub switch: Option<Switch>,
    /// The variable that says how hard to think.
    pub efforts: Option<Efforts>,
}

/// Where a template looks for tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsIn {
    /// In the variable of that name.
    Variable(&'static str),
    /// In a field of the first system message, as JSON text.
    System,
}

impl Default for ToolsIn {
    fn default() -> Self {
        PLACES[0]
    }
}

/// What stands for the text of a message without text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoText {
    /// An empty string.
    #[default]
    Empty,
    /// Nothing: `null`.
    Null,
}

/// A variable that switches thinking, and its JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Its name.
    pub variable: &'static str,
    /// With thinking.
    pub on: &'static str,
    /// Without.
    pub off: &'static str,
}

/// A variable that says how hard to think, and the JSON values that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Efforts {
    /// Its name.
    pub variable: &'static str,
    /// From low to max; `None`: the template makes nothing of such a word.
    pub words: [Option<&'static str>; 4],
}

impl Efforts {
    /// The word for it.
    pub fn word(&self, effort: Effort) -> Option<&'static str> {
        self.words[match effort {
            Effort::Minimal | Effort::Low => 0,
            Effort::Medium => 1,
            Effort::High => 2,
            Effort::Max => 3,
        }]
    }
}

const EFFORTS: [&str; 3] = ["reasoning_effort", "thinking_effort", "reasoning_strength"];
const LOW: &str = "\"low\"";
const MEDIUM: &str = "\"medium\"";
const HIGH: &str = "\"high\"";
const MAX: &str = "\"max\"";
/// A word that no template knows.
const ODD: &str = "ODDALPHA";

/// Where templates look for tools, the usual place first.
const PLACES: [ToolsIn; 3] = [ToolsIn::Variable("tools"), ToolsIn::Variable("xml_tools"), ToolsIn::System];
/// A schema as many clients write it: without a description, an argument that may be left out.
const USUAL: &str = r#"{"type": "object", "properties": {"keyalpha": {"type": ["string", "null"]}}}"#;
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];
const SWITCHES: [Switch; 5] = [
    Switch { variable: "enable_thinking", on: "true", off: "false" },
    Switch { variable: "thinking", on: "true", off: "false" },
    Switch { variable: "thinking_mode", on: "\"thinking\"", off: "\"chat\"" },
    Switch { variable: EFFORTS[0], on: HIGH, off: "\"none\"" },
    Switch { variable: EFFORTS[0], on: HIGH, off: "\"no_think\"" },
];

impl Default for Habits {
    /// Of a template that bears everything and shows it.
    fn default() -> Self {
        Self {
            shows_tools: true,
            tools: ToolsIn::default(),
            shows_results: true,
            encoded: false,
            no_text: NoText::Empty,
            system: true,
            late_system: true,
            neighbours: true,
            names: true,
            several_calls: true,
            short_ids: false,
            text_beside_thoughts: true,
            undescribed: true,
            any_schema: true,
            reasoning: None,
            switch: None,
            efforts: None,
        }
    }
}

/// Renders a conversation by these habits; `true`: with the beginning of an answer. `None`: the template
/// refuses it.
pub type RenderBy<'a> = &'a dyn Fn(&Conversation, &Habits, bool) -> Option<String>;

fn user(text: &str) -> Message {
    Message::User { parts: vec![Part::Text(text.to_owned())], name: None }
}

fn said(text: &str) -> Message {
    Message::Assistant { reasoning: String::new(), text: text.to_owned(), calls: Vec::new() }
}

fn system(text: &str) -> Message {
    Message::System { text: text.to_owned() }
}

fn called(ids: &[&str]) -> Vec<Message> {
    let calls = ids.iter().map(|id| Call {
        id: (*id).to_owned(),
        name: TOOLS[0].to_owned(),
        input: Input::Object(Json::default()),
    });
    vec![Message::Assistant { reasoning: String::new(), text: String::new(), calls: calls.collect() }]
}

fn of(messages: Vec<Message>) -> Conversation {
    Conversation { messages, ..Conversation::default() }
}

/// The id of another server's call.
const FOREIGN_ID: &str = "toolu_01A09q90qw90lq917835lq9";

fn with_id(id: &str, mut conversation: Conversation) -> Conversation {
    for message in &mut conversation.messages {
        if let Message::Assistant { calls, .. } = message {
            for call in calls {
                id.clone_into(&mut call.id);
            }
        }
    }
    conversation
}

impl Habits {
    /// Asks a template.
    pub fn of(render: RenderBy<'_>) -> Self {
        let mut habits = Self::default();
        let shows = |conversation: &Conversation, habits: &Self, what: &str| {
            render(conversation, habits, false).is_some_and(|it| it.contains(what))
        };
        let (first, second) = ("FIRSTALPHA", "SECONDALPHA");

        habits.system = shows(&of(vec![system(first), user(second)]), &habits, first);
        // Some raise where roles do not alternate, others leave one out.
        let neighbours = of(vec![user(first), user(second), said(SAID)]);
        habits.neighbours = shows(&neighbours, &habits, first) && shows(&neighbours, &habits, second);
        let person =
            Message::User { parts: vec![Part::Text(first.to_owned())], name: Some(second.to_owned()) };
        habits.names = shows(&of(vec![person]), &habits, second);
        let late = of(vec![user("a"), said("b"), system(first), user(second)]);
        habits.late_system = shows(&late, &habits, first);

        let tools = Conversation { tools: super::derive::tools(), ..of(vec![user(first)]) };
        let place = PLACES.into_iter().find(|&place| {
            let way = Self { tools: place, ..habits.clone() };
            render(&tools, &way, true).is_some_and(|it| it.contains(TOOLS[1]))
        });
        habits.shows_tools = place.is_some();
        habits.tools = place.unwrap_or_default();

        if habits.shows_tools {
            let mut undescribed = tools.clone();
            undescribed.tools[0].description = None;
            habits.undescribed = render(&undescribed, &habits, true).is_some();
            let mut usual = tools.clone();
            usual.tools[0].input = ToolInput::Object(Json::new(USUAL).unwrap_or_default());
            habits.any_schema = render(&usual, &habits, true).is_some();
        }

        // How a call is taken: the first way that shows name and input. Its id is of a length that nobody asks for,
        // as those of clients are.
        let call = with_id(FOREIGN_ID, probe("", "", &[(0, "{\"keyalpha\": \"VALUEALPHA\"}")]));
        'found: for no_text in [NoText::Empty, NoText::Null] {
            for encoded in [false, true] {
                for short_ids in [false, true] {
                    let way = Self { encoded, no_text, short_ids, ..habits.clone() };
                    let rendered = render(&call, &way, false).unwrap_or_default();
                    // An object that was escaped twice is not what the model is to see.
                    if rendered.matches("VALUEALPHA").count() > 0 && !rendered.contains("\\\"VALUEALPHA") {
                        habits = way;
                        break 'found;
                    }
                }
            }
        }
        let two =
            probe("", "", &[(0, "{\"keyalpha\": \"VALUEALPHA\"}"), (1, "{\"keybeta\": \"VALUEBETA\"}")]);
        habits.several_calls = shows(&two, &habits, "VALUEBETA");

        let mut messages = vec![user(first)];
        messages.extend(called(&["idAlpha01"]));
        let result = Message::Result {
            call: "idAlpha01".to_owned(),
            name: TOOLS[0].to_owned(),
            parts: vec![Part::Text("RESULTALPHA".to_owned())],
            failed: false,
        };
        messages.push(result.clone());
        let results = Conversation { tools: super::derive::tools(), ..of(messages) };
        habits.shows_results = render(&results, &habits, true).is_some_and(|it| it.contains("RESULTALPHA"));

        // Some show it only while calls are made.
        let thought = probe(SAID, THOUGHT, &[]);
        let mut calls = probe("", THOUGHT, &[(0, "{}")]);
        calls.messages.push(result);
        habits.reasoning = REASONING_KEYS.into_iter().find(|key| {
            let way = Self { reasoning: Some(key), ..habits.clone() };
            shows(&thought, &way, THOUGHT) || shows(&calls, &way, THOUGHT)
        });

        let both = probe(SAID, THOUGHT, &[(0, "{}")]);
        let alone = [probe(SAID, "", &[(0, "{}")]), probe("", THOUGHT, &[(0, "{}")])];
        let renders = |it: &Conversation| render(it, &habits, false).is_some();
        habits.text_beside_thoughts = renders(&both) || !alone.iter().all(renders);

        let end = |name: &str, value: &str| {
            let variables = Json::new(format!("{{\"{name}\": {value}}}")).unwrap_or_default();
            render(&Conversation { variables, ..of(vec![user(first)]) }, &habits, true)
        };
        habits.switch = SWITCHES.into_iter().find(|switch| {
            let (on, off) = (end(switch.variable, switch.on), end(switch.variable, switch.off));
            on.is_some() && off.is_some() && on != off
        });
        habits.efforts = EFFORTS.into_iter().find_map(|variable| habits.efforts_in(variable, render));
        habits
    }

    /// The words for efforts that this variable takes. `None`: it takes none.
    fn efforts_in(&self, variable: &'static str, render: RenderBy<'_>) -> Option<Efforts> {
        let with = |word: &str| {
            let switch = self.switch.filter(|it| it.variable != variable);
            let switch = switch.map_or(String::new(), |it| format!(", \"{}\": {}", it.variable, it.on));
            let variables = Json::new(format!("{{\"{variable}\": {word}{switch}}}")).unwrap_or_default();
            render(&Conversation { variables, ..of(vec![user("FIRSTALPHA")]) }, self, true)
        };
        let odd = with(&format!("\"{ODD}\""));
        // Where any word is shown, models know the usual ones.
        let shows_any = odd.as_ref().is_some_and(|it| it.contains(ODD));
        let takes = |word: &&'static str| {
            let shown = with(word);
            shown.is_some() && if shows_any { *word != MAX } else { shown != odd }
        };
        let high = Some(HIGH).filter(takes);
        // A template that refuses a word is told the next one.
        let medium = Some(MEDIUM).filter(takes).or(high.filter(|_| odd.is_none()));
        let words = [Some(LOW).filter(takes), medium, high, Some(MAX).filter(takes).or(high)];
        words.iter().any(Option::is_some).then_some(Efforts { variable, words })
    }
}
