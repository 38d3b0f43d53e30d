//! What would fit in place of a load that has no room, or have a longer context: the same with other options.
//!
//! Each is planned as a load of it would be, and its engine says what it takes: a sum alone is no promise.

use std::collections::BTreeMap;

use llm_node_core::{
    error::{ErrorCode, Fault},
    options::{ModelOptions, OptionValue},
    shape::whole_cells,
};
use llm_node_fleet::{Foreseen, Planned, Verdict};

use super::{
    Inner,
    load::{foresee, to_be},
    planning::{Order, as_said},
    said::Look,
};

/// Options that halve what a token takes, of engines that know them.
const SMALL_CACHE: [&str; 2] = ["cache_type_k", "cache_type_v"];
const SMALL: &str = "q8_0";
/// An engine is asked of so many lengths at most.
const MOST_ROUNDS: u8 = 4;
/// A context of fewer tokens is of no use to anybody.
const LEAST: u32 = 256;

type Options = BTreeMap<String, OptionValue>;

/// What to say of a load in place of what was said, each with the longest context that there is room for then; none:
/// nothing fits. `None`: nobody can say, or there is nothing better than what was asked for. What is longest without
/// other options is taken over into the plan. `own`: what its engine says of the load itself.
pub(super) fn look(
    inner: &Inner,
    order: &Order<'_>,
    planned: &mut Planned,
    own: (Foreseen, Option<Look>),
) -> Option<Vec<ModelOptions>> {
    let (largest, length) = (planned.largest_context?, own.0.longest()?);
    let is_whole = planned.shape.is_some_and(|shape| shape.context_length >= length);
    let is_refused = match &planned.verdict {
        Verdict::Refused(fault) if lacks_memory(fault) => true,
        Verdict::Refused(_) => return None,
        // Such a load was measured: nobody is asked for what it could be beside.
        _ if is_whole || (largest >= length && own.1.is_none()) => return None,
        _ => false,
    };
    let small = small_cache(inner, order, &own.0);
    let shorter = longest(inner, order, None, largest, own);
    let has = shorter.as_ref().and_then(|offer| offer.context_length).unwrap_or(0);
    if is_refused || has > 0 {
        planned.largest_context = Some(has);
    }
    let smaller = small.filter(|_| has < length).and_then(|options| {
        let wishes = ModelOptions { options: Some(options.clone()), ..ModelOptions::default() };
        let wishes = wishes.over(order.wishes);
        let mut of_it = foreseen(inner, order, &wishes)?;
        let largest = as_said(inner, order.model_id, &wishes, Some(&mut of_it)).ok()?.largest_context?;
        longest(inner, order, Some(&options), largest, of_it).filter(|offer| offer.context_length > Some(has))
    });
    let offers: Vec<ModelOptions> = shorter.into_iter().chain(smaller).collect();
    let is_better = !offers.is_empty() && has < length;
    Some(offers).filter(|_| is_refused || is_better)
}

fn lacks_memory(fault: &Fault) -> bool {
    matches!(fault.code, ErrorCode::OomVram | ErrorCode::OomRam)
}

/// The options of a smaller cache, where the engine knows them and nobody has said anything of them.
fn small_cache(inner: &Inner, order: &Order<'_>, own: &Foreseen) -> Option<Options> {
    let candidates = inner.candidates(false);
    let engine = candidates.iter().find(|candidate| candidate.id == own.engine)?;
    let known = engine.manifest.as_ref()?.options.as_ref()?;
    let said = to_be(inner, order.model_id, order.wishes)?.whole().options.unwrap_or_default();
    let is_free = |name: &&str| known.iter().any(|it| it == name) && !said.contains_key(*name);
    let options = SMALL_CACHE.map(|name| (name.to_owned(), OptionValue::Text(SMALL.to_owned())));
    SMALL_CACHE.iter().all(is_free).then(|| options.into())
}

/// With the longest context that there is room for; `None`: there is room for none. `most`: by a sum.
fn longest(
    inner: &Inner,
    order: &Order<'_>,
    options: Option<&Options>,
    most: u32,
    mut known: (Foreseen, Option<Look>),
) -> Option<ModelOptions> {
    // A sum has what a longer context takes beside its cache.
    let least = known.0.longest().map_or(LEAST, |own| own.min(LEAST));
    let (mut length, mut best, mut too_long) = (most.max(least), None, u32::MAX);
    for _ in 0..MOST_ROUNDS {
        let offer = order.offer(inner, length, options);
        let wishes = offer.clone().over(order.wishes);
        // It may be loaded as that.
        let Some(setup) = to_be(inner, order.model_id, &wishes) else { return Some(offer) };
        (known.0.setup, known.0.before) = (Some(Box::new(setup)), None);
        let mut planned = as_said(inner, order.model_id, &wishes, Some(&mut known)).ok()?;
        if known.1.is_none() && !matches!(planned.verdict, Verdict::Refused(_)) {
            // Nobody was asked so far, because the load itself was measured: so much is a sum.
            known = foreseen(inner, order, &wishes)?;
            planned = as_said(inner, order.model_id, &wishes, Some(&mut known)).ok()?;
        }
        let possible = planned.largest_context?;
        match planned.verdict {
            Verdict::Refused(fault) if lacks_memory(&fault) && length > least => {
                too_long = length;
                length = whole_cells(possible.min(length - length / 16)).max(least);
            }
            Verdict::Refused(_) => break,
            _ => {
                best = Some(offer);
                if possible <= length.saturating_add(length / 16) || possible >= too_long {
                    break;
                }
                length = possible;
            }
        }
    }
    best
}

fn foreseen(inner: &Inner, order: &Order<'_>, wishes: &ModelOptions) -> Option<(Foreseen, Option<Look>)> {
    foresee(inner, order.model_id, &to_be(inner, order.model_id, wishes)?, order.format).ok()
}

impl Order<'_> {
    /// The options for a context of that length. Where somebody names a size of the cache, it has room for that alone.
    fn offer(&self, inner: &Inner, length: u32, options: Option<&Options>) -> ModelOptions {
        let setup = to_be(inner, self.model_id, self.wishes);
        let cells = setup.and_then(|setup| setup.whole().cache_tokens);
        ModelOptions {
            context_length: Some(length),
            cache_tokens: cells.map(|_| length.into()),
            options: options.cloned(),
            ..ModelOptions::default()
        }
    }
}
