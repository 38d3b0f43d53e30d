//! Which engine loads a model: by format, architecture and backend.
//!
//! Owns the decision and the words of each refusal. Pure: candidates come in, a choice goes out.

use llm_node_core::error::{ErrorCode, Fault};

use crate::{
    models::{ANY_ARCHITECTURE, Model},
    registry::{
        manifest::EngineManifest,
        verdict::{Candidate, Refusal},
    },
};

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The model to be loaded. One of unknown architecture fits every engine that reads its format:
    /// then only the engine can tell.
    pub model: &'a Model,
    /// The node's backend; `None`: no GPU was found.
    pub gpu_backend: Option<&'a str>,
    /// An engine's id, where the client names one.
    pub engine: Option<&'a str>,
    /// A format, where the client names one.
    pub format: Option<&'a str>,
}

/// The first usable candidate that fits, in search order.
pub fn choose<'a>(wish: Wish<'_>, candidates: &'a [Candidate]) -> Result<&'a Candidate, Fault> {
    let Some(backend) = wish.gpu_backend else {
        return Err(Fault::new(
            ErrorCode::GpuNotFound,
            "No usable GPU was found, and nobody chose the CPU. Check the driver, or start the node with \
             --gpu-backend cpu",
        ));
    };
    let model = wish.model;
    if let Some(format) = wish.format
        && !format.eq_ignore_ascii_case(&model.format)
    {
        return Err(Fault::new(
            ErrorCode::FormatMismatch,
            format!("Model '{}' has the format '{}', not '{format}'", model.id, model.format),
        )
        .param("format"));
    }
    let asked: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| wish.engine.is_none_or(|engine| engine == candidate.id))
        .collect();
    let of_backend: Vec<&Candidate> =
        asked.iter().copied().filter(|candidate| candidate.gpu_backend == backend).collect();
    let usable: Vec<&Candidate> =
        of_backend.iter().copied().filter(|candidate| candidate.is_usable()).collect();
    let reading: Vec<&Candidate> =
        usable.iter().copied().filter(|candidate| reads(candidate, &model.format)).collect();
    if let Some(fitting) = reading.iter().find(|candidate| runs(candidate, model)) {
        return Ok(fitting);
    }
    if let (false, Some(architecture)) = (reading.is_empty(), &model.architecture) {
        let plugins: Vec<String> = reading.iter().map(|candidate| format!("'{}'", candidate.id)).collect();
        return Err(Fault::new(
            ErrorCode::ArchitectureMismatch,
            format!("Architecture '{architecture}' not supported by plugin {}", plugins.join(" or ")),
        ));
    }
    if let Some(mismatch) = abi_mismatch(&of_backend, model, wish.engine.is_some()) {
        return Err(Fault::new(ErrorCode::AbiMismatch, mismatch.to_string()));
    }
    if !usable.is_empty() {
        let formats: Vec<String> = usable
            .iter()
            .filter_map(|candidate| candidate.manifest.as_ref().map(|manifest| (candidate, manifest)))
            .map(|(candidate, manifest)| format!("'{}' reads {}", candidate.id, manifest.formats.join(", ")))
            .collect();
        return Err(Fault::new(
            ErrorCode::FormatMismatch,
            format!(
                "No engine reads the format '{}' of model '{}': {}",
                model.format,
                model.id,
                formats.join("; ")
            ),
        ));
    }
    Err(none_fits(wish, backend, candidates))
}

fn reads(candidate: &Candidate, format: &str) -> bool {
    candidate
        .manifest
        .as_ref()
        .is_some_and(|manifest| manifest.formats.iter().any(|own| own.eq_ignore_ascii_case(format)))
}

fn runs(candidate: &Candidate, model: &Model) -> bool {
    let Some(EngineManifest { architectures, .. }) = &candidate.manifest else { return false };
    model.architecture.as_ref().is_none_or(|architecture| {
        architectures.iter().any(|own| own == ANY_ARCHITECTURE || own == architecture)
    })
}

/// The refusal, where nothing but the ABI version stands between the model and its engine.
fn abi_mismatch<'a>(of_backend: &[&'a Candidate], model: &Model, named: bool) -> Option<&'a Refusal> {
    let mut refusals = of_backend
        .iter()
        .filter(|candidate| named || (reads(candidate, &model.format) && runs(candidate, model)))
        .filter_map(|candidate| candidate.verdict.as_ref().err())
        .filter(|refusal| !matches!(refusal, Refusal::DuplicateEngine { .. }))
        .peekable();
    let first = *refusals.peek()?;
    refusals.all(Refusal::is_abi_mismatch).then_some(first)
}

fn none_fits(wish: Wish<'_>, backend: &str, candidates: &[Candidate]) -> Fault {
    let what = match wish.engine {
        Some(engine) => format!("Engine '{engine}' cannot be used"),
        None => format!("No engine can load model '{}'", wish.model.id),
    };
    if candidates.is_empty() {
        return Fault::new(
            ErrorCode::EngineNotFound,
            format!(
                "{what}: there are no engines. `llm-node engine install` brings one; or point --engines-dir at a folder that holds <id>/<gpu_backend>/manifest.json"
            ),
        );
    }
    let reasons: Vec<String> = candidates
        .iter()
        .map(|candidate| {
            let reason = match &candidate.verdict {
                Err(refusal) => refusal.to_string(),
                Ok(_) if candidate.gpu_backend != backend => {
                    format!("is built for '{}', and this node runs on '{backend}'", candidate.gpu_backend)
                }
                Ok(_) => "has another name".to_owned(),
            };
            format!("'{}' ({}): {reason}", candidate.id, candidate.gpu_backend)
        })
        .collect();
    let fault = Fault::new(ErrorCode::EngineNotFound, format!("{what}. Candidates: {}", reasons.join("; ")));
    if wish.engine.is_some() { fault.param("engine") } else { fault }
}

