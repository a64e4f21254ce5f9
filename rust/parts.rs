//! One pass over memory: each part of an array is worked on while it is in the cache, right after the
//! parameters of its groups were chosen there, or with parameters known beforehand.

use crate::error::Fault;
use crate::grid::{Block, Grid};
use crate::numeric::Element;
use crate::qparams::{Chosen, Given};
use crate::range::{group_range, range_groups};
use crate::rows::{Output, TILE, for_each_block, take, take_mut};
use crate::x86::{Streamable, prefetch, worth_streaming};

/// Elements of a tile that is decoded. Half of the others: their streaming stores drain from the store
/// queue of the core while the next tile is computed, if they fit into it.
pub(crate) const DECODED: usize = TILE / 2;

/// Elements between two looks ahead; enough for a few vectors at once.
const STEP: usize = 64;

/// The same for what is left of a group, or for a small one: a vector of AVX-512, a line of float32.
const SMALL_STEP: usize = 16;

/// Elements that a single pass over the input looks ahead: 16 KB of float32.
const AHEAD: usize = 1 << 12;

/// Groups whose ranges are found before their parameters are chosen, all at once.
const BATCH: usize = 128;

/// Chooses the parameters of groups with the ranges `lo`, `hi`; its faults count from the first.
pub(crate) trait Rule: Fn(&[f32], &[f32], Chosen) -> Result<(), Fault> + Sync {}
impl<R: Fn(&[f32], &[f32], Chosen) -> Result<(), Fault> + Sync> Rule for R {}

/// Where the parameters of groups come from.
pub(crate) enum Source<'a, R> {
    /// Known beforehand.
    Given(Given<'a>),
    /// From the range of each group.
    Choose(R, Chosen<'a>),
}

/// A part of the input, with what is needed to encode it.
pub(crate) struct Part<'a, E: Element> {
    pub(crate) x: &'a [E::Repr],
    /// Whether `x` has been found finite, in a pass that prefetched half of what comes next.
    pub(crate) known_finite: bool,
    /// What `block` is a block of.
    pub(crate) grid: Grid,
    /// Flat index in the whole array of the first group of `block`.
    pub(crate) first_group: usize,
    pub(crate) block: &'a Block,
    pub(crate) given: Given<'a>,
}

/// Runs `work` on each part of `x` with the parameters of its groups, and the place in `out` where
/// its `out_len` results go. Parameters are chosen just before, while the part is in the cache.
pub(crate) fn for_each_part<E: Element, T: Streamable + Send>(
    x: &[E::Repr],
    grid: Grid,
    source: Source<impl Rule>,
    out: &mut [T],
    out_len: impl Fn(&Block) -> usize + Sync,
    work: impl Fn(Part<E>, &mut Output<T>) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    assert_eq!(x.len(), grid.len());
    let source = choose_if_large::<E, _>(x, grid, source)?;
    let stream = worth_streaming(size_of_val(out));
    let (mut x_rest, mut out_rest) = (x, out);
    let mut cut = |block: &Block| {
        let out = take_mut(&mut out_rest, out_len(block));
        (take(&mut x_rest, block.len()), Output::new(out, stream))
    };
    match source {
        Source::Given(given) => for_each_block(grid, cut, |block, (x, mut out)| {
            let (given, first_group, block) = (given.of(&block), block.groups.start, &block);
            let part = Part { x, known_finite: false, grid, first_group, block, given };
            let result = work(part, &mut out);
            out.finish();
            result
        }),
        Source::Choose(rule, mut chosen) => {
            let cut = |block: &Block| (cut(block), chosen.take(block.groups.len()));
            for_each_block(grid, cut, |block, ((x, mut out), chosen)| {
                let first = block.groups.start;
                let work = |part: Part<E>| {
                    let first_group = first + part.first_group;
                    work(Part { first_group, ..part }, &mut out)
                };
                choose_and_work::<E>(x, block.grid(grid), &rule, chosen, work)
                    .map_err(|fault| fault.after(first))?;
                out.finish();
                Ok(())
            })
        }
    }
}

