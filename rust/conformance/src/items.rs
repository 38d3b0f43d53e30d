//! What the contract was designed to be asked, item by item, and which checks ask it.

use crate::check::Check;

/// One item of the list that the contract came with.
#[derive(Debug)]
pub struct Item {
    /// What it is about: a heading.
    pub group: &'static str,
    /// What is asked.
    pub asks: &'static str,
    /// Who asks it.
    pub by: By,
}

/// Who asks an item.
#[derive(Debug)]
pub enum By {
    /// These checks, by name.
    Checks(&'static [&'static str]),
    /// Something else, or nobody yet: what, and why.
    Other(&'static str),
}

impl Item {
    /// The names of its checks.
    pub const fn checks(&self) -> &'static [&'static str] {
        match self.by {
            By::Checks(names) => names,
            By::Other(_) => &[],
        }
    }

    /// The items that a check belongs to.
    pub fn of(check: &Check) -> impl Iterator<Item = &'static Self> {
        let name = check.name;
        ITEMS.iter().filter(move |item| item.checks().contains(&name))
    }
}

const fn asked(group: &'static str, asks: &'static str, names: &'static [&'static str]) -> Item {
    Item { group, asks, by: By::Checks(names) }
}

const fn other(group: &'static str, asks: &'static str, why: &'static str) -> Item {
    Item { group, asks, by: By::Other(why) }
}

const FILE: &str = "Before loading";
const LIFE: &str = "Loading and life";
const TIER0: &str = "Tier 0";
const MODELS: &str = "Models and memory";
const WORDS: &str = "Tokenizer, embeddings, adapters";
const BATCH: &str = "Batch";
const STREAM: &str = "Stream and serve";

