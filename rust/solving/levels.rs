//! The level nearest to a number, for outputs side by side.

use super::{LANES, Lanes};

/// What codes of a weight (n, k) stand for; a code counts from the lowest level.
pub trait Nearest: Sync {
    /// The same for some outputs.
    type ForLanes: NearestOfLanes;

    /// For `count` outputs from `first` on.
    fn for_lanes(&self, first: usize, count: usize) -> Self::ForLanes;
}

/// What codes of [`LANES`] outputs stand for.
pub trait NearestOfLanes {
    /// The codes of the levels of a group that are nearest to `targets`, which become the levels.
    fn nearest(&self, group: usize, targets: &mut [f64; LANES], codes: &mut [u8; LANES]);
}

/// Integers times a scale: the lowest of each group, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Integers<'a> {
    /// (n, groups).
    pub scale: &'a [f32],
    /// (n, groups).
    pub lowest: &'a [i32],
    /// Levels.
    pub count: usize,
    /// Of each output.
    pub groups: usize,
}

/// Numbers, ascending, times a scale: one table, or one for each output.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// (n, groups).
    pub scale: &'a [f32],
    /// (1 or n, width).
    pub levels: &'a [f32],
    /// Levels.
    pub width: usize,
    /// Of each output.
    pub groups: usize,
}

/// Numbers (n, groups) of some outputs, group by group; `fill` for outputs that there are not.
fn by_group<T: Copy + Into<f64>>(
    values: &[T],
    groups: usize,
    (first, count): (usize, usize),
    fill: f64,
) -> Vec<Lanes> {
    let mut lanes = vec![[fill; LANES]; groups];
    for lane in 0..count {
        for (group, lanes) in lanes.iter_mut().enumerate() {
            lanes[lane] = values[(first + lane) * groups + group].into();
        }
    }
    lanes
}

/// [`Integers`] of some outputs.
pub struct IntegerLanes {
    scale: Vec<Lanes>,
    lowest: Vec<Lanes>,
    reach: f64,
}

impl Nearest for Integers<'_> {
    type ForLanes = IntegerLanes;

    fn for_lanes(&self, first: usize, count: usize) -> IntegerLanes {
        let part = (first, count);
        IntegerLanes {
            scale: by_group(self.scale, self.groups, part, 1.0),
            lowest: by_group(self.lowest, self.groups, part, 0.0),
            reach: (self.count - 1) as f64,
        }
    }
}

impl NearestOfLanes for IntegerLanes {
    #[inline(always)]
    fn nearest(&self, group: usize, targets: &mut [f64; LANES], codes: &mut [u8; LANES]) {
        let (scale, lowest) = (&self.scale[group], &self.lowest[group]);
        for lane in 0..LANES {
            let (low, high) = (lowest[lane], lowest[lane] + self.reach);
            let x = quotient(targets[lane], scale[lane]);
            let x = if x < low { low } else { x };
            let value = (if x > high { high } else { x }).round_ties_even();
            codes[lane] = (value - low) as u8;
            targets[lane] = f64::from(value as f32 * scale[lane] as f32);
        }
    }
}

/// [`Table`] of some outputs.
pub struct TableLanes {
    scale: Vec<Lanes>,
    levels: Vec<Lanes>,
    /// Between a level and the next.
    middles: Vec<Lanes>,
}

impl Nearest for Table<'_> {
    type ForLanes = TableLanes;

    fn for_lanes(&self, first: usize, count: usize) -> TableLanes {
        let mut levels = vec![[0.0; LANES]; self.width];
        for lane in 0..count {
            let own = self.levels.len() != self.width;
            let table = if own { (first + lane) * self.width } else { 0 };
            for (code, levels) in levels.iter_mut().enumerate() {
                levels[lane] = f64::from(self.levels[table + code]);
            }
        }
        let mut middles = vec![[0.0; LANES]; self.width - 1];
        for (middles, pair) in middles.iter_mut().zip(levels.windows(2)) {
            for lane in 0..LANES {
                middles[lane] = f64::midpoint(pair[0][lane], pair[1][lane]);
            }
        }
        TableLanes {
            scale: by_group(self.scale, self.groups, (first, count), 1.0),
            levels,
            middles,
        }
    }
}

impl NearestOfLanes for TableLanes {
    #[inline(always)]
    fn nearest(&self, group: usize, targets: &mut [f64; LANES], codes: &mut [u8; LANES]) {
        let scale = &self.scale[group];
        let (mut x, mut above) = ([0.0; LANES], [0_u64; LANES]);
        for lane in 0..LANES {
            x[lane] = quotient(targets[lane], scale[lane]);
        }
        for middles in &self.middles {
            for lane in 0..LANES {
                above[lane] += u64::from(x[lane] > middles[lane]);
            }
        }
        for lane in 0..LANES {
            codes[lane] = above[lane] as u8;
            let level = self.levels[above[lane] as usize][lane];
            targets[lane] = f64::from(level as f32 * scale[lane] as f32);
        }
    }
}

/// A target in units of the scale; 0 where the scale is, as all levels are then.
#[inline(always)]
fn quotient(target: f64, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { target / scale }
}
