//! Linear quantization: `q = clip(rne(x / scale) + zero_point)`, `x_hat = (q - zero_point) * scale`.
//!
//! Codes are bytes here; a signed code is the byte of its two's complement. Unpacked codes are
//! packed codes of eight bits, so one kernel encodes and one decodes, and both go through a tile of
//! codes that stays in the first-level cache.

use crate::error::Fault;
use crate::grid::{Block, Grid};
use crate::numeric::{self, Codes, Element, code_offsets};
use crate::pack::{pack_row, packed_len, sign_bit, unpack_row};
use crate::qparams::{Chosen, Given, Params, ScaleDtype, choose_part, choose_qparams_affine};
use crate::range::group_range;
use crate::rows::{Output, TILE, for_each_block, take, take_mut};
use crate::simd::multiversion;
use crate::x86::{Streamable, prefetch, worth_streaming};

/// Elements of a tile that is decoded. Half of the others: their streaming stores drain from the store
/// queue of the core while the next tile is computed, if they fit into it.
const DECODED: usize = TILE / 2;

/// Elements between two looks ahead; enough for a few vectors at once.
const STEP: usize = 64;

/// Elements that a single pass over the input looks ahead: 16 KB of float32.
const AHEAD: usize = 1 << 12;

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
    for_each_part::<E, _>(x, grid, codes, params, packed, out_len, |part, out| {
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
    for_each_part::<E, _>(x, grid, codes, params, x_hat, Block::len, |part, out| {
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

/// A part of the input, with what is needed to encode it.
struct Part<'a, E: Element> {
    x: &'a [E::Repr],
    /// Whether `x` has been found finite, in a pass that prefetched half of what comes next.
    known_finite: bool,
    /// What `block` is a block of.
    grid: Grid,
    block: &'a Block,
    given: Given<'a>,
}

/// Runs `work` on each part of `x` with the parameters of its groups, and the place in `out` where
/// its `out_len` results go. Parameters are chosen just before, while the part is in the cache.
fn for_each_part<E: Element, T: Streamable + Send>(
    x: &[E::Repr],
    grid: Grid,
    codes: Codes,
    params: Params,
    out: &mut [T],
    out_len: impl Fn(&Block) -> usize + Sync,
    work: impl Fn(Part<E>, &mut Output<T>) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    assert_eq!(x.len(), grid.len());
    let params = choose_if_large::<E>(x, grid, codes, params)?;
    let stream = worth_streaming(size_of_val(out));
    let (mut x_rest, mut out_rest) = (x, out);
    let mut cut = |block: &Block| {
        let out = take_mut(&mut out_rest, out_len(block));
        (take(&mut x_rest, block.len()), Output::new(out, stream))
    };
    match params {
        Params::Given(given) => for_each_block(grid, cut, |block, (x, mut out)| {
            let (given, block) = (given.of(&block), &block);
            let part = Part { x, known_finite: false, grid, block, given };
            let result = work(part, &mut out);
            out.finish();
            result
        }),
        Params::Choose { scale_dtype, scale, zero_point } => {
            let mut chosen = Chosen { scale, zero_point };
            let cut = |block: &Block| (cut(block), chosen.take(block.groups.len()));
            for_each_block(grid, cut, |block, ((x, mut out), chosen)| {
                let work = |part: Part<E>| work(part, &mut out);
                choose_and_work::<E>(x, block.grid(grid), codes, scale_dtype, chosen, work)
                    .map_err(|fault| fault.after(block.groups.start))?;
                out.finish();
                Ok(())
            })
        }
    }
}

/// Where groups are larger than blocks, so that nothing can be done in one pass over memory, makes
/// parameters that are given of those to be chosen.
fn choose_if_large<'a, E: Element>(
    x: &[E::Repr],
    grid: Grid,
    codes: Codes,
    params: Params<'a>,
) -> Result<Params<'a>, Fault> {
    match params {
        Params::Choose { scale_dtype, scale, mut zero_point } if !grid.keeps_groups_whole() => {
            let (mut lo, mut hi) = (vec![0.0; scale.len()], vec![0.0; scale.len()]);
            group_range::<E>(x, grid, &mut lo, &mut hi)?;
            let place = zero_point.as_deref_mut();
            choose_qparams_affine(&lo, &hi, codes, scale_dtype, scale, place)?;
            let zero_point = zero_point.map(|zero_point| &*zero_point);
            Ok(Params::Given(Given { scale, zero_point }))
        }
        other => Ok(other),
    }
}

/// Runs `work` on each part of `x`, a block, right after choosing the parameters of its groups.
fn choose_and_work<E: Element>(
    x: &[E::Repr],
    grid: Grid,
    codes: Codes,
    scale_dtype: ScaleDtype,
    mut chosen: Chosen,
    mut work: impl FnMut(Part<E>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (mut rest, mut result) = (x, Ok(()));
    for block in grid.parts() {
        let x = take(&mut rest, block.len());
        let mut chosen = chosen.take(block.groups.len());
        let found = choose_part::<E>(x, block.grid(grid), codes, scale_dtype, &mut chosen)
            .map_err(|fault| fault.after(block.groups.start));
        if found == Err(Fault::NonFinite) {
            return found;
        }
        // Values that are not finite may come yet, and are the graver fault.
        result = result.and(found);
        let (given, block) = (chosen.given(), &block);
        work(Part { x, known_finite: true, grid, block, given })?;
    }
    result
}

multiversion! {
    fn encode_part<E: Element>(
        part: Part<E>, codes: Codes, bits: u32, out: &mut Output<u8>,
    ) -> Result<(), Fault> {
        let Part { x, known_finite, grid, block, given } = part;
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
        let Part { x, known_finite, grid, block, given } = part;
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
                        E::narrow(numeric::decode(q, scale))
                    };
                    map(&q[segment.elements.clone()], &mut x_hat[segment.elements], decode);
                }
            }
        }
    }
}

