//! Conversions between number formats, and floats with scales.
//!
//! Codes are unsigned integers of the size of their format, e2m1 bytes when it is not packed. The
//! structure is that of `affine`; the formulas are in `float_formats`.

use crate::error::Fault;
use crate::float_formats::{Format, choose_nested, choose_power_of_two, choose_scale, choose_top};
use crate::grid::{Block, Grid};
use crate::numeric::{self, BFloat16, Element, Float16, Float32, larger};
use crate::parts::{DECODED, Part, Pass, Rule, Source, for_each_part, map_narrowed};
use crate::qparams::{Chosen, Given, ScaleDtype, Scales, first_fault};
use crate::rows::{Output, TILE, for_each_block, take, take_mut};
use crate::simd::multiversion;
use crate::x86::worth_streaming;

/// How the scale of a group follows from its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRule {
    /// absmax / largest number of the format, rounded to a dtype.
    Quotient(ScaleDtype),
    /// The power of two of the MX formats.
    PowerOfTwo,
}

/// The nearest numbers of the format `F`; see [`Format::encode`].
///
/// # Errors
/// `Nan` if `x` holds NaN, and `F` does not.
pub fn encode_float<E: Element, F: Format>(
    x: &[E::Repr],
    saturate: bool,
    codes: &mut [F::Code],
) -> Result<(), Fault> {
    cast::<E, F>(x, row(x.len()), (saturate, false), codes, |x| {
        let nan = F::NAN_CODE.is_none() && x.iter().any(|&x| E::widen(x).is_nan());
        if nan { Err(Fault::Nan) } else { Ok(()) }
    })
}

/// The numbers of codes, rounded to `E`.
pub fn decode_float<F: Format, E: Element>(codes: &[F::Code], x: &mut [E::Repr]) {
    decode::<F, E>(codes, row(codes.len()), None, false, x);
}

/// The scales of groups with the ranges `lo`, `hi`.
///
/// # Errors
/// The first group whose scale overflows its dtype, or whose largest number decodes to an infinity.
pub fn choose_scale_float<F: Format>(
    lo: &[f32],
    hi: &[f32],
    rule: ScaleRule,
    scale: &mut [f32],
) -> Result<(), Fault> {
    assert_eq!((lo.len(), hi.len()), (scale.len(), scale.len()));
    match rule {
        ScaleRule::Quotient(ScaleDtype::Float32) => choose_quotients::<F, Float32>(lo, hi, scale),
        ScaleRule::Quotient(ScaleDtype::Float16) => choose_quotients::<F, Float16>(lo, hi, scale),
        ScaleRule::Quotient(ScaleDtype::BFloat16) => choose_quotients::<F, BFloat16>(lo, hi, scale),
        ScaleRule::PowerOfTwo => {
            choose_powers_of_two::<F>(lo, hi, scale);
            Ok(())
        }
    }
}

/// Scales that are numbers of the format `S` with one scale of their own, which is returned.
///
/// # Errors
/// The first group whose largest number decodes to an infinity.
pub fn choose_scale_float_nested<F: Format, S: Format>(
    lo: &[f32],
    hi: &[f32],
    codes: &mut [S::Code],
) -> Result<f32, Fault> {
    assert_eq!((lo.len(), hi.len()), (codes.len(), codes.len()));
    let absmax = lo.iter().zip(hi).fold(0.0, |max, (&lo, &hi)| larger(max, absmax(lo, hi)));
    let top = choose_top::<F, S>(absmax);
    choose_codes::<F, S>(lo, hi, top, codes)?;
    Ok(top)
}

/// The codes of `x / scale`, or of `x` without scales.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn quantize_float<E: Element, F: Format>(
    x: &[E::Repr],
    grid: Grid,
    scale: Option<&[f32]>,
    codes: &mut [F::Code],
) -> Result<(), Fault> {
    encode::<E, F>(x, grid, scale.map_or(Scales::Absent, Scales::Given), false, codes)
}

/// The numbers of codes times their scales, in float32, rounded to `E`.
pub fn dequantize_float<F: Format, E: Element>(
    codes: &[F::Code],
    grid: Grid,
    scale: Option<&[f32]>,
    x_hat: &mut [E::Repr],
) {
    decode::<F, E>(codes, grid, scale, false, x_hat);
}

/// As [`quantize_float`], but scales may be chosen, and codes of less than a byte are packed.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity; where scales are chosen, the faults of
/// [`choose_scale_float`].
pub fn quantize_float_packed<E: Element, F: Format>(
    x: &[E::Repr],
    grid: Grid,
    scales: Scales<ScaleRule>,
    packed: &mut [F::Code],
) -> Result<(), Fault> {
    encode::<E, F>(x, grid, scales, true, packed)
}

