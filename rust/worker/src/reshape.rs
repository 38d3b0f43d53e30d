//! The context of a model that answers, made anew in another size. No weights are read.

use std::sync::{Arc, Mutex, PoisonError};

use llm_node_core::{
    engine::{EngineFault, Limits, StepEngine, Tokenizer},
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Figures, MemoryUse},
    session::Remade,
    shape::{Shape, Sizing},
    speculate::{Drafter, Lookup},
};
use llm_node_host::{Context, Model, ModelTokenizer};
use llm_node_wire::message::{LoadPlan, Speculation};

use crate::{
    draft,
    engine::{as_far_as_it_goes, context_params, draft_context_params, estimate, memory_use},
    model::prefill_tokens,
};

/// How the context of a model was made, and what it takes to make another.
pub(crate) struct Shaping {
    pub(crate) plan: LoadPlan,
    pub(crate) shape: Shape,
    pub(crate) figures: Figures,
    /// The model, and its draft model.
    pub(crate) models: Vec<Arc<Model>>,
    pub(crate) tokenizer: Arc<ModelTokenizer>,
    pub(crate) on_device: bool,
}

impl Shaping {
    /// Who guesses tokens ahead, in a context of the same shape.
    pub(crate) fn drafter(&self) -> Result<Option<Box<dyn Drafter>>, Fault> {
        match (&self.plan.speculation, self.models.get(1)) {
            (Speculation::Model(path), Some(draft)) => {
                let shape = self.shape.within(draft.info().n_context);
                let context = Context::create(draft, &draft_context_params(&self.plan, shape))
                    .map_err(|error| draft::failed(path, error))?;
                let vocabulary = self.tokenizer.vocabulary();
                Ok(Some(draft::drafter(context, vocabulary, prefill_tokens(self.on_device))))
            }
            (Speculation::Lookup, _) => Ok(Some(Box::new(Lookup::default()))),
            _ => Ok(None),
        }
    }

    /// Longest sequence, and sequences at once.
    pub(crate) fn sizes(&self, context: &Context) -> (u32, u32) {
        let limits = context.limits();
        // An engine may have ids to spare, for what is kept.
        (limits.context_length, limits.max_sequences.min(self.shape.max_sequences))
    }

    fn model(&self) -> Result<&Arc<Model>, Fault> {
        self.models.first().ok_or_else(|| Fault::new(ErrorCode::Internal, "there is no model"))
    }

    /// Makes the context anew; where that fails, as it was.
    fn renew(&mut self, context: &mut Context, sizing: Sizing) -> Result<Result<(), Fault>, EngineFault> {
        let plan = LoadPlan { size: sizing.size, ..self.plan.clone() };
        let length = self.model().map_or(0, |model| model.info().n_context);
        let made = as_far_as_it_goes(&plan, sizing.shape, length, |shape| {
            context.renew(&context_params(&plan, shape))
        });
        Ok(match made {
            Ok((shape, ())) => {
                (self.plan, self.shape) = (plan, shape);
                Ok(())
            }
            Err(fault) => {
                log::warn!(
                    "a context of another size could not be made, and the former is made again: {fault}"
                );
                context.renew(&context_params(&self.plan, self.shape))?;
                Err(fault)
            }
        })
    }
}

/// Makes the context of a model anew, and knows what it can take.
pub(crate) struct Reshaper {
    shaping: Mutex<Shaping>,
    limits: Mutex<Limits>,
}

impl Reshaper {
    pub(crate) fn new(shaping: Shaping, limits: Limits) -> Self {
        Self { shaping: Mutex::new(shaping), limits: Mutex::new(limits) }
    }

    /// What the context can take now.
    pub(crate) fn limits(&self) -> Limits {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the model would take with a context of that size; `None`: its engine cannot say. A call that takes its
    /// time, and may run beside steps.
    pub(crate) fn estimate(&self, sizing: Sizing) -> Result<Option<Vec<MemoryUse>>, Fault> {
        let (plan, figures, model) = {
            let shaping = self.shaping.lock().unwrap_or_else(PoisonError::into_inner);
            (shaping.plan.clone(), shaping.figures.clone(), Arc::clone(shaping.model()?))
        };
        let plan = LoadPlan { size: sizing.size, ..plan };
        match estimate(model.engine(), &plan, &figures, sizing.shape, model.info().n_context) {
            Err(fault) if fault.code == ErrorCode::UnsupportedFeature => Ok(None),
            estimated => estimated,
        }
    }

    /// Makes the context anew, or as it was where that fails, which is told then. `Err`: neither.
    pub(crate) fn remake(
        &self,
        context: &mut Context,
        sizing: Sizing,
        facts: &ModelFacts,
    ) -> Result<(Remade, Result<ModelFacts, Fault>), EngineFault> {
        let mut shaping = self.shaping.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = shaping.renew(context, sizing)?;
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = context.limits().clone();
        let drafter = shaping.drafter().unwrap_or_else(|fault| {
            log::warn!("the draft model is not used any more: {fault}");
            None
        });
        let (context_length, max_sequences) = shaping.sizes(context);
        let memory = memory_use(&shaping.models);
        let facts = outcome.map(|()| ModelFacts {
            context_length,
            max_sequences,
            memory: memory.unwrap_or_default(),
            ..facts.clone()
        });
        Ok((Remade { max_running: max_sequences, drafter }, facts))
    }
}
