//! The contract once more, as slowly and as plainly as can be: no blocks, no lanes, no bit tricks.

use crate::numeric::Codes;

/// Columns of each group of a row.
pub fn groups(cols: usize, group_size: usize) -> Vec<std::ops::Range<usize>> {
    (0..cols).step_by(group_size).map(|start| start..cols.min(start + group_size)).collect()
}

pub fn range(group: &[f32]) -> (f32, f32) {
    let lo = group.iter().copied().fold(0.0, f32::min);
    let hi = group.iter().copied().fold(0.0, f32::max);
    (lo + 0.0, hi + 0.0)
}

pub fn choose((lo, hi): (f32, f32), codes: Codes, round_scale: fn(f32) -> f32) -> (f32, i32) {
    let (qmin, qmax) = (codes.qmin as f32, codes.qmax as f32);
    let n = qmax - qmin;
    let exact = match (codes.symmetric, hi - lo) {
        (true, _) => (hi / qmax).max(lo / qmin),
        (false, f32::INFINITY) => hi / n - lo / n,
        (false, width) => width / n,
    };
    let stored = round_scale(exact);
    let scale = if stored == 0.0 { 1.0 } else { stored };
    let zero_point = (qmin - lo / scale).round_ties_even().clamp(qmin, qmax) as i32;
    (scale, if codes.symmetric { 0 } else { zero_point })
}

pub fn encode(x: f32, (scale, zero_point): (f32, i32), codes: Codes) -> i32 {
    let (low, high) = (codes.qmin - zero_point, codes.qmax - zero_point);
    (x / scale).clamp(low as f32, high as f32).round_ties_even() as i32 + zero_point
}

pub fn decode(q: i32, (scale, zero_point): (f32, i32)) -> f32 {
    (q - zero_point) as f32 * scale
}

/// Bit by bit.
pub fn pack(codes: &[i32], bits: u32) -> Vec<u8> {
    let mut packed = vec![0; (codes.len() * bits as usize).div_ceil(8)];
    for (i, code) in codes.iter().enumerate() {
        for bit in 0..bits as usize {
            let at = i * bits as usize + bit;
            packed[at / 8] |= ((code >> bit & 1) as u8) << (at % 8);
        }
    }
    packed
}
