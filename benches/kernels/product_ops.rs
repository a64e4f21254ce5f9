//! The kernels of layers: one row times a matrix, which reads the weights and little else, and what
//! stands between layers. With many rows products are bound by arithmetic: `benches/matmul_peers.py`.

use qrs::functional::{gelu, layer_norm, softmax};
use qrs::grouped::{linear_grouped_int8, matmul_grouped, pack_grouped};
use qrs::int8::{Rows, matmul_int8, pack_int8};
use qrs::numeric::{BFloat16, Element, Float32};

use crate::ops::{Case, Entry, bytes_of, case, normal};

/// Inputs of a layer, and features of a row.
const INPUTS: usize = 4096;
const FEATURES: usize = 1536;
const GROUP: usize = 128;

/// Every case of the table.
#[rustfmt::skip]
pub fn cases() -> Vec<Entry> {
    vec![
        ("matmul_int8 one row", None, int8),
        ("matmul_grouped int4 g128 one row", None, |n| grouped(n, 4, false)),
        ("matmul_grouped int8 g128 one row", None, |n| grouped(n, 8, false)),
        ("linear_grouped_int8 int4 g128 one row", None, |n| grouped(n, 4, true)),
        ("gelu f32", None, |n| rows::<Float32>(n, |x, y| gelu::<Float32>(x, y).expect("finite"))),
        ("gelu bf16", None, |n| rows::<BFloat16>(n, |x, y| gelu::<BFloat16>(x, y).expect("finite"))),
        ("softmax f32", None, |n| {
            rows::<Float32>(n, |x, y| softmax::<Float32>(x, FEATURES, y).expect("finite"))
        }),
        ("layer_norm f32", None, |n| rows::<Float32>(n, |x, y| {
            let (weight, bias) = ([0.5; FEATURES], [0.25; FEATURES]);
            layer_norm::<Float32>(x, &weight, &bias, 1e-5, y).expect("finite");
        })),
    ]
}

fn int8(bytes: usize) -> Case {
    let n = bytes / INPUTS;
    let w: Vec<i8> = bytes_of(n * INPUTS).into_iter().map(|byte| byte as i8).collect();
    let weights = pack_int8(&w, n, INPUTS, None, 1);
    let (codes, mut sums) = (bytes_of(INPUTS), vec![0; n]);
    case(w.len(), 0, move || {
        let rows = Rows { codes: &codes, signed: true, k: INPUTS, m: 1, zero_points: &[] };
        matmul_int8(rows, &weights, None, &mut sums);
    })
}

fn grouped(bytes: usize, bits: u32, integers: bool) -> Case {
    let row = INPUTS * bits as usize / 8;
    let n = bytes / row;
    let packed = bytes_of(n * row);
    let scale = vec![0.01; n * INPUTS / GROUP];
    let weights = pack_grouped(&packed, (n, INPUTS), GROUP, (bits, true), &scale, None, None);
    let weights = weights.expect("every code has a level");
    let (x, mut y) = (normal::<Float32>(INPUTS), vec![0.0; n]);
    let codes: Vec<i8> = bytes_of(INPUTS).into_iter().map(|byte| byte as i8).collect();
    case(packed.len(), 0, move || {
        if integers {
            linear_grouped_int8(&codes, &weights, &[0.5], None, &mut y);
        } else {
            matmul_grouped::<Float32>(&x, &weights, None, false, &mut y);
        }
    })
}

fn rows<E: Element>(bytes: usize, run: fn(&[E::Repr], &mut [E::Repr])) -> Case {
    let len = bytes / size_of::<E::Repr>() / FEATURES * FEATURES;
    let x = normal::<E>(len);
    let mut y = normal::<E>(len);
    case(size_of_val(&*x), size_of_val(&*y), move || run(&x, &mut y))
}
