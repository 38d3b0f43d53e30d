//! What a load asks for, and whether a model that is loaded already is that.
//!
//! Pure. Whoever asks for nothing, or for what is there, joins; whoever asks for anything else is refused by
//! name: nothing that was asked for is ignored, and no client reloads another's model.

use std::{collections::BTreeMap, fmt};

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_wire::message::{ContextSize, LoadPlan, ModelFacts, Speculation};
use serde_json::json;

use crate::config::NodeConfig;

/// What one load asks for; `None`: it has no wish.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    pub(super) engine: Option<String>,
    pub(super) size: ContextSize,
    /// Negative: all.
    pub(super) gpu_layers: Option<i32>,
    pub(super) threads: Option<u32>,
    /// A draft model by its file.
    pub(super) speculation: Option<Speculation>,
    /// How the model writes calls.
    pub(super) tool_syntax: Option<String>,
    /// In place of its own.
    pub(super) chat_template: Option<String>,
    pub(super) options: Option<BTreeMap<String, String>>,
}

/// What a model is loaded with, or is being loaded with.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// `None`: it is being chosen.
    engine: Option<String>,
    size: ContextSize,
    usual_size: ContextSize,
    gpu_layers: i32,
    threads: u32,
    speculation: Speculation,
    tool_syntax: Option<String>,
    chat_template: Option<String>,
    /// The node's own, which a load's are laid over.
    usual_options: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    /// Once it is loaded: context length and sequences.
    came_to: Option<(u32, u32)>,
}

impl Setup {
    pub(super) fn new(wishes: &Wishes, config: &NodeConfig, model_id: &str) -> Self {
        let usual_options: BTreeMap<String, String> =
            config.engine_options.iter().map(|(name, value)| (name.clone(), value.to_text())).collect();
        Self {
            engine: wishes.engine.clone(),
            size: wishes.size,
            usual_size: ContextSize {
                context_length: config.context_length,
                max_sequences: config.max_sequences,
                cache_tokens: config.cache_tokens,
            },
            gpu_layers: wishes.gpu_layers.unwrap_or(-1),
            threads: wishes.threads.unwrap_or(config.threads),
            speculation: wishes.speculation.clone().unwrap_or_else(|| config.usual_speculation()),
            tool_syntax: wishes.tool_syntax.as_ref().or(config.usual_tool_syntax(model_id)).cloned(),
            chat_template: wishes
                .chat_template
                .as_ref()
                .or_else(|| config.chat_templates.get(model_id))
                .cloned(),
            options: laid_over(&usual_options, wishes.options.as_ref()),
            usual_options,
            came_to: None,
        }
    }

    /// The engine is chosen.
    pub(super) fn chosen(&mut self, engine: &str) {
        self.engine = Some(engine.to_owned());
    }

    /// It is loaded.
    pub(super) fn came_to(&mut self, facts: &ModelFacts) {
        self.came_to = Some((facts.context_length, facts.max_sequences));
    }

    /// The engine's id, where somebody named one or it is chosen.
    pub(super) fn engine(&self) -> Option<&str> {
        self.engine.as_deref()
    }

    /// What a worker is told of it.
    pub(super) fn laid_into(&self, plan: LoadPlan) -> LoadPlan {
        LoadPlan {
            size: self.size,
            usual_size: self.usual_size,
            gpu_layers: self.gpu_layers,
            threads: self.threads,
            speculation: self.speculation.clone(),
            tool_syntax: self.tool_syntax.clone(),
            chat_template: self.chat_template.clone(),
            options: self.options.clone().into_iter().collect(),
            ..plan
        }
    }

