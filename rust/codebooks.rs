//! Codebooks: numbers to the nearest level of a table, with and without scales, and back.
//!
//! A book is a row of levels, ascending, and has one threshold less; a number gets the rank of the
//! thresholds it reaches, and the code that belongs to the rank. The structure is that of `affine`; the
//! tables are in `lookup`.

use crate::error::Fault;
use crate::grid::{Block, Grid, packed_len};
pub use crate::lookup::MOST_LEVELS;
use crate::lookup::{BinarySearch, Levels, LoadedLevels, ReloadableSearch};
#[cfg(target_arch = "x86_64")]
use crate::lookup::{PermutedLevels, PermutedSearch};
use crate::numeric::{self, BFloat16, Element, Float16, Float32, choose_reach, reciprocal};
use crate::pack::{pack_row, unpack_row};
use crate::parts::{DECODED, Part, Pass, Rule, Source, for_each_part};
use crate::qparams::{Chosen, Given, ScaleDtype, Scales, first_fault};
use crate::rows::{Output, TILE, for_each_block, take, take_mut};
use crate::simd::{multiversion, with_default_float_state};
use crate::sums::lane_sums;
use crate::x86::worth_streaming;

/// Rows of levels, or of thresholds: one for all groups, one for each row of the array, or one for
/// each group.
#[derive(Clone, Copy, Debug)]
pub struct Books<'a> {
    /// The numbers of all books.
    pub values: &'a [f32],
    /// Numbers in a book.
    pub width: usize,
    /// Number of books.
    pub count: usize,
}

/// How scales follow from ranges: the least and the greatest level, which reach the ends, and the
/// dtype that scales are rounded to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// The least level.
    pub low: f32,
    /// The greatest level.
    pub high: f32,
    /// Of the scales.
    pub scale_dtype: ScaleDtype,
}

impl<'a> Books<'a> {
    /// Whether there are as many as an array can have.
    #[must_use]
    pub fn fit(&self, grid: Grid) -> bool {
        let enough = [1, grid.rows, grid.groups()].contains(&self.count);
        enough && self.values.len() == self.count * self.width
    }

    /// The number of groups, in a row or in all, that share a book.
    fn shared_by(&self, grid: Grid) -> usize {
        assert!(self.fit(grid));
        match self.count {
            1 => usize::MAX,
            count if count == grid.rows => grid.groups_per_row().max(1),
            _ => 1,
        }
    }

    #[inline(always)]
    fn book(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.width..][..self.width]
    }
}

/// The scales with which the levels from `reach.low` to `reach.high` cover the ranges.
///
/// # Errors
/// The first group whose scale overflows its dtype, or whose extreme level decodes to an infinity.
pub fn choose_scale_codebook(
    lo: &[f32],
    hi: &[f32],
    reach: Reach,
    scale: &mut [f32],
) -> Result<(), Fault> {
    assert_eq!((lo.len(), hi.len()), (scale.len(), scale.len()));
    match reach.scale_dtype {
        ScaleDtype::Float32 => choose_scales::<Float32>(lo, hi, reach, scale),
        ScaleDtype::Float16 => choose_scales::<Float16>(lo, hi, reach, scale),
        ScaleDtype::BFloat16 => choose_scales::<BFloat16>(lo, hi, reach, scale),
    }
}

/// Writes the scales minus their mean, and returns the mean.
pub fn center_scales(scale: &[f32], centered: &mut [f32]) -> f32 {
    assert_eq!(scale.len(), centered.len());
    with_default_float_state(|| {
        let total = lane_sums(scale, f64::from);
        let mean = (total / scale.len().max(1) as f64) as f32;
        scale.iter().zip(centered).for_each(|(scale, centered)| *centered = scale - mean);
        mean
    })
}

/// The codes of the levels nearest to `x / scale`, one byte each.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn quantize_codebook<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    scale: Option<&[f32]>,
    thresholds: Books,
    codes: Option<&[u8]>,
    q: &mut [u8],
) -> Result<(), Fault> {
    let scales = scale.map_or(Scales::Absent, Scales::Given);
    quantize_codebook_packed::<E>(x, grid, 8, scales, thresholds, codes, q)
}

