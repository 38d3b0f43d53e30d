//! What a load would come to, without one: its engine is asked in a process that is thrown away.

use llm_node_core::{
    error::{ErrorCode, Fault},
    options::ModelOptions,
    shape::Sizing,
};
use llm_node_fleet::{Basis, Event, Foreseen, Planned};

use super::{
    Inner,
    inflight::Reply,
    load::{LoadRequest, foresee, prepare, to_be},
    report::plan,
    said::Look,
    would_fit,
};

/// A load that is planned.
pub(super) struct Order<'a> {
    pub(super) model_id: &'a str,
    pub(super) wishes: &'a ModelOptions,
    pub(super) format: Option<&'a str>,
}

/// Says what a load would come to, and what would fit in its place.
pub(super) fn answer(inner: &Inner, request: &LoadRequest, reply: Reply) {
    let (model_id, wishes) = match prepare(inner, request) {
        Ok(prepared) => prepared,
        Err(fault) => return reply.send(Err(fault)),
    };
    let order = Order { model_id: &model_id, wishes: &wishes, format: request.format.as_deref() };
    let planned = to_be(inner, &model_id, &wishes)
        .map(|setup| foresee(inner, &model_id, &setup, order.format))
        .transpose()
        .and_then(|mut foreseen| {
            let mut planned = as_said(inner, &model_id, &wishes, foreseen.as_mut())?;
            let offers = foreseen.and_then(|own| would_fit::look(inner, &order, &mut planned, own));
            Ok((planned, offers))
        });
    reply.send(match planned {
        Ok((planned, offers)) => plan::planned(inner.fleet.now(), &planned, offers.as_deref()),
        Err(fault) if is_refusal(&fault) => plan::refused(&fault),
        Err(fault) => Err(fault),
    });
}

/// What a load would come to, its engine having been asked what it takes with the context that it would get.
pub(super) fn as_said(
    inner: &Inner,
    model_id: &str,
    wishes: &ModelOptions,
    mut foreseen: Option<&mut (Foreseen, Option<Look>)>,
) -> Result<Planned, Fault> {
    loop {
        let ticket = inner.traffic.number();
        let (model_id, wishes) = (model_id.to_owned(), wishes.clone());
        let known = foreseen.as_deref().map(|(foreseen, _)| foreseen.clone());
        let planned = inner.fleet.plan(ticket, Event::Plan { ticket, model_id, wishes, foreseen: known })?;
        let (Some((foreseen, Some(look))), Some(shape)) = (foreseen.as_deref_mut(), planned.shape) else {
            return Ok(planned);
        };
        let is_said =
            planned.foreseen.basis == Basis::Measured || foreseen.sized.iter().any(|it| it.0 == shape);
        let Some(setup) = foreseen.setup.as_ref().filter(|_| !is_said) else { return Ok(planned) };
        let Some(uses) = look.size(inner, Sizing { size: setup.wish().size, shape: Some(shape) })? else {
            return Ok(planned);
        };
        foreseen.sized.push((shape, uses));
    }
}

/// Is it the model, or what would load it, that stands in the way? Else it is the request, or the node.
fn is_refusal(fault: &Fault) -> bool {
    fault.param.is_none()
        && matches!(
            fault.code,
            ErrorCode::ModelCorrupt
                | ErrorCode::LoadFailed
                | ErrorCode::ArchitectureMismatch
                | ErrorCode::FormatMismatch
                | ErrorCode::UnsupportedFeature
                | ErrorCode::AbiMismatch
                | ErrorCode::EngineNotFound
                | ErrorCode::EngineFault
                | ErrorCode::EngineCrashed
                | ErrorCode::Timeout
                | ErrorCode::OomVram
                | ErrorCode::OomRam
        )
}
