//! How long and how many: the size of a context, where nobody has fixed it.
//!
//! Pure. What a load asks for is kept, or refused where the model cannot be so. What the configuration names for all
//! models is kept as far as the model goes. The rest follows from the memory that is free:
//!
//! 1. The cache, in tokens: as many as one sequence of the model's own length takes, or 8192 for each of 32
//!    sequences. A quarter of what is free may be taken for more of them, and never more than is free. On the host,
//!    where long prompts take minutes and the machine has other work: 32,768, or 4096 for each of 8, and half of what
//!    is free counts. Half of that may be taken for more: pages that nobody uses are not resident there.
//! 2. The length: the model's own, as far as the cache goes.
//! 3. The sequences: each has its full length where that makes 8 of them or more, on the host 4. Otherwise they share
//!    the cache, one for each 4096 tokens; on the host 4 at most, since its kernels look at all of a shared cache.
//!
//! A model whose cache is small even for 64 sequences has 64. Where an engine gives no figures: 8192 tokens and 64
//! sequences, and 512 Ki tokens in all.

use serde::{Deserialize, Serialize};

use crate::{
    error::{ErrorCode, Fault},
    memory::{Figures, MemoryUse, add, length_of},
    options::ModelOptions,
};

/// Of a model that does not say how long it is.
const LENGTH: u32 = 8192;
/// Less is no context: then there is no room for the model.
const LEAST_LENGTH: u32 = 2048;
/// What a model keeps where another needs the room.
const ENOUGH: u32 = 32_768;
/// Most that is wanted on the host for one sequence.
const HOST_LENGTH: u64 = 32_768;
/// For each sequence of a shared cache.
const SHARE: u64 = 4096;
/// Sequences that share a cache on the host.
const HOST_SHARERS: u64 = 4;
const SMALL_SEQUENCES: u32 = 64;
const SMALL_ON_HOST: u64 = 1 << 30;
const SMALL_ON_DEVICE: u64 = 4 << 30;
const FEW_SEQUENCES: u32 = 8;
const TOKENS_WITHOUT_FIGURES: u64 = 512 * 1024;
/// Engines round caches to so many tokens.
const CELLS: u64 = 256;

/// How long and how many sequences are, as far as somebody says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextSize {
    /// Longest sequence in tokens.
    pub context_length: Option<u32>,
    /// Sequences at once.
    pub max_sequences: Option<u32>,
    /// KV cache for all sequences together, in tokens.
    pub cache_tokens: Option<u64>,
}

impl From<&ModelOptions> for ContextSize {
    fn from(options: &ModelOptions) -> Self {
        Self {
            context_length: options.context_length,
            max_sequences: options.max_sequences,
            cache_tokens: options.cache_tokens,
        }
    }
}

/// What is said of a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// By who asks for the load. A model that cannot be so is refused.
    pub size: ContextSize,
    /// By the configuration: taken where `size` says nothing, as far as the model goes.
    pub usual: ContextSize,
}

/// The size of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Longest sequence in tokens.
    pub context_length: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// KV cache for all sequences together, in tokens; 0: the full length for each of them.
    pub cache_tokens: u64,
}

/// A context that is to be: what was said of it, and what follows from that where its engine gives figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// As it is asked for. A model that cannot be so is refused.
    pub size: ContextSize,
    /// As it is chosen.
    pub shape: Option<Shape>,
}

/// A device on which a part of the cache lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Is it memory of the host?
    pub is_host: bool,
    /// What is free beside weights and everything else, in bytes.
    pub free: u64,
    /// Bytes of a token here.
    pub per_token: u64,
    /// Bytes of a sequence here, whatever its length.
    pub per_sequence: u64,
}

/// The longest context of no more tokens that an engine does not make larger than it is.
pub fn whole_cells(tokens: u32) -> u32 {
    let cells = CELLS as u32;
    if tokens < cells { tokens } else { tokens - tokens % cells }
}