/// As [`quantize_codebook`], but scales may be chosen, and codes are packed. `codes` are those of the
/// ranks 0, 1, 2, ..., where they are not the ranks themselves.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity; where scales are chosen, the faults of
/// [`choose_scale_codebook`].
pub fn quantize_codebook_packed<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    bits: u32,
    scales: Scales<Reach>,
    thresholds: Books,
    codes: Option<&[u8]>,
    packed: &mut [u8],
) -> Result<(), Fault> {
    assert!(
        thresholds.width < MOST_LEVELS
            && codes.is_none_or(|codes| codes.len() == thresholds.width + 1)
    );
    assert_eq!(packed.len(), grid.rows * packed_len(grid.cols, bits));
    let entries: Vec<u32> = match codes {
        Some(codes) => codes.iter().map(|&code| u32::from(code)).collect(),
        None => (0..=thresholds.width as u32).collect(),
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(search) = PermutedSearch::new(&entries) {
        return encode::<E, _>(x, grid, bits, scales, thresholds, &search, packed);
    }
    encode::<E, _>(x, grid, bits, scales, thresholds, &BinarySearch::new(&entries), packed)
}

/// The values `level * scale + offset` of codes of one byte each, rounded to `E`.
///
/// # Errors
/// `NoLevel` if there is a code that its book does not have.
pub fn dequantize_codebook<E: Element>(
    q: &[u8],
    grid: Grid,
    scale: Option<&[f32]>,
    offset: Option<f32>,
    levels: Books,
    x_hat: &mut [E::Repr],
) -> Result<(), Fault> {
    dequantize_codebook_packed::<E>(q, grid, 8, scale, offset, levels, x_hat)
}

/// As [`dequantize_codebook`], of packed codes.
///
/// # Errors
/// As [`dequantize_codebook`].
pub fn dequantize_codebook_packed<E: Element>(
    packed: &[u8],
    grid: Grid,
    bits: u32,
    scale: Option<&[f32]>,
    offset: Option<f32>,
    levels: Books,
    x_hat: &mut [E::Repr],
) -> Result<(), Fault> {
    assert!(levels.width <= MOST_LEVELS && scale.is_none_or(|scale| scale.len() == grid.groups()));
    assert_eq!(packed.len(), grid.rows * packed_len(grid.cols, bits));
    assert_eq!(x_hat.len(), grid.len());
    // Adding -0.0 changes no number.
    let factors = (scale, offset.unwrap_or(-0.0));
    #[cfg(target_arch = "x86_64")]
    if let Some(table) = PermutedLevels::new(levels.width) {
        return decode::<E, _>(packed, grid, bits, factors, levels, &table, x_hat);
    }
    decode::<E, _>(packed, grid, bits, factors, levels, &LoadedLevels::new(), x_hat)
}

multiversion! {
    fn choose_scales<S: Element>(
        lo: &[f32], hi: &[f32], reach: Reach, scale: &mut [f32],
    ) -> Result<(), Fault> {
        let choose = |(&lo, &hi)| choose_reach::<S>(lo, hi, reach.low, reach.high);
        let mut faulty = false;
        for (range, scale) in lo.iter().zip(hi).zip(scale) {
            let chosen: numeric::Chosen = choose(range);
            *scale = chosen.scale;
            faulty |= chosen.scale_overflow | chosen.decode_overflow;
        }
        if faulty { first_fault(lo.iter().zip(hi).map(choose)) } else { Ok(()) }
    }
}

fn encode<E: Element, S: ReloadableSearch>(
    x: &[E::Repr],
    grid: Grid,
    bits: u32,
    scales: Scales<Reach>,
    thresholds: Books,
    search: &S,
    packed: &mut [u8],
) -> Result<(), Fault> {
    let absent = matches!(scales, Scales::Absent);
    // Without scales, groups matter to books of their own alone.
    let whole_rows = absent && thresholds.shared_by(grid) > 1;
    let group_size = if whole_rows { grid.cols.max(1) } else { grid.group_size };
    let grid = Grid { group_size, ..grid };
    let ones = if absent { vec![1.0; grid.groups()] } else { vec![] };
    let source = match scales {
        Scales::Absent => Source::Given(Given { scale: &ones, zero_point: None }),
        Scales::Given(scale) => Source::Given(Given { scale, zero_point: None }),
        Scales::Choose(reach, scale) => choose_with(reach, scale),
    };
    let shared = thresholds.shared_by(grid);
    let out_len = |block: &Block| block.packed_len(bits);
    for_each_part::<E, _>(x, grid, source, packed, out_len, |part, out| {
        encode_part::<E, S>(part, bits, thresholds, shared, search, out)
    })
}

fn choose_with(reach: Reach, scale: &mut [f32]) -> Source<'_, impl Rule> {
    let choose = move |lo: &[f32], hi: &[f32], chosen: Chosen| {
        choose_scale_codebook(lo, hi, reach, chosen.scale)
    };
    Source::Choose(choose, Chosen { scale, zero_point: None })
}

