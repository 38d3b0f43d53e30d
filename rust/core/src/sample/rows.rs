//! Many rows at once, shared out over threads where that pays.

use std::sync::{Mutex, PoisonError};

use llm_node_cpu::Crew;

use super::{
    chain::Sampler,
    forbidden::Forbidden,
    job::Job,
    picked::{PickFault, Picked},
};

/// Logits that a thread must have before it is woken: 50 us of work. On a virtual machine, where cores
/// wake slowest, a crew of two takes 45 us for nothing, and breaks even at 100 us of work in all.
const WORTH_A_THREAD: usize = 3 << 17;

/// Picks from rows that do not depend on each other. What is picked from one is the same whatever lies
/// beside it, and however many threads there are.
#[derive(Debug)]
pub struct Samplers {
    /// One per thread. Each locks its own, so none ever waits.
    shares: Vec<Mutex<Share>>,
}

#[derive(Debug, Default)]
struct Share {
    sampler: Sampler,
    picked: Vec<Result<Picked, PickFault>>,
}

impl Default for Samplers {
    /// On the calling thread alone.
    fn default() -> Self {
        Self::new(1)
    }
}

impl Samplers {
    /// For so many threads.
    pub fn new(threads: usize) -> Self {
        Self { shares: (0..threads.max(1)).map(|_| Mutex::default()).collect() }
    }

    /// Picks a token for each job, with the threads of `crew` or on the calling one alone, and gives them in
    /// the order of the jobs. `forbidden` holds for all.
    pub fn pick<'s>(
        &'s mut self,
        crew: Option<&mut Crew>,
        jobs: &[Job<'_>],
        forbidden: &Forbidden,
    ) -> impl Iterator<Item = Result<Picked, PickFault>> + use<'s> {
        let logits: usize = jobs.iter().map(|job| job.row.len()).sum();
        let parts = (logits / WORTH_A_THREAD).min(jobs.len()).clamp(1, self.shares.len());
        self.pick_in(crew, parts, jobs, forbidden)
    }

    fn pick_in<'s>(
        &'s mut self,
        crew: Option<&mut Crew>,
        parts: usize,
        jobs: &[Job<'_>],
        forbidden: &Forbidden,
    ) -> impl Iterator<Item = Result<Picked, PickFault>> + use<'s> {
        let shares = &mut self.shares;
        let work = |part: usize| {
            let jobs = &jobs[jobs.len() * part / parts..jobs.len() * (part + 1) / parts];
            let Share { sampler, picked } = &mut *shares[part].lock().unwrap_or_else(PoisonError::into_inner);
            picked.clear();
            picked.extend(jobs.iter().map(|job| sampler.pick_from(job, forbidden)));
        };
        match crew {
            Some(crew) if parts > 1 => crew.run(parts, &work),
            _ => (0..parts).for_each(work),
        }
        shares
            .iter_mut()
            .take(parts)
            .flat_map(|it| it.get_mut().unwrap_or_else(PoisonError::into_inner).picked.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        engine::Row,
        request::Sampling,
        sample::{Occurrences, rng},
    };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        /// A pick depends on its row, its request and its position: not on the rows beside it, their
        /// order, or the number of threads.
        #[test]
        fn order_and_threads_do_not_matter(
            seeds in prop::collection::vec(any::<u64>(), 0..20),
            rotation in 0usize..20,
            temperature in prop_oneof![Just(0.0f32), 0.3f32..3.0],
            top_p in prop_oneof![Just(1.0f32), 0.3f32..1.0],
            size in 1usize..5,
        ) {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            let none = Occurrences::default();
            let rows: Vec<Row<'_>> = seeds
                .iter()
                .map(|&seed| Row::Whole((0..2000).map(|id| rng::uniform(seed, id) * 9.0).collect()))
                .collect();
            let mut jobs: Vec<_> = rows
                .iter()
                .zip(&seeds)
                .map(|(row, &seed)| Job {
                    row,
                    sampling: &sampling,
                    occurrences: &none,
                    mask: None,
                    uniform: rng::uniform(seed, 3),
                    logprobs: Some(2),
                })
                .collect();
            let all = Forbidden::default();
            let mut alone: Vec<_> = jobs
                .iter()
                .map(|job| Sampler::default().pick_from(job, &all))
                .collect();
            if !jobs.is_empty() {
                let rotation = rotation % jobs.len();
                jobs.rotate_left(rotation);
                alone.rotate_left(rotation);
            }
            let mut crew = Crew::new(NonZeroUsize::new(size).unwrap(), "test").unwrap();
            let mut samplers = Samplers::new(size);
            for parts in 1..=size {
                let picked: Vec<_> = samplers.pick_in(Some(&mut crew), parts, &jobs, &all).collect();
                prop_assert_eq!(&picked, &alone);
            }
            prop_assert_eq!(&samplers.pick(Some(&mut crew), &jobs, &all).collect::<Vec<_>>(), &alone);
            prop_assert_eq!(&Samplers::default().pick(None, &jobs, &all).collect::<Vec<_>>(), &alone);
        }
    }

    #[test]
    fn a_row_that_is_no_row_costs_itself_alone() {
        let row = |logits: &'static [f32]| Row::Whole(logits.into());
        let (good, bad) = (row(&[0.0, 2.0, 1.0]), row(&[0.0, f32::NAN, 1.0]));
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let none = Occurrences::default();
        let job = |row| Job {
            row,
            sampling: &greedy,
            occurrences: &none,
            mask: None,
            uniform: 0.0,
            logprobs: None,
        };
        let mut samplers = Samplers::default();
        let picked: Vec<_> = samplers
            .pick(None, &[job(&good), job(&bad), job(&good)], &Forbidden::default())
            .map(|it| it.map(|it| it.token))
            .collect();
        assert_eq!(picked, [Ok(1), Err(PickFault::NotANumber), Ok(1)]);
    }
}
