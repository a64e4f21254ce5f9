//! Products with weights that stay packed: codes of 2 to 8 bits, a scale for each group of inputs.
//!
//! Codes of up to four bits lie eight to a 32-bit lane, others four, 16 outputs side by side. They
//! are decoded a group at a time, for all rows at once: to float32 (`floats`), of which rows take
//! chains of fused multiply-adds, or to i8 (`integers`), for sums of products of bytes.

mod bf16x2;
mod floats;
mod integers;
mod levels;

use crate::dot::{INPUTS, Line, NIBBLES, OUTPUTS, Row, Sums};
use crate::error::Fault;
use crate::pack::unpack_bits;
#[cfg(test)]
pub(crate) use bf16x2::matmul_bf16x2;
pub use floats::{add_matmul, matmul_grouped};
pub use integers::linear_grouped_int8;

/// How codes lie, and what they stand for.
#[derive(Clone, Debug)]
enum Kind {
    /// Integers less a zero point, in four bits: the code plus 8 if it is signed.
    Nibbles,
    /// Integers less a zero point, in i8: the code less 128 if it is not signed.
    Bytes,
    /// Entries of a table, in four bits or eight; one table for all outputs, or one for each.
    Book { levels: Vec<f32>, width: usize, nibbles: bool },
}

/// What a block of outputs has for a group.
#[derive(Clone, Copy, Debug)]
struct GroupTerms {
    scale: [f32; OUTPUTS],
    /// Of the codes as they lie.
    zero_point: Sums,
    /// Of the codes as they lie.
    sums: Sums,
}

/// Weights made ready by [`pack_grouped`].
#[derive(Debug)]
pub struct GroupedWeights {
    /// Outputs.
    pub n: usize,
    /// Inputs of each.
    pub k: usize,
    group_size: usize,
    kind: Kind,
    /// What nibbles stand for, where that is the same for all outputs, and whether zero points are
    /// to be taken off: not where all are one, which the table then accounts for.
    table: Option<(Row, bool)>,
    /// Whether all levels, codes less their zero points, are bfloat16 numbers, as integers of eight
    /// bits and a sign are; and groups so long that padding them costs little.
    suits_bf16x2: bool,
    /// Block by block, group by group.
    lines: Vec<Line>,
    lines_per_block: usize,
    terms: Vec<GroupTerms>,
}

/// Weights (n, k) as `pack_bits` packs them, with scales and zero points (n, groups). With `books`,
/// codes name entries of one table, or of one for each output, `width` levels each.
///
/// # Errors
/// `NoLevel` for a code that is not less than `width`.
pub fn pack_grouped(
    packed: &[u8],
    (n, k): (usize, usize),
    group_size: usize,
    (bits, signed): (u32, bool),
    scale: &[f32],
    zero_point: Option<&[i32]>,
    books: Option<(&[f32], usize)>,
) -> Result<GroupedWeights, Fault> {
    let mut codes = vec![0; n * k];
    unpack_bits(packed, k, bits, signed, &mut codes);
    let nibbles = bits <= 4;
    let mut offset = 0;
    let kind = match books {
        Some((levels, width)) => {
            if codes.iter().any(|&code| usize::from(code) >= width) {
                return Err(Fault::NoLevel);
            }
            assert!(levels.len() == width || levels.len() == n * width);
            Kind::Book { levels: levels.to_vec(), width, nibbles }
        }
        None if nibbles => {
            offset = if signed { 8 } else { 0 };
            Kind::Nibbles
        }
        None => {
            offset = if signed { 0 } else { -128 };
            Kind::Bytes
        }
    };
    let group_size = group_size.min(k.max(1));
    let table = table_of(&kind, zero_point, offset);
    let mut weights = GroupedWeights {
        n,
        k,
        group_size,
        kind,
        table,
        suits_bf16x2: false,
        lines: vec![],
        lines_per_block: 0,
        terms: vec![],
    };
    let groups = weights.groups();
    weights.lines_per_block =
        (0..groups).map(|group| weights.lines_of(weights.inputs(group).len())).sum();
    assert!(scale.len() == n * groups && zero_point.is_none_or(|z| z.len() == n * groups));
    for block in (0..n).step_by(OUTPUTS) {
        let outputs = block..n.min(block + OUTPUTS);
        for group in 0..groups {
            let inputs = weights.inputs(group);
            let at = weights.lines.len();
            let lines = weights.lines_of(inputs.len());
            weights.lines.resize(at + lines, Line::ZERO);
            let mut terms =
                GroupTerms { scale: [0.0; OUTPUTS], zero_point: [0; OUTPUTS], sums: [0; OUTPUTS] };
            for (lane, output) in outputs.clone().enumerate() {
                let index = output * groups + group;
                terms.scale[lane] = scale[index];
                terms.zero_point[lane] = zero_point.map_or(0, |z| z[index]) + offset;
                let row = &codes[output * k..][inputs.clone()];
                for (input, &code) in row.iter().enumerate() {
                    let code = (code as i8).wrapping_add(offset as i8);
                    let place = &mut weights.lines[at..];
                    if nibbles {
                        let (line, rest) = (input / NIBBLES, input % NIBBLES);
                        place[line].set(lane, rest % INPUTS, code << (rest / INPUTS * 4));
                    } else {
                        place[input / INPUTS].set(lane, input % INPUTS, code);
                    }
                    terms.sums[lane] = terms.sums[lane].wrapping_add(i32::from(code));
                }
            }
            weights.terms.push(terms);
        }
    }
    let small = |z: &i32| (-128..=128).contains(z);
    weights.suits_bf16x2 = weights.are_integers()
        && group_size >= 16
        && weights.terms.iter().all(|terms| terms.zero_point.iter().all(small));
    Ok(weights)
}

