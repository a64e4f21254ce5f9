//! The twin of a kernel: the same bytes read and written by the same number of threads, with the
//! best stores there are and no arithmetic but an OR that keeps the loads alive. It is the roofline a
//! kernel is measured against.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// The calling thread and a pool of the others, as kernels have it.
pub struct Threads {
    others: Option<ThreadPool>,
    pub count: usize,
}

impl Threads {
    pub fn new(count: usize) -> Self {
        let pool = || ThreadPoolBuilder::new().num_threads(count - 1).build().expect("threads");
        Self { others: (count > 1).then(pool), count }
    }

    /// Runs `work` once on each thread.
    pub fn run(&self, work: impl Fn() + Sync) {
        let Some(others) = &self.others else { return work() };
        others.in_place_scope(|scope| {
            for _ in 1..self.count {
                scope.spawn(|_| work());
            }
            work();
        });
    }
}

/// Lines (64 bytes) that one task moves at a time on the larger side.
const TASK_LINES: usize = 4096;

/// Bytes ahead of what it reads that a twin asks for, where it does.
const FETCH_AHEAD: usize = 16384;

/// How a twin stores: vector width and kind; fetched is streamed, and asks for its input in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    Fetched512,
    Streamed512,
    Plain512,
    Fetched256,
    Streamed256,
    Plain256,
    Portable,
}

impl Stores {
    /// What this CPU can do.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                all.extend([Self::Fetched256, Self::Streamed256, Self::Plain256]);
            }
            if is_x86_feature_detected!("avx512f") {
                all.extend([Self::Fetched512, Self::Streamed512, Self::Plain512]);
            }
        }
        all
    }
}

/// Which lines a twin moves: `read` lines in for every `write` lines out.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub read: usize,
    pub write: usize,
}

/// Addresses that tasks on several threads take their own part of.
#[derive(Clone, Copy)]
struct Parts {
    src: *const u8,
    dst: *mut u8,
}
// SAFETY: every task works on lines of its own (`move_all` cuts them), within the borrow it holds.
unsafe impl Send for Parts {}
// SAFETY: as above.
unsafe impl Sync for Parts {}

/// Reads all of `src` and writes all of `dst`, whose lengths are in `ratio`, on all `threads`.
pub fn move_all(threads: &Threads, stores: Stores, ratio: Ratio, src: &[u8], dst: &mut [u8]) {
    let (step_in, step_out) = (ratio.read * 64, ratio.write * 64);
    let steps = src.len() / step_in;
    assert!(steps * step_out <= dst.len() && dst.as_ptr().align_offset(64) == 0);
    let task = (TASK_LINES / ratio.read.max(ratio.write)).max(1);
    let parts = Parts { src: src.as_ptr(), dst: dst.as_mut_ptr() };
    let next = AtomicUsize::new(0);
    threads.run(|| {
        let parts = &parts;
        loop {
            let first = next.fetch_add(task, Ordering::Relaxed);
            if first >= steps {
                break;
            }
            let count = task.min(steps - first);
            // SAFETY: `first + count <= steps`, so both ranges lie in the slices; no two tasks take
            // the same steps; `dst` is aligned; `available` checked the CPU.
            unsafe {
                let (src, dst) = (parts.src.add(first * step_in), parts.dst.add(first * step_out));
                move_steps(stores, ratio, src, dst, count);
            }
        }
    });
}

