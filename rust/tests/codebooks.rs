//! The codebook kernels and the scale search against one number at a time.

use super::{at_every_level, nasty, oracle};
use crate::codebooks::{
    Books, Reach, center_scales, choose_scale_codebook, dequantize_codebook_packed,
    quantize_codebook_packed,
};
use crate::error::Fault;
use crate::grid::Grid;
use crate::numeric::{BFloat16, Element, Float16, Float32};
use crate::qparams::{ScaleDtype, Scales};
use crate::scale_search::{Problem, choose_scale_lsq};

fn rank(v: f32, thresholds: &[f32]) -> usize {
    thresholds.iter().filter(|&&threshold| v >= threshold).count()
}

fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1_f32.copysign(scale) / scale.abs().max(1e-38) }
}

/// `count` ascending levels, some of them equal; the thresholds of equal ones are NaN at the end.
fn book(count: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut levels: Vec<_> = nasty(count, 4 * seed + 3);
    levels.sort_by(f32::total_cmp);
    if seed % 2 == 1 {
        levels[count - 1] = levels[count - 2];
    }
    let threshold = |pair: &[f32]| {
        let nan = pair[0] == pair[1];
        if nan { f32::NAN } else { f32::midpoint(pair[0], pair[1]).next_up() }
    };
    let thresholds = levels.windows(2).map(threshold).collect();
    (levels, thresholds)
}

/// Codes and back, with scales chosen in the call, and a book for every `shared` groups.
fn check<E: Element>(x: &[f32], grid: Grid, levels: usize, count: usize, context: &str) {
    let context = format!("{context}, {grid:?}, {count} books of {levels} levels");
    let bits = (levels - 1).ilog2().max(1) + 1;
    let x: Vec<_> = x.iter().map(|&x| E::narrow(x)).collect();
    let books: Vec<_> = (0..count).map(|index| book(levels, index as u64)).collect();
    let book_of = |row: usize, group: usize| match count {
        1 => 0,
        count if count == grid.rows => row,
        _ => row * grid.groups_per_row() + group,
    };
    let (mut scales, mut packed, mut values) = (vec![], vec![], vec![]);
    for (index, row) in x.chunks_exact(grid.cols).enumerate() {
        let mut codes = vec![];
        for (group, range) in oracle::groups(grid.cols, grid.group_size).into_iter().enumerate() {
            let (levels, thresholds) = &books[book_of(index, group)];
            let wide: Vec<_> = row[range].iter().map(|&x| E::widen(x)).collect();
            let (lo, hi) = oracle::range(&wide);
            let scale = (hi / 3.0).max(lo / -3.5) + 0.0;
            for x in wide {
                let code = rank(x * reciprocal(scale), thresholds);
                codes.push(code as i32);
                values.push(E::widen(E::narrow(levels[code] * scale + 0.25)));
            }
            scales.push(scale);
        }
        packed.extend(oracle::pack(&codes, bits));
    }

    let thresholds: Vec<f32> = books.iter().flat_map(|book| book.1.clone()).collect();
    let thresholds = Books { values: &thresholds, width: levels - 1, count };
    let reach = Reach { low: -3.5, high: 3.0, scale_dtype: ScaleDtype::Float32 };
    let (mut scale, mut found) = (vec![9.0; grid.groups()], vec![9; packed.len()]);
    let choose = Scales::Choose(reach, &mut scale);
    quantize_codebook_packed::<E>(&x, grid, bits, choose, thresholds, None, &mut found)
        .expect("in range");
    assert_eq!(scale, scales, "{context}");
    assert_eq!(found, packed, "{context}");
    let given = Scales::Given(&scale);
    found.fill(9);
    quantize_codebook_packed::<E>(&x, grid, bits, given, thresholds, None, &mut found)
        .expect("finite");
    assert_eq!(found, packed, "{context}");

    let all: Vec<f32> = books.iter().flat_map(|book| book.0.clone()).collect();
    let books = Books { values: &all, width: levels, count };
    let mut x_hat = vec![E::narrow(9.0); x.len()];
    let (given, offset) = (Some(&*scale), Some(0.25));
    dequantize_codebook_packed::<E>(&packed, grid, bits, given, offset, books, &mut x_hat)
        .expect("every code has a level");
    let same = x_hat.iter().zip(&values).all(|(&x, y)| E::widen(x).to_bits() == y.to_bits());
    assert!(same, "{context}");
}

