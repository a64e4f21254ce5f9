//! Convolutions of integer codes: windows copied into panels, a tile of positions at a time, and
//! multiplied as matrices are; groups of few outputs window by window.

use std::ops::Range;

use crate::dot::{OUTPUTS, Sums, at_level};
use crate::int8::{Int8Weights, Panel, Product, Store, finish, moved};
use crate::rows::for_each_job;
use crate::simd::multiversion;

/// Outputs of a group below which most lanes of a block would be idle.
const FEW_OUTPUTS: usize = 4;

/// Positions of a job, at most and at least, and jobs that are worth having.
const POSITIONS: usize = 240;
const LEAST_POSITIONS: usize = 24;
const JOBS: usize = 16;

/// The shape of a convolution: pairs are (height, width).
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// Channels of the images, of all groups.
    pub channels: usize,
    /// Of an image.
    pub size: [usize; 2],
    /// Of a window.
    pub kernel: [usize; 2],
    /// From window to window.
    pub stride: [usize; 2],
    /// Before the top and the left.
    pub padding: [usize; 2],
    /// From element to element of a window.
    pub dilation: [usize; 2],
    /// Parts of the channels that do not mix.
    pub groups: usize,
    /// Positions of the window.
    pub out_size: [usize; 2],
}

impl Convolution {
    /// Elements of an image, and positions.
    fn areas(&self) -> (usize, usize) {
        (self.size[0] * self.size[1], self.out_size[0] * self.out_size[1])
    }

    /// Where the element `offset` of the window at `position` lies along an axis, if in the image.
    #[inline(always)]
    fn place(&self, axis: usize, position: usize, offset: usize) -> Option<usize> {
        let padded = position * self.stride[axis] + offset * self.dilation[axis];
        padded.checked_sub(self.padding[axis]).filter(|&at| at < self.size[axis])
    }
}

/// The codes of images (batch * channels, height * width).
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// int8 or uint8.
    pub codes: &'a [u8],
    /// Whether they are int8.
    pub signed: bool,
    /// The code of 0, which also lies outside of the image.
    pub zero_point: i32,
}

/// A part of the work: some positions of the windows over a group of channels of an image.
struct Job<'o> {
    image: usize,
    group: usize,
    first: usize,
    /// The sums of these positions, for each output of the group.
    places: Vec<&'o mut [i32]>,
}

/// Sums (batch * n, positions) of products of windows and weights, plus a bias for each output.
pub fn conv_int8(
    images: Images<'_>,
    weights: &Int8Weights,
    conv: Convolution,
    bias: Option<&[i32]>,
    out: &mut [i32],
) {
    let (area, positions) = conv.areas();
    let (groups, outputs) = (weights.groups, weights.outputs_per_group());
    if area == 0 || positions == 0 || weights.n == 0 {
        return;
    }
    let batch = images.codes.len() / (conv.channels * area);
    assert!(images.codes.len() == batch * conv.channels * area && conv.groups == groups);
    assert!(out.len() == batch * weights.n * positions);
    assert!(weights.k == conv.channels / groups * conv.kernel[0] * conv.kernel[1]);
    let few = outputs < FEW_OUTPUTS;
    let share = positions.div_ceil(JOBS.div_ceil((batch * groups).max(1)));
    let share = if few { positions } else { share.clamp(LEAST_POSITIONS, POSITIONS) };
    let mut jobs = vec![];
    for (index, out) in out.chunks_mut(outputs * positions).enumerate() {
        let mut by_share: Vec<Vec<&mut [i32]>> = vec![];
        by_share.resize_with(positions.div_ceil(share), Vec::new);
        for output in out.chunks_mut(positions) {
            let cut = output.chunks_mut(share);
            by_share.iter_mut().zip(cut).for_each(|(all, part)| all.push(part));
        }
        for (part, places) in by_share.into_iter().enumerate() {
            let (image, group) = (index / groups, index % groups);
            jobs.push(Job { image, group, first: part * share, places });
        }
    }
    for_each_job(jobs.into_iter(), |job| {
        if few {
            by_window(images, weights, conv, bias, job);
        } else {
            by_panel(images, weights, conv, bias, job);
        }
        Ok(())
    })
    .expect("no faults");
}

/// The channels of a group of an image.
fn channels_of<'a>(images: Images<'a>, conv: Convolution, job: &Job<'_>) -> &'a [u8] {
    let (area, _) = conv.areas();
    let channels = conv.channels / conv.groups;
    let first = (job.image * conv.channels + job.group * channels) * area;
    &images.codes[first..first + channels * area]
}

fn by_panel(
    images: Images<'_>,
    weights: &Int8Weights,
    conv: Convolution,
    bias: Option<&[i32]>,
    job: Job<'_>,
) {
    let count = job.places[0].len();
    let codes = channels_of(images, conv, &job);
    let zero_point = moved(images.zero_point, images.signed);
    let mut panel = Panel::empty(count, weights.k);
    for i in 0..count {
        let (row, terms) = panel.row_mut(i);
        let window = &mut row[..weights.k];
        fill_window(codes, images, conv, job.first + i, window);
        *terms = finish(window, images.signed, zero_point, weights.has_zero_points());
    }
    let per_group = weights.blocks_per_group();
    let blocks = job.group * per_group..(job.group + 1) * per_group;
    let outputs = weights.outputs_per_group();
    let bias = bias.map(|bias| &bias[job.group * outputs..][..outputs]);
    let store = ColumnStore { columns: job.places, bias };
    at_level(Product { weights, panel: &panel, rows: 0..count, blocks, store });
}