    /// Is it what these wishes are for? `state`: "is loaded" or "is being loaded".
    pub(super) fn meets(&self, wishes: &Wishes, model_id: &str, state: &str) -> Result<(), Fault> {
        let (length, sequences) = self.came_to.unzip();
        let speculation = wishes.speculation.as_ref().map(named);
        let param = if matches!(wishes.speculation, Some(Speculation::Model(_))) {
            "draft_model"
        } else {
            "speculation"
        };
        let gpu_layers = |layers: i32| if layers < 0 { "all".to_owned() } else { layers.to_string() };
        differs("engine", wishes.engine.clone(), [self.engine.clone()])
            .or_else(|| differs("context_length", wishes.size.context_length, [length, self.size.context_length]))
            .or_else(|| differs("max_sequences", wishes.size.max_sequences, [sequences, self.size.max_sequences]))
            .or_else(|| {
                let has = self.size.cache_tokens.or(self.usual_size.cache_tokens);
                differs("cache_tokens", wishes.size.cache_tokens, [has])
            })
            .or_else(|| differs("gpu_layers", wishes.gpu_layers.map(gpu_layers), [Some(gpu_layers(self.gpu_layers))]))
            .or_else(|| differs("threads", wishes.threads, [Some(self.threads)]))
            .or_else(|| differs(param, speculation, [Some(named(&self.speculation))]))
            .or_else(|| differs("tool_syntax", wishes.tool_syntax.clone(), [self.tool_syntax.clone()]))
            .or_else(|| {
                let [asked, has] = [&wishes.chat_template, &self.chat_template].map(|it| it.clone().map(Long));
                differs("chat_template", asked, [has])
            })
            .or_else(|| {
                let asked = wishes.options.as_ref().map(|own| shown(&laid_over(&self.usual_options, Some(own))));
                differs("options", asked, [Some(shown(&self.options))])
            })
            .map_or(Ok(()), |Difference { param, asked, has }| {
                let message = format!(
                    "Model '{model_id}' {state} with {param} {has}; {asked} was asked for. Unload it first, or \
                     leave {param} out"
                );
                let details = json!({ "loaded": has, "asked": asked }).to_string();
                Err(Fault::new(ErrorCode::ModelLoadedDifferently, message).param(param).details(details))
            })
    }
}

/// A text of which no more than the beginning is shown.
#[derive(PartialEq)]
struct Long(String);

impl fmt::Display for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(40) {
            Some((end, _)) => write!(f, "{}…", &self.0[..end]),
            None => f.write_str(&self.0),
        }
    }
}

struct Difference {
    param: &'static str,
    asked: String,
    has: String,
}

/// `has`: what it came to, and what had been asked for; either may be meant.
fn differs<T: ToString + PartialEq, const N: usize>(
    param: &'static str,
    asked: Option<T>,
    has: [Option<T>; N],
) -> Option<Difference> {
    let asked = asked?;
    let mut known = has.into_iter().flatten();
    let first = known.next();
    if first.as_ref() == Some(&asked) || known.any(|has| has == asked) {
        return None;
    }
    let has = first.map_or_else(|| "of its own choice".to_owned(), |has| has.to_string());
    Some(Difference { param, asked: asked.to_string(), has })
}

fn laid_over(
    usual: &BTreeMap<String, String>,
    own: Option<&BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    let mut options = usual.clone();
    options.extend(own.cloned().unwrap_or_default());
    options
}

fn named(speculation: &Speculation) -> String {
    match speculation {
        Speculation::Off => "off".to_owned(),
        Speculation::Lookup => "lookup".to_owned(),
        Speculation::Model(path) => path.display().to_string(),
    }
}