/// As [`dequantize_float`], of packed codes.
pub fn dequantize_float_packed<F: Format, E: Element>(
    packed: &[F::Code],
    grid: Grid,
    scale: Option<&[f32]>,
    x_hat: &mut [E::Repr],
) {
    decode::<F, E>(packed, grid, scale, true, x_hat);
}

/// An array without rows and groups.
fn row(cols: usize) -> Grid {
    Grid { rows: 1, cols, group_size: 1 }
}

/// Elements that `cols` codes of a row take.
fn stored<F: Format>(cols: usize, packed: bool) -> usize {
    if packed { F::packed_len(cols) } else { cols }
}

/// The largest magnitude of a range, never -0.0.
#[inline(always)]
fn absmax(lo: f32, hi: f32) -> f32 {
    larger(hi, -lo) + 0.0
}

multiversion! {
    fn choose_quotients<F: Format, S: Element>(
        lo: &[f32], hi: &[f32], scale: &mut [f32],
    ) -> Result<(), Fault> {
        let choose = |(&lo, &hi)| choose_scale::<S>(absmax(lo, hi), F::LARGEST);
        let mut faulty = false;
        for (range, scale) in lo.iter().zip(hi).zip(scale) {
            let chosen: numeric::Chosen = choose(range);
            *scale = chosen.scale;
            faulty |= chosen.scale_overflow | chosen.decode_overflow;
        }
        if faulty { first_fault(lo.iter().zip(hi).map(choose)) } else { Ok(()) }
    }
}

multiversion! {
    fn choose_powers_of_two<F: Format>(lo: &[f32], hi: &[f32], scale: &mut [f32]) {
        for ((&lo, &hi), scale) in lo.iter().zip(hi).zip(scale) {
            *scale = choose_power_of_two::<F>(absmax(lo, hi));
        }
    }
}

multiversion! {
    fn choose_codes<F: Format, S: Format>(
        lo: &[f32], hi: &[f32], top: f32, codes: &mut [S::Code],
    ) -> Result<(), Fault> {
        let choose = |(&lo, &hi)| choose_nested::<F, S>(absmax(lo, hi), top);
        let mut faulty = false;
        for (range, place) in lo.iter().zip(hi).zip(codes) {
            let (code, decode_overflow) = choose(range);
            *place = S::code(code);
            faulty |= decode_overflow;
        }
        if !faulty {
            return Ok(());
        }
        let first = lo.iter().zip(hi).map(choose).position(|(_, overflows)| overflows);
        Err(Fault::DecodeOverflow { group: first.unwrap_or_default() })
    }
}

fn encode<E: Element, F: Format>(
    x: &[E::Repr],
    grid: Grid,
    scales: Scales<ScaleRule>,
    packed: bool,
    codes: &mut [F::Code],
) -> Result<(), Fault> {
    let source = match scales {
        Scales::Absent => {
            return cast::<E, F>(x, grid, (true, packed), codes, |_| Err(Fault::NonFinite));
        }
        Scales::Given(scale) => Source::Given(Given { scale, zero_point: None }),
        Scales::Choose(rule, scale) => choose_with::<F>(rule, scale),
    };
    assert_eq!(codes.len(), grid.rows * stored::<F>(grid.cols, packed));
    let out_len = |block: &Block| block.rows * stored::<F>(block.cols.len(), packed);
    for_each_part::<E, _>(x, grid, source, codes, out_len, |part, out| {
        encode_part::<E, F>(part, packed, out)
    })
}

fn choose_with<F: Format>(rule: ScaleRule, scale: &mut [f32]) -> Source<'_, impl Rule> {
    let choose = move |lo: &[f32], hi: &[f32], chosen: Chosen| {
        choose_scale_float::<F>(lo, hi, rule, chosen.scale)
    };
    Source::Choose(choose, Chosen { scale, zero_point: None })
}

/// Encodes without scales; `nonfinite` decides on each block that holds NaN or infinities.
fn cast<E: Element, F: Format>(
    x: &[E::Repr],
    grid: Grid,
    (saturate, packed): (bool, bool),
    codes: &mut [F::Code],
    nonfinite: impl Fn(&[E::Repr]) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    assert_eq!((x.len(), codes.len()), (grid.len(), grid.rows * stored::<F>(grid.cols, packed)));
    let stream = worth_streaming(size_of_val(codes));
    let (mut x, mut codes) = (x, codes);
    let cut = |block: &Block| {
        let len = block.rows * stored::<F>(block.cols.len(), packed);
        (take(&mut x, block.len()), take_mut(&mut codes, len))
    };
    for_each_block(grid, cut, |block, (x, codes)| {
        let mut out = Output::new(codes, stream);
        let found = cast_block::<E, F>(x, block.cols.len(), saturate, packed, &mut out);
        out.finish();
        found.or_else(|_| nonfinite(x))
    })
}

