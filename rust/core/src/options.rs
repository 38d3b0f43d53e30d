//! What may be said of a load: by who asks for it, by the configuration for one model, and by the
//! configuration for all of them.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::memory::GpuAddress;

/// How a model is to be loaded; `None`: nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// Id of an engine; `None`: the first that fits.
    pub engine: Option<String>,
    /// Longest sequence in tokens.
    pub context_length: Option<u32>,
    /// Sequences at once.
    pub max_sequences: Option<u32>,
    /// KV cache for all sequences together, in tokens.
    pub cache_tokens: Option<u64>,
    /// Layers on the devices; negative: all.
    pub gpu_layers: Option<i32>,
    /// CPU threads; 0: the engine's own choice.
    pub threads: Option<u32>,
    /// Whether tokens are guessed ahead.
    pub speculation: Option<Speculation>,
    /// A model that guesses them, unless `speculation` is off: a name in what a client says, a file elsewhere.
    pub draft_model: Option<PathBuf>,
    /// How the model writes calls: a family's name, or "off"; `None`: what its template says.
    pub tool_syntax: Option<String>,
    /// The source of its chat template, or the name of one that is built in; `None`: the model's own.
    pub chat_template: Option<String>,
    /// Whether it goes for nobody's sake: unloaded by an order alone.
    pub pin: Option<bool>,
    /// How long it stays without being asked anything; `None`: until another model needs the room.
    pub keep_alive: Option<KeepAlive>,
    /// Workers, each on GPUs of its own; `None`: one.
    pub replicas: Option<u32>,
    /// The GPUs that it lies on, which its workers share out evenly; `None`: one for each of them, or as few as hold it.
    pub devices: Option<Devices>,
    /// Settings for the engine: values are text, numbers or truth values.
    pub options: Option<BTreeMap<String, OptionValue>>,
}

impl ModelOptions {
    /// These, and what `below` says where they say nothing. Who guesses is one question: an answer to it hides
    /// that of `below` as a whole. Settings for the engine are laid over each other one by one.
    #[must_use]
    pub fn over(self, below: &Self) -> Self {
        let says_who_guesses = self.speculation.is_some() || self.draft_model.is_some();
        let guesses = if says_who_guesses { &self } else { below };
        let (speculation, draft_model) = (guesses.speculation, guesses.draft_model.clone());
        let options = match (self.options, &below.options) {
            (Some(own), Some(below)) => {
                let mut all = below.clone();
                all.extend(own);
                Some(all)
            }
            (own, below) => own.or_else(|| below.clone()),
        };
        Self {
            engine: self.engine.or_else(|| below.engine.clone()),
            context_length: self.context_length.or(below.context_length),
            max_sequences: self.max_sequences.or(below.max_sequences),
            cache_tokens: self.cache_tokens.or(below.cache_tokens),
            gpu_layers: self.gpu_layers.or(below.gpu_layers),
            threads: self.threads.or(below.threads),
            speculation,
            draft_model,
            tool_syntax: self.tool_syntax.or_else(|| below.tool_syntax.clone()),
            chat_template: self.chat_template.or_else(|| below.chat_template.clone()),
            pin: self.pin.or(below.pin),
            keep_alive: self.keep_alive.or(below.keep_alive),
            replicas: self.replicas.or(below.replicas),
            devices: self.devices.or_else(|| below.devices.clone()),
            options,
        }
    }

    /// Who guesses, in one: the draft model where there is one and nobody said "off".
    pub fn guesser(&self) -> Guesser<'_> {
        match (self.speculation, &self.draft_model) {
            (Some(Speculation::Off), _) => Guesser::Nobody,
            (_, Some(model)) => Guesser::Model(model),
            (Some(Speculation::Lookup) | None, None) => Guesser::Lookup,
        }
    }

    /// Settings for the engine, as it gets them.
    pub fn options_as_text(&self) -> BTreeMap<String, String> {
        let options = self.options.iter().flatten();
        options.map(|(name, value)| (name.clone(), value.to_text())).collect()
    }
}

/// The GPUs that a model lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Devices {
    /// So many, chosen by the node.
    Count(u32),
    /// These.
    Named(Vec<DeviceName>),
}