#[test]
fn every_level_agrees_with_one_number_at_a_time() {
    let shapes =
        [(1, 1, 1), (3, 5, 2), (7, 101, 100), (5, 320, 32), (3, 1100, 7), (2, 70_003, 70_003)];
    at_every_level(|context| {
        for (seed, (rows, cols, group_size)) in shapes.into_iter().enumerate() {
            let grid = Grid { rows, cols, group_size };
            let x = nasty(grid.len(), seed as u64);
            check::<Float32>(&x, grid, 16, 1, context);
            check::<Float32>(&x, grid, 3, grid.groups(), context);
            check::<Float16>(&x, grid, 17, rows, context);
            check::<BFloat16>(&x, grid, 256, 1, context);
            check::<BFloat16>(&x, grid, 9, grid.groups(), context);
        }
    });
}

#[test]
fn numbers_worked_out_by_hand() {
    // v = -1, 0.25, 0.75 and 1 by the scale 4; 0.75 is on the threshold, which belongs to the upper.
    let (x, grid) = ([-4.0, 1.0, 3.0, 4.0], Grid::of_row(4));
    let reach = Reach { low: -1.0, high: 1.0, scale_dtype: ScaleDtype::Float32 };
    let (mut scale, mut packed) = ([0.0], [0; 2]);
    let choose = Scales::Choose(reach, &mut scale);
    let thresholds = Books { values: &[0.0, 0.75, f32::NAN], width: 3, count: 1 };
    let codes = Some(&[7, 5, 3, 1][..]);
    quantize_codebook_packed::<Float32>(&x, grid, 4, choose, thresholds, codes, &mut packed)
        .expect("in range");
    assert_eq!((scale, packed), ([4.0], [0x57, 0x33]));
    let mut scale = [9.0; 3];
    choose_scale_codebook(&[-3.0, 0.0, 0.0], &[1.0, 0.0, 5.0], reach, &mut scale).expect("fits");
    assert_eq!(scale, [3.0, 0.0, 5.0]);
    let mut centered = [0.0; 2];
    assert_eq!((center_scales(&[1.0, 4.0], &mut centered), centered), (2.5, [-1.5, 1.5]));
    assert_eq!(center_scales(&[], &mut []), 0.0);
}

#[test]
fn a_code_beyond_its_book_is_a_fault() {
    let (levels, mut x_hat) = ([1.0, 2.0, 3.0], [0.0; 4]);
    let books = Books { values: &levels, width: 3, count: 1 };
    let mut decode = |packed: [u8; 1]| {
        let grid = Grid::of_row(4);
        dequantize_codebook_packed::<Float32>(&packed, grid, 2, None, None, books, &mut x_hat)
    };
    assert_eq!(decode([0b10_01_00_10]), Ok(()));
    assert_eq!(decode([0b11_01_00_10]), Err(Fault::NoLevel));
}

/// The sum of rule 6, by indices.
fn sum(x: &[f64], round: fn(f64) -> f64) -> f64 {
    let mut sums: Vec<f64> = vec![];
    for chunk in x.chunks(65_536) {
        let mut lanes = [0.0; 16];
        for (i, x) in chunk.iter().enumerate() {
            lanes[i % 16] = round(lanes[i % 16] + x);
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = round(lanes[l] + lanes[l + half]);
            }
        }
        sums.push(lanes[0]);
    }
    if sums.len() > 1 { sum(&sums, round) } else { sums[0] }
}

/// Sums and products of two float32, rounded from float64, are those of float32.
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

