//! Codes of 2 to 8 bits to bytes and back.
//!
//! Least significant bits first: code `i` of a row takes the bits `i * bits ..` of the row, counted
//! from the lowest bit of its first byte. Every row starts on a byte; bits after the last code are
//! zero. Signed codes are two's complement, cut to `bits`. With 3 bits, codes a to h lie so:
//!
//! ```text
//! byte     0                1                2
//! bit      7 6 5 4 3 2 1 0  7 6 5 4 3 2 1 0  7 6 5 4 3 2 1 0
//!          c c b b b a a a  f e e e d d d c  h h h g g g f f
//! ```
//!
//! Eight codes make `bits` bytes, so everything here goes by eights. No floating point.

use crate::error::Fault;
use crate::grid::{Grid, packed_len};
use crate::rows::{for_each_block, take, take_mut};
use crate::simd::multiversion;

/// Packs the rows of `codes`, each of `cols` codes, into `packed`; bits above `bits` are dropped.
pub fn pack_bits(codes: &[u8], cols: usize, bits: u32, packed: &mut [u8]) {
    let grid = byte_grid(codes.len(), cols);
    assert_eq!(packed.len(), grid.rows * packed_len(cols, bits));
    let (mut codes, mut packed) = (codes, packed);
    let result = for_each_block(
        grid,
        |block| (take(&mut codes, block.len()), take_mut(&mut packed, block.packed_len(bits))),
        |block, (codes, packed)| {
            pack_rows(codes, block.cols.len(), bits, packed);
            Ok::<(), Fault>(())
        },
    );
    debug_assert!(result.is_ok());
}

/// Unpacks rows of `cols` codes. Signed codes are extended from `bits` to eight bits.
pub fn unpack_bits(packed: &[u8], cols: usize, bits: u32, signed: bool, codes: &mut [u8]) {
    let grid = byte_grid(codes.len(), cols);
    assert_eq!(packed.len(), grid.rows * packed_len(cols, bits));
    let (mut packed, mut codes) = (packed, codes);
    let result = for_each_block(
        grid,
        |block| (take(&mut packed, block.packed_len(bits)), take_mut(&mut codes, block.len())),
        |block, (packed, codes)| {
            unpack_rows(packed, block.cols.len(), bits, signed, codes);
            Ok::<(), Fault>(())
        },
    );
    debug_assert!(result.is_ok());
}

/// A grid of `len` bytes in rows of `cols`, without groups.
fn byte_grid(len: usize, cols: usize) -> Grid {
    let rows = len.checked_div(cols).unwrap_or(0);
    assert_eq!(len, rows * cols);
    Grid { rows, cols, group_size: 1 }
}

multiversion! {
    fn pack_rows(codes: &[u8], cols: usize, bits: u32, packed: &mut [u8]) {
        let packed = packed.chunks_exact_mut(packed_len(cols, bits));
        for (codes, packed) in codes.chunks_exact(cols).zip(packed) {
            pack_row(codes, bits, packed);
        }
    }
}

multiversion! {
    fn unpack_rows(packed: &[u8], cols: usize, bits: u32, signed: bool, codes: &mut [u8]) {
        let flip = sign_bit(bits, signed);
        let packed = packed.chunks_exact(packed_len(cols, bits));
        for (packed, codes) in packed.zip(codes.chunks_exact_mut(cols)) {
            unpack_row(packed, bits, codes);
            for code in codes {
                *code = (*code ^ flip).wrapping_sub(flip);
            }
        }
    }
}

/// The bit that makes a signed code negative; 0 for unsigned codes. With it, the value of the bits
/// `c` is `(c ^ sign_bit) - sign_bit`, signed or not.
#[inline(always)]
#[must_use]
pub fn sign_bit(bits: u32, signed: bool) -> u8 {
    if signed { 1 << (bits - 1) } else { 0 }
}

