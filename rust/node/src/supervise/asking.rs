//! What an engine is asked in a process that is thrown away: what it is, and what loads would take.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::{Estimate, MemoryUse},
    shape::Sizing,
};
use llm_node_wire::message::{EngineAddress, EngineDevice, EngineFacts, FromWorker, LoadPlan, ToWorker};

use super::{
    Inner,
    environment::Sight,
    minding::Control,
    process::{Launch, Process},
};
use crate::registry::{Probe, verdict::Refusal};

/// How long a worker may take to end after it has said its last word.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// A process that has been told to load, and waits with that for ever. It ends with this.
#[derive(Debug)]
pub(super) struct Asked {
    process: Arc<Process>,
    controls: mpsc::Receiver<Control>,
    /// How long an answer may take.
    timeout: Duration,
}

impl Asked {
    /// With what the engine of a plan says that it takes.
    pub(super) fn begin(inner: &Inner, plan: LoadPlan) -> Result<(Self, Estimate), Fault> {
        let (process, controls) =
            thrown_away(inner, &plan.engine.id, Sight::of(&plan.engine.gpu_backend, &plan.place))?;
        let asked = Self { process, controls, timeout: inner.config.load_timeout() };
        asked.process.link.send(ToWorker::Load(plan));
        let Estimate { uses, figures } = asked.hear(|message| match message {
            FromWorker::Estimated(estimate) => Some(Ok(estimate)),
            _ => None,
        })?;
        Ok((asked, Estimate { uses: uses.filter(|uses| is_something(uses)), figures }))
    }

    /// What it says that it takes with such a context; `None`: it cannot say.
    pub(super) fn size(&self, sizing: Sizing) -> Result<Option<Vec<MemoryUse>>, Fault> {
        self.process.link.send(ToWorker::Size(sizing));
        let uses = self.hear(|message| match message {
            FromWorker::Sized(uses) => Some(uses),
            _ => None,
        })?;
        Ok(uses.filter(|uses| is_something(uses)))
    }

    fn hear<T>(&self, mut is_it: impl FnMut(FromWorker) -> Option<Result<T, Fault>>) -> Result<T, Fault> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Control::Message(FromWorker::LoadFailed(fault))) => return Err(fault),
                Ok(Control::Message(message)) => {
                    if let Some(heard) = is_it(message) {
                        return heard;
                    }
                }
                Ok(Control::Died(death)) => {
                    return Err(Fault::new(ErrorCode::EngineCrashed, death.describe()));
                }
                Err(_) => {
                    return Err(Fault::new(ErrorCode::Timeout, "The engine's answer did not come in time"));
                }
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        end(&self.process);
    }
}

fn is_something(uses: &[MemoryUse]) -> bool {
    uses.iter().any(|use_| use_.total() > 0)
}

/// A process for one question to an engine, and what is heard of it.
fn thrown_away(
    inner: &Inner,
    engine: &str,
    sight: Sight,
) -> Result<(Arc<Process>, mpsc::Receiver<Control>), Fault> {
    let (hears, controls) = mpsc::channel();
    let launch = Launch {
        worker: inner.processes.number_of_probe(),
        command: &inner.config.worker_command,
        engine_env: &inner.config.engine_env,
        sight,
        start_timeout: inner.config.start_timeout(),
        engine: engine.to_owned(),
        model: None,
        hear: Arc::new(move |control| drop(hears.send(control))),
    };
    Ok((inner.processes.start(launch, &inner.traffic)?, controls))
}

/// It ends by itself; one that hangs at its end does not get in the way.
fn end(process: &Process) {
    process.stop();
    if !process.wait(Instant::now() + END_DEADLINE) {
        process.kill();
    }
}

/// The devices that an engine can use, as they are now.
pub(super) fn list(inner: &Inner, address: &EngineAddress) -> Result<Vec<EngineDevice>, Fault> {
    let (process, controls) = thrown_away(inner, &address.id, Sight::All)?;
    let asked = Asked { process, controls, timeout: inner.config.probe_timeout() };
    asked.process.link.send(ToWorker::List(address.clone()));
    asked.hear(|message| match message {
        FromWorker::Devices { devices, .. } => Some(Ok(devices)),
        _ => None,
    })
}

/// Looks at engines in worker processes.
pub(super) struct ProcessProbe<'a>(pub(super) &'a Inner);

impl Probe for ProcessProbe<'_> {
    fn probe(&self, address: &EngineAddress) -> Result<EngineFacts, Refusal> {
        self.look(address).inspect_err(|refusal| {
            if !self.0.processes.is_closed() {
                log::warn!("engine '{}' is of no use: {refusal}", address.id);
            }
        })
    }
}

impl ProcessProbe<'_> {
    fn look(&self, address: &EngineAddress) -> Result<EngineFacts, Refusal> {
        let inner = self.0;
        let (process, controls) =
            thrown_away(inner, &address.id, Sight::Nothing).map_err(Refusal::NotProbed)?;
        let timeout = inner.config.probe_timeout();
        let deadline = Instant::now() + timeout;
        process.link.send(ToWorker::Probe(address.clone()));
        loop {
            match controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Control::Message(FromWorker::Verdict(verdict))) => {
                    end(&process);
                    return verdict.map_err(Refusal::Probed);
                }
                Ok(Control::Message(_)) => {}
                Ok(Control::Died(death)) => {
                    inner.processes.refuse_if_closed().map_err(Refusal::NotProbed)?;
                    return Err(Refusal::Crashed {
                        path: address.binary.clone(),
                        signal: death.ending,
                        during: if death.stage.is_empty() { "its start".to_owned() } else { death.stage },
                    });
                }
                Err(_) => {
                    process.kill();
                    let stage = process.output.stage();
                    return Err(Refusal::TimedOut {
                        path: address.binary.clone(),
                        during: if stage.is_empty() { "its start".to_owned() } else { stage },
                        seconds: timeout.as_secs_f64(),
                    });
                }
            }
        }
    }
}
