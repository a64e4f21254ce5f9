//! AMX: registers of 16 rows of 64 bytes, and an instruction that multiplies two of them.
//!
//! A tile of x has 16 rows of 64 codes, a tile of weights 16 lines of a block as they lie; TDPBUSD
//! adds the products of both to 16 by 16 sums, exactly. Whatever is too small for tiles, AVX-512
//! takes. Compilers make no use of tiles and so leave them as they are between blocks of assembly.

use std::arch::asm;

use super::avx512::Avx512Vnni;
use super::steps_of;
use crate::dot::{
    Dot, Fours, HALF_MATRIX_ROWS, INPUTS, Line, MATRIX_BLOCKS, MATRIX_ROWS, NIBBLES, OUTPUTS, Row,
    Sums,
};

/// Rows of a tile, and its fours or lines: those of x lie side by side.
const SIDE: usize = 16;

/// Bytes of a row of a tile.
const ROW_BYTES: usize = 64;

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles in full.
static SHAPES: Shapes = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = ROW_BYTES as u16;
        rows[tile] = SIDE as u8;
        tile += 1;
    }
    Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// The tiles of this thread, ready while this lives.
pub(super) struct Tiles(());

impl Tiles {
    /// # Safety
    /// The CPU must have AMX, and the operating system permit it.
    pub(super) unsafe fn ready() -> Self {
        // SAFETY: LDTILECFG reads 64 bytes of ours; the caller vouches for the rest.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there is one of these where the CPU has AMX.
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}

/// Only [`at_amx`] names it, while there are [`Tiles`].
pub(super) struct Amx;

impl Dot for Amx {
    /// With 16 rows, tiles are faster.
    const FEW_ROWS: usize = HALF_MATRIX_ROWS - 1;
    const HAS_MATRICES: bool = true;

    #[inline(always)]
    fn tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        if C == MATRIX_BLOCKS && (R == MATRIX_ROWS || R == HALF_MATRIX_ROWS) {
            int8_matrix(rows, blocks)
        } else {
            Avx512Vnni::tile::<R, C>(rows, blocks)
        }
    }

    #[inline(always)]
    fn nibble_tile<const R: usize, const C: usize>(
        rows: Fours<'_>,
        blocks: [&[Line]; C],
    ) -> [[Sums; C]; R] {
        Avx512Vnni::nibble_tile::<R, C>(rows, blocks)
    }

    #[inline(always)]
    fn nibble_chains<const R: usize, const C: usize>(
        x: [&[f32]; R],
        blocks: [&[Line]; C],
        table: &Row,
        zero_points: Option<[&Row; C]>,
        sums: [[Row; C]; R],
    ) -> [[Row; C]; R] {
        Avx512Vnni::nibble_chains::<R, C>(x, blocks, table, zero_points, sums)
    }