/// Where groups are larger than blocks, so that nothing can be done in one pass over memory, makes
/// parameters that are given of those to be chosen.
fn choose_if_large<'a, E: Element, R: Rule>(
    x: &[E::Repr],
    grid: Grid,
    source: Source<'a, R>,
) -> Result<Source<'a, R>, Fault> {
    match source {
        Source::Choose(rule, mut chosen) if !grid.keeps_groups_whole() => {
            let groups = chosen.scale.len();
            let (mut lo, mut hi) = (vec![0.0; groups], vec![0.0; groups]);
            group_range::<E>(x, grid, &mut lo, &mut hi)?;
            rule(&lo, &hi, chosen.part(0, groups))?;
            Ok(Source::Given(chosen.into_given()))
        }
        other => Ok(other),
    }
}

/// Runs `work` on each part of `x`, a block, right after choosing the parameters of its groups.
fn choose_and_work<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    rule: &impl Rule,
    mut chosen: Chosen,
    mut work: impl FnMut(Part<E>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (mut rest, mut result) = (x, Ok(()));
    for block in grid.parts() {
        let x = take(&mut rest, block.len());
        let mut chosen = chosen.take(block.groups.len());
        let found = choose_part::<E>(x, block.grid(grid), rule, &mut chosen)
            .map_err(|fault| fault.after(block.groups.start));
        if found == Err(Fault::NonFinite) {
            return found;
        }
        // Values that are not finite may come yet, and are the graver fault.
        result = result.and(found);
        let (given, first_group, block) = (chosen.given(), block.groups.start, &block);
        work(Part { x, known_finite: true, grid, first_group, block, given })?;
    }
    result
}

/// Chooses the parameters of all groups of `x`, a batch at a time.
fn choose_part<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    rule: &impl Rule,
    chosen: &mut Chosen,
) -> Result<(), Fault> {
    let (mut lo, mut hi) = ([0.0; BATCH], [0.0; BATCH]);
    let mut result = Ok(());
    for first in (0..chosen.scale.len()).step_by(BATCH) {
        let n = BATCH.min(chosen.scale.len() - first);
        let (lo, hi) = (&mut lo[..n], &mut hi[..n]);
        range_groups::<E>(x, grid, first, lo, hi)?;
        let found = rule(lo, hi, chosen.part(first, n));
        result = result.and(found.map_err(|fault| fault.after(first)));
    }
    result
}

/// What a pass does on its way, beside its work.
pub(crate) enum Pass<E: Element> {
    /// After a pass that found everything finite and prefetched the first half of the next part:
    /// prefetches the second half.
    Second(*const E::Repr),
    /// Prefetches what is so far ahead that it comes in time, and keeps an OR of the
    /// [`Element::nonfinite_bit`]s.
    Only(*const E::Repr, E::Bits),
}

impl<E: Element> Pass<E> {
    #[inline(always)]
    pub(crate) fn over(part: &[E::Repr], known_finite: bool) -> Self {
        if known_finite {
            Self::Second(part.as_ptr().wrapping_add(part.len() + part.len() / 2))
        } else {
            Self::Only(part.as_ptr().wrapping_add(AHEAD), E::Bits::default())
        }
    }

    /// Applies `f` to the next elements of the part.
    #[inline(always)]
    pub(crate) fn map<B>(&mut self, from: &[E::Repr], to: &mut [B], f: impl Fn(f32) -> B + Copy) {
        self.for_each_step(from, to, |from, to| map_widened::<E, _>(from, to, f));
    }

    /// As [`Pass::map`], where `f` takes up to [`STEP`] elements at once.
    #[inline(always)]
    pub(crate) fn map_steps<B>(
        &mut self,
        from: &[E::Repr],
        to: &mut [B],
        f: impl Fn(&[f32], &mut [B]),
    ) {
        self.for_each_step(from, to, |from, to| {
            f(E::widened(from, &mut [0.0; STEP][..from.len()]), to);
        });
    }

