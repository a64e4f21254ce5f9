//! The scale search: for each group, the scale with the least squared error among those that least
//! squares leads to from a few starts.
//!
//! All sums have the order of rule 6. A group of up to a chunk is searched by one thread while it is in
//! the cache; the chunks of larger groups are shared among the threads, for all candidates at once.

use crate::error::Fault;
use crate::grid::{Block, Grid};
#[cfg(target_arch = "x86_64")]
use crate::lookup::PermutedSearch;
use crate::lookup::{BinarySearch, Integers, ReloadableSearch, Search};
use crate::numeric::{Element, larger, reciprocal};
use crate::qparams::ScaleDtype;
use crate::range::group_range;
use crate::rows::{for_each_block, take, take_mut};
use crate::simd::{multiversion, with_default_float_state};
use crate::sums::{CHUNK, LANES, fold, lane_sums};

/// What scales are searched for.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The levels, ascending.
    pub levels: &'a [f32],
    /// Their thresholds, one less.
    pub thresholds: &'a [f32],
    /// The starts, as fractions of the scale that makes the largest magnitude the largest level.
    pub factors: &'a [f32],
    /// The dtype that scales are rounded to.
    pub scale_dtype: ScaleDtype,
}

/// The sums of a group that depend on the levels L nearest to x / s.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    /// sum(w x L)
    xl: f32,
    /// sum(w L L)
    ll: f32,
}

/// Replaces scales, one for each group, by those with less squared error, where there are; and the
/// error of each.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn choose_scale_lsq<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    weights: Option<&[f32]>,
    problem: Problem,
    scale: &mut [f32],
    error: &mut [f64],
) -> Result<(), Fault> {
    assert!(weights.is_none_or(|weights| weights.len() == x.len()) && scale.len() == error.len());
    with_default_float_state(|| search_with::<E>(x, grid, weights, problem, (scale, error)))
}

/// Of each group: the scale, which may be replaced, and its error.
type Found<'a> = (&'a mut [f32], &'a mut [f64]);

/// The search with the fastest way there is to find levels.
fn search_with<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    weights: Option<&[f32]>,
    problem: Problem,
    found: Found<'_>,
) -> Result<(), Fault> {
    let (mut lo, mut hi) = (vec![0.0; found.0.len()], vec![0.0; found.0.len()]);
    group_range::<E>(x, grid, &mut lo, &mut hi)?;
    let absmax: Vec<f32> = lo.iter().zip(&hi).map(|(&lo, &hi)| larger(-lo, hi)).collect();
    let Problem { levels, thresholds, .. } = problem;
    if let Some(search) = Integers::new(levels, thresholds) {
        return search_all::<E, _>(x, grid, weights, problem, &search, &absmax, found);
    }
    let entries: Vec<u32> = levels.iter().map(|level| level.to_bits()).collect();
    #[cfg(target_arch = "x86_64")]
    if let Some(mut search) = PermutedSearch::new(&entries) {
        search.load(thresholds);
        return search_all::<E, _>(x, grid, weights, problem, &search, &absmax, found);
    }
    let mut search = BinarySearch::new(&entries);
    search.load(thresholds);
    search_all::<E, _>(x, grid, weights, problem, &search, &absmax, found)
}

/// A group, as far as the search looks at it.
trait Group {
    /// The moments with each of `scales`.
    fn moments(&self, scales: &[f32], moments: &mut [Moments]);
    /// sum(w (x - s L)^2)
    fn error(&self, scale: f32) -> f64;
}

/// A group in a few chunks of sixteen elements each; what is missing in the last one has weight 0.
struct SmallGroup<'a, S> {
    x: &'a [[f32; LANES]],
    /// None where all are 1, and nothing is missing.
    weights: Option<&'a [[f32; LANES]]>,
    search: &'a S,
}

/// A group of more than a chunk of rule 6.
struct LargeGroup<'a, E: Element, S> {
    x: &'a [E::Repr],
    weights: Option<&'a [f32]>,
    search: &'a S,
}