fn decode<F: Format, E: Element>(
    codes: &[F::Code],
    grid: Grid,
    scale: Option<&[f32]>,
    packed: bool,
    x_hat: &mut [E::Repr],
) {
    assert_eq!(
        (codes.len(), x_hat.len()),
        (grid.rows * stored::<F>(grid.cols, packed), grid.len())
    );
    let stream = worth_streaming(size_of_val(x_hat));
    let (mut codes, mut x_hat) = (codes, x_hat);
    let cut = |block: &Block| {
        let len = block.rows * stored::<F>(block.cols.len(), packed);
        (take(&mut codes, len), take_mut(&mut x_hat, block.len()))
    };
    let result = for_each_block(grid, cut, |block, (codes, x_hat)| {
        let scale = scale.map(|scale| &scale[block.groups.clone()]);
        let mut out = Output::new(x_hat, stream);
        decode_block::<F, E>(codes, grid, &block, scale, packed, &mut out);
        out.finish();
        Ok(())
    });
    debug_assert!(result.is_ok());
}

multiversion! {
    fn encode_part<E: Element, F: Format>(
        part: Part<E>, packed: bool, out: &mut Output<F::Code>,
    ) -> Result<(), Fault> {
        let Part { x, known_finite, grid, block, given, .. } = part;
        let mut pass = Pass::<E>::over(x, known_finite);
        let mut tile = [F::Code::default(); TILE];
        let packs = packed && F::BITS < 8;
        for (row, x) in x.chunks_exact(block.cols.len()).enumerate() {
            let mut groups = block.row(grid);
            for x in x.chunks(TILE) {
                let packed = out.next(stored::<F>(x.len(), packed));
                let codes = if packs { &mut tile[..x.len()] } else { &mut *packed };
                for segment in groups.segments(x.len()) {
                    let scale = given.scale[block.index_of(row, segment.group)];
                    let encode = |x| F::code(F::encode_scaled(x, scale));
                    pass.map(&x[segment.elements.clone()], &mut codes[segment.elements], encode);
                }
                if packs {
                    F::pack(&tile[..x.len()], packed);
                }
            }
        }
        pass.finish()
    }
}

multiversion! {
    fn cast_block<E: Element, F: Format>(
        x: &[E::Repr], cols: usize, saturate: bool, packed: bool, out: &mut Output<F::Code>,
    ) -> Result<(), Fault> {
        let mut pass = Pass::<E>::over(x, false);
        let mut tile = [F::Code::default(); TILE];
        let packs = packed && F::BITS < 8;
        for x in x.chunks_exact(cols) {
            for x in x.chunks(TILE) {
                let packed = out.next(stored::<F>(x.len(), packed));
                let codes = if packs { &mut tile[..x.len()] } else { &mut *packed };
                pass.map(x, codes, |x| F::code(F::encode(x, saturate)));
                if packs {
                    F::pack(&tile[..x.len()], packed);
                }
            }
        }
        pass.finish()
    }
}

multiversion! {
    fn decode_block<F: Format, E: Element>(
        codes: &[F::Code], grid: Grid, block: &Block, scale: Option<&[f32]>, packed: bool,
        out: &mut Output<E::Repr>,
    ) {
        let cols = block.cols.len();
        let mut tile = [F::Code::default(); DECODED];
        for (row, mut codes) in codes.chunks_exact(stored::<F>(cols, packed)).enumerate() {
            let mut groups = block.row(grid);
            for start in (0..cols).step_by(DECODED) {
                let len = DECODED.min(cols - start);
                let codes = take(&mut codes, stored::<F>(len, packed));
                let codes = if packed && F::BITS < 8 {
                    F::unpack(codes, &mut tile[..len]);
                    &tile[..len]
                } else {
                    codes
                };
                let x_hat = out.next(len);
                let Some(scale) = scale else {
                    map_narrowed::<_, E>(codes, x_hat, |code| F::decode(code.into()));
                    continue;
                };
                for segment in groups.segments(len) {
                    let scale = scale[block.index_of(row, segment.group)];
                    let decode = |code: F::Code| F::decode(code.into()) * scale;
                    let place = &mut x_hat[segment.elements.clone()];
                    map_narrowed::<_, E>(&codes[segment.elements], place, decode);
                }
            }
        }
    }
}
