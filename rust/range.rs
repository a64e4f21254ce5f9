//! The smallest and largest value of each group, and whether all of them are finite.

use std::sync::{Mutex, PoisonError};

use crate::error::Fault;
use crate::grid::{Block, Grid};
use crate::numeric::Element;
use crate::rows::{for_each_block, take, take_mut};
use crate::simd::multiversion;
use crate::x86::prefetch;

/// Independent lanes of the search: two AVX-512 registers of float32.
const LANES: usize = 32;

/// The range of each group of `x`, widened to hold 0: `lo = min(0, min x)`, `hi = max(0, max x)`,
/// neither of them -0.0.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity; `lo` and `hi` are then of no use.
pub fn group_range<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    lo: &mut [f32],
    hi: &mut [f32],
) -> Result<(), Fault> {
    assert_eq!((x.len(), lo.len(), hi.len()), (grid.len(), grid.groups(), grid.groups()));
    let mut x = x;
    if grid.keeps_groups_whole() {
        let (mut lo, mut hi) = (lo, hi);
        let cut = |block: &Block| {
            let groups = block.groups.len();
            (take(&mut x, block.len()), take_mut(&mut lo, groups), take_mut(&mut hi, groups))
        };
        return for_each_block(grid, cut, |block, (x, lo, hi)| {
            range_groups::<E>(x, block.grid(grid), 0, lo, hi)
        });
    }
    lo.fill(0.0);
    hi.fill(0.0);
    let total = Mutex::new((lo, hi));
    for_each_block(
        grid,
        |block| take(&mut x, block.len()),
        |block, x| {
            for segment in block.row(grid).segments(x.len()) {
                let (mut low, mut high) = ([0.0], [0.0]);
                let part = &x[segment.elements];
                range_groups::<E>(part, Grid::of_row(part.len()), 0, &mut low, &mut high)?;
                // A maximum does not depend on the order its parts come in.
                let group = block.group_of(0, segment.group);
                let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                total.0[group] = total.0[group].min(low[0]);
                total.1[group] = total.1[group].max(high[0]);
            }
            Ok(())
        },
    )
}

multiversion! {
    /// The ranges of the groups `first ..` of `x`, as many as `lo` and `hi` hold. Prefetches half as
    /// much from behind `x`, for callers that go on there.
    pub(crate) fn range_groups<E: Element>(
        x: &[E::Repr], grid: Grid, first: usize, lo: &mut [f32], hi: &mut [f32],
    ) -> Result<(), Fault> {
        // The groups of the small formats (NVFP4, MX).
        match grid.group_size {
            16 if grid.cols.is_multiple_of(16) => return range_equal::<E, 16>(x, first, lo, hi),
            32 if grid.cols.is_multiple_of(32) => return range_equal::<E, 32>(x, first, lo, hi),
            _ => {}
        }
        let per_row = grid.groups_per_row();
        let (mut row, mut group) = (first / per_row, first % per_row);
        let mut finite = true;
        for (lo, hi) in lo.iter_mut().zip(hi) {
            let start = group * grid.group_size;
            let end = grid.cols.min(start.saturating_add(grid.group_size));
            let at = row * grid.cols + start;
            let next = x.as_ptr().wrapping_add(x.len() + at / 2);
            (*lo, *hi) = range::<E>(&x[at..at + end - start], next);
            finite &= lo.is_finite() & hi.is_finite();
            group += 1;
            if group == per_row {
                (row, group) = (row + 1, 0);
            }
        }
        if finite { Ok(()) } else { Err(Fault::NonFinite) }
    }
}

/// As [`range_groups`], where all groups have `N` elements: no more than a load, two maxima and a few
/// steps of folding for each.
#[inline(always)]
fn range_equal<E: Element, const N: usize>(
    x: &[E::Repr],
    first: usize,
    lo: &mut [f32],
    hi: &mut [f32],
) -> Result<(), Fault> {
    let groups = &x.as_chunks::<N>().0[first..];
    let next = x.as_ptr().wrapping_add(x.len() + first * N / 2);
    let mut finite = true;
    for (index, ((group, lo), hi)) in groups.iter().zip(lo).zip(hi).enumerate() {
        prefetch::<_, 1>(next.wrapping_add(index * N / 2));
        let (mut lowest, mut highest) = ([E::SIGN; N], [E::SIGN; N]);
        include::<E, N>(group, &mut lowest, &mut highest);
        (*lo, *hi) = ends::<E, N>(lowest, highest);
        finite &= lo.is_finite() & hi.is_finite();
    }
    if finite { Ok(()) } else { Err(Fault::NonFinite) }
}

/// The range of one group; not finite if any of its values is not.
///
/// Floats of one sign are ordered as their bits are, and NaN and infinity lie above all others. So
/// the maximum of the bits as unsigned integers is the most negative number (or the largest, where
/// there is none), and with the sign bit flipped, the most positive one: two integer operations
/// find both ends and everything that is not finite.
///
/// Prefetches half as much as it reads from `next` on.
#[inline(always)]
fn range<E: Element>(x: &[E::Repr], next: *const E::Repr) -> (f32, f32) {
    // Where nothing is negative, or nothing is positive, zero is the end of the range.
    let mut lowest = [E::SIGN; LANES];
    let mut highest = [E::SIGN; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for (index, chunk) in chunks.iter().enumerate() {
        prefetch::<_, { LANES / 2 }>(next.wrapping_add(index * LANES / 2));
        include::<E, LANES>(chunk, &mut lowest, &mut highest);
    }
    if !rest.is_empty() {
        // Zeros are no end of any range. Indexing lanes by what is left would keep them in memory.
        let mut chunk = [E::Repr::default(); LANES];
        chunk[..rest.len()].copy_from_slice(rest);
        include::<E, LANES>(&chunk, &mut lowest, &mut highest);
    }
    ends::<E, LANES>(lowest, highest)
}

/// The ends of the range that two maxima tell.
#[inline(always)]
fn ends<E: Element, const N: usize>(lowest: [E::Bits; N], highest: [E::Bits; N]) -> (f32, f32) {
    let (lowest, highest) = (fold_max(lowest), fold_max(highest) ^ E::SIGN);
    // Adding zero turns -0.0 into +0.0.
    (E::widen(E::from_bits(lowest)) + 0.0, E::widen(E::from_bits(highest)) + 0.0)
}

/// Takes a chunk into the two maxima of [`range`].
#[inline(always)]
fn include<E: Element, const N: usize>(
    chunk: &[E::Repr; N],
    lowest: &mut [E::Bits; N],
    highest: &mut [E::Bits; N],
) {
    for lane in 0..N {
        let bits = E::to_bits(chunk[lane]);
        lowest[lane] = lowest[lane].max(bits);
        highest[lane] = highest[lane].max(bits ^ E::SIGN);
    }
}

/// The largest lane.
#[inline(always)]
fn fold_max<B: Copy + Ord, const N: usize>(lanes: [B; N]) -> B {
    lanes.into_iter().fold(lanes[0], B::max)
}