/// Most memory that models may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MemoryLimit {
    /// What the devices have.
    #[default]
    None,
    /// Of each device, in bytes.
    Each(u64),
    /// Of some devices, in bytes: by a device's number, its id, or the beginning of that. Others are not limited.
    Of(BTreeMap<String, u64>),
}

impl MemoryLimit {
    /// Of one device, in bytes; where several names mean it, the least.
    pub fn of(&self, device: &GpuAddress) -> Option<u64> {
        match self {
            MemoryLimit::None => None,
            MemoryLimit::Each(bytes) => Some(*bytes),
            MemoryLimit::Of(devices) => {
                let named = devices.iter().filter(|(name, _)| DeviceName::from(name.as_str()).is_of(device));
                named.map(|(_, bytes)| *bytes).min()
            }
        }
    }

    /// The names that mean none of these.
    pub fn strangers<'a>(&'a self, devices: &[GpuAddress]) -> Vec<&'a str> {
        let MemoryLimit::Of(limits) = self else { return Vec::new() };
        let is_strange = |name: &&str| devices.iter().all(|device| !DeviceName::from(*name).is_of(device));
        limits.keys().map(String::as_str).filter(is_strange).collect()
    }

    /// The same for all that a worker sees, as an engine is told it, in bytes: of several the most. 0: there is none.
    pub fn of_all(&self, place: &[GpuAddress]) -> u64 {
        let limits: Option<Vec<u64>> = match self {
            MemoryLimit::Of(_) => place.iter().map(|gpu| self.of(gpu)).collect(),
            MemoryLimit::None => None,
            MemoryLimit::Each(bytes) => Some(vec![*bytes]),
        };
        limits.and_then(|limits| limits.into_iter().max()).unwrap_or(0)
    }
}

impl From<Option<u64>> for MemoryLimit {
    fn from(bytes: Option<u64>) -> Self {
        bytes.map_or(MemoryLimit::None, MemoryLimit::Each)
    }
}

/// How a GPU is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DeviceName {
    /// By its number.
    Number(u32),
    /// By its id, or by the beginning of it.
    Id(String),
}

impl From<&str> for DeviceName {
    fn from(name: &str) -> Self {
        name.parse().map_or_else(|_| DeviceName::Id(name.to_owned()), DeviceName::Number)
    }
}

impl DeviceName {
    /// May this one be meant?
    pub fn is_of(&self, gpu: &GpuAddress) -> bool {
        match self {
            DeviceName::Number(number) => gpu.index == *number,
            DeviceName::Id(id) => !id.is_empty() && gpu.id.starts_with(id),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Number(number) => write!(f, "{number}"),
            DeviceName::Id(id) => f.write_str(id),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Devices::Count(count) => write!(f, "{count}"),
            Devices::Named(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", names.join(", "))
            }
        }
    }
}

/// How long a model stays without being asked anything: seconds, negative for ever.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeepAlive(pub f64);

impl KeepAlive {
    /// `None`: for ever.
    pub fn duration(self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.0).ok()
    }
}

/// Whether tokens are guessed ahead and verified together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speculation {
    /// Never.
    Off,
    /// Out of prompt and answer.
    Lookup,
}

/// Who guesses tokens ahead; see [`ModelOptions::guesser`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guesser<'a> {
    /// No guessing.
    Nobody,
    /// Prompt and answer.
    Lookup,
    /// A smaller model.
    Model(&'a Path),
}

/// A value in an object of engine options. Engines get text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected text, a number or a truth value")]
pub enum OptionValue {
    /// `"text"`
    Text(String),
    /// `true`, which engines see as `true`
    Truth(bool),
    /// `1`
    Integer(i64),
    /// `0.5`
    Number(f64),
}