fn shown(options: &BTreeMap<String, String>) -> String {
    json!(options).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &serde_json::Value) -> NodeConfig {
        let mut config = json!({
            "engines_dirs": [], "models_dir": "/m", "gpu_backend": "cpu", "worker_command": ["w"],
            "load_timeout_seconds": 1, "start_timeout_seconds": 1, "queue_limit": 1,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NodeConfig::parse(&config.to_string()).unwrap()
    }

    fn context(tokens: u32) -> Wishes {
        let size = ContextSize { context_length: Some(tokens), ..ContextSize::default() };
        Wishes { size, ..Wishes::default() }
    }

    fn options(value: &str) -> Wishes {
        let options = Some(BTreeMap::from([("key".to_owned(), value.to_owned())]));
        Wishes { options, ..Wishes::default() }
    }

    fn refused(setup: &Setup, wishes: &Wishes) -> Option<(String, String)> {
        let fault = setup.meets(wishes, "m", "is loaded").err()?;
        assert_eq!(fault.code, ErrorCode::ModelLoadedDifferently);
        Some((fault.param?, fault.message))
    }

    #[test]
    fn no_wish_and_the_same_wish_join() {
        let config = config(&json!({ "engine_options": { "key": "a" }, "threads": 3 }));
        let wishes = Wishes {
            engine: Some("e".into()),
            gpu_layers: Some(-7),
            threads: Some(2),
            speculation: Some(Speculation::Off),
            ..context(128)
        };
        let mut setup = Setup::new(&wishes, &config, "m");
        for joins in [&Wishes::default(), &wishes, &options("a")] {
            assert_eq!(refused(&setup, joins), None);
        }
        setup.came_to = Some((120, 4));
        assert_eq!(refused(&setup, &context(120)), None, "what it came to is what it is");
        assert_eq!(refused(&setup, &context(128)), None, "what was asked for before is no other wish");
    }

    #[test]
    fn calls_are_written_as_the_load_says_else_as_the_configuration() {
        let config = config(&json!({ "tool_syntax": { "m": "hermes", "*": "off" } }));
        let named = Wishes { tool_syntax: Some("lfm2".into()), ..Wishes::default() };
        for (wishes, model, expected) in
            [(&named, "m", "lfm2"), (&Wishes::default(), "m", "hermes"), (&Wishes::default(), "n", "off")]
        {
            assert_eq!(Setup::new(wishes, &config, model).tool_syntax.as_deref(), Some(expected));
        }
    }

    #[test]
    fn each_other_wish_is_refused_by_name() {
        let config =
            config(&json!({ "engine_options": { "key": "a" }, "chat_templates": { "m": "chatml" } }));
        let mut setup = Setup::new(&Wishes::default(), &config, "m");
        setup.chosen("e");
        setup.came_to = Some((512, 64));
        let size = |max_sequences, cache_tokens| Wishes {
            size: ContextSize { context_length: None, max_sequences, cache_tokens },
            ..Wishes::default()
        };
        let others = [
            ("engine", Wishes { engine: Some("f".into()), ..Wishes::default() }),
            ("context_length", context(128)),
            ("max_sequences", size(Some(1), None)),
            ("cache_tokens", size(None, Some(1))),
            ("gpu_layers", Wishes { gpu_layers: Some(0), ..Wishes::default() }),
            ("threads", Wishes { threads: Some(1), ..Wishes::default() }),
            ("speculation", Wishes { speculation: Some(Speculation::Off), ..Wishes::default() }),
            (
                "draft_model",
                Wishes { speculation: Some(Speculation::Model("/d".into())), ..Wishes::default() },
            ),
            ("tool_syntax", Wishes { tool_syntax: Some("hermes".into()), ..Wishes::default() }),
            ("chat_template", Wishes { chat_template: Some("{{ x }}".into()), ..Wishes::default() }),
            ("options", options("b")),
        ];
        for (param, wishes) in others {
            assert_eq!(refused(&setup, &wishes).map(|(param, _)| param).as_deref(), Some(param));
        }
        let configured = Wishes { chat_template: Some("chatml".into()), ..Wishes::default() };
        assert_eq!(refused(&setup, &configured), None);
        let long = Wishes { chat_template: Some("é".repeat(41)), ..Wishes::default() };
        let (_, message) = refused(&setup, &long).unwrap();
        let shown = format!("with chat_template chatml; {}… was asked for", "é".repeat(40));
        assert!(message.contains(&shown), "{message}");
        let (_, message) = refused(&setup, &context(128)).unwrap();
        assert_eq!(
            message,
            "Model 'm' is loaded with context_length 512; 128 was asked for. Unload it first, or leave \
             context_length out"
        );
    }
}