impl Place {
    fn room(&self) -> u64 {
        if self.is_host { self.free / 2 } else { self.free }
    }
}

/// What is wanted where nobody says anything.
struct Usual {
    sequences: u32,
    /// Tokens for one sequence, and for each of many.
    longest: u64,
    each: u64,
    /// One part in so many of what is free may be taken for more of them.
    part: u64,
    /// So many full lengths are worth a part of the cache for each sequence.
    walls: u64,
    /// Sequences that share a cache.
    sharers: u64,
    small: u64,
}

const ON_DEVICE: Usual = Usual {
    sequences: 32,
    longest: u64::MAX,
    each: 8192,
    part: 4,
    walls: 8,
    sharers: u64::MAX,
    small: SMALL_ON_DEVICE,
};
const ON_HOST: Usual = Usual {
    sequences: FEW_SEQUENCES,
    longest: HOST_LENGTH,
    each: SHARE,
    part: 2,
    walls: 4,
    sharers: HOST_SHARERS,
    small: SMALL_ON_HOST,
};

impl Wish {
    /// Refuses what a model of that length cannot be; 0: its length is not known.
    pub fn check(&self, model_length: u32) -> Result<(), Fault> {
        let Self { size, .. } = self;
        let refused =
            |message: String, param| Err(Fault::new(ErrorCode::InvalidRequest, message).param(param));
        if let Some(asked) = size.context_length
            && (asked == 0 || (model_length > 0 && asked > model_length))
        {
            let message =
                format!("a context of {asked} tokens was asked for; the model takes 1 to {model_length}");
            return refused(message, "context_length");
        }
        if size.max_sequences == Some(0) {
            return refused("at least one sequence is needed".to_owned(), "max_sequences");
        }
        if size.cache_tokens == Some(0) {
            return refused("a KV cache of at least one token is needed".to_owned(), "cache_tokens");
        }
        if let (Some(length), Some(cache)) = (size.context_length, size.cache_tokens)
            && u64::from(length) > cache
        {
            let message = format!("a KV cache of {cache} tokens has no room for a context of {length}");
            return refused(message, "cache_tokens");
        }
        Ok(())
    }

    fn sequences(&self) -> Option<u32> {
        self.size.max_sequences.or(self.usual.max_sequences.map(|usual| usual.max(1)))
    }

    /// What somebody named, or what the cache that somebody named has room for.
    fn length(&self, model_length: u32) -> Option<u32> {
        let longest = if model_length > 0 { model_length } else { u32::MAX };
        self.size.context_length.or_else(|| {
            let usual = self.usual.context_length?.clamp(1, longest);
            Some(self.cells().map_or(usual, |cells| usual.min(whole(cells))))
        })
    }

    fn cells(&self) -> Option<u64> {
        self.size.cache_tokens.or(self.usual.cache_tokens.map(|usual| usual.max(1)))
    }
}

impl Shape {
    /// What follows from a wish and from what is free. `model_length`: the longest sequence that the model was
    /// trained for; 0: not known. `places`: where its cache lies; none that takes anything: the engine gives no
    /// figures. Never less than the least that is of use, whatever is free.
    pub fn choose(wish: Wish, model_length: u32, places: &[Place]) -> Result<Self, Fault> {
        wish.check(model_length)?;
        Ok(chosen(wish, model_length, places, u64::MAX))
    }

    /// The same where nothing is free: less is of no use.
    pub fn least(wish: Wish, model_length: u32, places: &[Place]) -> Result<Self, Fault> {
        let full: Vec<Place> = places.iter().map(|place| Place { free: 0, ..*place }).collect();
        Self::choose(wish, model_length, &full)
    }

    /// The same where others need the room: no larger than one long sequence takes.
    pub fn enough(wish: Wish, model_length: u32, places: &[Place]) -> Result<Self, Fault> {
        wish.check(model_length)?;
        Ok(chosen(wish, model_length, places, enough_of(wish, model_length).into()))
    }

