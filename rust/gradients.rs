//! Gradients straight through codes: of what is clipped, and of the steps that are learned.

use crate::grid::{Block, Grid};
use crate::numeric::{self, Codes, Element, code_offsets};
use crate::qparams::Given;
use crate::rows::{Output, TILE, for_each_block, for_each_job, take, take_mut};
use crate::simd::multiversion;
use crate::sums::{CHUNK, LANES, fold, lane_sums};
use crate::x86::worth_streaming;

/// `dy` where the code of `x` is one of `codes` before it is clamped, and 0 elsewhere.
pub fn clip_gradient_affine<E: Element>(
    dy: &[E::Repr],
    x: &[E::Repr],
    grid: Grid,
    codes: Codes,
    given: Given,
    out: &mut [E::Repr],
) {
    assert_eq!((dy.len(), x.len(), out.len()), (grid.len(), grid.len(), grid.len()));
    let stream = worth_streaming(size_of_val(out));
    let (mut dy, mut x, mut out) = (dy, x, out);
    let result = for_each_block(
        grid,
        |block| {
            let n = block.len();
            (take(&mut dy, n), take(&mut x, n), take_mut(&mut out, n))
        },
        |block, (dy, x, out)| {
            let mut out = Output::new(out, stream);
            clip_block::<E>(dy, x, grid, &block, codes, given.of(&block), &mut out);
            out.finish();
            Ok(())
        },
    );
    debug_assert!(result.is_ok());
}

/// The gradients of `x`, of one scale and one zero point for each `n` values, from `dy`, that of
/// `scale * (round(clip(v)) - zero_point)` with `v = x / scale + zero_point`.
///
/// That of x is `dy` where v lies between the least and the greatest code, and else 0; that of the
/// scale the sum of `(round(v) - v) dy` there, and of `(end - zero_point) dy` beyond an end; that of
/// the zero point the sum of `-scale dy` beyond the ends.
pub fn step_gradients_affine<E: Element>(
    dy: &[E::Repr],
    x: &[E::Repr],
    n: usize,
    codes: Codes,
    given: Given,
    out: StepGradients<E>,
) {
    let StepGradients { x: dx, scale: of_scale, zero_point: of_zero } = out;
    let groups = given.scale.len();
    let lengths = [dy.len(), x.len(), dx.len(), n * of_scale.len(), n * of_zero.len()];
    assert!(lengths.iter().all(|len| *len == n * groups));
    if x.is_empty() {
        of_scale.fill(0.0);
        of_zero.fill(0.0);
        return;
    }
    // A long group is summed in chunks, each of which is a job; small ones are a job together.
    let (length, pieces) = (n.min(CHUNK), n.div_ceil(CHUNK));
    let mut sums = vec![[0.0; 2]; groups * pieces];
    let jobs = Jobs { dy, x, dx, sums: &mut sums, n, length, done: 0 };
    let jobs: Vec<_> = jobs.collect();
    for_each_job(jobs.into_iter(), |job| {
        let of_group = |piece: usize| {
            let (scale, zero_point) = given.group(piece / pieces);
            let (low, high) = (codes.qmin as f32, codes.qmax as f32);
            Step { scale, zero_point: zero_point as f32, low, high }
        };
        step_part::<E>(job, of_group);
        Ok(())
    })
    .expect("no faults");
    for (group, sums) in sums.chunks(pieces).enumerate() {
        of_scale[group] = lane_sums(sums, |sum| sum[0]);
        of_zero[group] = -given.scale[group] * lane_sums(sums, |sum| sum[1]);
    }
}

/// Where [`step_gradients_affine`] writes.
#[derive(Debug)]
pub struct StepGradients<'a, E: Element> {
    /// As `x`.
    pub x: &'a mut [E::Repr],
    /// One for each group.
    pub scale: &'a mut [f32],
    /// One for each group.
    pub zero_point: &'a mut [f32],
}

/// Cuts arrays of groups of `n` into jobs of pieces of `length`.
struct Jobs<'a, E: Element> {
    dy: &'a [E::Repr],
    x: &'a [E::Repr],
    dx: &'a mut [E::Repr],
    sums: &'a mut [[f32; 2]],
    n: usize,
    length: usize,
    /// Pieces that are cut off.
    done: usize,
}

/// Some pieces, the first of which is `first` of all.
struct Job<'a, E: Element> {
    first: usize,
    length: usize,
    dy: &'a [E::Repr],
    x: &'a [E::Repr],
    dx: &'a mut [E::Repr],
    sums: &'a mut [[f32; 2]],
}