/// Copies the elements of a window: channel by channel, row by row.
fn fill_window(
    codes: &[u8],
    images: Images<'_>,
    conv: Convolution,
    position: usize,
    window: &mut [u8],
) {
    let (area, _) = conv.areas();
    let (y, x) = (position / conv.out_size[1], position % conv.out_size[1]);
    let outside = images.zero_point as u8;
    // Elements of a window's row that lie in the image; without dilation, side by side.
    let inside = range_inside(conv, x);
    let first = conv.place(1, x, inside.start).unwrap_or(0);
    let rows = window.chunks_exact_mut(conv.kernel[1]).enumerate();
    for (index, to) in rows {
        let (channel, i) = (index / conv.kernel[0], index % conv.kernel[0]);
        to.fill(outside);
        let Some(line) = conv.place(0, y, i) else { continue };
        let from = &codes[channel * area + line * conv.size[1]..][..conv.size[1]];
        let from = from[first.min(from.len())..].iter().step_by(conv.dilation[1]);
        to[inside.clone()].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
}

/// The elements of a row of the window at `position` that lie in the image.
fn range_inside(conv: Convolution, position: usize) -> Range<usize> {
    let inside = |j: &usize| conv.place(1, position, *j).is_some();
    let start = (0..conv.kernel[1]).find(inside).unwrap_or(0);
    let end = (0..conv.kernel[1]).rfind(inside).map_or(start, |last| last + 1);
    start..end
}

/// Sums of positions with outputs, stored output by output.
struct ColumnStore<'a, 'o> {
    columns: Vec<&'o mut [i32]>,
    bias: Option<&'a [i32]>,
}

impl Store for ColumnStore<'_, '_> {
    #[inline(always)]
    fn put(&mut self, row: usize, block: usize, sums: &Sums) {
        let at = block * OUTPUTS;
        let columns = self.columns[at..].iter_mut().take(OUTPUTS);
        for (lane, (column, sum)) in columns.zip(sums).enumerate() {
            let bias = self.bias.map_or(0, |bias| bias[at + lane]);
            column[row] = sum.wrapping_add(bias);
        }
    }
}

/// All positions of a group of few outputs, of an image: the rows of the sums, one weight at a time.
fn by_window(
    images: Images<'_>,
    weights: &Int8Weights,
    conv: Convolution,
    bias: Option<&[i32]>,
    job: Job<'_>,
) {
    let codes = channels_of(images, conv, &job);
    let mut centered = vec![0_i32; codes.len()];
    center(codes, images.signed, images.zero_point, &mut centered);
    let (area, _) = conv.areas();
    let [kh, kw] = conv.kernel;
    let first = job.group * weights.outputs_per_group();
    for (index, sums) in job.places.into_iter().enumerate() {
        let output = first + index;
        let zero_point = weights.zero_point(output);
        sums.fill(bias.map_or(0, |bias| bias[output]));
        for input in 0..weights.k {
            let (channel, i, j) = (input / (kh * kw), input / kw % kh, input % kw);
            let w = i32::from(weights.code(output, input)).wrapping_sub(zero_point);
            let positions = positions_inside(conv, j);
            for (y, sums) in sums.chunks_exact_mut(conv.out_size[1]).enumerate() {
                let (Some(line), false) = (conv.place(0, y, i), positions.is_empty()) else {
                    continue;
                };
                let Some(start) = conv.place(1, positions.start, j) else { continue };
                let from = &centered[channel * area + line * conv.size[1]..][start..conv.size[1]];
                add_products(from, conv.stride[1], w, &mut sums[positions.clone()]);
            }
        }
    }
}

/// The positions along a row whose element `j` lies in the image.
fn positions_inside(conv: Convolution, j: usize) -> Range<usize> {
    let inside = |x: &usize| conv.place(1, *x, j).is_some();
    let start = (0..conv.out_size[1]).find(inside).unwrap_or(0);
    let end = (0..conv.out_size[1]).rfind(inside).map_or(start, |last| last + 1);
    start..end
}

multiversion! {
    /// Codes less their zero point.
    fn center(codes: &[u8], signed: bool, zero_point: i32, centered: &mut [i32]) {
        for (to, code) in centered.iter_mut().zip(codes) {
            let code = if signed { i32::from(*code as i8) } else { i32::from(*code) };
            *to = code.wrapping_sub(zero_point);
        }
    }
}

multiversion! {
    /// Adds every `stride`-th number of `x`, times `w`.
    fn add_products(x: &[i32], stride: usize, w: i32, sums: &mut [i32]) {
        if stride == 1 {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = sum.wrapping_add(x.wrapping_mul(w));
            }
        } else {
            for (sum, x) in sums.iter_mut().zip(x.iter().step_by(stride)) {
                *sum = sum.wrapping_add(x.wrapping_mul(w));
            }
        }
    }
}