    /// Is it as long as it has to be, wherever it is?
    pub fn is_enough(self, wish: Wish, model_length: u32) -> bool {
        self.context_length >= enough_of(wish, model_length)
    }

    /// Tokens of its cache.
    pub fn cells(self) -> u64 {
        match self.cache_tokens {
            0 => u64::from(self.context_length).saturating_mul(self.max_sequences.into()),
            cells => cells,
        }
    }

    /// The same cache for fewer sequences: no more than many models get. An engine may take no more of them.
    #[must_use]
    pub fn for_fewer(self) -> Self {
        let max_sequences = self.max_sequences.min(SMALL_SEQUENCES);
        let full = Self { max_sequences, cache_tokens: 0, ..self };
        Self { cache_tokens: if self.cells() < full.cells() { self.cells() } else { 0 }, ..full }
    }

    /// The same for a model, or a draft model, that takes no longer sequences than that; 0: any.
    #[must_use]
    pub fn within(self, model_length: u32) -> Self {
        let context_length =
            if model_length > 0 { self.context_length.min(model_length) } else { self.context_length };
        let full = Self { context_length, cache_tokens: 0, ..self };
        Self { cache_tokens: if self.cache_tokens < full.cells() { self.cache_tokens } else { 0 }, ..full }
    }

    /// What a model takes with it, by what its engine says of one sequence. A smaller cache takes less beside it.
    pub fn by_sums(self, one: &[MemoryUse]) -> Vec<MemoryUse> {
        let own = u64::from(length_of(one));
        let cells = self.cells();
        let grown = |it: &MemoryUse| {
            let of_sequences = u64::from(self.max_sequences).saturating_mul(it.cache_per_sequence);
            let cache = cells.saturating_mul(it.cache_per_token).saturating_add(of_sequences);
            let part = |bytes: u64| (u128::from(bytes) * u128::from(cells) / u128::from(own.max(1))) as u64;
            let compute = if cells < own { part(it.compute) } else { it.compute };
            MemoryUse { cache, compute, ..it.clone() }
        };
        one.iter().map(grown).collect()
    }

    /// The same of a model and its draft model.
    pub fn of_figures(self, figures: &Figures) -> Vec<MemoryUse> {
        let draft = self.within(length_of(&figures.draft)).by_sums(&figures.draft);
        let mut uses = self.by_sums(&figures.one);
        add(&mut uses, draft);
        uses
    }
}

/// `most`: tokens of a cache that nobody has fixed.
fn chosen(wish: Wish, model_length: u32, places: &[Place], most: u64) -> Shape {
    let length = wish.length(model_length);
    let fixed = wish.cells();
    let own = if model_length > 0 { model_length } else { LENGTH };
    if places.iter().all(|place| place.per_token == 0 && place.per_sequence == 0) {
        return without_figures(wish, length, own);
    }
    let full = length.unwrap_or(own);
    let whole_length = u64::from(full);
    let on_device =
        places.iter().any(|place| !place.is_host && (place.per_token > 0 || place.per_sequence > 0));
    let usual = if on_device { ON_DEVICE } else { ON_HOST };
    let is_small = is_small(whole_length, places, &usual);
    if wish.sequences().is_none() && fixed.is_none() && is_small {
        return Shape { context_length: full, max_sequences: SMALL_SEQUENCES, cache_tokens: 0 };
    }
    let at_most = if is_small { SMALL_SEQUENCES } else { usual.sequences.min(at_once(places)) };
    let sequences = wish.sequences().unwrap_or(at_most);
    let asked = u64::from(sequences);

    let wanted = whole_length.min(usual.longest).max(usual.each.saturating_mul(asked));
    let free = tokens(places, asked, 1).min(most).min(whole_length.saturating_mul(asked));
    let free = free.min(wanted.max(tokens(places, asked, usual.part)));
    let least = u64::from(if length.is_some() { full } else { full.min(LEAST_LENGTH) });
    let cells = fixed.unwrap_or(free.max(least)).max(size_of(wish.size.context_length));

    let context_length = length.unwrap_or_else(|| full.min(whole(cells)));
    let full_lengths = cells / whole_length.max(1);
    let has_walls = full_lengths >= usual.walls.min(asked);
    let max_sequences = match (wish.sequences(), has_walls) {
        (Some(sequences), _) => sequences,
        (None, true) => whole(asked.min(full_lengths)),
        (None, false) => {
            let sharing = cells / SHARE.min(whole_length.max(1));
            whole(asked.min(usual.sharers).min(sharing).max(1))
        }
    };
    let all = u64::from(context_length).saturating_mul(max_sequences.into());
    let cache_tokens = match fixed {
        // Of what the node names for every model, a small one takes no more than it can use.
        Some(cells) if wish.size.cache_tokens.is_none() => {
            cells.min(all).max(size_of(wish.size.context_length))
        }
        Some(cells) => cells,
        None if cells >= all => 0,
        None if cells > CELLS.max(u64::from(context_length)) => {
            (cells - cells % CELLS).max(context_length.into())
        }
        None => cells,
    };
    Shape { context_length, max_sequences, cache_tokens }
}

