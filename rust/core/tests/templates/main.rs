//! The 70 chat templates that llama.cpp tests with: what is found out about them, what they make of conversations,
//! and whether the calls that they render are read back.
//!
//! They are fetched, not kept here; without a package index the tests say so and look at nothing.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod jinja;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod support;
#[cfg(test)]
mod transcripts;