impl<'a, E: Element> Iterator for Jobs<'a, E> {
    type Item = Job<'a, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.x.is_empty() {
            return None;
        }
        let pieces = self.n.div_ceil(CHUNK);
        let (count, len) = if pieces == 1 {
            let count = (CHUNK / self.length).min(self.sums.len());
            (count, count * self.length)
        } else {
            // The last chunk of a group may be shorter.
            let within = self.done % pieces;
            (1, self.length.min(self.n - within * self.length))
        };
        let first = self.done;
        self.done += count;
        Some(Job {
            first,
            length: self.length,
            dy: take(&mut self.dy, len),
            x: take(&mut self.x, len),
            dx: take_mut(&mut self.dx, len),
            sums: take_mut(&mut self.sums, count),
        })
    }
}

multiversion! {
    fn clip_block<E: Element>(
        dy: &[E::Repr], x: &[E::Repr], grid: Grid, block: &Block, codes: Codes, given: Given,
        out: &mut Output<E::Repr>,
    ) {
        let cols = block.cols.len();
        for (row, (dy, x)) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)).enumerate() {
            let mut groups = block.row(grid);
            for (dy, x) in dy.chunks(TILE).zip(x.chunks(TILE)) {
                let out = out.next(x.len());
                for segment in groups.segments(x.len()) {
                    let (scale, zero_point) = given.group(block.index_of(row, segment.group));
                    let (low, high) = code_offsets(zero_point, codes);
                    let span = segment.elements;
                    let (x, out) = (&x[span.clone()], &mut out[span.clone()]);
                    clip_segment::<E>(&dy[span], x, scale, low, high, out);
                }
            }
        }
    }
}

/// The values of a tile that share a scale.
#[inline(always)]
fn clip_segment<E: Element>(
    dy: &[E::Repr],
    x: &[E::Repr],
    scale: f32,
    low: f32,
    high: f32,
    out: &mut [E::Repr],
) {
    let zero = E::from_bits(E::Bits::default());
    for ((out, &dy), &x) in out.iter_mut().zip(dy).zip(x) {
        // One step beyond the ends is enough to tell, and is small enough to be rounded.
        let code = numeric::round(numeric::clamp(E::widen(x) / scale, low - 1.0, high + 1.0));
        *out = if low <= code && code <= high { dy } else { zero };
    }
}

/// What the values of a group share.
#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    zero_point: f32,
    low: f32,
    high: f32,
}

multiversion! {
    fn step_part<E: Element>(job: Job<'_, E>, of_group: impl Fn(usize) -> Step) {
        let Job { first, length, dy, x, dx, sums } = job;
        let parts = dy.chunks(length).zip(x.chunks(length)).zip(dx.chunks_mut(length));
        for (index, ((dy, x), dx)) in parts.enumerate() {
            sums[index] = step_piece::<E>(dy, x, dx, of_group(first + index));
        }
    }
}

/// Writes the gradient of `x`; sums of what is that of the scale, and of `dy` beyond the ends.
#[inline(always)]
fn step_piece<E: Element>(
    dy: &[E::Repr],
    x: &[E::Repr],
    dx: &mut [E::Repr],
    step: Step,
) -> [f32; 2] {
    let mut lanes = [[0.0; LANES]; 2];
    let (whole, rest) = dx.as_chunks_mut::<LANES>();
    let (dys, dy_rest) = dy.as_chunks::<LANES>();
    let (xs, x_rest) = x.as_chunks::<LANES>();
    for i in 0..whole.len() {
        let (dy, x) = (dys[i], xs[i]);
        for lane in 0..LANES {
            let terms = terms::<E>(dy[lane], x[lane], step);
            whole[i][lane] = terms.0;
            lanes[0][lane] += terms.1;
            lanes[1][lane] += terms.2;
        }
    }
    for lane in 0..rest.len() {
        let terms = terms::<E>(dy_rest[lane], x_rest[lane], step);
        rest[lane] = terms.0;
        lanes[0][lane] += terms.1;
        lanes[1][lane] += terms.2;
    }
    lanes.map(fold)
}

/// The gradient of x, its part of that of the scale, and what is beyond the ends.
#[inline(always)]
fn terms<E: Element>(dy: E::Repr, x: E::Repr, step: Step) -> (E::Repr, f32, f32) {
    let v = E::widen(x) / step.scale + step.zero_point;
    let code = numeric::round(numeric::clamp(v, step.low, step.high));
    let within = step.low < v && v < step.high;
    let wide = E::widen(dy);
    let zero = E::from_bits(E::Bits::default());
    let slope = code - if within { v } else { step.zero_point };
    (if within { dy } else { zero }, slope * wide, if within { 0.0 } else { wide })
}
