//! What a load asks for, and whether a model that is loaded already is that.
//!
//! Whoever asks for nothing, for what is there or for less of it joins. Whoever asks for a longer context, more
//! sequences or a larger cache has the context made anew. Whoever asks for anything else has the model loaded anew, or
//! is refused by name where that cannot be: nothing that was asked for is ignored.

use std::{collections::BTreeMap, fmt, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::GpuAddress,
    options::{Devices, Guesser, ModelOptions},
    shape::{ContextSize, Wish},
};
use serde_json::json;

/// What the configuration says of loads.
#[derive(Clone, Debug, Default)]
pub struct Usual {
    /// For all models.
    pub defaults: ModelOptions,
    /// For some models, by their own names, over the defaults.
    pub models: BTreeMap<String, ModelOptions>,
}

impl Usual {
    pub(crate) fn of(&self, model_id: &str) -> ModelOptions {
        let own = self.models.get(model_id).cloned().unwrap_or_default();
        own.over(&self.defaults)
    }
}

/// What a model is loaded with, or is being loaded with.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// By who asked for the load. A model that cannot be so is refused.
    pub asked: ModelOptions,
    /// By the configuration: taken where `asked` says nothing, as far as the model and its engine go.
    pub usual: ModelOptions,
    /// On which GPUs, once that is decided; none: where its engine puts it.
    pub(crate) place: Vec<GpuAddress>,
    engine: Option<String>,
    /// Once it is loaded: context length and sequences.
    came_to: Option<(u32, u32)>,
    /// And tokens of its cache, where they were chosen.
    cells: Option<u64>,
    /// What those asked for who joined.
    joined: Sizes,
}

/// How long and how many, as far as somebody says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    length: Option<u32>,
    sequences: Option<u32>,
    cells: Option<u64>,
}

impl Sizes {
    fn of(options: &ModelOptions) -> Self {
        Self { length: options.context_length, sequences: options.max_sequences, cells: options.cache_tokens }
    }

    /// Of each the larger; nothing is less than something.
    fn max(self, other: Self) -> Self {
        Self {
            length: self.length.max(other.length),
            sequences: self.sequences.max(other.sequences),
            cells: self.cells.max(other.cells),
        }
    }
}

/// Do they say how long, or how many?
pub(crate) fn names_a_size(wishes: &ModelOptions) -> bool {
    Sizes::of(wishes) != Sizes::default()
}

impl Setup {
    /// For a model, as who asks for it wants it.
    pub fn new(model_id: &str, asked: ModelOptions, usual: &Usual) -> Self {
        let usual = usual.of(model_id);
        let engine = asked.engine.clone().or_else(|| usual.engine.clone());
        Self { asked, usual, place: Vec::new(), engine, came_to: None, cells: None, joined: Sizes::default() }
    }

    /// Both in one.
    pub fn whole(&self) -> ModelOptions {
        self.asked.clone().over(&self.usual)
    }

    /// What is said of the size of its context.
    pub fn wish(&self) -> Wish {
        Wish { size: ContextSize::from(&self.asked), usual: ContextSize::from(&self.usual) }
    }

    /// The same of all who asked.
    pub(crate) fn wish_of_all(&self) -> Wish {
        let Sizes { length, sequences, cells } = Sizes::of(&self.asked).max(self.joined);
        let size = ContextSize { context_length: length, max_sequences: sequences, cache_tokens: cells };
        Wish { size, ..self.wish() }
    }

    /// The engine's id, where somebody named one or it is chosen.
    pub fn engine(&self) -> Option<&str> {
        self.engine.as_deref()
    }

    /// By how many workers it is served, each on a GPU of its own where it is more than one.
    pub fn replicas(&self) -> usize {
        self.asked.replicas.or(self.usual.replicas).map_or(1, |replicas| replicas.max(1) as usize)
    }

    /// On which GPUs it is to lie, or on how many, all its workers together; `None`: nobody says.
    pub fn devices(&self) -> Option<&Devices> {
        self.asked.devices.as_ref().or(self.usual.devices.as_ref())
    }

    /// Does it go for nobody's sake?
    pub fn is_pinned(&self) -> bool {
        self.asked.pin.or(self.usual.pin).unwrap_or(false)
    }

    /// For so long it stays without being asked anything; `None`: for ever.
    pub fn keep_alive(&self) -> Option<Duration> {
        self.asked.keep_alive.or(self.usual.keep_alive)?.duration()
    }

    /// Takes over what may be said of a model that is loaded, and that what was asked for is to stay.
    pub(crate) fn also(&mut self, wishes: &ModelOptions) {
        self.asked.pin = wishes.pin.or(self.asked.pin);
        self.asked.keep_alive = wishes.keep_alive.or(self.asked.keep_alive);
        self.joined = self.joined.max(Sizes::of(wishes));
    }

