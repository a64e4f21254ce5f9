//! From codes in lines to levels: float32, or i8 as the products of bytes take them.

use super::{GroupedWeights, Kind};
use crate::dot::{Dot, INPUTS, Line, NIBBLES, OUTPUTS, Row, nibble_shift};

/// The levels of the inputs `start ..` of a group of a block, which is a multiple of eight; as many
/// as `out` holds, a multiple of eight too. Behind the inputs they are of no use.
#[inline(always)]
pub(super) fn decode_floats<D: Dot>(
    weights: &GroupedWeights,
    block: usize,
    group: usize,
    start: usize,
    out: &mut [Row],
) {
    let per_line = if weights.has_nibbles() { NIBBLES } else { INPUTS };
    let lines = &weights.lines(block, group)[start / per_line..];
    let zero_point = zero_point(weights, block, group);
    if let Some((table, _)) = &weights.table {
        for (line, out) in lines.iter().zip(out.as_chunks_mut().0) {
            D::nibble_levels(line, table, &zero_point, out);
        }
        return;
    }
    match &weights.kind {
        Kind::Book { levels, width, nibbles } => {
            let own = levels.len() != *width;
            let first = if own { block * OUTPUTS * width } else { 0 };
            look_up(lines, *nibbles, &levels[first..], if own { *width } else { 0 }, out);
        }
        Kind::Nibbles | Kind::Bytes => {
            for (line, out) in lines.iter().zip(out.as_chunks_mut().0) {
                D::byte_levels(line, &zero_point, out);
            }
        }
    }
}

/// What is to be taken off the entries of a block for a group.
#[inline(always)]
pub(super) fn zero_point(weights: &GroupedWeights, block: usize, group: usize) -> Row {
    let mut zero_point = [0.0; OUTPUTS];
    if weights.table.is_none_or(|(_, takes_off)| takes_off) {
        let terms = weights.terms(block, group);
        for lane in 0..OUTPUTS {
            zero_point[lane] = terms.zero_point[lane] as f32;
        }
    }
    zero_point
}

/// The entries that codes name, one by one; the table of an output begins `stride` behind that of
/// the one before. Outputs that there are not have none.
#[inline(always)]
fn look_up(lines: &[Line], nibbles: bool, levels: &[f32], stride: usize, out: &mut [Row]) {
    let per_line = if nibbles { NIBBLES } else { INPUTS };
    for (line, out) in lines.iter().zip(out.chunks_mut(per_line)) {
        for (input, out) in out.iter_mut().enumerate() {
            let (shift, mask) = if nibbles { (nibble_shift(input), 15) } else { (8 * input, 255) };
            for lane in 0..OUTPUTS {
                let code = (line.0[lane] >> shift) & mask;
                let level = levels.get(lane * stride + code as usize);
                out[lane] = level.copied().unwrap_or(0.0);
            }
        }
    }
}

/// The codes of a group of a block as i8, four inputs to a line: those that are bytes as they lie,
/// others unpacked into `room`.
#[inline(always)]
pub(super) fn decode_integers<'a, D: Dot>(
    weights: &'a GroupedWeights,
    block: usize,
    group: usize,
    room: &'a mut [Line],
) -> &'a [Line] {
    let lines = weights.lines(block, group);
    if !weights.has_nibbles() {
        return lines;
    }
    let room = &mut room[..2 * lines.len()];
    for (line, two) in lines.iter().zip(room.as_chunks_mut::<2>().0) {
        *two = D::split_nibbles(line);
    }
    room
}
