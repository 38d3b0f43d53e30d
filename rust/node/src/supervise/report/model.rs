//! A model: what its file tells, and what it is doing.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use llm_node_fleet::{FleetView, ModelView};
use serde::Serialize;

use super::{Inner, busy::DemandRow, life::LifeRow};
use crate::{config::Origin, models::Model, supervise::load::are_unchanged};

/// A model, with what its file tells and what it is doing.
#[derive(Serialize)]
pub(in crate::supervise) struct ModelRow<'a> {
    id: &'a str,
    #[serde(flatten)]
    file: Option<FileRow<'a>>,
    #[serde(flatten)]
    life: LifeRow<'a>,
    #[serde(flatten)]
    demand: DemandRow,
}

impl<'a> ModelRow<'a> {
    pub(in crate::supervise) fn of(inner: &Inner, model: &'a Model, fleet: &'a FleetView) -> Self {
        let view = fleet.models.get(&model.id).map(AsRef::as_ref);
        let life = view.map_or_else(LifeRow::of_nothing, |view| LifeRow::of(inner, view, &fleet.accounts));
        let life = match &model.problem {
            Some(problem) => life.with_problem(problem),
            None => life,
        };
        let demand = DemandRow::of(inner, fleet, &model.id);
        Self { id: &model.id, file: Some(FileRow::of(model, view)), life, demand }
    }

    /// Of one whose file has gone; `None`: there is nothing left of it.
    pub(in crate::supervise) fn without_file(
        inner: &Inner,
        id: &'a str,
        fleet: &'a FleetView,
    ) -> Option<Self> {
        let view = fleet.models.get(id).filter(|view| !view.workers.is_empty())?;
        let life = LifeRow::of(inner, view, &fleet.accounts);
        Some(Self { id, file: None, life, demand: DemandRow::of(inner, fleet, id) })
    }
}

#[derive(Serialize)]
struct FileRow<'a> {
    format: &'a str,
    architecture: Option<&'a str>,
    name: Option<&'a str>,
    quantization: Option<&'a str>,
    task: Option<&'a str>,
    size_bytes: u64,
    context_length: Option<u64>,
    origin: Origin,
    path: String,
    files: Vec<String>,
    also: Vec<String>,
    modified: u64,
    /// It was written since the model was loaded, which is what it was before.
    changed: bool,
}

impl<'a> FileRow<'a> {
    fn of(model: &'a Model, view: Option<&ModelView>) -> Self {
        Self {
            format: &model.format,
            architecture: model.architecture.as_deref(),
            name: model.name.as_deref(),
            quantization: model.quantization.as_deref(),
            task: model.task,
            size_bytes: model.size_bytes,
            context_length: model.context_length,
            origin: model.origin,
            path: model.path.display().to_string(),
            files: shown(&model.parts),
            also: shown(&model.also),
            modified: modified(&model.path),
            changed: view.is_some_and(|view| !view.workers.is_empty() && !are_unchanged(&view.files)),
        }
    }
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// When a file was written last, in seconds since 1970; 0: nobody knows.
fn modified(path: &Path) -> u64 {
    let written = fs::metadata(path).and_then(|file| file.modified());
    written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}