    /// The same of the configuration, which has changed.
    pub(crate) fn usually(&mut self, usual: &ModelOptions) {
        self.usual.pin = usual.pin;
        self.usual.keep_alive = usual.keep_alive;
    }

    pub(crate) fn chosen(&mut self, engine: &str) {
        self.engine = Some(engine.to_owned());
    }

    pub(crate) fn came_to(&mut self, context_length: u32, max_sequences: u32) {
        self.came_to = Some((context_length, max_sequences));
    }

    pub(crate) fn has_cells(&mut self, cells: Option<u64>) {
        self.cells = cells;
    }

    /// As it has to be for these wishes, too. What it has of length stays in any case: answers under way need it.
    pub(crate) fn grown(&self, wishes: &ModelOptions) -> Self {
        let mut grown = self.clone();
        let Sizes { length, sequences, cells } =
            Sizes::of(&self.asked).max(self.joined).max(Sizes::of(wishes));
        let length = length.max(self.came_to.map(|(length, _)| length));
        grown.asked.context_length = length;
        grown.asked.max_sequences = sequences;
        // Which is to hold one sequence at least.
        grown.asked.cache_tokens = cells.map(|cells| cells.max(length.map_or(0, u64::from)));
        grown
    }

    /// What is asked of a load in place of this one: these wishes, and what others asked for of its size and its stay.
    pub(crate) fn replaced(&self, wishes: &ModelOptions) -> ModelOptions {
        // Who joined with less than there was is no reason to have less: others use what there was.
        let (length, sequences) = self.came_to.unzip();
        let joined = Sizes {
            length: self.joined.length.and(length.max(self.joined.length)),
            sequences: self.joined.sequences.and(sequences.max(self.joined.sequences)),
            cells: self.joined.cells.and(self.cells.max(self.joined.cells)),
        };
        let Sizes { length, sequences, cells } = Sizes::of(&self.asked).max(joined).max(Sizes::of(wishes));
        ModelOptions {
            context_length: length,
            max_sequences: sequences,
            cache_tokens: cells,
            pin: wishes.pin.or(self.asked.pin),
            keep_alive: wishes.keep_alive.or(self.asked.keep_alive),
            replicas: wishes.replicas.or(self.asked.replicas),
            devices: wishes.devices.clone().or_else(|| self.asked.devices.clone()),
            ..wishes.clone()
        }
    }

    /// What may change of a model that is loaded is as with another.
    pub(crate) fn stays_like(&mut self, other: &Self) {
        (self.asked.pin, self.asked.keep_alive) = (other.asked.pin, other.asked.keep_alive);
        self.usually(&other.usual);
    }

    /// What it is too short or too small for; what is not known of it is too little.
    fn lacks(&self, wishes: &ModelOptions) -> Option<Difference> {
        let (length, sequences) = self.came_to.unzip();
        let asked = Sizes::of(&self.asked);
        let cells = || {
            let most = u64::from(length?) * u64::from(sequences?);
            Some(self.usual.cache_tokens.map_or(most, |usual| usual.min(most)))
        };
        let wanted = Sizes::of(wishes);
        let numbers = [
            ("context_length", wanted.length.map(u64::from), asked.length.max(length).map(u64::from)),
            ("max_sequences", wanted.sequences.map(u64::from), asked.sequences.max(sequences).map(u64::from)),
            ("cache_tokens", wanted.cells, asked.cells.or(self.cells).or_else(cells)),
        ];
        numbers.into_iter().find_map(|(param, wanted, has)| {
            // Nothing is less than something.
            let asked = wanted.filter(|_| wanted > has)?.to_string();
            Some(Difference { param, asked, has: has.map_or_else(of_its_own, |has| has.to_string()) })
        })
    }

    /// What becomes of these wishes. `state`: "is loaded" or "is being loaded".
    pub(crate) fn fits(&self, wishes: &ModelOptions, model_id: &str, state: &str) -> Fit {
        let has = self.whole();
        let different = |Difference { param, asked, has }| {
            let message = format!(
                "Model '{model_id}' {state} with {param} {has}; {asked} was asked for. Unload it first, or leave \
                 {param} out"
            );
            let details = json!({ "loaded": has, "asked": asked }).to_string();
            Fault::new(ErrorCode::ModelLoadedDifferently, message).param(param).details(details)
        };
        if let Some(difference) = self.difference(wishes, &has) {
            return Fit::Differs(different(difference));
        }
        self.lacks(wishes).map_or(Fit::Joins, |difference| Fit::Grows(different(difference)))
    }