#[cfg(test)]
mod tests {
    use llm_node_wire::message::EngineFacts;

    use super::*;
    use crate::registry::verdict::AbiPlace;

    fn candidate(id: &str, backend: &str, formats: &[&str], architectures: &[&str]) -> Candidate {
        let list = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Candidate {
            id: id.into(),
            gpu_backend: backend.into(),
            directory: "/engines".into(),
            manifest: Some(EngineManifest {
                libraries: Vec::new(),
                cuda_driver: None,
                options: None,
                conformance: None,
                id: id.into(),
                version: "1".into(),
                abi_version: "1".into(),
                gpu_backend: backend.into(),
                architectures: list(architectures),
                formats: list(formats),
                binary: "lib.so".into(),
            }),
            libraries: Vec::new(),
            verdict: Ok(EngineFacts { abi_version: 1, extensions: vec![] }),
        }
    }

    fn refused(mut candidate: Candidate, refusal: Refusal) -> Candidate {
        candidate.verdict = Err(refusal);
        candidate
    }

    fn abi() -> Refusal {
        Refusal::AbiMismatch { expected: 1, got: 2, place: AbiPlace::Binary, path: "lib.so".into() }
    }

    fn model(format: &str, architecture: Option<&str>) -> Model {
        Model {
            id: "m".into(),
            format: format.into(),
            architecture: architecture.map(str::to_owned),
            ..Model::default()
        }
    }

    fn wish(model: &Model) -> Wish<'_> {
        Wish { model, gpu_backend: Some("cpu"), engine: None, format: None }
    }

    #[test]
    fn the_first_that_fits_is_chosen() {
        let candidates = [
            candidate("a", "cuda", &["gguf"], &["llama"]),
            candidate("b", "cpu", &["onnx"], &["llama"]),
            candidate("c", "cpu", &["gguf"], &["qwen3", "llama"]),
            candidate("d", "cpu", &["gguf"], &["*"]),
        ];
        let llama = model("gguf", Some("llama"));
        assert_eq!(choose(wish(&llama), &candidates).unwrap().id, "c");
        assert_eq!(choose(Wish { engine: Some("d"), ..wish(&llama) }, &candidates).unwrap().id, "d");
        assert_eq!(choose(wish(&model("gguf", Some("new"))), &candidates).unwrap().id, "d");
        assert_eq!(choose(wish(&model("onnx", None)), &candidates).unwrap().id, "b");
    }

    #[test]
    fn an_architecture_that_the_engine_lacks() {
        let four = candidate("llama_cpp", "cpu", &["gguf"], &["llama", "qwen3", "gemma3", "phi3"]);
        let nemotron = model("gguf", Some("nemotron"));
        for engine in [None, Some("llama_cpp")] {
            let fault = choose(Wish { engine, ..wish(&nemotron) }, std::slice::from_ref(&four)).unwrap_err();
            assert_eq!(fault.message, "Architecture 'nemotron' not supported by plugin 'llama_cpp'");
            assert_eq!(fault.code, ErrorCode::ArchitectureMismatch);
        }
    }

    #[test]
    fn an_engine_of_another_abi() {
        let old = refused(candidate("a", "cpu", &["gguf"], &["llama"]), abi());
        let llama = model("gguf", Some("llama"));
        for engine in [None, Some("a")] {
            let fault = choose(Wish { engine, ..wish(&llama) }, std::slice::from_ref(&old)).unwrap_err();
            assert_eq!(fault.code, ErrorCode::AbiMismatch);
            assert_eq!(fault.message, "ABI version mismatch: expected 1, got 2");
        }
    }

    #[test]
    fn every_no_is_listed() {
        let candidates = [
            candidate("a", "cuda", &["gguf"], &["llama"]),
            refused(
                candidate("b", "cpu", &["gguf"], &["llama"]),
                Refusal::BinaryNotFound { path: "/engines/lib.so".into() },
            ),
        ];
        let fault = choose(wish(&model("gguf", Some("llama"))), &candidates).unwrap_err();
        assert_eq!(fault.code, ErrorCode::EngineNotFound);
        assert_eq!(
            fault.message,
            "No engine can load model 'm'. Candidates: 'a' (cuda): is built for 'cuda', and this node runs on \
             'cpu'; 'b' (cpu): /engines/lib.so: no such file"
        );
    }

    #[test]
    fn formats_and_devices() {
        let candidates = [candidate("a", "cpu", &["gguf"], &["llama"])];
        let code = |wish: Wish<'_>| choose(wish, &candidates).unwrap_err().code;
        assert_eq!(code(wish(&model("onnx", None))), ErrorCode::FormatMismatch);
        let llama = model("gguf", Some("llama"));
        assert_eq!(code(Wish { format: Some("onnx"), ..wish(&llama) }), ErrorCode::FormatMismatch);
        assert_eq!(code(Wish { gpu_backend: None, ..wish(&llama) }), ErrorCode::GpuNotFound);
        assert_eq!(code(Wish { engine: Some("z"), ..wish(&llama) }), ErrorCode::EngineNotFound);
    }
}