/// Groups, each in one block or in pieces.
fn search_all<E: Element, S: Search>(
    x: &[E::Repr],
    grid: Grid,
    weights: Option<&[f32]>,
    problem: Problem,
    search: &S,
    absmax: &[f32],
    (scale, error): Found<'_>,
) -> Result<(), Fault> {
    if !grid.keeps_groups_whole() {
        let mut candidates = Candidates::new(problem);
        for (index, (scale, error)) in scale.iter_mut().zip(error).enumerate() {
            let range = grid.elements(index);
            let weights = weights.map(|weights| &weights[range.clone()]);
            let group = LargeGroup::<E, S> { x: &x[range], weights, search };
            (*scale, *error) = candidates.best(&group, absmax[index], *scale);
        }
        return Ok(());
    }
    let (mut x, mut weights, mut scale, mut error) = (x, weights, scale, error);
    let cut = |block: &Block| {
        let weights = weights.as_mut().map(|weights| take(weights, block.len()));
        let groups = block.groups.len();
        let found = (take_mut(&mut scale, groups), take_mut(&mut error, groups));
        (take(&mut x, block.len()), weights, found)
    };
    for_each_block(grid, cut, |block, (x, weights, (scale, error))| {
        let grid = block.grid(grid);
        let (mut candidates, mut room) = (Candidates::new(problem), Room::default());
        let absmax = &absmax[block.groups];
        for (index, (scale, error)) in scale.iter_mut().zip(error).enumerate() {
            let range = grid.elements(index);
            let weights = weights.map(|weights| &weights[range.clone()]);
            let group = room.group::<E, S>(&x[range], weights, search);
            (*scale, *error) = candidates.best(&group, absmax[index], *scale);
        }
        Ok(())
    })
}

/// The scales that are tried for one group after another.
struct Candidates<'a> {
    problem: Problem<'a>,
    /// The largest magnitude of a level.
    reach: f32,
    scales: Vec<f32>,
    moments: Vec<Moments>,
}

impl<'a> Candidates<'a> {
    fn new(problem: Problem<'a>) -> Self {
        let n = problem.factors.len();
        let reach = problem.levels.iter().fold(0.0, |max, level| larger(max, level.abs()));
        Self { problem, reach, scales: vec![0.0; n], moments: vec![Moments::default(); n] }
    }

    /// The best scale for a group of which `absmax` is the largest magnitude, and its error;
    /// `given` unless it has more.
    fn best(&mut self, group: &impl Group, absmax: f32, given: f32) -> (f32, f64) {
        let base = absmax / self.reach;
        for (scale, factor) in self.scales.iter_mut().zip(self.problem.factors) {
            *scale = base * factor;
        }
        for _ in 0..2 {
            group.moments(&self.scales, &mut self.moments);
            for (scale, Moments { xl, ll }) in self.scales.iter_mut().zip(&self.moments) {
                *scale = if *ll > 0.0 { xl / ll } else { 0.0 };
            }
        }
        let (mut best, mut most) = (None, 0.0);
        for (&scale, &Moments { xl, ll }) in self.scales.iter().zip(&self.moments) {
            let scale = self.problem.scale_dtype.round(scale);
            // Over zeros.
            let gain = scale * (2.0 * xl - scale * ll);
            if gain > most && (scale * self.reach).is_finite() {
                (best, most) = (Some(scale), gain);
            }
        }
        let before = (given, group.error(given));
        let after = best.map(|best| (best, group.error(best)));
        after.filter(|after| after.1 < before.1).unwrap_or(before)
    }
}

impl<S: Search> Group for SmallGroup<'_, S> {
    fn moments(&self, scales: &[f32], moments: &mut [Moments]) {
        moments_of(self.x, self.weights, self.search, scales, moments);
    }

    fn error(&self, scale: f32) -> f64 {
        error_of(self.x, self.weights, self.search, scale)
    }
}

impl<E: Element, S: Search> Group for LargeGroup<'_, E, S> {
    fn moments(&self, scales: &[f32], moments: &mut [Moments]) {
        let n = scales.len();
        if n == 0 {
            return;
        }
        let chunks = self.chunk_sums(n, |chunk, sums| chunk.moments(scales, sums));
        for (index, moments) in moments.iter_mut().enumerate() {
            let chunks: Vec<Moments> = chunks.iter().skip(index).step_by(n).copied().collect();
            moments.xl = lane_sums(&chunks, |chunk| chunk.xl);
            moments.ll = lane_sums(&chunks, |chunk| chunk.ll);
        }
    }

    fn error(&self, scale: f32) -> f64 {
        lane_sums(&self.chunk_sums(1, |chunk, sums| sums[0] = chunk.error(scale)), |sum| sum)
    }
}

