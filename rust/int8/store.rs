//! What becomes of the sums of a tile.

use crate::dot::{OUTPUTS, Sums};
use crate::numeric::rectify;

/// Where the sums of a job go.
pub(crate) trait Store {
    /// Takes the sums of a row with a block of outputs, both counted within the job. Of the last
    /// block, some may be of outputs that there are not.
    fn put(&mut self, row: usize, block: usize, sums: &Sums);
}

/// Sums as they are, plus a bias.
pub(crate) struct IntStore<'a, 'o> {
    pub rows: Vec<&'o mut [i32]>,
    pub bias: Option<&'a [i32]>,
}

impl Store for IntStore<'_, '_> {
    #[inline(always)]
    fn put(&mut self, row: usize, block: usize, sums: &Sums) {
        let at = block * OUTPUTS;
        let out = part_mut(self.rows[row], at);
        match self.bias {
            None => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum),
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[at..]) {
                    *out = sum.wrapping_add(*bias);
                }
            }
        }
    }
}

/// Sums in float32, scaled.
pub(crate) struct FloatStore<'a, 'o> {
    pub rows: Vec<&'o mut [f32]>,
    pub x_scale: &'a [f32],
    pub w_scale: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub relu: bool,
}

impl Store for FloatStore<'_, '_> {
    #[inline(always)]
    fn put(&mut self, row: usize, block: usize, sums: &Sums) {
        let at = block * OUTPUTS;
        let x_scale = self.x_scale[if self.x_scale.len() == 1 { 0 } else { row }];
        let out = part_mut(self.rows[row], at);
        let len = out.len();
        let mut y = [0.0; OUTPUTS];
        let mut scale = [0.0; OUTPUTS];
        scale[..len].copy_from_slice(&self.w_scale[at..][..len]);
        for ((y, sum), w_scale) in y.iter_mut().zip(sums).zip(scale) {
            *y = *sum as f32 * (x_scale * w_scale);
        }
        if let Some(bias) = self.bias {
            y[..len].iter_mut().zip(&bias[at..]).for_each(|(y, bias)| *y += bias);
        }
        if self.relu {
            rectify(&mut y);
        }
        out.copy_from_slice(&y[..len]);
    }
}

/// The places of a block.
#[inline(always)]
fn part_mut<T>(row: &mut [T], at: usize) -> &mut [T] {
    let end = row.len().min(at + OUTPUTS);
    &mut row[at..end]
}
