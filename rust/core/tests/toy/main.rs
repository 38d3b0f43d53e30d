//! The whole core on a toy engine: requests in, events out.

#[cfg(test)]
mod control_tokens;
#[cfg(test)]
mod request;
#[cfg(test)]
mod session;
#[cfg(test)]
mod speculate;
#[cfg(test)]
mod template;
#[cfg(test)]
mod toy_engine;
