//! Counter-based random numbers: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3" (SC 2011).
//!
//! A number depends on the seed and the position alone, so nothing has to be kept per request.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The number in `[0, 1)` that draws the token at `position` of a sequence. It has 24 random bits,
/// all that an `f32` in that range can hold evenly.
pub fn uniform(seed: u64, position: u64) -> f32 {
    let block = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (block[0] >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The id of the call that begins at `position`, the `index`th of its answer: 24 letters and digits. No draw
/// of a token depends on it.
pub fn call_id(seed: u64, position: u64, index: u32) -> String {
    // Several may begin with one token.
    name(seed, position << 16 | u64::from(index & 0xffff))
}

fn name(seed: u64, position: u64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let key = [seed as u32, (seed >> 32) as u32];
    let blocks =
        (1..=6).flat_map(|stream| philox([position as u32, (position >> 32) as u32, stream, 0], key));
    blocks.map(|it| char::from(DIGITS[(it % 62) as usize])).collect()
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let right = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' library, Random123.
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn names_are_those_of_their_seed_and_position() {
        let names: std::collections::HashSet<_> = (0..500).map(|it| name(it / 100, it % 100)).collect();
        assert_eq!(names.len(), 500);
        assert!(names.iter().all(|it| it.len() == 24 && it.bytes().all(|it| it.is_ascii_alphanumeric())));
        assert_eq!(name(3, 9), name(3, 9));
    }

    #[test]
    fn uniform_is_in_range_and_even() {
        let mut counts = [0u32; 16];
        for position in 0..16_000 {
            let number = uniform(7, position);
            assert!((0.0..1.0).contains(&number));
            counts[(number * 16.0) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }
}
