//! Every kernel against a naive oracle, bit for bit: at each SIMD level, with several numbers of
//! threads, on shapes that fit nothing.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx_emulator;
mod codebooks;
mod conversions;
mod divisions;
mod faults;
mod floats;
mod kernels;
mod kmeans;
mod kmeans_1d;
mod oracle;
mod products;
mod solving;
mod worked_numbers;

use std::sync::{Mutex, PoisonError};

use crate::rows;
use crate::simd::{self, Level};

/// Runs `test` at every level of this machine with one, two and three threads, and asserts that the
/// level is the one it says. Level and threads belong to the process, so such tests take turns.
fn at_every_level(mut test: impl FnMut(&str)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for level in levels() {
        for threads in [1, 2, 3] {
            simd::force_level(level);
            rows::set_num_threads(threads);
            test(&format!("{level}, {threads} threads"));
            assert_eq!((simd::level(), rows::num_threads()), (level, threads));
        }
    }
    simd::set_level(None).expect("the highest level");
}

/// The levels of this machine, and AMX where only tiles are missing, which then are emulated.
fn levels() -> Vec<Level> {
    let mut levels = simd::levels();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if levels.last() == Some(&Level::Avx512) {
        amx_emulator::install();
        levels.push(Level::Amx);
    }
    levels
}

/// Numbers that are hard on a quantizer, `len` of them, different for each `seed`.
fn nasty(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    let special = [0.0, -0.0, f32::MIN_POSITIVE, -1e-45, 1e-45, 0.5, -1.5, 2.5, 1e-20, 60000.0];
    (0..len)
        .map(|_| match (seed % 4, next()) {
            // Of every size, subnormals included, but not so large that a scale overflows float16.
            (0, bits) => f32::from_bits(bits & 0xc5ff_ffff),
            // Halves: most quotients are ties.
            (1, bits) => (bits % 509) as f32 / 2.0 - 127.0,
            (2, bits) if bits % 3 == 0 => special[bits as usize / 3 % special.len()],
            (_, bits) => (bits as f32 / 4_294_967_296.0 - 0.5) * 6.0,
        })
        .collect()
}
