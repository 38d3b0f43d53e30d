//! The parent: registry, models, memory ledger, supervisor. It never opens an engine.