/// Tokens that a part of what is free holds, beside so many sequences: the device with least decides.
fn tokens(places: &[Place], sequences: u64, part: u64) -> u64 {
    let of = |place: &Place| {
        let left = place.room().saturating_sub(sequences.saturating_mul(place.per_sequence));
        (left / part).checked_div(place.per_token)
    };
    places.iter().filter_map(of).min().unwrap_or(u64::MAX)
}

/// Sequences that there is room for, whatever their length.
fn at_once(places: &[Place]) -> u32 {
    let of = |place: &Place| place.room().checked_div(place.per_sequence);
    whole(places.iter().filter_map(of).min().unwrap_or(u64::MAX)).max(1)
}

/// Do many sequences of full length take little?
fn is_small(length: u64, places: &[Place], usual: &Usual) -> bool {
    let of = |place: &Place| {
        let one = length.saturating_mul(place.per_token).saturating_add(place.per_sequence);
        one.saturating_mul(SMALL_SEQUENCES.into())
    };
    let fits = places.iter().all(|place| of(place) <= place.room());
    fits && places.iter().map(of).fold(0, u64::saturating_add) <= usual.small
}

fn without_figures(wish: Wish, length: Option<u32>, own: u32) -> Shape {
    let (sequences, fixed) = (wish.sequences(), wish.cells());
    let in_cache = fixed.map_or(u32::MAX, whole);
    let mut shape = Shape {
        context_length: length.unwrap_or(own.min(LENGTH).min(in_cache)),
        max_sequences: sequences.unwrap_or(SMALL_SEQUENCES),
        cache_tokens: 0,
    };
    let fits = |shape: Shape| fixed.is_some() || shape.cells() <= TOKENS_WITHOUT_FIGURES;
    while sequences.is_none() && !fits(shape) && shape.max_sequences > FEW_SEQUENCES {
        shape.max_sequences /= 2;
    }
    while length.is_none() && !fits(shape) && shape.context_length / 2 >= LEAST_LENGTH {
        shape.context_length /= 2;
    }
    while sequences.is_none() && !fits(shape) && shape.max_sequences > 1 {
        shape.max_sequences /= 2;
    }
    let most = shape.cells().max(size_of(wish.size.context_length));
    shape.cache_tokens = wish.size.cache_tokens.or(fixed.map(|usual| usual.min(most))).unwrap_or(0);
    shape
}

fn enough_of(wish: Wish, model_length: u32) -> u32 {
    let own = if model_length > 0 { model_length } else { LENGTH };
    let named = wish.length(model_length).or_else(|| Some(own.min(whole(wish.cells()?))));
    named.unwrap_or(own.min(ENOUGH))
}

fn size_of(length: Option<u32>) -> u64 {
    length.map_or(0, u64::from)
}