impl OptionValue {
    /// As the engine gets it.
    pub fn to_text(&self) -> String {
        match self {
            OptionValue::Text(text) => text.clone(),
            OptionValue::Truth(truth) => truth.to_string(),
            OptionValue::Integer(integer) => integer.to_string(),
            OptionValue::Number(number) => number.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> ModelOptions {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_said_comes_over_what_was_said_below() {
        let below = options(
            r#"{"threads": 2, "context_length": 64, "options": {"a": 1, "b": "x"}, "draft_model": "/d"}"#,
        );
        let own = options(r#"{"context_length": 32, "options": {"b": true}}"#);
        let all = own.clone().over(&below);
        assert_eq!(
            (all.threads, all.context_length, all.guesser()),
            (Some(2), Some(32), Guesser::Model(Path::new("/d")))
        );
        assert_eq!(
            all.options_as_text(),
            [("a", "1"), ("b", "true")].map(|(k, v)| (k.into(), v.into())).into()
        );
        assert_eq!(ModelOptions::default().over(&below), below);
        assert_eq!(own.clone().over(&ModelOptions::default()), own);
    }

    #[test]
    fn gpus_are_so_many_or_these() {
        let devices = |json: &str| options(&format!(r#"{{"devices": {json}}}"#)).devices.unwrap();
        assert_eq!(devices("2"), Devices::Count(2));
        let named = devices(r#"["GPU-7f", 1]"#);
        assert_eq!(named.to_string(), "[GPU-7f, 1]");
        let gpu = |id: &str, index| GpuAddress { id: id.to_owned(), index, bus_id: None };
        let Devices::Named(names) = named else { panic!("they are named") };
        assert!(names[0].is_of(&gpu("GPU-7f3a", 0)) && !names[0].is_of(&gpu("GPU-8", 0)));
        assert!(names[1].is_of(&gpu("GPU-8", 1)) && !names[1].is_of(&gpu("GPU-8", 0)));
        assert!(!DeviceName::Id(String::new()).is_of(&gpu("GPU-8", 0)));
    }

    #[test]
    fn a_limit_is_of_each_device_or_of_those_that_it_names() {
        let limit = |json: &str| serde_json::from_str::<MemoryLimit>(json).unwrap();
        let gpu = |id: &str, index| GpuAddress { id: id.to_owned(), index, bus_id: None };
        let (one, other) = (gpu("GPU-7f3a", 0), gpu("GPU-8", 1));
        let none = limit("null");
        assert_eq!((none.of(&one), none.of_all(&[]), none.strangers(&[])), (None, 0, vec![]));
        let each = limit("8");
        assert_eq!((each.of(&one), each.of_all(&[]), each.strangers(&[])), (Some(8), 8, vec![]));
        let some = limit(r#"{"GPU-7f": 8, "1": 4, "GPU-8": 6, "GPU-9": 1}"#);
        assert_eq!((some.of(&one), some.of(&other), some.of(&gpu("GPU-3", 2))), (Some(8), Some(4), None));
        let both = [one.clone(), other];
        assert_eq!((some.of_all(&both), some.of_all(&both[1..]), some.of_all(&[])), (8, 4, 0));
        assert_eq!(some.of_all(&[one, gpu("GPU-3", 2)]), 0, "one of them has no limit");
        assert_eq!(some.strangers(&both), ["GPU-9"]);
        for limit in [none, each, some] {
            let json = serde_json::to_string(&limit).unwrap();
            assert_eq!(serde_json::from_str::<MemoryLimit>(&json).unwrap(), limit);
        }
    }

    #[test]
    fn what_is_no_time_is_for_ever() {
        let seconds = |json: &str| options(json).keep_alive.unwrap().duration().map(|it| it.as_secs_f64());
        let of = |text: &str| seconds(&format!(r#"{{"keep_alive": {text}}}"#));
        assert_eq!(
            ["0", "0.5", "1800", "-1", "1e300"].map(of),
            [Some(0.0), Some(0.5), Some(1800.0), None, None]
        );
    }

    #[test]
    fn who_guesses_is_one_question() {
        let below = options(r#"{"speculation": "lookup", "draft_model": "/d"}"#);
        let over = |json: &str| options(json).over(&below);
        assert_eq!(over(r#"{"speculation": "lookup"}"#).guesser(), Guesser::Lookup);
        assert_eq!(over(r#"{"draft_model": "/e"}"#).guesser(), Guesser::Model(Path::new("/e")));
        let off = options(r#"{"speculation": "off", "draft_model": "/d"}"#);
        assert_eq!((off.guesser(), ModelOptions::default().guesser()), (Guesser::Nobody, Guesser::Lookup));
        assert!(serde_json::from_str::<ModelOptions>(r#"{"context": 1}"#).is_err());
    }
}
