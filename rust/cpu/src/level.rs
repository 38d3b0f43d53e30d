//! One piece of plain code, compiled once per instruction set, chosen at run time.
//!
//! The compiler turns loops over arrays into vector instructions as wide as the functions around them
//! may use. It never fuses or reorders floating-point operations by itself, so all variants give the
//! same bits. On aarch64 NEON is part of what every machine has, and the portable variant uses it.
#![expect(clippy::inline_always, reason = "what a kernel calls has to be compiled with it")]

/// Work that is compiled for each [`Level`].
pub trait Kernel {
    /// What it gives.
    type Output;

    /// Does it. Must be `#[inline(always)]`, as must be all it calls: what is not inlined is compiled
    /// for the portable level. `level` is a constant in each variant.
    fn run(self, level: Level) -> Self::Output;
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Kind);

/// Only [`Level::all`] makes the variants that need proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// What every machine of this architecture has.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// All that this machine has, the widest last.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "there is but one on other architectures")]
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self(Kind::Avx2));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                all.push(Self(Kind::Avx512));
            }
        }
        all
    }

    /// The widest that this machine has.
    pub fn best() -> Self {
        Self::all().last().copied().unwrap_or(Self::PORTABLE)
    }

    /// Is `f32::mul_add` one instruction here? Otherwise it is a slow call. It rounds once where
    /// multiplying and adding round twice, so what uses it may differ in the last bit between levels.
    #[inline(always)]
    pub fn fuses(self) -> bool {
        self.0 != Kind::Portable || cfg!(target_arch = "aarch64")
    }

    /// Runs the variant for this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Portable => kernel.run(self),
            // SAFETY: a function compiled for an instruction set may run where it exists. `all` alone
            // makes this value, and only after having asked the processor.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { avx512(kernel) },
        }
    }
}

impl Default for Level {
    fn default() -> Self {
        Self::best()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Level(Kind::Avx2))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Level(Kind::Avx512))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Products<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Products<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run(self, _: Level) -> Vec<u32> {
            self.0.iter().zip(self.1).map(|(a, b)| (a * b + 0.1).to_bits()).collect()
        }
    }

    #[test]
    fn all_levels_give_the_same_bits() {
        let a: Vec<f32> = (0..100u16).map(|it| f32::from(it) * 0.37).collect();
        let b: Vec<f32> = (0..100u16).map(|it| f32::from(it) * -1.13).collect();
        let all = Level::all();
        assert_eq!(all[0], Level::PORTABLE);
        assert_eq!(all.last(), Some(&Level::best()));
        for level in all {
            assert_eq!(level.run(Products(&a, &b)), Level::PORTABLE.run(Products(&a, &b)), "{level:?}");
        }
    }
}
