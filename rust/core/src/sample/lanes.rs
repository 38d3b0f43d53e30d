//! The arithmetic over rows, written in lanes so that the compiler makes vector instructions of it.
//!
//! Everything has one fixed order of operations and no fused ones, so it gives the same bits at every
//! [`Level`](llm_node_cpu::Level): the token that is drawn does not depend on the machine. All of it
//! is `#[inline(always)]`, as kernels demand.
#![expect(clippy::inline_always, reason = "what a kernel calls has to be compiled with it")]

use super::blockmax::BLOCK;

/// `f32` values side by side: what the widest registers hold. Narrower ones hold it in parts.
pub(super) const LANES: usize = 16;

/// The larger of two; the second if one is NaN. This, and not `f32::max`, is one machine instruction.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest of many, negative infinity of none. NaN is passed over.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(chunk[lane], lanes[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(value, *lane);
    }
    across(lanes)
}

/// The largest of a block; `nan` keeps a mark if any of it is NaN.
#[inline(always)]
pub(super) fn block_max(block: &[f32; BLOCK], nan: &mut [u32; LANES]) -> f32 {
    const { assert!(BLOCK == 4 * LANES) };
    let ([a, b, c, d], _) = block.as_chunks::<LANES>() else { return f32::NEG_INFINITY };
    let mut lanes = [0.0; LANES];
    for lane in 0..LANES {
        lanes[lane] = larger(larger(a[lane], b[lane]), larger(c[lane], d[lane]));
        // One comparison asks two numbers.
        nan[lane] |= u32::from(a[lane].is_nan() | b[lane].is_nan());
        nan[lane] |= u32::from(c[lane].is_nan() | d[lane].is_nan());
    }
    across(lanes)
}

#[inline(always)]
fn across(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = larger(lanes[lane + width], lanes[lane]);
        }
    }
    lanes[0]
}

/// Is one of these `wanted`? Asks all lanes at once.
#[inline(always)]
fn has(chunk: &[f32; LANES], wanted: impl Fn(f32) -> bool) -> bool {
    chunk.iter().fold(false, |any, &it| any | wanted(it))
}

/// Where the first is that is `wanted`.
#[inline(always)]
pub(super) fn position(values: &[f32], wanted: impl Fn(f32) -> bool + Copy) -> Option<usize> {
    let (chunks, _) = values.as_chunks::<LANES>();
    let begin = chunks.iter().take_while(|chunk| !has(chunk, wanted)).count() * LANES;
    Some(begin + values[begin..].iter().position(|&it| wanted(it))?)
}

/// Calls `found` for each value of `block` that is `wanted`, with its index, in order.
#[inline(always)]
pub(super) fn each(block: &[f32], wanted: impl Fn(f32) -> bool + Copy, mut found: impl FnMut(usize, f32)) {
    let (chunks, rest) = block.as_chunks::<LANES>();
    for (index, chunk) in chunks.iter().enumerate() {
        // Most have none.
        if has(chunk, wanted) {
            for (lane, &value) in chunk.iter().enumerate().filter(|it| wanted(*it.1)) {
                found(index * LANES + lane, value);
            }
        }
    }
    for (lane, &value) in rest.iter().enumerate().filter(|it| wanted(*it.1)) {
        found(chunks.len() * LANES + lane, value);
    }
}

/// How multiplications and additions are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// Each by itself: the same bits on every machine.
    Fixed,
    /// Fused where the machine can do that at once, which takes two thirds of the time. The last bit may
    /// differ from machine to machine.
    Fast,
}

/// The sum of `2^((logit - max) * factor)` over `blocks`, of which `max` is the largest logit.
/// Relative error below 1e-6.
#[inline(always)]
pub(super) fn sum_exp2<'a>(
    blocks: impl Iterator<Item = &'a [f32]>,
    max: f32,
    factor: f32,
    fused: bool,
) -> f64 {
    /// Blocks whose lanes are added up in single precision.
    const RUN: usize = 4;
    let mut totals = [0f64; LANES];
    let mut sums = [0f32; LANES];
    for (index, block) in blocks.enumerate() {
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += exp2((chunk[lane] - max) * factor, fused);
            }
        }
        for (sum, &logit) in sums.iter_mut().zip(rest) {
            *sum += exp2((logit - max) * factor, fused);
        }
        if index % RUN == RUN - 1 {
            for lane in 0..LANES {
                totals[lane] += f64::from(sums[lane]);
            }
            sums = [0.0; LANES];
        }
    }
    for lane in 0..LANES {
        totals[lane] += f64::from(sums[lane]);
    }
    totals.iter().sum()
}

/// `2^x` for an `x` that is not positive. Below -126 it is that of -126 (1.2e-38), which no sum over a
/// vocabulary can see. Relative error below 3e-7. `fused` is to be a constant.
///
/// The usual way: `2^x = 2^n * 2^f` with `f` in [-0.5, 0.5], a polynomial for the second. Adding
/// 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits, where a cast to `i32`
/// would keep the compiler from using vectors; adding these bits to the exponent multiplies by `2^n`.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "one coefficient is near ln 2, and not it")]
pub(super) fn exp2(x: f32, fused: bool) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -126.0 { x } else { -126.0 };
    let rounded = x + ROUND;
    let f = x - (rounded - ROUND);
    // The minimax polynomial for the relative error, which is 7.5e-8 before rounding.
    let step = |p: f32, c: f32| if fused { p.mul_add(f, c) } else { p * f + c };
    let mut p = step(1.327_647_2e-3, 9.675_541e-3);
    p = step(p, 5.550_713_3e-2);
    p = step(p, 0.240_221_2);
    p = step(p, 0.693_147);
    p = step(p, 1.0);
    f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp2_is_exact_to_single_precision(x in -126.0f32..=0.0) {
            prop_assert!((f64::from(exp2(x, false)) / f64::from(x).exp2() - 1.0).abs() < 3e-7, "{x} {}", exp2(x, false));
        }

        #[test]
        fn sum_equals_the_naive_sum(
            row in prop::collection::vec(-90.0f32..30.0, 1..3000), factor in 0.05f32..20.0,
        ) {
            let max = max(&row);
            let naive: f64 = row.iter().map(|&it| ((f64::from(it) - f64::from(max)) * f64::from(factor)).exp2()).sum();
            let ours = sum_exp2(row.chunks(BLOCK), max, factor, false);
            prop_assert!((ours / naive - 1.0).abs() < 1e-6, "{ours} {naive}");
        }
    }

    #[test]
    fn nothing_comes_of_what_is_forbidden() {
        assert!(exp2(f32::NEG_INFINITY, false) < 2e-38);
        assert_eq!(exp2(0.0, false).to_bits(), 1f32.to_bits());
    }
}