/// # Safety
/// `count` steps are readable at `src` and writable at `dst`, which is aligned to 64; the CPU has what
/// `stores` needs.
unsafe fn move_steps(stores: Stores, ratio: Ratio, src: *const u8, dst: *mut u8, count: usize) {
    /// Compile-time numbers of lines, so that each twin is one unrolled loop.
    macro_rules! by_ratio {
        ($function:ident $(, $streamed:literal, $fetched:literal)?) => {
            // SAFETY: the caller's.
            unsafe {
                match (ratio.read, ratio.write) {
                    (1, 1) => $function::<1, 1 $(, $streamed, $fetched)?>(src, dst, count),
                    (2, 1) => $function::<2, 1 $(, $streamed, $fetched)?>(src, dst, count),
                    (4, 1) => $function::<4, 1 $(, $streamed, $fetched)?>(src, dst, count),
                    (8, 1) => $function::<8, 1 $(, $streamed, $fetched)?>(src, dst, count),
                    (8, 3) => $function::<8, 3 $(, $streamed, $fetched)?>(src, dst, count),
                    (1, 2) => $function::<1, 2 $(, $streamed, $fetched)?>(src, dst, count),
                    (1, 4) => $function::<1, 4 $(, $streamed, $fetched)?>(src, dst, count),
                    (1, 8) => $function::<1, 8 $(, $streamed, $fetched)?>(src, dst, count),
                    (3, 8) => $function::<3, 8 $(, $streamed, $fetched)?>(src, dst, count),
                    (8, 0) => $function::<8, 0 $(, $streamed, $fetched)?>(src, dst, count),
                    other => unreachable!("no twin moves {other:?} lines"),
                }
            }
        };
    }
    match stores {
        Stores::Portable => by_ratio!(portable),
        #[cfg(target_arch = "x86_64")]
        Stores::Fetched512 => by_ratio!(avx512, true, true),
        #[cfg(target_arch = "x86_64")]
        Stores::Streamed512 => by_ratio!(avx512, true, false),
        #[cfg(target_arch = "x86_64")]
        Stores::Plain512 => by_ratio!(avx512, false, false),
        #[cfg(target_arch = "x86_64")]
        Stores::Fetched256 => by_ratio!(avx2, true, true),
        #[cfg(target_arch = "x86_64")]
        Stores::Streamed256 => by_ratio!(avx2, true, false),
        #[cfg(target_arch = "x86_64")]
        Stores::Plain256 => by_ratio!(avx2, false, false),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("not available"),
    }
}

/// The plain twin, left to the compiler.
unsafe fn portable<const R: usize, const W: usize>(src: *const u8, dst: *mut u8, count: usize) {
    type Line = [u64; 8];
    for step in 0..count {
        let mut all: Line = [0; 8];
        for line in 0..R {
            // SAFETY: within the caller's readable steps.
            let value = unsafe { src.add((step * R + line) * 64).cast::<Line>().read_unaligned() };
            for (sum, part) in all.iter_mut().zip(value) {
                *sum |= part;
            }
        }
        for line in 0..W {
            // SAFETY: within the caller's writable steps.
            unsafe { dst.add((step * W + line) * 64).cast::<Line>().write_unaligned(all) };
        }
        if W == 0 {
            std::hint::black_box(all);
        }
    }
}

/// A twin with vectors: OR of all that was read, stored as often as the ratio says.
macro_rules! vector_twin {
    ($name:ident, $feature:literal, $bytes:literal, $zero:ident, $load:ident, $or:ident, $plain:ident,
     $streamed:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $feature)]
        unsafe fn $name<
            const R: usize,
            const W: usize,
            const STREAMED: bool,
            const FETCHED: bool,
        >(
            src: *const u8,
            dst: *mut u8,
            count: usize,
        ) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            use std::arch::x86_64::{$load, $or, $plain, $streamed, $zero};
            const LANES: usize = 64 / $bytes;
            // Two sums, so that a step does not wait for the one before.
            let mut kept = [$zero(); 2];
            for step in 0..count {
                let mut sums = if W == 0 { kept } else { [$zero(); 2] };
                if FETCHED {
                    for line in 0..R {
                        // Not a read: it may be behind the end.
                        let line = src.wrapping_add((step * R + line) * 64 + FETCH_AHEAD);
                        _mm_prefetch::<_MM_HINT_T0>(line.cast());
                    }
                }
                for part in 0..R * LANES {
                    // SAFETY: within the caller's readable steps.
                    let value = unsafe { $load(src.add(step * R * 64 + part * $bytes).cast()) };
                    sums[part % 2] = $or(sums[part % 2], value);
                }
                if W == 0 {
                    kept = sums;
                }
                let sum = $or(sums[0], sums[1]);
                for part in 0..W * LANES {
                    // SAFETY: within the caller's writable steps, and aligned because `dst` is.
                    unsafe {
                        let to = dst.add(step * W * 64 + part * $bytes).cast();
                        if STREAMED { $streamed(to, sum) } else { $plain(to, sum) }
                    }
                }
            }
            std::hint::black_box(kept);
            qrs::x86::stream_fence();
        }
    };
}
vector_twin!(
    avx512,
    "avx512f",
    64,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_or_si512,
    _mm512_store_si512,
    _mm512_stream_si512
);
vector_twin!(
    avx2,
    "avx2",
    32,
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_or_si256,
    _mm256_store_si256,
    _mm256_stream_si256
);