    /// What no other context helps with.
    fn difference(&self, wishes: &ModelOptions, has: &ModelOptions) -> Option<Difference> {
        let param = if wishes.draft_model.is_some() { "draft_model" } else { "speculation" };
        let guesses = wishes.speculation.is_some() || wishes.draft_model.is_some();
        differs("engine", wishes.engine.clone(), [self.engine.clone()])
            .or_else(|| {
                differs(
                    "gpu_layers",
                    wishes.gpu_layers.map(layers),
                    [Some(layers(has.gpu_layers.unwrap_or(-1)))],
                )
            })
            .or_else(|| differs("replicas", wishes.replicas, [Some(has.replicas.unwrap_or(1))]))
            .or_else(|| self.lies_elsewhere(wishes, has))
            .or_else(|| differs("threads", wishes.threads, [Some(has.threads.unwrap_or(0))]))
            .or_else(|| differs(param, guesses.then(|| named(wishes)), [Some(named(has))]))
            .or_else(|| differs("tool_syntax", wishes.tool_syntax.clone(), [has.tool_syntax.clone()]))
            .or_else(|| {
                let [asked, has] = [wishes, has].map(|it| it.chat_template.clone().map(Long));
                differs("chat_template", asked, [has])
            })
            .or_else(|| {
                let asked = wishes.options.is_some().then(|| shown(&wishes.clone().over(&self.usual)));
                differs("options", asked, [Some(shown(has))])
            })
    }
}

impl Setup {
    /// Where it lies counts, however that came about; of several workers, what was said.
    fn lies_elsewhere(&self, wishes: &ModelOptions, has: &ModelOptions) -> Option<Difference> {
        let asked = wishes.devices.as_ref().filter(|_| wishes.devices != has.devices)?;
        let (here, workers) = (&self.place, self.replicas());
        let is_there = match asked {
            Devices::Count(count) => here.len() * workers == *count as usize,
            Devices::Named(names) => {
                let is_named = |gpu: &GpuAddress| names.iter().any(|name| name.is_of(gpu));
                workers == 1 && here.len() == names.len() && here.iter().all(is_named)
            }
        };
        if is_there && !here.is_empty() {
            return None;
        }
        let ids = || here.iter().map(|gpu| gpu.id.as_str()).collect::<Vec<_>>().join(", ");
        let has = match &has.devices {
            Some(devices) => devices.to_string(),
            None if workers > 1 || here.is_empty() => of_its_own(),
            None => format!("[{}]", ids()),
        };
        Some(Difference { param: "devices", asked: asked.to_string(), has })
    }
}

/// What becomes of what somebody wants of a model that is loaded, or is being loaded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fit {
    /// It is that, or more.
    Joins,
    /// It is too short or too small. Where its context cannot be made anew, this is said.
    Grows(Fault),
    /// It is something else.
    Differs(Fault),
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
    let has = first.map_or_else(of_its_own, |has| has.to_string());
    Some(Difference { param, asked: asked.to_string(), has })
}

fn of_its_own() -> String {
    "of its own choice".to_owned()
}

fn layers(layers: i32) -> String {
    if layers < 0 { "all".to_owned() } else { layers.to_string() }
}

fn named(options: &ModelOptions) -> String {
    match options.guesser() {
        Guesser::Nobody => "off".to_owned(),
        Guesser::Lookup => "lookup".to_owned(),
        Guesser::Model(path) => path.display().to_string(),
    }
}