    /// Runs `work` on a few of the next elements of the part at a time.
    #[inline(always)]
    fn for_each_step<B>(
        &mut self,
        from: &[E::Repr],
        to: &mut [B],
        work: impl Fn(&[E::Repr], &mut [B]),
    ) {
        match self {
            Self::Second(next) => {
                for_each_step::<_, _, { STEP / 2 }, { SMALL_STEP / 2 }>(from, to, *next, work);
                *next = next.wrapping_add(from.len() / 2);
            }
            Self::Only(next, nonfinite) => {
                for_each_step::<_, _, STEP, SMALL_STEP>(from, to, *next, |from, to| {
                    // A sum of its own: adding to the one of all would wait for the step before.
                    let zero = E::Bits::default();
                    let step = from.iter().fold(zero, |sum, &x| sum | E::nonfinite_bit(x));
                    *nonfinite = *nonfinite | step;
                    work(from, to);
                });
                *next = next.wrapping_add(from.len());
            }
        }
    }

    #[inline(always)]
    pub(crate) fn finish(self) -> Result<(), Fault> {
        match self {
            Self::Only(_, nonfinite) if nonfinite >= E::SIGN => Err(Fault::NonFinite),
            Self::Second(_) | Self::Only(..) => Ok(()),
        }
    }
}

/// Runs `work` on [`STEP`] elements at a time, then on [`SMALL_STEP`], then on what is left; for each
/// step prefetches `N`, for each small one `M` elements from `next` on.
#[inline(always)]
fn for_each_step<A: Streamable, B, const N: usize, const M: usize>(
    from: &[A],
    to: &mut [B],
    next: *const A,
    mut work: impl FnMut(&[A], &mut [B]),
) {
    let (steps, from) = from.as_chunks::<STEP>();
    let (to_steps, to) = to.as_chunks_mut::<STEP>();
    for (index, (from, to)) in steps.iter().zip(to_steps).enumerate() {
        prefetch::<_, N>(next.wrapping_add(index * N));
        work(from, to);
    }
    let next = next.wrapping_add(steps.len() * N);
    let (small_steps, from) = from.as_chunks::<SMALL_STEP>();
    let (to_steps, to) = to.as_chunks_mut::<SMALL_STEP>();
    for (index, (from, to)) in small_steps.iter().zip(to_steps).enumerate() {
        prefetch::<_, M>(next.wrapping_add(index * M));
        work(from, to);
    }
    work(from, to);
}

/// Applies `f` to each element.
#[inline(always)]
fn map<A: Copy, B>(from: &[A], to: &mut [B], mut f: impl FnMut(A) -> B) {
    for (from, to) in from.iter().zip(to) {
        *to = f(*from);
    }
}

/// Applies `f` to each element as a float32; at most [`STEP`] of them.
#[inline(always)]
fn map_widened<E: Element, B>(from: &[E::Repr], to: &mut [B], f: impl Fn(f32) -> B) {
    if E::IN_BULK {
        let mut wide = [0.0; STEP];
        let wide = &mut wide[..from.len()];
        E::widen_all(from, wide);
        map(wide, to, f);
    } else {
        map(from, to, |x| f(E::widen(x)));
    }
}

/// Applies `f` to each element, and narrows what it gives.
#[inline(always)]
pub(crate) fn map_narrowed<A: Streamable, E: Element>(
    from: &[A],
    to: &mut [E::Repr],
    f: impl Fn(A) -> f32 + Copy,
) {
    // Nothing to prefetch: what is read is less than what is written.
    for_each_step::<_, _, 0, 0>(from, to, from.as_ptr(), |from, to| {
        if E::IN_BULK {
            let mut wide = [0.0; STEP];
            let wide = &mut wide[..from.len()];
            map(from, wide, f);
            E::narrow_all(wide, to);
        } else {
            map(from, to, |a| E::narrow(f(a)));
        }
    });
}