fn decode<E: Element, L: Levels>(
    packed: &[u8],
    grid: Grid,
    bits: u32,
    (scale, offset): (Option<&[f32]>, f32),
    books: Books,
    levels: &L,
    x_hat: &mut [E::Repr],
) -> Result<(), Fault> {
    let stream = worth_streaming(size_of_val(x_hat));
    let shared = books.shared_by(grid);
    let (mut packed, mut x_hat) = (packed, x_hat);
    for_each_block(
        grid,
        |block| (take(&mut packed, block.packed_len(bits)), take_mut(&mut x_hat, block.len())),
        |block, (packed, x_hat)| {
            let factors = (scale.map(|scale| &scale[block.groups.clone()]), offset);
            let mut out = Output::new(x_hat, stream);
            decode_block::<E, L>(
                packed, grid, &block, bits, factors, books, shared, levels, &mut out,
            )?;
            out.finish();
            Ok(())
        },
    )
}

multiversion! {
    fn encode_part<E: Element, S: ReloadableSearch>(
        part: Part<E>, bits: u32, thresholds: Books, shared: usize, search: &S,
        out: &mut Output<u8>,
    ) -> Result<(), Fault> {
        let Part { x, known_finite, grid, first_group, block, given } = part;
        let mut pass = Pass::<E>::over(x, known_finite);
        let mut tile = [0; TILE];
        let (mut search, mut loaded) = (search.clone(), usize::MAX);
        for (row, x) in x.chunks_exact(block.cols.len()).enumerate() {
            let mut groups = block.row(grid);
            for x in x.chunks(TILE) {
                let packed = out.next(packed_len(x.len(), bits));
                let q = if bits == 8 { &mut *packed } else { &mut tile[..x.len()] };
                for segment in groups.segments(x.len()) {
                    let group = block.index_of(row, segment.group);
                    let book = (first_group + group) / shared;
                    if book != loaded {
                        search.load(thresholds.book(book));
                        loaded = book;
                    }
                    let inverse = reciprocal(given.scale[group]);
                    let (x, q) = (&x[segment.elements.clone()], &mut q[segment.elements]);
                    pass.map_steps(x, q, |x, q| search.find(x, inverse, q));
                }
                if bits != 8 {
                    pack_row(&tile[..x.len()], bits, packed);
                }
            }
        }
        pass.finish()
    }
}

multiversion! {
    fn decode_block<E: Element, L: Levels>(
        packed: &[u8], grid: Grid, block: &Block, bits: u32, factors: (Option<&[f32]>, f32),
        books: Books, shared: usize, levels: &L, out: &mut Output<E::Repr>,
    ) -> Result<(), Fault> {
        let (scale, offset) = factors;
        let (mut levels, mut loaded) = (levels.clone(), usize::MAX);
        let mut tile = [0; DECODED];
        let cols = block.cols.len();
        for (row, mut packed) in packed.chunks_exact(packed_len(cols, bits)).enumerate() {
            let mut groups = block.row(grid);
            for start in (0..cols).step_by(DECODED) {
                let len = DECODED.min(cols - start);
                let packed = take(&mut packed, packed_len(len, bits));
                let q = if bits == 8 {
                    packed
                } else {
                    unpack_row(packed, bits, &mut tile[..len]);
                    &tile[..len]
                };
                if books.width < 1 << bits && !have_levels(q, books.width) {
                    return Err(Fault::NoLevel);
                }
                let x_hat = out.next(len);
                for segment in groups.segments(len) {
                    let group = block.index_of(row, segment.group);
                    let book = (block.groups.start + group) / shared;
                    if book != loaded {
                        levels.load(books.book(book));
                        loaded = book;
                    }
                    let scale = scale.map_or(1.0, |scale| scale[group]);
                    let (q, x_hat) = (&q[segment.elements.clone()], &mut x_hat[segment.elements]);
                    levels.find::<E>(q, scale, offset, x_hat);
                }
            }
        }
        Ok(())
    }
}

/// Whether all codes are below `levels`.
#[inline(always)]
fn have_levels(codes: &[u8], levels: usize) -> bool {
    usize::from(codes.iter().fold(0, |max, &code| code.max(max))) < levels
}