fn shown(options: &ModelOptions) -> String {
    json!(options.options_as_text()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &serde_json::Value) -> ModelOptions {
        serde_json::from_value(json.clone()).unwrap()
    }

    fn setup(asked: &serde_json::Value, defaults: &serde_json::Value) -> Setup {
        Setup::new("m", options(asked), &Usual { defaults: options(defaults), models: BTreeMap::new() })
    }

    fn refused(setup: &Setup, wishes: &serde_json::Value) -> Option<(String, String)> {
        let fault = match setup.fits(&options(wishes), "m", "is loaded") {
            Fit::Joins => return None,
            Fit::Grows(fault) | Fit::Differs(fault) => fault,
        };
        assert_eq!(fault.code, ErrorCode::ModelLoadedDifferently);
        Some((fault.param?, fault.message))
    }

    #[test]
    fn no_wish_and_the_same_wish_join() {
        let wishes = json!({
            "engine": "e", "gpu_layers": -7, "threads": 2, "speculation": "off", "context_length": 128,
        });
        let mut setup = setup(&wishes, &json!({ "options": { "key": "a" }, "threads": 3 }));
        for joins in [&json!({}), &wishes, &json!({ "options": { "key": "a" } })] {
            assert_eq!(refused(&setup, joins), None);
        }
        setup.came_to(120, 4);
        for less in [json!({ "context_length": 120 }), json!({ "max_sequences": 1, "cache_tokens": 480 })] {
            assert_eq!(refused(&setup, &less), None, "what it came to is what it is");
        }
        assert_eq!(
            refused(&setup, &json!({ "context_length": 128 })),
            None,
            "nor is what was asked for before"
        );
    }

    #[test]
    fn whoever_wants_more_has_it_grow_and_nobody_loses_anything() {
        let mut setup = setup(&json!({ "max_sequences": 2 }), &json!({ "context_length": 4096 }));
        let grows = |setup: &Setup, wishes: serde_json::Value| {
            matches!(setup.fits(&options(&wishes), "m", "is loaded"), Fit::Grows(_))
        };
        assert!(grows(&setup, json!({ "context_length": 1 })), "what it will be is not known");
        setup.came_to(512, 2);
        assert!(
            grows(&setup, json!({ "context_length": 4096 })),
            "the model is shorter than it usually is to be"
        );
        assert!(!grows(&setup, json!({ "cache_tokens": 1024 })));
        setup.also(&options(&json!({ "cache_tokens": 1000, "pin": true })));
        let grown = setup.grown(&options(&json!({ "max_sequences": 3 })));
        let sizes = Sizes { length: Some(512), sequences: Some(3), cells: Some(1000) };
        assert_eq!((Sizes::of(&grown.asked), grown.is_pinned()), (sizes, true));
        let longer = setup.grown(&options(&json!({ "context_length": 2000 })));
        assert_eq!(longer.asked.cache_tokens, Some(2000), "one sequence fits");
        assert_eq!(setup.whole().cache_tokens, None, "who joins changes nothing");
        assert!(grows(&setup, json!({ "cache_tokens": 1025 })));
    }

    #[test]
    fn who_joins_with_less_makes_it_no_smaller_when_it_is_loaded_anew() {
        let mut setup = setup(&json!({}), &json!({}));
        setup.came_to(1024, 64);
        setup.has_cells(Some(65_536));
        setup.also(&options(&json!({ "context_length": 8, "max_sequences": 1, "cache_tokens": 8 })));
        let other = options(&json!({ "options": { "key": "b" } }));
        let sizes = Sizes { length: Some(1024), sequences: Some(64), cells: Some(65_536) };
        assert_eq!(Sizes::of(&setup.replaced(&other)), sizes);
        let shorter = options(&json!({ "context_length": 100 }));
        assert_eq!(
            Sizes::of(&Setup::new("m", shorter.clone(), &Usual::default()).replaced(&shorter)).length,
            Some(100)
        );
    }

    #[test]
    fn each_other_wish_is_refused_by_name() {
        let mut setup = setup(&json!({}), &json!({ "options": { "key": "a" } }));
        setup.chosen("e");
        setup.came_to(512, 64);
        for (param, value) in [
            ("engine", json!("f")),
            ("context_length", json!(513)),
            ("max_sequences", json!(65)),
            ("cache_tokens", json!(512 * 64 + 1)),
            ("gpu_layers", json!(0)),
            ("threads", json!(1)),
            ("replicas", json!(2)),
            ("devices", json!(2)),
            ("devices", json!(["GPU-a"])),
            ("speculation", json!("off")),
            ("draft_model", json!("/d")),
            ("tool_syntax", json!("hermes")),
            ("chat_template", json!("{{ x }}")),
            ("options", json!({ "key": "b" })),
        ] {
            let refused = refused(&setup, &json!({ param: value }));
            assert_eq!(refused.map(|(param, _)| param).as_deref(), Some(param));
        }
        let long = "é".repeat(41);
        let (_, message) = refused(&setup, &json!({ "chat_template": long })).unwrap();
        let shown = format!("with chat_template of its own choice; {}… was asked for", "é".repeat(40));
        assert!(message.contains(&shown), "{message}");
        let (_, message) = refused(&setup, &json!({ "context_length": 1280 })).unwrap();
        assert_eq!(
            message,
            "Model 'm' is loaded with context_length 512; 1280 was asked for. Unload it first, or leave \
             context_length out"
        );
    }

    #[test]
    fn a_model_s_own_settings_come_over_those_of_all() {
        let usual = Usual {
            defaults: options(&json!({ "threads": 2, "context_length": 64 })),
            models: [("m".to_owned(), options(&json!({ "context_length": 128, "engine": "e" })))].into(),
        };
        let setup = |model| Setup::new(model, options(&json!({ "max_sequences": 3 })), &usual);
        let whole = setup("m").whole();
        assert_eq!((whole.context_length, whole.threads, whole.max_sequences), (Some(128), Some(2), Some(3)));
        assert_eq!((setup("m").engine(), setup("n").engine()), (Some("e"), None));
        assert_eq!(setup("n").whole().context_length, Some(64));
    }
}