/// The table of [`GroupedWeights`].
fn table_of(kind: &Kind, zero_point: Option<&[i32]>, offset: i32) -> Option<(Row, bool)> {
    let mut table = [0.0; OUTPUTS];
    match kind {
        Kind::Nibbles => {
            let first = zero_point.and_then(|z| z.first().copied()).unwrap_or(0);
            let uniform = zero_point.is_none_or(|z| z.iter().all(|&z| z == first));
            let taken_off = if uniform { first + offset } else { 0 };
            for (code, level) in table.iter_mut().enumerate() {
                *level = (code as i32 - taken_off) as f32;
            }
            Some((table, !uniform))
        }
        Kind::Book { levels, width, nibbles: true } if levels.len() == *width => {
            table[..*width].copy_from_slice(levels);
            Some((table, false))
        }
        _ => None,
    }
}

impl GroupedWeights {
    /// Whether codes are integers, as products of integers need.
    #[must_use]
    pub fn are_integers(&self) -> bool {
        matches!(self.kind, Kind::Nibbles | Kind::Bytes)
    }

    #[inline(always)]
    fn has_nibbles(&self) -> bool {
        matches!(self.kind, Kind::Nibbles | Kind::Book { nibbles: true, .. })
    }

    #[inline(always)]
    fn groups(&self) -> usize {
        self.k.div_ceil(self.group_size)
    }

    /// Where a group lies among the inputs.
    #[inline(always)]
    fn inputs(&self, group: usize) -> std::ops::Range<usize> {
        let start = group * self.group_size;
        start..self.k.min(start + self.group_size)
    }

    /// Lines of so many inputs; of bytes an even number, so that both kinds unpack to as many.
    #[inline(always)]
    fn lines_of(&self, inputs: usize) -> usize {
        let eights = inputs.div_ceil(NIBBLES);
        if self.has_nibbles() { eights } else { 2 * eights }
    }

    /// The lines of a group of a block.
    #[inline(always)]
    fn lines(&self, block: usize, group: usize) -> &[Line] {
        let at = block * self.lines_per_block + group * self.lines_of(self.group_size);
        &self.lines[at..at + self.lines_of(self.inputs(group).len())]
    }

    #[inline(always)]
    fn terms(&self, block: usize, group: usize) -> &GroupTerms {
        &self.terms[block * self.groups() + group]
    }

    fn blocks(&self) -> usize {
        self.n.div_ceil(OUTPUTS)
    }
}