    #[inline(always)]
    fn bf16_tile<const R: usize, const C: usize>(
        parts: [Fours<'_>; 2],
        blocks: [&[Line]; C],
    ) -> [[Row; C]; R] {
        if C == MATRIX_BLOCKS {
            return bf16_matrix(parts, blocks);
        }
        // A block beside itself.
        let pairs = bf16_matrix::<R, 2>(parts, [blocks[0], blocks[0]]);
        let mut out = [[[0.0; OUTPUTS]; C]; R];
        for r in 0..R {
            out[r] = [pairs[r][0]; C];
        }
        out
    }

    #[inline(always)]
    fn split_nibbles(line: &Line) -> [Line; 2] {
        Avx512Vnni::split_nibbles(line)
    }

    #[inline(always)]
    fn nibble_levels(line: &Line, table: &Row, zero_point: &Row, levels: &mut [Row; NIBBLES]) {
        Avx512Vnni::nibble_levels(line, table, zero_point, levels);
    }

    #[inline(always)]
    fn byte_levels(line: &Line, zero_point: &Row, levels: &mut [Row; INPUTS]) {
        Avx512Vnni::byte_levels(line, zero_point, levels);
    }
}

/// [`Dot::tile`] of 16 or 32 rows with two blocks.
#[inline(always)]
fn int8_matrix<const R: usize, const C: usize>(
    rows: Fours<'_>,
    blocks: [&[Line]; C],
) -> [[Sums; C]; R] {
    // Checked here: all rows and blocks are as long as that.
    let (all, steps) = (rows.rows::<R>(), steps_of(rows, &blocks));
    let whole = steps / SIDE;
    let mut out = [[[0; OUTPUTS]; C]; R];
    // SAFETY: `Tiles` are ready; rows and blocks have `whole` tiles, and what these leave is one
    // tile with zeros behind.
    unsafe {
        clear();
        add_int8::<R>(rows, [blocks[0], blocks[1]], whole);
        if steps > whole * SIDE {
            let rest = whole * SIDE..steps;
            let (mut x, mut w) = ([[[0; INPUTS]; SIDE]; R], [[Line::ZERO; SIDE]; 2]);
            for r in 0..R {
                x[r][..rest.len()].copy_from_slice(&all[r][rest.clone()]);
            }
            for c in 0..2 {
                w[c][..rest.len()].copy_from_slice(&blocks[c][rest.clone()]);
            }
            let x = Fours { bytes: x.as_flattened(), stride: SIDE, steps: SIDE };
            add_int8::<R>(x, [&w[0], &w[1]], 1);
        }
        store(&mut out);
    }
    out
}

/// [`Dot::bf16_tile`] of 16 or 32 rows with two blocks.
#[inline(always)]
fn bf16_matrix<const R: usize, const C: usize>(
    parts: [Fours<'_>; 2],
    blocks: [&[Line]; C],
) -> [[Row; C]; R] {
    let mut out = [[[0.0; OUTPUTS]; C]; R];
    // SAFETY: `Tiles` are ready; all rows and blocks have whole tiles, which is checked.
    unsafe {
        clear();
        for part in parts {
            let (_, steps) = (part.rows::<R>(), steps_of(part, &blocks));
            assert!(steps.is_multiple_of(SIDE));
            add_bf16::<R>(part, [blocks[0], blocks[1]], steps / SIDE);
        }
        store(&mut out);
    }
    out
}

/// Zeros in the tiles of sums: 0 and 1 of the first 16 rows, 2 and 3 of the others.
///
/// # Safety
/// There must be [`Tiles`].
#[inline(always)]
unsafe fn clear() {
    // SAFETY: the caller vouches for the tiles.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
    }
}

/// Defines a function that adds products of tiles to those of sums.
macro_rules! add_products {
    ($(#[$doc:meta])* $name:ident, $dot:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// There must be [`Tiles`], `R` must be 16 or 32, and all rows and blocks have `count` tiles.
        #[inline(always)]
        unsafe fn $name<const R: usize>(rows: Fours<'_>, blocks: [&[Line]; 2], count: usize) {
            if count == 0 {
                return;
            }
            let (x, stride) = (rows.bytes.as_ptr(), rows.stride * INPUTS);
            let [w0, w1] = [blocks[0].as_ptr(), blocks[1].as_ptr()];
            // SAFETY: the caller vouches for the tiles, and addresses stay within them.
            unsafe {
                if R == MATRIX_ROWS {
                    asm!(
                        "2:",
                        "tileloadd tmm4, [{x0} + {stride}]",
                        "tileloadd tmm6, [{w0} + {line}]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{w1} + {line}]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{x1} + {stride}]",
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7"),
                        "add {x0}, 64",
                        "add {x1}, 64",
                        "add {w0}, 1024",
                        "add {w1}, 1024",
                        "dec {count}",
                        "jnz 2b",
                        x0 = inout(reg) x => _, x1 = inout(reg) x.add(SIDE * rows.stride) => _,
                        w0 = inout(reg) w0 => _, w1 = inout(reg) w1 => _,
                        count = inout(reg) count => _, stride = in(reg) stride,
                        line = in(reg) ROW_BYTES, options(nostack, readonly),
                    );
                } else {
                    asm!(
                        "2:",
                        "tileloadd tmm4, [{x} + {stride}]",
                        "tileloadd tmm6, [{w0} + {line}]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{w1} + {line}]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "add {x}, 64",
                        "add {w0}, 1024",
                        "add {w1}, 1024",
                        "dec {count}",
                        "jnz 2b",
                        x = inout(reg) x => _,
                        w0 = inout(reg) w0 => _, w1 = inout(reg) w1 => _,
                        count = inout(reg) count => _, stride = in(reg) stride,
                        line = in(reg) ROW_BYTES, options(nostack, readonly),
                    );
                }
            }
        }
    };
}

add_products! {
    /// Adds products of u8 with i8 to sums of i32.
    add_int8, "tdpbusd"
}

add_products! {
    /// Adds products of bfloat16 numbers to sums of float32.
    add_bf16, "tdpbf16ps"
}

/// The sums of `R` rows, 16 or 32, with two blocks.
///
/// # Safety
/// There must be [`Tiles`].
#[inline(always)]
unsafe fn store<T, const R: usize, const C: usize>(out: &mut [[[T; OUTPUTS]; C]; R]) {
    assert!(size_of::<T>() == 4 && C == 2 && (R == SIDE || R == 2 * SIDE));
    let first = out.as_mut_ptr();
    // SAFETY: a row of `out` is two rows of tiles, and there are as many as those of the tiles; the
    // caller vouches for the rest.
    unsafe {
        asm!(
            "tilestored [{out} + {stride}], tmm0",
            "tilestored [{out} + {stride} + 64], tmm1",
            out = in(reg) first, stride = in(reg) 2 * ROW_BYTES, options(nostack),
        );
        if R == 2 * SIDE {
            asm!(
                "tilestored [{out} + {stride}], tmm2",
                "tilestored [{out} + {stride} + 64], tmm3",
                out = in(reg) first.add(SIDE), stride = in(reg) 2 * ROW_BYTES, options(nostack),
            );
        }
    }
}
