//! The GPUs that somebody asks for: which, how many, and whether there are such.

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::GpuAddress,
    options::Devices,
};

use crate::{Fleet, Setup};

impl Fleet {
    /// Can a model be had so? It needs as many GPUs as it is to lie on, and those that are named.
    pub(crate) fn has_places(&self, model_id: &str, setup: &Setup) -> Result<(), Fault> {
        let places = self.ledger.gpus_for_models();
        let refused = |param, message: String| {
            let message = format!("Model '{model_id}': {message}");
            Err(Fault::new(ErrorCode::InvalidRequest, message).param(param))
        };
        let workers = setup.replicas();
        if workers > 1.max(places.len()) {
            let there = match (self.ledger.is_on_cpu(), places.len()) {
                (true, _) => {
                    "this node computes on the CPU, all of which one worker uses: max_sequences is how many \
                     answers it gives at once"
                        .to_owned()
                }
                (_, 0) => "this node has none whose memory it can see".to_owned(),
                (_, places) => format!("this node has {places}"),
            };
            return refused("replicas", format!("replicas = {workers} needs as many GPUs, and {there}"));
        }
        let Some(devices) = setup.devices() else { return Ok(()) };
        let there = self.gpus_in_words();
        let (count, has_parts) = match devices {
            Devices::Count(count) => {
                let whole = places.iter().filter(|gpu| !gpu.is_part()).count();
                let count = *count as usize;
                if count == 0 || count > places.len() {
                    return refused("devices", format!("devices = {count} was asked for, and {there}"));
                }
                (count, count / workers > 1 && whole < count)
            }
            Devices::Named(names) => {
                let mut named: Vec<GpuAddress> = Vec::new();
                for name in names {
                    let mut found = self.known_gpus().into_iter().filter(|gpu| name.is_of(gpu));
                    match (found.next(), found.next()) {
                        (None, _) => {
                            return refused("devices", format!("devices names '{name}', and {there}"));
                        }
                        (Some(_), Some(_)) => {
                            let words = format!("'{name}' in devices is the beginning of several; {there}");
                            return refused("devices", words);
                        }
                        (Some(gpu), None) if named.contains(&gpu) => {
                            return refused("devices", format!("devices names {} twice", gpu.id));
                        }
                        (Some(gpu), None) => named.push(gpu),
                    }
                }
                if named.is_empty() {
                    return refused("devices", format!("devices names none, and {there}"));
                }
                (named.len(), named.len() / workers > 1 && named.iter().any(GpuAddress::is_part))
            }
        };
        if count % workers != 0 {
            let words = format!("{count} devices cannot be shared out evenly among replicas = {workers}");
            return refused("devices", words);
        }
        if has_parts {
            let words = format!("a worker uses one part (MIG) of a GPU, and no more of them; {there}");
            return refused("devices", words);
        }
        Ok(())
    }

    pub(super) fn known_gpus(&self) -> Vec<GpuAddress> {
        let on_cpu = self.ledger.is_on_cpu();
        self.ledger.gpus_that_are(|_| !on_cpu).into_iter().map(|(gpu, _)| gpu).collect()
    }

    /// "this node has 0 (GPU-7f3a…, NVIDIA H200), 1 (…)"
    fn gpus_in_words(&self) -> String {
        if self.ledger.is_on_cpu() {
            return "this node computes on the CPU".to_owned();
        }
        let gpus = self.ledger.gpus_that_are(|_| true);
        let words: Vec<String> =
            gpus.iter().map(|(gpu, name)| format!("{} ({}, {name})", gpu.index, gpu.id)).collect();
        if words.is_empty() {
            return "this node has none whose memory it can see".to_owned();
        }
        format!("this node has {}", words.join(", "))
    }
}

impl Setup {
    /// The GPUs on which one worker of it can be asked what it takes: those that are named, or as many as it is to
    /// have, of these.
    pub fn to_look_at(&self, gpus: &[GpuAddress]) -> Vec<GpuAddress> {
        let workers = self.replicas();
        let (among, count): (Vec<GpuAddress>, usize) = match self.devices() {
            Some(Devices::Named(names)) => {
                let is_named = |gpu: &&GpuAddress| names.iter().any(|name| name.is_of(gpu));
                (gpus.iter().filter(is_named).cloned().collect(), names.len())
            }
            Some(Devices::Count(count)) => (gpus.to_vec(), *count as usize),
            None => (gpus.to_vec(), 1),
        };
        among.into_iter().take((count / workers).max(1)).collect()
    }
}