/// The whole list.
pub const ITEMS: &[Item] = &[
    other(
        FILE,
        "the manifest is valid, of this ABI, and names a file beside it that nobody else may write",
        "asked by whoever reads manifests: the node, and `engine check` before its first check",
    ),
    asked(FILE, "a library for this machine exports the five functions", &["file.library"]),
    asked(
        FILE,
        "it exports nothing else, and no symbol of which a process has one alone",
        &["file.exports", "file.unique-symbols"],
    ),
    asked(
        FILE,
        "what it needs, where that is looked for, executable stack, relocations in code",
        &["file.dependencies", "file.stack"],
    ),
    asked(FILE, "it imports nothing that it must not call", &["file.imports"]),
    asked(LIFE, "it is opened in time, without a crash and without another signal handler", &["life.open"]),
    asked(LIFE, "engine_get_info can be read, and is what the manifest says", &["life.info"]),
    asked(
        LIFE,
        "engine_init brings a known code, and does not crash, hang or end the process",
        &["life.init"],
    ),
    asked(
        LIFE,
        "nothing is written behind struct_size, with an older and with a newer host",
        &[
            "life.config",
            "life.older-host",
            "models.struct-size",
            "memory.struct-size",
            "tokenizer.struct-size",
            "batch.strides",
        ],
    ),
    asked(
        LIFE,
        "engine_shutdown returns, leaves no thread, and engine_init may follow",
        &["life.shutdown", "life.again"],
    ),
    asked(
        LIFE,
        "descriptors, signal handlers, environment, folder, locale, rounding and umask are as before",
        &["life.process"],
    ),
    asked(LIFE, "nothing on stdout, nor on stderr", &["life.stdout", "life.stderr"]),
    other(
        LIFE,
        "no socket but of this machine, no file outside of a temporary folder",
        "kept by the worker's sandbox, in which every engine serves; that it imports none is file.imports",
    ),
    asked(
        LIFE,
        "each extension is the same table each time, whole, of functions that exist; unknown ids bring NULL",
        &["life.extensions"],
    ),
    asked(TIER0, "a file that is no model brings an error", &["tier0.load", "tier0.bad-files"]),
    asked(TIER0, "results can be read, and end", &["tier0.generate"]),
    asked(
        TIER0,
        "results stay until the next call, and the prompt's memory is not used after its own",
        &["tier0.results"],
    ),
    asked(
        TIER0,
        "a call ends in time, and memory does not grow from call to call",
        &["tier0.generate", "tier0.memory"],
    ),
    asked(TIER0, "a prompt that is empty, long, no UTF-8, or begins with a mark", &["tier0.prompts"]),
    asked(
        MODELS,
        "models are loaded and unloaded over and over, two at once, in either order; progress ends a load",
        &["models.load", "models.again", "models.two", "models.progress"],
    ),
    asked(
        MODELS,
        "a load that fails leaves its result as it was, and says why",
        &["models.bad-files", "models.says-why"],
    ),
    asked(MODELS, "metadata can be read, by many threads at once", &["models.metadata", "models.threads"]),
    asked(
        MODELS,
        "what is used fits its devices; an estimate is near it, takes no memory, and holds weights and cache",
        &[
            "memory.devices",
            "memory.estimate",
            "memory.weights",
            "memory.usage",
            "memory.promise",
            "memory.truth",
        ],
    ),
    asked(MODELS, "room for too few elements is not written beyond", &["memory.capacity"]),
    asked(
        WORDS,
        "the vocabulary: offsets, number, special tokens, an end",
        &["tokenizer.vocabulary", "tokenizer.end"],
    ),
    asked(WORDS, "tokenize with room for none, for one too few, and for enough", &["tokenizer.capacity"]),
    asked(
        WORDS,
        "tokens of a text become it again, and are what the vocabulary says",
        &["tokenizer.tokens", "tokenizer.round-trip", "tokenizer.pieces"],
    ),
    asked(
        WORDS,
        "control tokens only where they are asked for; what is no token; templates by name",
        &["tokenizer.special", "tokenizer.outside", "tokenizer.template"],
    ),
    asked(WORDS, "sixteen threads tokenise at once", &["tokenizer.threads"]),
    asked(
        WORDS,
        "vectors: of many as of each alone, finite, as wide as is said, not beyond their room",
        &["embed.vectors", "embed.capacity"],
    ),
    other(WORDS, "adapters", "engine.adapters/1 is a draft: no node asks for it"),
    asked(BATCH, "a context has at least what was asked for, and decode_sizes rise", &["batch.create"]),
    asked(
        BATCH,
        "the same rows alone and together, whole and cut, in any order of slices",
        &["batch.rows", "batch.repeat", "batch.cut", "batch.together", "batch.mixed", "batch.scripts"],
    ),
    asked(
        BATCH,
        "LOGITS, TOP and TOKEN lead to the same tokens, for what `uses` may name",
        &["batch.stages", "batch.picks"],
    ),
    asked(BATCH, "candidates are sorted, distinct, in range, with their log_sum", &["batch.top"]),
    asked(BATCH, "a mask with one bit leads to its token, early and late", &["batch.picks"]),
    asked(BATCH, "several rows of one slice", &["batch.several-rows", "batch.last-token", "batch.limits"]),
    asked(BATCH, "copies of prefixes", &["batch.copy"]),
    asked(BATCH, "drafts are taken back", &["batch.rollback", "batch.remove"]),
    asked(BATCH, "a full cache changes nothing", &["batch.full", "batch.account"]),
    asked(
        BATCH,
        "wrong arguments are refused, and change nothing",
        &["batch.invalid", "batch.invalid-sequences", "batch.length"],
    ),
    asked(BATCH, "rows stay, and old tickets are errors", &["batch.rows-stay", "batch.tickets"]),
    asked(BATCH, "steps that are chained bring what steps one by one bring", &["batch.chain"]),
    asked(BATCH, "what was given to a step is gone when it returns", &["batch.memory-of-a-step"]),
    asked(BATCH, "slices and rows of other sizes", &["batch.strides"]),
    asked(
        BATCH,
        "two contexts on two threads, a cancel from a third, destroyed with a step under way",
        &["batch.contexts", "batch.threads", "batch.cancel", "batch.destroy"],
    ),
    asked(BATCH, "thousands of steps: no growth, and a ticket more each", &["batch.steady", "batch.tickets"]),
    other(
        BATCH,
        "decode_sizes are worth their name",
        "a hint, and a matter of time: `llm-node bench` measures it, and no check may fail of a busy machine",
    ),
    asked(BATCH, "sequences are saved and restored", &["batch.save", "batch.save-sizes"]),
    asked(
        STREAM,
        "the same tokens again, max_tokens at most, one ending",
        &["stream.tokens", "stream.repeat", "stream.as-batch"],
    ),
    asked(
        STREAM,
        "on_token ends a request, and is called on its thread alone",
        &["stream.cancel", "stream.tokens"],
    ),
    asked(STREAM, "what nobody knows is refused", &["stream.uses"]),
    other(
        STREAM,
        "fill_mask says which tokens may come",
        "no node gives one: what keeps to a grammar is asked of engine.batch/1",
    ),
    other(
        STREAM,
        "requests that an engine schedules by itself",
        "engine.serve/1 is a draft: no node asks for it",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CHECKS;

    #[test]
    fn every_item_has_its_checks_and_every_check_its_item() {
        for item in ITEMS {
            assert!(!matches!(item.by, By::Checks([])), "{}: nobody asks it", item.asks);
            for name in item.checks() {
                assert!(Check::named(name).is_some(), "{}: no check is called {name}", item.asks);
            }
        }
        for check in CHECKS.iter().copied().flatten() {
            assert!(Item::of(check).next().is_some(), "{}: no item wants it", check.name);
        }
    }

    #[test]
    fn items_of_a_group_stand_together() {
        let mut groups: Vec<&str> = ITEMS.iter().map(|item| item.group).collect();
        groups.dedup();
        let mut once = groups.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(groups.len(), once.len());
    }
}
