//! What becomes of the sums of a tile.

use crate::dot::{OUTPUTS, Sums};
use crate::numeric::rectify;
use crate::tiles::{block_of, put_block};

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
        let mut sums = *sums;
        if let Some(bias) = self.bias {
            let bias = block_of(&bias[at..]);
            for lane in 0..OUTPUTS {
                sums[lane] = sums[lane].wrapping_add(bias[lane]);
            }
        }
        put_block(&mut self.rows[row][at..], &sums);
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
        let w_scale = block_of(&self.w_scale[at..]);
        let mut y = [0.0; OUTPUTS];
        for lane in 0..OUTPUTS {
            y[lane] = sums[lane] as f32 * (x_scale * w_scale[lane]);
        }
        if let Some(bias) = self.bias {
            let bias = block_of(&bias[at..]);
            for lane in 0..OUTPUTS {
                y[lane] += bias[lane];
            }
        }
        if self.relu {
            rectify(&mut y);
        }
        put_block(&mut self.rows[row][at..], &y);
    }
}
