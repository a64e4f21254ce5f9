//! Sums of products of bytes by the instructions that x86 has for them.
//!
//! AVX-512 VNNI and AVX-VNNI multiply four u8 with four i8 and add the products to an i32, all in one
//! instruction, VPDPBUSD. AVX2 widens both to i16, of which VPMADDWD adds two products exactly.
//! `cargo bench -- matmul_int8` measures them.
//!
//! Loops count instead of iterating: closures and iterators are functions without these instruction
//! sets, into which intrinsics are not inlined.

mod amx;
mod avx2;
mod avx512;

use crate::dot::{Dot, Fours, INPUTS, Line, Work};
use amx::{Amx, Tiles};
use avx2::{Avx2, AvxVnni};
use avx512::Avx512Vnni;

/// Runs `work` with AMX.
pub(crate) fn at_amx<W: Work>(work: W) {
    // SAFETY: `at_level` calls this where the level has all features of AVX-512, and tiles.
    unsafe {
        let _ready = Tiles::ready();
        run_avx512::<Amx, W>(work);
    }
}

/// Runs `work` with AVX-512 VNNI.
pub(crate) fn at_avx512<W: Work>(work: W) {
    // SAFETY: `at_level` calls this where the level has all features of AVX-512.
    unsafe { run_avx512::<Avx512Vnni, W>(work) }
}

#[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
#[target_feature(enable = "avx512vbmi,avx512vnni")]
fn run_avx512<D: Dot, W: Work>(work: W) {
    work.run::<D>();
}

/// Runs `work` with AVX-VNNI.
pub(crate) fn at_avxvnni<W: Work>(work: W) {
    #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt,avxvnni")]
    fn run<W: Work>(work: W) {
        work.run::<AvxVnni>();
    }
    // SAFETY: `at_level` calls this where the level has all these features.
    unsafe { run(work) }
}

/// Runs `work` with AVX2.
pub(crate) fn at_avx2<W: Work>(work: W) {
    #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt")]
    fn run<W: Work>(work: W) {
        work.run::<Avx2>();
    }
    // SAFETY: `at_level` calls this where the level has all these features.
    unsafe { run(work) }
}

/// Four inputs of a row as one lane.
///
/// # Safety
/// `step` must be below the length of `row`.
#[inline(always)]
unsafe fn four(row: &[[u8; INPUTS]], step: usize) -> i32 {
    // SAFETY: the caller vouches for the index.
    i32::from_le_bytes(unsafe { *row.get_unchecked(step) })
}

/// The length of all rows, checked to be the number of lines of all blocks.
#[inline(always)]
fn steps_of(rows: Fours<'_>, blocks: &[&[Line]]) -> usize {
    assert!(blocks.iter().all(|block| block.len() == rows.steps));
    rows.steps
}
