//! Sizes in bytes, as people write and read them. K, M, G and T are powers of 1024, with or without
//! an `i`, as GPU vendors and `nvidia-smi` count.

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It cannot be read.
    #[error("{0:?} is not a size: write bytes, or a number with K, M, G or T, as in 8G or 1.5GiB")]
    Unreadable(String),
    /// It exceeds 64 bits.
    #[error("{0:?} is too large a size")]
    TooLarge(String),
}

/// Reads `8G`, `8GB`, `8 GiB`, `1.5t`, `512M` or plain bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let unreadable = || SizeError::Unreadable(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed.find(|it: char| it.is_ascii_alphabetic()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(unreadable()),
    };
    let (whole, fraction) = match number.trim_end().split_once('.') {
        Some((_, "")) => return Err(unreadable()),
        Some(parts) => parts,
        None => (number.trim_end(), ""),
    };
    let digits = |it: &str| it.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(unreadable());
    }
    let too_large = || SizeError::TooLarge(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = u128::from(whole) << shift;
    // Digits beyond the twelfth are less than a byte.
    let fraction = &fraction[..fraction.len().min(12)];
    if !fraction.is_empty() {
        let numerator: u128 = fraction.parse().map_err(|_| unreadable())?;
        bytes += (numerator << shift) / 10u128.pow(fraction.len() as u32);
    }
    u64::try_from(bytes).map_err(|_| too_large())
}

/// GiB as the product writes them: `16GB`, with one decimal where it is not whole; `6MB` below a tenth.
pub fn format_gib(bytes: u64) -> String {
    format_rounded(bytes, |unit| unit / 2)
}

/// Rounded up, for what is needed: it never looks smaller than what there is.
pub(super) fn format_up(bytes: u64) -> String {
    format_rounded(bytes, |unit| unit - 1)
}

/// Rounded down, for what there is.
pub(super) fn format_down(bytes: u64) -> String {
    format_rounded(bytes, |_| 0)
}

fn format_rounded(bytes: u64, rounding: impl Fn(u64) -> u64) -> String {
    if bytes == 0 {
        return "0GB".to_owned();
    }
    if bytes < GIB / 10 {
        return format!("{}MB", bytes.saturating_add(rounding(MIB)) / MIB);
    }
    // Tenths of a GiB, in 128 bits: ten times the bytes may not fit 64.
    let tenths = (u128::from(bytes) * 10 + u128::from(rounding(GIB))) / u128::from(GIB);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}GB"),
        (whole, tenth) => format!("{whole}.{tenth}GB"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("8G", 8 * GIB),
            ("8gb", 8 * GIB),
            (" 8 GiB ", 8 * GIB),
            ("1.5G", GIB + GIB / 2),
            ("0.1K", 102),
            ("512m", 512 * MIB),
            ("2T", 2048 * GIB),
            ("1024", 1024),
            ("7b", 7),
            ("0", 0),
            ("1.000000000000000000000G", GIB),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_said_so() {
        for text in ["", "G", "-1G", "8X", "8.G", ".5G", "1e9", "8G8", "1,5G", "NaN", "inf", "８G", "1.2.3"]
        {
            assert_eq!(parse_size(text), Err(SizeError::Unreadable(text.to_owned())), "{text}");
        }
        for text in ["99999999999999999999", "16777216T"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes_are_written() {
        assert_eq!(format_gib(16 * GIB), "16GB");
        assert_eq!(format_gib(GIB + GIB / 2), "1.5GB");
        assert_eq!(format_gib(6 * MIB), "6MB");
        assert_eq!(format_gib(0), "0GB");
        assert_eq!(format_up(8 * GIB + 1), "8.1GB");
        assert_eq!(format_down(8 * GIB - 1), "7.9GB");
        assert_eq!(format_up(u64::MAX), "17179869184GB");
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn more_never_looks_like_less(a in any::<u64>(), b in any::<u64>()) {
            let (less, more) = (a.min(b), a.max(b));
            prop_assume!(more > less);
            prop_assert!(format_up(more) != format_down(less) || more - less < GIB);
            prop_assert_ne!(format_up(less + 1), format_down(less));
        }
    }
}