fn search(x: &[f32], w: &[f32], problem: Problem, given: f32) -> f32 {
    let Problem { levels, thresholds, factors, scale_dtype } = problem;
    let near = |x: f32, s: f32| levels[rank(x * reciprocal(s), thresholds)];
    let moments = |s: f32| {
        let terms = |f: fn(f32, f32) -> f32| -> Vec<f64> {
            let term = |(&x, &w): (&f32, &f32)| f64::from((w * near(x, s)) * f(x, near(x, s)));
            x.iter().zip(w).map(term).collect()
        };
        let (xl, ll) = (terms(|x, _| x), terms(|_, l| l));
        (sum(&xl, single) as f32, sum(&ll, single) as f32)
    };
    let error = |s: f32| {
        let term = |(&x, &w): (&f32, &f32)| {
            let rest = f64::from(x) - f64::from(near(x, s) * s);
            rest * f64::from(w) * rest
        };
        sum(&x.iter().zip(w).map(term).collect::<Vec<_>>(), |x| x)
    };
    let reach = levels.iter().fold(0.0, |max: f32, level| max.max(level.abs()));
    let base = x.iter().fold(0.0, |max: f32, x| max.max(x.abs())) / reach;
    let (mut best, mut most) = (given, 0.0);
    for factor in factors {
        let (mut s, mut xl, mut ll) = (base * factor, 0.0, 0.0);
        for _ in 0..2 {
            (xl, ll) = moments(s);
            s = if ll > 0.0 { xl / ll } else { 0.0 };
        }
        let s = scale_dtype.round(s);
        let gain = s * (2.0 * xl - s * ll);
        if gain > most && (s * reach).is_finite() {
            (best, most) = (s, gain);
        }
    }
    if error(best) < error(given) { best } else { given }
}

#[test]
fn the_scale_search_agrees_with_one_number_at_a_time() {
    let integers: Vec<f32> = (-7_i8..=7).map(f32::from).collect();
    let half_even = integers.windows(2).map(|pair| {
        let middle = pair[0] + 0.5;
        if pair[0] % 2.0 == 0.0 { middle.next_up() } else { middle }
    });
    let tables = [(integers.clone(), half_even.collect()), book(16, 1), book(40, 2), book(3, 4)];
    let shapes = [(1, 1, 1), (3, 200, 64), (2, 100, 37), (1, 70_003, 70_003), (1, 140_000, 66_000)];
    at_every_level(|context| {
        for (seed, (rows, cols, group_size)) in shapes.into_iter().enumerate() {
            let (grid, (levels, thresholds)) = (Grid { rows, cols, group_size }, &tables[seed % 4]);
            let factors = &[0.6, 0.9, -0.7];
            let problem = Problem { levels, thresholds, factors, scale_dtype: ScaleDtype::Float16 };
            let x = nasty(grid.len(), seed as u64 + 1);
            let weights: Vec<f32> = (0..x.len()).map(|i| (i % 5) as f32 / 2.0).collect();
            for w in [None, Some(&*weights)] {
                let ones = vec![1.0; x.len()];
                let mut expected = vec![];
                for row in 0..rows {
                    for range in oracle::groups(cols, group_size) {
                        let range = row * cols + range.start..row * cols + range.end;
                        let w = &w.unwrap_or(&ones)[range.clone()];
                        expected.push(search(&x[range], w, problem, 0.5));
                    }
                }
                let (mut scale, mut error) = (vec![0.5; grid.groups()], vec![0.0; grid.groups()]);
                choose_scale_lsq::<Float32>(&x, grid, w, problem, &mut scale, &mut error)
                    .expect("finite");
                assert_eq!(scale, expected, "{context}, {grid:?}");
                let (mut given, factors) = (scale.clone(), &[][..]);
                let problem = Problem { factors, ..problem };
                let mut again = vec![0.0; grid.groups()];
                choose_scale_lsq::<Float32>(&x, grid, w, problem, &mut given, &mut again)
                    .expect("finite");
                assert_eq!((given, again), (scale, error), "{context}, {grid:?}");
            }
        }
    });
}
