//! What is written around llama.cpp's state of a sequence, so that bytes which are none are told from
//! those that are: llama.cpp believes what it reads. Pure.
//!
//! Four 64-bit words, little endian, come before the state: a mark, the fingerprint of the contexts
//! that it is good for, the number of tokens, and a checksum of the tokens and the state.

use twox_hash::XxHash3_64;

/// Bytes before llama.cpp's own.
pub(crate) const HEAD: usize = 32;

const MARK: u64 = u64::from_le_bytes(*b"LLAMASEQ");

/// One number for what a state depends on.
pub(crate) fn fingerprint<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    parts.fold(0, XxHash3_64::oneshot_with_seed)
}

fn checksum(tokens: u64, state: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(tokens, state)
}

/// Fills in the head of `data`, whose state is there.
pub(crate) fn seal(data: &mut [u8], fingerprint: u64, tokens: u32) {
    let tokens = u64::from(tokens);
    let (head, state) = data.split_at_mut(HEAD);
    for (word, value) in head.chunks_exact_mut(8).zip([MARK, fingerprint, tokens, checksum(tokens, state)]) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The number of tokens, and the state; or what is wrong with the bytes.
pub(crate) fn open(data: &[u8], fingerprint: u64) -> Result<(u32, &[u8]), &'static str> {
    let (head, state) = data.split_at_checked(HEAD).ok_or("too short for the state of a sequence")?;
    let mut words = head.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes);
    let mut word = || words.next().unwrap_or_default();
    if word() != MARK {
        return Err("not the state of a sequence");
    }
    if word() != fingerprint {
        return Err("the state of another model, or of a context with other parameters");
    }
    let tokens = word();
    if word() != checksum(tokens, state) {
        return Err("the state of a sequence, but damaged");
    }
    Ok((u32::try_from(tokens).map_err(|_| "more tokens than there can be")?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_noticed() {
        let mut data = vec![0; HEAD];
        data.extend_from_slice(b"what the cache holds");
        seal(&mut data, 7, 5);
        assert_eq!(open(&data, 7), Ok((5, &b"what the cache holds"[..])));
        assert!(open(&data, 8).is_err());
        for bit in 0..data.len() * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&data, 7).is_err(), "bit {bit}");
            data[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..data.len() {
            assert!(open(&data[..length], 7).is_err(), "{length} bytes");
        }
    }
}
