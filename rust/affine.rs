//! Linear quantization: `q = clip(rne(x / scale) + zero_point)`, `x_hat = (q - zero_point) * scale`.
//!
//! Codes are bytes here; a signed code is the byte of its two's complement. Unpacked codes are
//! packed codes of eight bits, so one kernel encodes and one decodes, and both go through a tile of
//! codes that stays in the first-level cache.

use crate::error::Fault;
use crate::grid::{Block, Grid, packed_len};
use crate::numeric::{self, Codes, Element, code_offsets};
use crate::pack::{pack_row, sign_bit, unpack_row};
use crate::parts::{DECODED, Part, Pass, Rule, Source, for_each_part, map_narrowed};
use crate::qparams::{Chosen, Given, Params, choose_qparams_affine};
use crate::rows::{Output, TILE, for_each_block, take, take_mut};
use crate::simd::multiversion;
use crate::x86::worth_streaming;

/// Quantizes `x` to codes of one byte each, with given parameters.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity.
pub fn quantize_affine<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    codes: Codes,
    given: Given,
    q: &mut [u8],
) -> Result<(), Fault> {
    quantize_affine_packed::<E>(x, grid, 8, codes, Params::Given(given), q)
}

/// The values of codes of one byte each.
pub fn dequantize_affine<E: Element>(
    q: &[u8],
    grid: Grid,
    signed: bool,
    given: Given,
    x_hat: &mut [E::Repr],
) {
    dequantize_affine_packed::<E>(q, grid, 8, signed, given, x_hat);
}

/// Quantizes `x` to packed codes; with `bits` = 8, to one byte for each code.
///
/// # Errors
/// `NonFinite` if `x` holds NaN or an infinity; where parameters are chosen, the faults of
/// [`choose_qparams_affine`].
pub fn quantize_affine_packed<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    bits: u32,
    codes: Codes,
    params: Params,
    packed: &mut [u8],
) -> Result<(), Fault> {
    assert_eq!(packed.len(), grid.rows * packed_len(grid.cols, bits));
    let out_len = |block: &Block| block.packed_len(bits);
    for_each_part::<E, _>(x, grid, source(codes, params), packed, out_len, |part, out| {
        encode_part::<E>(part, codes, bits, out)
    })
}

/// The values of the codes of `x`: what dequantizing the quantized array gives.
///
/// # Errors
/// As [`quantize_affine_packed`].
pub fn fake_quantize_affine<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    codes: Codes,
    params: Params,
    x_hat: &mut [E::Repr],
) -> Result<(), Fault> {
    assert_eq!(x_hat.len(), grid.len());
    for_each_part::<E, _>(x, grid, source(codes, params), x_hat, Block::len, |part, out| {
        encode_decode_part::<E>(part, codes, out)
    })
}

/// The values of packed codes; with `bits` = 8, of codes of one byte.
pub fn dequantize_affine_packed<E: Element>(
    packed: &[u8],
    grid: Grid,
    bits: u32,
    signed: bool,
    given: Given,
    x_hat: &mut [E::Repr],
) {
    assert_eq!(packed.len(), grid.rows * packed_len(grid.cols, bits));
    assert_eq!(x_hat.len(), grid.len());
    let stream = worth_streaming(size_of_val(x_hat));
    let flip = sign_bit(bits, signed);
    let (mut packed, mut x_hat) = (packed, x_hat);
    let result = for_each_block(
        grid,
        |block| (take(&mut packed, block.packed_len(bits)), take_mut(&mut x_hat, block.len())),
        |block, (packed, x_hat)| {
            let (given, mut out) = (given.of(&block), Output::new(x_hat, stream));
            decode_block::<E>(packed, grid, &block, given, bits, flip, &mut out);
            out.finish();
            Ok(())
        },
    );
    debug_assert!(result.is_ok());
}

/// Where the parameters of groups come from, with the rule for those that are chosen.
fn source(codes: Codes, params: Params) -> Source<impl Rule> {
    match params {
        Params::Given(given) => Source::Given(given),
        Params::Choose { scale_dtype, scale, zero_point } => {
            let rule = move |lo: &[f32], hi: &[f32], chosen: Chosen| {
                choose_qparams_affine(lo, hi, codes, scale_dtype, chosen.scale, chosen.zero_point)
            };
            Source::Choose(rule, Chosen { scale, zero_point })
        }
    }
}

multiversion! {
    fn encode_part<E: Element>(
        part: Part<E>, codes: Codes, bits: u32, out: &mut Output<u8>,
    ) -> Result<(), Fault> {
        let Part { x, known_finite, grid, block, given, .. } = part;
        let mut pass = Pass::<E>::over(x, known_finite);
        let mut tile = [0; TILE];
        for (row, x) in x.chunks_exact(block.cols.len()).enumerate() {
            let mut groups = block.row(grid);
            for x in x.chunks(TILE) {
                let packed = out.next(packed_len(x.len(), bits));
                let q = if bits == 8 { &mut *packed } else { &mut tile[..x.len()] };
                for segment in groups.segments(x.len()) {
                    let (scale, zero_point) = given.group(block.index_of(row, segment.group));
                    let (low, high) = code_offsets(zero_point, codes);
                    let encode = |x| numeric::encode(x, scale, zero_point, low, high);
                    pass.map(&x[segment.elements.clone()], &mut q[segment.elements], encode);
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
    fn encode_decode_part<E: Element>(
        part: Part<E>, codes: Codes, out: &mut Output<E::Repr>,
    ) -> Result<(), Fault> {
        let Part { x, known_finite, grid, block, given, .. } = part;
        let mut pass = Pass::<E>::over(x, known_finite);
        for (row, x) in x.chunks_exact(block.cols.len()).enumerate() {
            let mut groups = block.row(grid);
            for x in x.chunks(TILE) {
                let x_hat = out.next(x.len());
                for segment in groups.segments(x.len()) {
                    let (scale, zero_point) = given.group(block.index_of(row, segment.group));
                    let (low, high) = code_offsets(zero_point, codes);
                    let encode_decode =
                        |x| E::narrow(numeric::encode_decode(x, scale, low, high));
                    let (x, x_hat) = (&x[segment.elements.clone()], &mut x_hat[segment.elements]);
                    pass.map(x, x_hat, encode_decode);
                }
            }
        }
        pass.finish()
    }
}

multiversion! {
    fn decode_block<E: Element>(
        packed: &[u8], grid: Grid, block: &Block, given: Given, bits: u32, flip: u8,
        out: &mut Output<E::Repr>,
    ) {
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
                let x_hat = out.next(len);
                for segment in groups.segments(len) {
                    let (scale, zero_point) = given.group(block.index_of(row, segment.group));
                    // A signed code is its bits with the sign flipped, minus that bit.
                    let zero_point = zero_point.wrapping_add(i32::from(flip));
                    let decode = |q: u8| {
                        let q = i32::from(q ^ flip).wrapping_sub(zero_point);
                        numeric::decode(q, scale)
                    };
                    let (q, x_hat) = (&q[segment.elements.clone()], &mut x_hat[segment.elements]);
                    map_narrowed::<_, E>(q, x_hat, decode);
                }
            }
        }
    }
}