fn whole(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const K: u64 = 1024;
    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

    fn shape(context_length: u32, max_sequences: u32, cache_tokens: u64) -> Shape {
        Shape { context_length, max_sequences, cache_tokens }
    }

    fn host(free: u64, per_token: u64) -> [Place; 1] {
        [Place { is_host: true, free, per_token, per_sequence: 0 }]
    }

    fn asked(context_length: Option<u32>, max_sequences: Option<u32>, cache_tokens: Option<u64>) -> Wish {
        Wish { size: ContextSize { context_length, max_sequences, cache_tokens }, ..Wish::default() }
    }

    fn usually(context_length: u32, max_sequences: u32, cache_tokens: u64) -> Wish {
        let usual = ContextSize {
            context_length: Some(context_length),
            max_sequences: Some(max_sequences),
            cache_tokens: Some(cache_tokens),
        };
        Wish { usual, ..Wish::default() }
    }

    /// A model: GiB of weights and beside them, KiB of a token, its own length; and on each machine what its size
    /// comes to: length in 1024 tokens, sequences, GiB of its cache.
    struct Row {
        weights: f64,
        beside: f64,
        token: f64,
        length: u32,
        sizes: [Option<(f64, u32, f64)>; 5],
    }

    /// What machines leave for models, in GiB: GPUs of 8, 24, 80 and 141 GB, and the host of one with 24.
    const MACHINES: [(bool, f64); 5] =
        [(false, 7.9), (false, 23.6), (false, 78.05), (false, 137.6), (true, 18.6)];
    const MODELS: [Row; 8] = [
        // 0.5B, with a cache of 16 bits, and of 8.
        Row {
            weights: 0.37,
            beside: 1.0,
            token: 12.0,
            length: 32,
            sizes: [
                Some((32.0, 8, 3.0)),
                Some((32.0, 14, 5.2)),
                Some((32.0, 32, 12.0)),
                Some((32.0, 32, 12.0)),
                Some((32.0, 8, 3.0)),
            ],
        },
        Row {
            weights: 0.37,
            beside: 1.0,
            token: 6.37,
            length: 32,
            sizes: [
                Some((32.0, 8, 1.6)),
                Some((32.0, 27, 5.4)),
                Some((32.0, 32, 6.4)),
                Some((32.0, 32, 6.4)),
                Some((32.0, 8, 1.6)),
            ],
        },
        // 8B
        Row {
            weights: 4.58,
            beside: 0.9,
            token: 128.0,
            length: 128,
            sizes: [
                Some((19.0, 4, 2.5)),
                Some((128.0, 32, 18.0)),
                Some((128.0, 32, 32.0)),
                Some((128.0, 32, 33.0)),
                Some((32.0, 4, 4.0)),
            ],
        },
        Row {
            weights: 4.58,
            beside: 0.9,
            token: 67.97,
            length: 128,
            sizes: [
                Some((37.0, 9, 2.5)),
                Some((128.0, 32, 17.0)),
                Some((128.0, 32, 18.1)),
                Some((128.0, 32, 33.0)),
                Some((50.0, 4, 3.3)),
            ],
        },
        // 32B
        Row {
            weights: 18.5,
            beside: 1.0,
            token: 256.0,
            length: 40,
            sizes: [None, Some((16.0, 4, 4.1)), Some((40.0, 32, 58.4)), Some((40.0, 32, 64.0)), None],
        },
        Row {
            weights: 18.5,
            beside: 1.0,
            token: 135.94,
            length: 40,
            sizes: [None, Some((31.0, 7, 4.1)), Some((40.0, 32, 34.0)), Some((40.0, 32, 34.0)), None],
        },
        // 70B
        Row {
            weights: 39.6,
            beside: 1.1,
            token: 320.0,
            length: 128,
            sizes: [None, None, Some((119.0, 29, 37.3)), Some((128.0, 32, 80.0)), None],
        },
        Row {
            weights: 39.6,
            beside: 1.1,
            token: 169.92,
            length: 128,
            sizes: [None, None, Some((128.0, 32, 37.3)), Some((128.0, 32, 42.5)), None],
        },
    ];

    #[test]
    fn well_known_models_on_well_known_machines() {
        for Row { weights, beside, token, length, sizes } in MODELS {
            for ((is_host, leaves), expected) in MACHINES.into_iter().zip(sizes) {
                let left = ((leaves - weights - beside).max(0.0) * GIB) as u64;
                let place =
                    Place { is_host, free: left, per_token: (token * 1024.0) as u64, per_sequence: 0 };
                let model_length = length * K as u32;
                let least = Shape::least(Wish::default(), model_length, &[place]).unwrap();
                let chosen = Shape::choose(Wish::default(), model_length, &[place]).unwrap();
                let cache = chosen.cells() as f64 * token * 1024.0 / GIB;
                let words =
                    format!("{weights} GiB, {token} KiB a token, of {leaves}: {chosen:?}, {cache} GiB");
                let Some((context, sequences, gib)) = expected else {
                    assert!(least.cells() * place.per_token > left, "no room: {words}");
                    continue;
                };
                // Lengths and sizes are rounded.
                assert!((f64::from(chosen.context_length) / 1024.0 - context).abs() < 1.0, "{words}");
                assert_eq!(chosen.max_sequences, sequences, "{words}");
                assert!((cache - gib).abs() < 0.16, "{words}");
            }
        }
    }

    #[test]
    fn a_model_whose_cache_is_small_serves_64() {
        // 5 layers, 8 heads, 4 of them for keys and values, width 64, half precision.
        let chosen = Shape::choose(Wish::default(), 512, &host(2 << 30, 640)).unwrap();
        assert_eq!(chosen, shape(512, 64, 0));
        assert_eq!(Shape::enough(Wish::default(), 512, &host(2 << 30, 640)).unwrap(), chosen, "it stays so");
        let short = Shape::choose(asked(Some(128), None, None), 32_768, &host(20 << 30, 12 << 10)).unwrap();
        assert_eq!(short, shape(128, 64, 0));
        let one = Shape::choose(asked(None, Some(1), None), 512, &host(2 << 30, 640)).unwrap();
        assert_eq!(one, shape(512, 1, 0));
        // Who names the cache that it has anyway gets no fewer of them, and who names less as many as go into it.
        for (cells, sequences) in [(512 * 64, 64), (512 * 100, 64), (512 * 8, 8), (1000, 1)] {
            let named = Shape::choose(asked(None, None, Some(cells)), 512, &host(2 << 30, 640)).unwrap();
            assert_eq!(named, shape(512, sequences, cells));
        }
    }

    #[test]
    fn who_names_the_cache_alone_gets_as_many_sequences_as_the_rule_has_for_it() {
        let gpu = [Place { free: 60 << 30, per_token: 128 << 10, ..Place::default() }];
        let host = host(60 << 30, 128 << 10);
        for (places, cells, expected) in [
            // A part of the cache for each, where it holds 8 full lengths, on the host 4.
            (&gpu, 8 * 32_768, (32_768, 8)),
            (&host, 4 * 32_768, (32_768, 4)),
            // Else they share it: one for each 4096 tokens, on the host 4 at most.
            (&gpu, 2 * 32_768, (32_768, 16)),
            (&gpu, 8192, (8192, 2)),
            (&host, 2 * 32_768, (32_768, 4)),
            (&host, 8192, (8192, 2)),
            (&host, 2000, (2000, 1)),
        ] {
            let chosen = Shape::choose(asked(None, None, Some(cells)), 32_768, places).unwrap();
            assert_eq!((chosen.context_length, chosen.max_sequences), expected, "{cells}");
            assert_eq!(chosen.cache_tokens, cells);
        }
    }

    #[test]
    fn what_is_asked_for_is_kept_and_the_rest_follows() {
        let places = host(20 << 30, 128 << 10);
        let choose = |wish| Shape::choose(wish, 131_072, &places).unwrap();
        assert_eq!(choose(asked(Some(100_000), Some(4), None)), shape(100_000, 4, 100_000));
        assert_eq!(choose(asked(Some(16_384), Some(2), None)), shape(16_384, 2, 0));
        assert_eq!(choose(asked(Some(16_384), Some(4), None)), shape(16_384, 4, 40_960));
        assert_eq!(choose(asked(None, None, Some(100_000))), shape(100_000, 4, 100_000));
        assert_eq!(choose(asked(Some(8192), None, Some(100_000))), shape(8192, 8, 100_000));
        assert_eq!(choose(asked(None, Some(1), None)), shape(40_960, 1, 0));
        let full = host(0, 128 << 10);
        let wish = asked(Some(16_384), Some(2), None);
        assert_eq!(Shape::choose(wish, 131_072, &full).unwrap(), shape(16_384, 2, 16_384), "or refused");
    }

    #[test]
    fn what_the_node_names_for_every_model_is_kept_as_far_as_the_model_goes() {
        let wish = usually(8192, 4, 10_000);
        let places = host(1 << 20, 640);
        let plain = |model_length| Shape::choose(wish, model_length, &places).unwrap();
        assert_eq!(plain(512), shape(512, 4, 2048));
        assert_eq!(plain(32_768), shape(8192, 4, 10_000));
        assert_eq!(plain(0), shape(8192, 4, 10_000));
        let own = |context_length, cache_tokens| Wish {
            size: ContextSize { context_length: Some(context_length), max_sequences: None, cache_tokens },
            ..wish
        };
        let chosen = |wish: Wish| Shape::choose(wish, 32_768, &places).unwrap();
        assert_eq!(chosen(own(100, Some(5000))), shape(100, 4, 5000), "a load's own figures come first");
        assert_eq!(chosen(own(20_000, None)), shape(20_000, 4, 20_000));
    }

    #[test]
    fn what_a_model_cannot_be_is_refused_by_name() {
        for (wish, param, words) in [
            (asked(Some(513), None, None), "context_length", "513"),
            (asked(Some(0), None, None), "context_length", "0 tokens"),
            (asked(None, Some(0), None), "max_sequences", "at least one"),
            (asked(None, None, Some(0)), "cache_tokens", "at least one"),
            (asked(Some(64), None, Some(63)), "cache_tokens", "no room for a context of 64"),
        ] {
            let fault = Shape::choose(wish, 512, &[]).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some(param));
            assert!(fault.message.contains(words), "{fault}");
        }
    }

    #[test]
    fn without_figures_the_tokens_of_all_have_a_limit() {
        let choose = |wish, length| Shape::choose(wish, length, &[]).unwrap();
        assert_eq!(choose(Wish::default(), 131_072), shape(8192, 64, 0));
        assert_eq!(choose(Wish::default(), 0), shape(8192, 64, 0));
        assert_eq!(choose(Wish::default(), 512), shape(512, 64, 0));
        assert_eq!(choose(asked(Some(32_768), None, None), 131_072), shape(32_768, 16, 0));
        assert_eq!(choose(asked(Some(131_072), None, None), 131_072), shape(131_072, 4, 0));
        assert_eq!(choose(asked(None, Some(512), None), 131_072), shape(2048, 512, 0));
        assert_eq!(choose(asked(None, None, Some(100_000)), 131_072), shape(8192, 64, 100_000));
    }

    #[test]
    fn what_takes_memory_for_each_sequence_alone_has_as_many_as_there_is_room_for() {
        let place = |free| [Place { is_host: false, free, per_token: 0, per_sequence: 100 << 20 }];
        let choose = |free| Shape::choose(Wish::default(), 0, &place(free)).unwrap();
        assert_eq!(choose(1 << 30).max_sequences, 10);
        assert_eq!(choose(100 << 30).max_sequences, 32);
        assert_eq!(choose(0), shape(8192, 1, 0));
    }

    #[test]
    fn a_draft_model_has_as_many_and_no_longer_than_it_goes() {
        assert_eq!(shape(8192, 16, 0).within(131_072), shape(8192, 16, 0));
        assert_eq!(shape(8192, 16, 0).within(2048), shape(2048, 16, 0));
        assert_eq!(shape(8192, 16, 20_000).within(0), shape(8192, 16, 20_000));
        assert_eq!(shape(8192, 16, 40_000).within(2048), shape(2048, 16, 0));
        assert_eq!(shape(300, 1000, 0).for_fewer(), shape(300, 64, 0));
        assert_eq!(shape(300, 1000, 9000).for_fewer(), shape(300, 64, 9000));
        let use_ =
            |per_token| vec![MemoryUse { weights: 1, cache_per_token: per_token, ..MemoryUse::default() }];
        let figures = Figures { one: use_(10), draft: use_(2) };
        let [both] = &shape(100, 2, 0).of_figures(&figures)[..] else { panic!("one device") };
        assert_eq!((both.weights, both.cache), (2, 200 * 12));
        let one = [MemoryUse { cache: 4000, compute: 80, cache_per_token: 4, ..MemoryUse::default() }];
        let compute = |cells| shape(10, 1, cells).by_sums(&one)[0].compute;
        assert_eq!([compute(250), compute(1000), compute(5000)], [20, 80, 80]);
    }

    prop_compose! {
        fn size()(
            context_length in prop::option::of(1u32..200_000),
            max_sequences in prop::option::of(1u32..300),
            cache_tokens in prop::option::of(200_000u64..5_000_000),
        ) -> ContextSize {
            ContextSize { context_length, max_sequences, cache_tokens }
        }
    }

    proptest! {
        #[test]
        fn never_beyond_the_model_what_is_free_and_the_wish(
            (size, usual) in (size(), size()),
            model_length in prop_oneof![Just(0u32), 1u32..2_000_000],
            places in prop::collection::vec(
                (any::<bool>(), prop_oneof![0u64..1 << 38, Just(u64::MAX)], 0u64..1 << 20, 0u64..1 << 24),
                0..4,
            ),
        ) {
            let place = |(is_host, free, per_token, per_sequence)| Place { is_host, free, per_token, per_sequence };
            let places: Vec<Place> = places.into_iter().map(place).collect();
            let wish = Wish { size, usual };
            let Ok(chosen) = Shape::choose(wish, model_length, &places) else {
                prop_assert!(wish.check(model_length).is_err());
                return Ok(());
            };
            let Shape { context_length, max_sequences, cache_tokens } = chosen;
            prop_assert!(context_length >= 1 && max_sequences >= 1);
            prop_assert!(model_length == 0 || context_length <= model_length);
            prop_assert!(cache_tokens == 0 || cache_tokens >= context_length.into());
            prop_assert!(size.context_length.is_none_or(|asked| context_length == asked));
            prop_assert!(size.max_sequences.or(usual.max_sequences).is_none_or(|asked| max_sequences == asked));
            prop_assert!(size.cache_tokens.is_none_or(|asked| cache_tokens == asked));
            let least = Shape::least(wish, model_length, &places).unwrap();
            let enough = Shape::enough(wish, model_length, &places).unwrap();
            prop_assert!(enough.cells() <= chosen.cells() || enough.cells() <= least.cells());
            let takes = |place: &Place, shape: Shape| {
                shape.cells().saturating_mul(place.per_token)
                    .saturating_add(u64::from(shape.max_sequences).saturating_mul(place.per_sequence))
            };
            let has_figures = places.iter().any(|place| place.per_token > 0 || place.per_sequence > 0);
            if has_figures && chosen.cells() > least.cells() && wish.cells().is_none() {
                for place in &places {
                    let is_asked = wish.sequences().is_some() && place.per_token == 0;
                    prop_assert!(is_asked || takes(place, chosen) <= place.room(), "{chosen:?} {place:?}");
                }
            }
        }
    }
}
