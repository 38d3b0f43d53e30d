//! Sizes in bytes as the product writes them: `16GB`, with one decimal where it is not whole; `6MB` below a
//! tenth. K, M, G and T are powers of 1024, as GPU vendors and `nvidia-smi` count.

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Rounded up, for what is needed: it never looks smaller than what there is.
pub(crate) fn format_up(bytes: u64) -> String {
    format_rounded(bytes, |unit| unit - 1)
}

/// Rounded down, for what there is.
pub(crate) fn format_down(bytes: u64) -> String {
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
    fn sizes_are_written() {
        for format in [format_up, format_down] {
            assert_eq!(format(16 * GIB), "16GB");
            assert_eq!(format(GIB + GIB / 2), "1.5GB");
            assert_eq!(format(6 * MIB), "6MB");
            assert_eq!(format(0), "0GB");
        }
        assert_eq!(format_up(8 * GIB + 1), "8.1GB");
        assert_eq!(format_down(8 * GIB - 1), "7.9GB");
        assert_eq!(format_up(u64::MAX), "17179869184GB");
    }

    proptest! {
        #[test]
        fn more_never_looks_like_less(a in any::<u64>(), b in any::<u64>()) {
            let (less, more) = (a.min(b), a.max(b));
            prop_assume!(more > less);
            prop_assert!(format_up(more) != format_down(less) || more - less < GIB);
            prop_assert_ne!(format_up(less + 1), format_down(less));
        }
    }
}
