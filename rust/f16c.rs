//! float16 to float32 and back by the instructions that AVX2 machines have for it.
//!
//! The plain bodies of `float_formats` take a dozen instructions for each vector; these take one, or
//! five with the care that NaN needs. They give the same bits, but for the payloads of NaN that are
//! widened, which no kernel lets through. `cargo bench -- f16` measures kernels that use them.

use crate::numeric::{Element, Float16};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, reaches};

/// Numbers that one instruction converts.
const LANES: usize = 8;

/// Widens all of `x` into `wide`, which is as long.
#[inline(always)]
pub(crate) fn widen(x: &[u16], wide: &mut [f32]) {
    assert_eq!(x.len(), wide.len());
    let done = 0;
    #[cfg(target_arch = "x86_64")]
    let done = if reaches(Level::Avx2) {
        let eights = x.as_chunks().0;
        // SAFETY: every level from AVX2 on has F16C.
        unsafe { widen_eights(eights, wide.as_chunks_mut().0) };
        eights.len() * LANES
    } else {
        done
    };
    for (x, wide) in x[done..].iter().zip(&mut wide[done..]) {
        *wide = <Float16 as Element>::widen(*x);
    }
}

/// Rounds all of `x` into `narrow`, which is as long; NaN become the canonical ones.
#[inline(always)]
pub(crate) fn narrow(x: &[f32], narrow: &mut [u16]) {
    assert_eq!(x.len(), narrow.len());
    let done = 0;
    #[cfg(target_arch = "x86_64")]
    let done = if reaches(Level::Avx2) {
        let eights = x.as_chunks().0;
        // SAFETY: as above.
        unsafe { narrow_eights(eights, narrow.as_chunks_mut().0) };
        eights.len() * LANES
    } else {
        done
    };
    for (x, narrow) in x[done..].iter().zip(&mut narrow[done..]) {
        *narrow = Float16::narrow(*x);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx,f16c")]
fn widen_eights(x: &[[u16; LANES]], wide: &mut [[f32; LANES]]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    for (x, wide) in x.iter().zip(wide) {
        // SAFETY: eight float16 are read, and eight float32 written, wherever they lie.
        unsafe {
            let eight = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            _mm256_storeu_ps(wide.as_mut_ptr(), eight);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx,f16c")]
fn narrow_eights(x: &[[f32; LANES]], narrow: &mut [[u16; LANES]]) {
    use std::arch::x86_64::{
        _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_and_ps, _mm256_blendv_ps,
        _mm256_cmp_ps, _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_or_ps, _mm256_set1_ps,
    };
    let (sign, nan) = (_mm256_set1_ps(-0.0), _mm256_set1_ps(f32::from_bits(0x7fc0_0000)));
    for (x, narrow) in x.iter().zip(narrow) {
        // SAFETY: eight float32 are read, and eight float16 written, wherever they lie.
        unsafe {
            let eight = _mm256_loadu_ps(x.as_ptr());
            let canonical = _mm256_or_ps(_mm256_and_ps(eight, sign), nan);
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(eight, eight);
            let eight = _mm256_blendv_ps(eight, canonical, is_nan);
            let rounded = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(eight);
            _mm_storeu_si128(narrow.as_mut_ptr().cast(), rounded);
        }
    }
}