impl<E: Element, S: Search> LargeGroup<'_, E, S> {
    /// What `sum` makes of each chunk, `n` results, on all threads.
    fn chunk_sums<T: Clone + Default + Send>(
        &self,
        n: usize,
        sum: impl Fn(SmallGroup<S>, &mut [T]) + Sync,
    ) -> Vec<T> {
        let grid = Grid { rows: 1, cols: self.x.len(), group_size: CHUNK };
        let mut sums = vec![T::default(); grid.groups() * n];
        let (mut x, mut weights, mut rest) = (self.x, self.weights, &mut *sums);
        let cut = |block: &Block| {
            let weights = weights.as_mut().map(|weights| take(weights, block.len()));
            (take(&mut x, block.len()), weights, take_mut(&mut rest, block.groups.len() * n))
        };
        let result = for_each_block(grid, cut, |block, (x, weights, sums)| {
            let (grid, mut room) = (block.grid(grid), Room::default());
            for (index, sums) in sums.chunks_exact_mut(n).enumerate() {
                let range = grid.elements(index);
                let weights = weights.map(|weights| &weights[range.clone()]);
                sum(room.group::<E, S>(&x[range], weights, self.search), sums);
            }
            Ok(())
        });
        debug_assert!(result.is_ok());
        sums
    }
}

/// Room for a group as float32, in sixteens.
#[derive(Default)]
struct Room {
    x: Vec<[f32; LANES]>,
    weights: Vec<[f32; LANES]>,
}

impl Room {
    fn group<'a, E: Element, S>(
        &'a mut self,
        x: &[E::Repr],
        weights: Option<&[f32]>,
        search: &'a S,
    ) -> SmallGroup<'a, S> {
        let (n, sixteens) = (x.len(), x.len().div_ceil(LANES));
        self.x.clear();
        self.x.resize(sixteens, [0.0; LANES]);
        E::widen_all(x, &mut self.x.as_flattened_mut()[..n]);
        let weighted = weights.is_some() || n % LANES != 0;
        if weighted {
            self.weights.clear();
            self.weights.resize(sixteens, [0.0; LANES]);
            let place = &mut self.weights.as_flattened_mut()[..n];
            match weights {
                Some(weights) => place.copy_from_slice(weights),
                None => place.fill(1.0),
            }
        }
        SmallGroup { x: &self.x, weights: weighted.then_some(&self.weights), search }
    }
}

/// Sixteens whose levels are found before they are summed: small beside any first-level cache.
const TILE: usize = 64;

/// Weights where there are none.
const ONES: [f32; LANES] = [1.0; LANES];

/// Scales whose sums are folded at once.
const BATCH: usize = 16;

multiversion! {
    fn moments_of<S: Search>(
        x: &[[f32; LANES]], weights: Option<&[[f32; LANES]]>, search: &S, scales: &[f32],
        moments: &mut [Moments],
    ) {
        let mut levels = [[0.0; LANES]; TILE];
        // Lanes are folded by batches: right behind its sums, the compiler would pair the two.
        let mut lanes = [[[0.0; LANES]; 2]; BATCH];
        for (scales, moments) in scales.chunks(BATCH).zip(moments.chunks_mut(BATCH)) {
            for (&scale, [xl_lanes, ll_lanes]) in scales.iter().zip(&mut lanes) {
                let inverse = reciprocal(scale);
                let (mut xl, mut ll) = ([0.0; LANES], [0.0; LANES]);
                for (tile, x) in x.chunks(TILE).enumerate() {
                    let levels = &mut levels[..x.len()];
                    search.find(x.as_flattened(), inverse, levels.as_flattened_mut());
                    for (index, (x, level)) in x.iter().zip(levels).enumerate() {
                        let w = weights.map_or(&ONES, |weights| &weights[tile * TILE + index]);
                        for lane in 0..LANES {
                            let weighted = w[lane] * level[lane];
                            xl[lane] += weighted * x[lane];
                            ll[lane] += weighted * level[lane];
                        }
                    }
                }
                (*xl_lanes, *ll_lanes) = (xl, ll);
            }
            for (moments, &[xl, ll]) in moments.iter_mut().zip(&lanes) {
                *moments = Moments { xl: fold(xl), ll: fold(ll) };
            }
        }
    }
}

multiversion! {
    fn error_of<S: Search>(
        x: &[[f32; LANES]], weights: Option<&[[f32; LANES]]>, search: &S, scale: f32,
    ) -> f64 {
        let (inverse, mut levels) = (reciprocal(scale), [[0.0; LANES]; TILE]);
        let mut sums = [0.0; LANES];
        for (tile, x) in x.chunks(TILE).enumerate() {
            let levels = &mut levels[..x.len()];
            search.find(x.as_flattened(), inverse, levels.as_flattened_mut());
            for (index, (x, level)) in x.iter().zip(levels).enumerate() {
                let w = weights.map_or(&ONES, |weights| &weights[tile * TILE + index]);
                for lane in 0..LANES {
                    let rest = f64::from(x[lane]) - f64::from(level[lane] * scale);
                    sums[lane] += rest * f64::from(w[lane]) * rest;
                }
            }
        }
        fold(sums)
    }
}
