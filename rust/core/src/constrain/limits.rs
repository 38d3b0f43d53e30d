//! How large what a client sends may be. Compile time grows with these counts, and nothing can stop a
//! compilation; the figures keep it well below its deadline.

use llguidance::api::ParserLimits;

/// Bytes of one schema or grammar.
pub const MAX_BYTES: usize = 256 << 10;
/// Bytes of the schemas of all tools.
pub(super) const MAX_TOOL_BYTES: usize = 1 << 20;
/// Schemas within each other; and through references, which are compiled where they are first met.
pub(super) const MAX_DEPTH: usize = 64;
/// Values within each other, on the way to a schema: whoever reads JSON takes 128, and some come to these.
pub(super) const MAX_NESTING: usize = 112;
pub(super) const MAX_DEPTH_THROUGH_REFERENCES: usize = 256;
/// Schemas in all, those behind references once.
pub(super) const MAX_NODES: usize = 20_000;
/// Properties of one object that may be left out: what they cost grows with their square, and so does each mask.
pub(super) const MAX_OPTIONAL: usize = 500;
/// Combinations that have to be tried where alternatives meet.
pub(super) const MAX_COMBINATIONS: usize = 2000;
/// Values in all lists of allowed values together.
pub(super) const MAX_VALUES: usize = 10_000;
/// Bytes of a regular expression.
pub(super) const MAX_PATTERN: usize = 4 << 10;
/// Steps of `multipleOf`, together where several hold: each is a state of the lexer.
pub(super) const MAX_STEPS: u64 = 10_000;
/// Parts of a schema that are compiled to find out which of them cannot be.
pub(super) const MAX_TRIES: usize = 64;
/// Up to here every whole number is a number of its own in double precision.
pub(super) const MAX_EXACT: u64 = 1 << 53;

/// What llguidance may spend. None of it goes by time: an answer must not depend on how busy the machine
/// is.
pub(super) fn parser() -> ParserLimits {
    ParserLimits {
        // An object has about four for each property that may be left out.
        max_items_in_row: 4 * MAX_OPTIONAL + 1000,
        // Classes of Unicode letters take more than 50,000 in the first mask of a large vocabulary.
        step_lexer_fuel: 200_000,
        step_max_items: 100_000,
        // 1 to 2 KB each.
        max_lexer_states: 30_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
