//! Running the blocks of an array on all threads. The only place that knows rayon.
//!
//! Blocks do not overlap, and where they are cut does not depend on threads (`grid`); so no result
//! does. Small arrays are one block, which runs on the calling thread and costs no synchronization.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::Fault;
use crate::grid::{Block, Grid};
use crate::simd;
use crate::x86::{StreamWriter, Streamable};

/// Elements in a block, about: what a thread takes at a time.
const BLOCK: usize = 1 << 17;

/// Elements in a tile, the part of a block that is worked on at a time: small beside any first-level
/// cache, and a multiple of 8, so that its packed codes start on a byte.
pub(crate) const TILE: usize = 1024;
// A tile is staged whole on its way around the caches.
const _: () = assert!(TILE <= StreamWriter::<u8>::MAX_BLOCK);

/// The most threads one may ask for.
pub const MAX_THREADS: usize = 1024;

/// Where the results of a block go, in order: into place, or around the caches.
pub(crate) enum Output<'a, T: Streamable> {
    Plain(&'a mut [T]),
    Stream(StreamWriter<'a, T>),
}

impl<'a, T: Streamable> Output<'a, T> {
    #[inline(always)]
    pub(crate) fn new(place: &'a mut [T], stream: bool) -> Self {
        if stream { Self::Stream(StreamWriter::new(place)) } else { Self::Plain(place) }
    }

    /// The next `len` results, at most a tile, to be written before the next call.
    #[inline(always)]
    pub(crate) fn next(&mut self, len: usize) -> &mut [T] {
        match self {
            Self::Plain(rest) => take_mut(rest, len),
            Self::Stream(writer) => writer.block(len),
        }
    }

    #[inline(always)]
    pub(crate) fn finish(self) {
        if let Self::Stream(writer) = self {
            writer.finish();
        }
    }
}

/// Cuts the first `n` elements off `rest`.
pub(crate) fn take<'a, T>(rest: &mut &'a [T], n: usize) -> &'a [T] {
    let (head, tail) = rest.split_at(n);
    *rest = tail;
    head
}

/// Cuts the first `n` elements off `rest`.
#[expect(clippy::mut_mut, reason = "it is the slice itself that shrinks")]
pub(crate) fn take_mut<'a, T>(rest: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let (head, tail) = mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}

/// Runs `work` once for each block of `grid`, with what `cut` takes for it; blocks are cut in
/// memory order and worked on in any order, by all threads.
///
/// # Errors
/// The fault that [`Fault::or`] prefers among those `work` returned.
pub(crate) fn for_each_block<J>(
    grid: Grid,
    mut cut: impl FnMut(&Block) -> J + Send,
    work: impl Fn(Block, J) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    let jobs = grid.cut(BLOCK).map(move |block| {
        let job = cut(&block);
        (block, job)
    });
    for_each_job(jobs, |(block, job)| work(block, job))
}

/// Runs `work` once for each job; they are taken in order and worked on by all threads.
///
/// # Errors
/// The fault that [`Fault::or`] prefers among those `work` returned.
pub(crate) fn for_each_job<J>(
    jobs: impl ExactSizeIterator<Item = J> + Send,
    work: impl Fn(J) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    let count = jobs.len();
    let jobs = Mutex::new(jobs);
    let found = Mutex::new(None);
    let worker = || {
        simd::with_default_float_state(|| {
            loop {
                let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(job) = next else { break };
                if let Err(fault) = work(job) {
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    *found = Some(found.map_or(fault, |other: Fault| fault.or(other)));
                }
            }
        });
    };
    on_all_threads(count, worker);
    found.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Runs `worker` on the calling thread and, where there is more than one job, on the pool's.
fn on_all_threads(jobs: usize, worker: impl Fn() + Sync) {
    let Some(pool) = (jobs > 1).then(pool).flatten() else { return worker() };
    pool.in_place_scope(|scope| {
        for _ in 0..pool.current_num_threads().min(jobs - 1) {
            scope.spawn(|_| worker());
        }
        worker();
    });
}

/// The threads asked for; 0 while nobody has asked.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The pool, the process that made it, and the number of threads that were asked for.
static POOL: RwLock<Option<(u32, usize, Arc<ThreadPool>)>> = RwLock::new(None);

/// The pool of `num_threads() - 1` threads (the caller is the remaining one), or None where the
/// caller should do the work alone. Never waits: a lock found held is either another thread making
/// the pool, or was copied by `fork` from a thread that does not exist here.
fn pool() -> Option<Arc<ThreadPool>> {
    let (process, threads) = (std::process::id(), num_threads());
    if threads == 1 {
        return None;
    }
    if let Some((owner, size, pool)) = POOL.try_read().ok()?.as_ref()
        && (*owner, *size) == (process, threads)
    {
        return Some(Arc::clone(pool));
    }
    let mut slot = POOL.try_write().ok()?;
    // Where threads cannot be had, fewer do.
    let sizes = std::iter::successors(Some(threads - 1), |&n| (n > 1).then_some(n / 2));
    let made = sizes.into_iter().find_map(|n| {
        let name = |index| format!("qrs-{index}");
        ThreadPoolBuilder::new().num_threads(n).thread_name(name).build().ok()
    });
    let pool = Arc::new(made?);
    let old = slot.replace((process, threads, Arc::clone(&pool)));
    if let Some((owner, _, old)) = old
        && owner != process
    {
        // Its threads stayed in the parent; waking them up to end would wait forever.
        mem::forget(old);
    }
    Some(pool)
}

/// The number of threads in use: what [`set_num_threads`] or `QRS_NUM_THREADS` asked for, or one for
/// each CPU this process may run on.
#[must_use]
pub fn num_threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => {
            let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let asked = threads_from_environment().ok().flatten();
            let threads = asked.unwrap_or(cpus.min(MAX_THREADS));
            THREADS.store(threads, Ordering::Relaxed);
            threads
        }
        known => known,
    }
}

/// Sets the number of threads.
///
/// # Panics
/// If it is not in `1..=MAX_THREADS`.
pub fn set_num_threads(threads: usize) {
    assert!((1..=MAX_THREADS).contains(&threads), "{threads} threads");
    THREADS.store(threads, Ordering::Relaxed);
}

/// What `QRS_NUM_THREADS` asks for; None where it is unset or empty.
///
/// # Errors
/// What is expected of its value, in words.
pub fn threads_from_environment() -> Result<Option<usize>, String> {
    let value = std::env::var_os("QRS_NUM_THREADS").filter(|value| !value.is_empty());
    value.map(|value| parse_threads(&value.to_string_lossy())).transpose()
}

/// What is expected of a number of threads.
#[must_use]
pub fn expected_threads() -> String {
    format!("an integer from 1 to {MAX_THREADS}")
}

fn parse_threads(value: &str) -> Result<usize, String> {
    let threads = value.trim().parse().ok().filter(|n| (1..=MAX_THREADS).contains(n));
    threads.ok_or_else(expected_threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_numbers_of_threads() {
        assert_eq!(parse_threads(" 4 "), Ok(4));
        for bad in ["0", "-1", "1000000", "abc", "1.5"] {
            assert_eq!(parse_threads(bad), Err(expected_threads()), "{bad}");
        }
    }
}
