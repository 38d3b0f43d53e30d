//! Constrained answers: whatever a grammar lets through keeps to its schema.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod forms;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod places;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod support;
#[cfg(test)]
mod walks;
