//! Products of codes against sums written as the formula, at every level.

use super::at_every_level;
use crate::grouped::{linear_grouped_int8, matmul_bf16x2, matmul_grouped, pack_grouped};
use crate::int8::{Rows, linear_int8, matmul_int8, pack_int8};
use crate::numeric::Float32;
use crate::pack::pack_bits;

/// Bytes that look random.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Rows, outputs, inputs. The last ones have rows and outputs enough for matrix registers.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (2, 17, 5),
    (7, 33, 64),
    (13, 70, 131),
    (1, 300, 40),
    (40, 3, 9),
    (16, 32, 64),
    (53, 70, 131),
    (70, 110, 150),
];

#[test]
fn int8_products_are_the_formula() {
    at_every_level(|context| {
        for (seed, &(m, n, k)) in SHAPES.iter().enumerate() {
            let codes = bytes(m * k, seed as u64);
            let w: Vec<i8> = bytes(n * k, 77).into_iter().map(|b| b as i8).collect();
            let w_zeros: Vec<i32> = (0..n as i32).map(|j| j % 7 - 3).collect();
            let weights = pack_int8(&w, n, k, Some(&w_zeros), 1);
            for signed in [false, true] {
                let zero_points: Vec<i32> = (0..m as i32).map(|i| 5 - i).collect();
                let rows = Rows { codes: &codes, signed, k, m, zero_points: &zero_points };
                let (mut sums, mut y) = (vec![0; m * n], vec![0.0; m * n]);
                matmul_int8(rows, &weights, None, &mut sums);
                linear_int8(rows, &weights, &[0.5], &vec![2.0; n], None, true, &mut y);
                for i in 0..m {
                    for j in 0..n {
                        let sum: i32 = (0..k)
                            .map(|l| {
                                let code = codes[i * k + l];
                                let x = if signed { i32::from(code as i8) } else { code.into() };
                                (x - zero_points[i]) * (i32::from(w[j * k + l]) - w_zeros[j])
                            })
                            .sum();
                        assert_eq!(sums[i * n + j], sum, "{context}: {i}, {j} of {m}, {n}, {k}");
                        assert_eq!(y[i * n + j], sum.max(0) as f32, "{context}");
                    }
                }
            }
        }
    });
}

#[test]
fn grouped_products_are_the_formula() {
    at_every_level(|context| {
        for (&(m, n, k), group_size) in SHAPES.iter().zip([1, 3, 32, 16, 8, 9, 64, 33, 70]) {
            let groups = k.div_ceil(group_size);
            let codes: Vec<u8> = bytes(n * k, 3).into_iter().map(|code| code & 15).collect();
            let mut packed = vec![0; n * k.div_ceil(2)];
            pack_bits(&codes, k, 4, &mut packed);
            let scale: Vec<f32> = (0..n * groups).map(|g| 0.5 + g as f32 / 64.0).collect();
            let zeros: Vec<i32> = (0..(n * groups) as i32).map(|g| g % 5).collect();
            let shape = (n, k);
            let weights =
                pack_grouped(&packed, shape, group_size, (4, false), &scale, Some(&zeros), None)
                    .expect("every code has a level");
            let x: Vec<i8> = bytes(m * k, 9).into_iter().map(|b| b as i8).collect();
            // Of more bits than a bfloat16 number has.
            let wide: Vec<f32> = x.iter().map(|&x| f32::from(x) * 9.0).collect();
            let mut integers = vec![0.0; m * n];
            linear_grouped_int8(&x, &weights, &vec![1.0; m], None, &mut integers);
            let mut floats = [false, true]
                .map(|as_bf16x2| {
                    let mut y = vec![0.0; m * n];
                    matmul_grouped::<Float32>(&wide, &weights, None, as_bf16x2, &mut y);
                    y
                })
                .to_vec();
            // Levels without matrices of bfloat16 do the same in plain Rust.
            floats.push(vec![0.0; m * n]);
            matmul_bf16x2(&wide, &weights, None, &mut floats[2]);
            for i in 0..m {
                for j in 0..n {
                    let (mut rounded, mut fused) = (0.0_f32, 0.0_f32);
                    for g in 0..groups {
                        let inputs = g * group_size..k.min((g + 1) * group_size);
                        let level = |l: usize| i32::from(codes[j * k + l]) - zeros[j * groups + g];
                        let sum: i32 = inputs.map(|l| i32::from(x[i * k + l]) * level(l)).sum();
                        // Sums as small as these are exact in float32, in whatever order.
                        let scale = scale[j * groups + g];
                        rounded += sum as f32 * scale;
                        fused = (9.0 * sum as f32).mul_add(scale, fused);
                    }
                    assert_eq!(integers[i * n + j], rounded, "{context}: {m}, {n}, {k}");
                    for y in &floats {
                        assert_eq!(y[i * n + j], fused, "{context}: {m}, {n}, {k}");
                    }
                }
            }
        }
    });
}
