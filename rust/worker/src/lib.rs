//! The child: one engine, one model, its scheduler and its sampler.
