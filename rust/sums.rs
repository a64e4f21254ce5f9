//! Sums whose order does not depend on the machine: rule 6 of the contract, in `numeric`.
//!
//! The lane of element i is i mod 16, and the lanes fold as (l, l + 8), (l, l + 4), (l, l + 2),
//! (l, l + 1). Rows longer than 65,536 are cut into chunks of 65,536, and the chunk sums, in order, are
//! summed by the same rule. Missing elements are +0, which changes no sum: none is ever -0.

use std::ops::Add;

/// Sums that run side by side.
pub(crate) const LANES: usize = 16;

/// Elements that are summed before their sum goes on as one element.
pub(crate) const CHUNK: usize = 65_536;

/// The sum of `term` of each element.
#[inline(always)]
pub(crate) fn lane_sums<A: Copy, T: Copy + Default + Add<Output = T>>(
    x: &[A],
    term: impl Fn(A) -> T + Copy,
) -> T {
    if x.len() <= CHUNK {
        return chunk_sum(x, term);
    }
    let mut sums: Vec<T> = x.chunks(CHUNK).map(|chunk| chunk_sum(chunk, term)).collect();
    while sums.len() > 1 {
        sums = sums.chunks(CHUNK).map(|chunk| chunk_sum(chunk, |sum| sum)).collect();
    }
    sums[0]
}

#[inline(always)]
fn chunk_sum<A: Copy, T: Copy + Default + Add<Output = T>>(x: &[A], term: impl Fn(A) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        // Counting: a zip in here is not always inlined, and costs more than the sums.
        for lane in 0..LANES {
            lanes[lane] = lanes[lane] + term(x[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = *lane + term(x);
    }
    fold(lanes)
}

/// The sum of the lanes.
#[inline(always)]
pub(crate) fn fold<T: Copy + Add<Output = T>>(lanes: [T; LANES]) -> T {
    let eight: [T; 8] = halves(lanes);
    let four: [T; 4] = halves(eight);
    let [a, b]: [T; 2] = halves(four);
    a + b
}

/// The lower half plus the upper half.
#[inline(always)]
fn halves<T: Copy + Add<Output = T>, const N: usize, const HALF: usize>(
    lanes: [T; N],
) -> [T; HALF] {
    std::array::from_fn(|lane| lanes[lane] + lanes[lane + HALF])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_rule() {
        // One and many halves of its last place: each lane that meets the one first loses its own.
        let mut x = [f32::EPSILON / 2.0; 35];
        x[0] = 1.0;
        // Lane 0 stays 1 twice; the others come to it as 4, 8, 12 and 7 pairs of halves.
        let lane = |count: usize| count as f32 * (f32::EPSILON / 2.0);
        let mut lanes = [lane(2); LANES];
        (lanes[0], lanes[1], lanes[2]) = (1.0, lane(3), lane(3));
        assert_eq!(lane_sums(&x, |x| x), fold(lanes));
    }

    #[test]
    fn chunks_are_summed_first() {
        let mut x = vec![f32::EPSILON / 2.0; 2 * CHUNK];
        x[0] = 1.0;
        let first = chunk_sum(&x[..CHUNK], |x| x);
        assert_eq!(lane_sums(&x, |x| x), first + (CHUNK / 2) as f32 * f32::EPSILON);
        assert_eq!(lane_sums(&[] as &[f32], |x| x), 0.0);
    }
}