/// Packs one row, or a piece of a row that starts on a byte.
#[inline(always)]
pub(crate) fn pack_row(codes: &[u8], bits: u32, packed: &mut [u8]) {
    match bits {
        2 => pack_eights::<2>(codes, packed),
        3 => pack_eights::<3>(codes, packed),
        4 => pack_eights::<4>(codes, packed),
        5 => pack_eights::<5>(codes, packed),
        6 => pack_eights::<6>(codes, packed),
        7 => pack_eights::<7>(codes, packed),
        _ => packed.copy_from_slice(codes),
    }
}

/// Unpacks one row, or a piece of a row that starts on a byte, without extending the sign.
#[inline(always)]
pub(crate) fn unpack_row(packed: &[u8], bits: u32, codes: &mut [u8]) {
    match bits {
        2 => unpack_eights::<2>(packed, codes),
        3 => unpack_eights::<3>(packed, codes),
        4 => unpack_eights::<4>(packed, codes),
        5 => unpack_eights::<5>(packed, codes),
        6 => unpack_eights::<6>(packed, codes),
        7 => unpack_eights::<7>(packed, codes),
        _ => codes.copy_from_slice(packed),
    }
}

#[inline(always)]
fn pack_eights<const BITS: usize>(codes: &[u8], packed: &mut [u8]) {
    let (eights, rest) = codes.as_chunks::<8>();
    let (words, tail) = packed.split_at_mut(eights.len() * BITS);
    for (word, &eight) in words.as_chunks_mut::<BITS>().0.iter_mut().zip(eights) {
        word.copy_from_slice(&pack_word::<BITS>(u64::from_le_bytes(eight)).to_le_bytes()[..BITS]);
    }
    if !rest.is_empty() {
        let mut eight = [0; 8];
        eight[..rest.len()].copy_from_slice(rest);
        let word = pack_word::<BITS>(u64::from_le_bytes(eight)).to_le_bytes();
        tail.copy_from_slice(&word[..tail.len()]);
    }
}

#[inline(always)]
fn unpack_eights<const BITS: usize>(packed: &[u8], codes: &mut [u8]) {
    let (eights, rest) = codes.as_chunks_mut::<8>();
    let (words, tail) = packed.split_at(eights.len() * BITS);
    for (&bytes, eight) in words.as_chunks::<BITS>().0.iter().zip(eights) {
        *eight = unpack_word::<BITS>(word_of(&bytes)).to_le_bytes();
    }
    if !rest.is_empty() {
        let codes = unpack_word::<BITS>(word_of(tail)).to_le_bytes();
        rest.copy_from_slice(&codes[..rest.len()]);
    }
}

/// Up to eight bytes as a number, the first one lowest.
#[inline(always)]
fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Ones in the lowest `width` bits of every `lane` bits.
const fn mask(width: usize, lane: usize) -> u64 {
    let mut mask = 0;
    let mut shift = 0;
    while shift < 64 {
        mask |= ((1 << width) - 1) << shift;
        shift += lane;
    }
    mask
}

/// Eight bytes to `8 * BITS` bits: neighbours merge into pairs, pairs into fours, fours into all.
#[inline(always)]
fn pack_word<const BITS: usize>(codes: u64) -> u64 {
    let merge =
        |w: u64, low: u64, width: usize, lane: usize| w & low | w >> (lane - width) & low << width;
    let pairs = merge(codes, const { mask(BITS, 16) }, BITS, 8);
    let fours = merge(pairs, const { mask(2 * BITS, 32) }, 2 * BITS, 16);
    merge(fours, const { mask(4 * BITS, 64) }, 4 * BITS, 32)
}

/// The inverse of [`pack_word`].
#[inline(always)]
fn unpack_word<const BITS: usize>(word: u64) -> u64 {
    let spread =
        |w: u64, low: u64, width: usize, lane: usize| w & low | w << (lane - width) & low << lane;
    let fours = spread(word, const { mask(4 * BITS, 64) }, 4 * BITS, 32);
    let pairs = spread(fours, const { mask(2 * BITS, 32) }, 2 * BITS, 16);
    spread(pairs, const { mask(BITS, 16) }, BITS, 8)
}
