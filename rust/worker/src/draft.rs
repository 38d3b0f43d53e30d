//! Who guesses tokens ahead: the text itself, or a second model on the same engine.

use std::{path::Path, sync::Arc};

use llm_node_core::{
    engine::{EngineFault, Tokenizer, Vocabulary},
    error::{ErrorCode, Fault},
    speculate::{DraftModel, Drafter, Want},
};
use llm_node_host::{Context, EngineError, LoadedEngine, Model, ModelParams, ModelTokenizer};

/// Loads a draft model. It has to share the `vocabulary` of the model that answers.
pub(crate) fn load(
    engine: &Arc<LoadedEngine>,
    params: &ModelParams,
    vocabulary: &Vocabulary,
) -> Result<Arc<Model>, Fault> {
    let failed = |error| failed(&params.path, error);
    let model = Model::load(engine, params, None).map_err(failed)?;
    if !model.info().generates {
        return Err(unusable(&params.path, "does not generate; it makes embeddings"));
    }
    match difference(vocabulary, ModelTokenizer::new(&model).map_err(failed)?.vocabulary()) {
        Some(difference) => Err(unusable(
            &params.path,
            &format!(
                "has another vocabulary: {difference}. Without it, load with \"speculation\": \"lookup\""
            ),
        )),
        None => Ok(model),
    }
}

/// Proposes with a draft model. Prompts are fed to it in pieces of `catch_up` tokens.
pub(crate) fn drafter(context: Context, vocabulary: &Vocabulary, catch_up: u32) -> Box<dyn Drafter> {
    let drafter = DraftModel::new(context, Arc::new(vocabulary.clone()), catch_up);
    Box::new(Told { drafter, is_told: false })
}

/// Says in the log what ended the drafting.
#[derive(Debug)]
struct Told<D> {
    drafter: D,
    is_told: bool,
}

impl<D: Drafter> Drafter for Told<D> {
    fn draft_all(&mut self, wants: &mut [Want<'_>]) {
        self.drafter.draft_all(wants);
        if let (false, Some(fault)) = (self.is_told, self.drafter.fault()) {
            log::warn!("the draft model failed, and is not used any more: {fault}");
            self.is_told = true;
        }
    }

    fn forget(&mut self, id: u64) {
        self.drafter.forget(id);
    }

    fn fault(&self) -> Option<&EngineFault> {
        self.drafter.fault()
    }
}

/// What keeps the tokens of one model from being those of the other.
fn difference(model: &Vocabulary, draft: &Vocabulary) -> Option<String> {
    if model.len() != draft.len() {
        return Some(format!("{} tokens, and the model has {}", draft.len(), model.len()));
    }
    let differs = |&token: &i32| model.token_bytes(token) != draft.token_bytes(token);
    let token = (0..model.len() as i32).find(differs)?;
    let text = |vocabulary: &Vocabulary| String::from_utf8_lossy(vocabulary.token_bytes(token)).into_owned();
    Some(format!("its token {token} is {:?}, and the model's is {:?}", text(draft), text(model)))
}

/// An engine call for the draft model failed.
pub(crate) fn failed(path: &Path, error: EngineError) -> Fault {
    let Fault { code, message, .. } = Fault::from(error);
    Fault::new(code, format!("the draft model {}: {message}", path.display())).param("draft_model")
}

/// A draft model that cannot be used is refused, and never silently left out.
pub(crate) fn unusable(path: &Path, why: &str) -> Fault {
    let message = format!("the draft model {} {why}", path.display());
    Fault::new(ErrorCode::InvalidRequest, message).param("draft_model")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(texts: &[&str]) -> Vocabulary {
        let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
        for text in texts {
            vocabulary.bytes.extend(text.bytes());
            vocabulary.offsets.push(vocabulary.bytes.len() as u32);
            vocabulary.attributes.push(0);
        }
        vocabulary
    }

    #[test]
    fn vocabularies_are_equal_in_size_and_bytes() {
        let model = vocabulary(&["a", "bc", "d"]);
        assert_eq!(difference(&model, &vocabulary(&["a", "bc", "d"])), None);
        let shorter = difference(&model, &vocabulary(&["a", "bcd"])).unwrap();
        assert_eq!(shorter, "2 tokens, and the model has 3");
        // The same bytes in all, cut elsewhere.
        let cut = difference(&model, &vocabulary(&["a", "b", "cd"])).unwrap();
        assert_eq!(cut, "its token 1 is \"b\", and the model's is \"bc\"");
    }
}
