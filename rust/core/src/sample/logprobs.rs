//! Exact log-probabilities: the sum of exponentials over the whole row, in one vectorised pass.

/// The sum of `exp((logit - max) * scale)` over `blocks`, of which `max` is the largest logit.
/// Relative error below 1e-6.
pub(super) fn sum_exp<'a>(blocks: impl Iterator<Item = &'a [f32]>, max: f32, scale: f32) -> f64 {
    const LANES: usize = 16;
    let mut totals = [0f64; LANES];
    for block in blocks {
        let mut sums = [0f32; LANES];
        let (lanes, rest) = block.as_chunks::<LANES>();
        for chunk in lanes {
            for lane in 0..LANES {
                sums[lane] += exp((chunk[lane] - max) * scale);
            }
        }
        for (lane, &logit) in rest.iter().enumerate() {
            sums[lane] += exp((logit - max) * scale);
        }
        for lane in 0..LANES {
            totals[lane] += f64::from(sums[lane]);
        }
    }
    totals.into_iter().sum()
}

/// `exp` of a number that is not positive. Below -87 it is that of -87 (1.6e-38), which no sum over a
/// vocabulary can see.
///
/// The usual way: `exp(x) = 2^n * exp(f)`, a polynomial for the second. Adding 1.5 * 2^23 rounds to
/// the nearest integer and leaves it in the low bits, where a cast to `i32` would keep the compiler
/// from using vectors.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let f = x - n * LN2_HIGH - n * LN2_LOW;
    // Cephes expf.
    let mut p = 1.987_569_1e-4;
    p = p * f + 1.398_2e-3;
    p = p * f + 8.333_452e-3;
    p = p * f + 4.166_579_6e-2;
    p = p * f + 1.666_666_5e-1;
    p = p * f + 0.5;
    p = p * f * f + f + 1.0;
    f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000)) * p
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_exact_to_single_precision(x in -87.0f32..=0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{} {}", exp(x), exact);
        }

        #[test]
        fn sum_equals_the_naive_sum(
            row in prop::collection::vec(-90.0f32..30.0, 1..300), scale in 0.05f32..20.0,
        ) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let naive: f64 = row.iter().map(|&it| ((f64::from(it) - f64::from(max)) * f64::from(scale)).exp()).sum();
            let ours = sum_exp(row.chunks(64), max, scale);
            prop_assert!((ours / naive - 1.0).abs() < 1e-4 * f64::from(scale).max(1.0), "{ours} {naive}");
        }
    }

    #[test]
    fn nothing_comes_of_what_is_forbidden() {
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!((exp(0.0) - 1.0).abs() < 1e-7);
    }
}