/// What a pass does on its way, beside its work.
enum Pass<E: Element> {
    /// After a pass that found everything finite and prefetched the first half of the next part:
    /// prefetches the second half.
    Second(*const E::Repr),
    /// Prefetches what is so far ahead that it comes in time, and keeps an OR of the
    /// [`Element::nonfinite_bit`]s.
    Only(*const E::Repr, E::Bits),
}

impl<E: Element> Pass<E> {
    #[inline(always)]
    fn over(part: &[E::Repr], known_finite: bool) -> Self {
        if known_finite {
            Self::Second(part.as_ptr().wrapping_add(part.len() + part.len() / 2))
        } else {
            Self::Only(part.as_ptr().wrapping_add(AHEAD), E::Bits::default())
        }
    }

    /// Applies `f` to the next elements of the part.
    #[inline(always)]
    fn map<B>(&mut self, from: &[E::Repr], to: &mut [B], f: impl Fn(f32) -> B + Copy) {
        let f = |x| f(E::widen(x));
        match self {
            Self::Second(next) => {
                let work = |from: &[_], to: &mut [_]| map(from, to, f);
                for_each_step::<_, _, { STEP / 2 }>(from, to, *next, work);
                *next = next.wrapping_add(from.len() / 2);
            }
            Self::Only(next, nonfinite) => {
                for_each_step::<_, _, STEP>(from, to, *next, |from, to| {
                    // A sum of its own: adding to the one of all would wait for the step before.
                    let zero = E::Bits::default();
                    let step = from.iter().fold(zero, |sum, &x| sum | E::nonfinite_bit(x));
                    *nonfinite = *nonfinite | step;
                    map(from, to, f);
                });
                *next = next.wrapping_add(from.len());
            }
        }
    }

    #[inline(always)]
    fn finish(self) -> Result<(), Fault> {
        match self {
            Self::Only(_, nonfinite) if nonfinite >= E::SIGN => Err(Fault::NonFinite),
            Self::Second(_) | Self::Only(..) => Ok(()),
        }
    }
}

/// Runs `work` on [`STEP`] elements at a time, and prefetches `N` elements from `next` on for each.
#[inline(always)]
fn for_each_step<A: Streamable, B, const N: usize>(
    from: &[A],
    to: &mut [B],
    next: *const A,
    mut work: impl FnMut(&[A], &mut [B]),
) {
    let (from_steps, from) = from.as_chunks::<STEP>();
    let (to_steps, to) = to.as_chunks_mut::<STEP>();
    for (index, (from, to)) in from_steps.iter().zip(to_steps).enumerate() {
        prefetch::<_, N>(next.wrapping_add(index * N));
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
