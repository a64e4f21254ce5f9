//! Cutting an array into blocks and running them on all threads. The only place that knows rayon.
//!
//! The cuts depend on the shape alone, so no result depends on the number of threads. Blocks come
//! in memory order and do not overlap; small arrays are one block, which runs on the calling thread
//! and costs no synchronization.

use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::Fault;
use crate::simd;
use crate::x86::{StreamWriter, Streamable};

/// Elements in a block, about: what a thread takes at a time.
const BLOCK: usize = 1 << 16;

/// Elements in a part of a block, about: its float32 input (16 KB) stays in the first-level cache
/// between the pass that finds the range and the pass that encodes.
const PART: usize = 1 << 12;

/// Groups up to this size are never cut, so that one pass over memory can do both.
const LARGE_GROUP: usize = 1 << 16;

/// Elements in a tile, the part of a block that is worked on at a time: small beside any first-level
/// cache, and a multiple of 8, so that its packed codes start on a byte.
pub(crate) const TILE: usize = 512;

/// The most threads one may ask for.
pub const MAX_THREADS: usize = 1024;

/// A C-contiguous 2-D array whose rows are cut into groups of `group_size`; the last group of a row
/// may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Number of rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Elements in a group; at least 1.
    pub group_size: usize,
}

/// A part of a grid: whole rows, or a piece of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of (pieces of) rows.
    pub rows: usize,
    /// The columns of each.
    pub cols: Range<usize>,
    /// Flat indices of the groups it touches.
    pub groups: Range<usize>,
    /// The same groups, counted from the start of a row.
    pub row_groups: Range<usize>,
}

/// The elements of one group within a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the group in its row.
    pub group: usize,
    /// Where its elements are among those asked for.
    pub elements: Range<usize>,
}

impl Grid {
    /// One row that is one group.
    pub(crate) fn of_row(cols: usize) -> Self {
        Self { rows: 1, cols, group_size: cols }
    }

    /// Number of groups in a row.
    #[must_use]
    pub fn groups_per_row(&self) -> usize {
        self.cols.div_ceil(self.group_size)
    }

    /// Number of groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.rows * self.groups_per_row()
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every group lies within one block.
    pub(crate) fn keeps_groups_whole(&self) -> bool {
        self.group_size.min(self.cols) <= LARGE_GROUP
    }

    /// Columns of a block of about `size` elements where a row is larger. A piece of a row starts on
    /// a byte however many bits a code has.
    fn block_cols(&self, size: usize) -> usize {
        let step = if self.keeps_groups_whole() {
            // The least common multiple with 8.
            let group_size = self.group_size.min(self.cols);
            group_size << (3 - group_size.trailing_zeros().min(3))
        } else {
            8
        };
        step.saturating_mul((size / step).max(1)).min(self.cols)
    }

    /// Blocks of about `size` elements, in memory order.
    fn cut(self, size: usize) -> impl ExactSizeIterator<Item = Block> + Send {
        let whole_rows = (size / self.cols.max(1)).max(1);
        let cols = if whole_rows > 1 { self.cols } else { self.block_cols(size) };
        let rows = if cols == self.cols { whole_rows } else { 1 };
        let (down, across) = (self.rows.div_ceil(rows), self.cols.div_ceil(cols.max(1)));
        let per_row = self.groups_per_row();
        let block = move |index: usize| {
            let (row, col) = (index / across * rows, index % across * cols);
            let block_rows = rows.min(self.rows - row);
            let last = (col + cols).min(self.cols);
            let row_groups = col / self.group_size..last.div_ceil(self.group_size);
            let last_row = row + block_rows - 1;
            let groups = row * per_row + row_groups.start..last_row * per_row + row_groups.end;
            Block { rows: block_rows, cols: col..last, groups, row_groups }
        };
        (0..down * across).map(block)
    }

    /// The parts of a block that has been made a grid of its own, in memory order.
    pub(crate) fn parts(self) -> impl Iterator<Item = Block> {
        self.cut(PART)
    }
}

/// Walks along a row from group to group.
pub(crate) struct Groups {
    group_size: usize,
    /// Index in its row of the group it is in.
    group: usize,
    /// Elements that are left of it.
    left: usize,
}

impl Groups {
    /// The groups of the next `len` elements of the row.
    #[inline(always)]
    pub(crate) fn segments(&mut self, len: usize) -> impl Iterator<Item = Segment> {
        let mut start = 0;
        std::iter::from_fn(move || {
            if start >= len {
                return None;
            }
            if self.left == 0 {
                self.group += 1;
                self.left = self.group_size;
            }
            let end = len.min(start + self.left);
            let segment = Segment { group: self.group, elements: start..end };
            self.left -= end - start;
            start = end;
            Some(segment)
        })
    }
}

impl Block {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.cols.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flat index of a group, `row` being counted in the block and `group` in the row.
    pub(crate) fn group_of(&self, row: usize, group: usize) -> usize {
        self.groups.start + self.index_of(row, group)
    }

    /// Index of a group, counted from the first of the block.
    #[inline(always)]
    pub(crate) fn index_of(&self, row: usize, group: usize) -> usize {
        row * self.row_groups.len() + group - self.row_groups.start
    }

    /// The block as a grid of its own; it must not cut a group.
    pub(crate) fn grid(&self, whole: Grid) -> Grid {
        Grid { rows: self.rows, cols: self.cols.len(), group_size: whole.group_size }
    }

    /// The groups of a row, from the block's first column on.
    #[inline(always)]
    pub(crate) fn row(&self, grid: Grid) -> Groups {
        let group = self.row_groups.start;
        // Not (group + 1) * group_size, which overflows where a group is larger than a row.
        let left = grid.group_size - (self.cols.start - group * grid.group_size);
        Groups { group_size: grid.group_size, group, left }
    }

    /// Bytes of the packed codes, where every piece of a row starts on a byte.
    #[must_use]
    pub fn packed_len(&self, bits: u32) -> usize {
        self.rows * crate::pack::packed_len(self.cols.len(), bits)
    }
}

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

/// Cuts the first `n` elements off `rest`, or all there are.
#[inline(always)]
pub(crate) fn take_up_to<'a, T>(rest: &mut &'a [T], n: usize) -> &'a [T] {
    take(rest, n.min(rest.len()))
}

/// Cuts the first `n` elements off `rest`.
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
    let blocks = grid.cut(BLOCK);
    let count = blocks.len();
    let jobs = Mutex::new(blocks.map(move |block| {
        let job = cut(&block);
        (block, job)
    }));
    let found = Mutex::new(None);
    let worker = || {
        simd::with_default_float_state(|| {
            loop {
                let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((block, job)) = next else { break };
                if let Err(fault) = work(block, job) {
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
/// A message that names the variable, its value and what is accepted.
pub fn threads_from_environment() -> Result<Option<usize>, String> {
    let value = std::env::var_os("QRS_NUM_THREADS").filter(|value| !value.is_empty());
    value.map(|value| parse_threads(&value.to_string_lossy())).transpose()
}

fn parse_threads(value: &str) -> Result<usize, String> {
    let threads = value.trim().parse().ok().filter(|n| (1..=MAX_THREADS).contains(n));
    threads.ok_or_else(|| {
        format!("QRS_NUM_THREADS must be an integer from 1 to {MAX_THREADS}: got {value:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything_once_and_in_order() {
        for (rows, cols, group_size) in [
            (3, 7, 2),
            (1, 300_000, 100),
            (500, 1000, 1),
            (2, 200_001, 70_000),
            (9, 65_537, 65_536),
        ] {
            let grid = Grid { rows, cols, group_size };
            let (mut elements, mut bytes) = (0, 0);
            for block in grid.cut(BLOCK) {
                let (row, col) = (elements / cols, elements % cols);
                assert_eq!(block.cols.start, col);
                assert_eq!(bytes, row * crate::pack::packed_len(cols, 3) + col / 8 * 3);
                assert_eq!(block.groups.start, row * grid.groups_per_row() + col / group_size);
                assert!(!grid.keeps_groups_whole() || col % group_size == 0);
                elements += block.len();
                bytes += block.packed_len(3);
            }
            assert_eq!(elements, grid.len());
        }
    }

    #[test]
    fn p10_numbers_of_threads() {
        assert_eq!(parse_threads(" 4 "), Ok(4));
        for bad in ["0", "-1", "1000000", "abc", "1.5"] {
            let message = parse_threads(bad).expect_err("refused");
            assert!(message.contains("QRS_NUM_THREADS") && message.contains(bad), "{message}");
        }
    }

    #[test]
    fn every_thread_gets_some_work() {
        let threads = Mutex::new(std::collections::HashSet::new());
        let arrived = std::sync::Barrier::new(2);
        set_num_threads(2);
        let first = AtomicUsize::new(0);
        on_all_threads(2, || {
            threads.lock().expect("not poisoned").insert(std::thread::current().id());
            if first.fetch_add(1, Ordering::Relaxed) < 2 {
                arrived.wait();
            }
        });
        assert_eq!(threads.into_inner().expect("not poisoned").len(), 2);
    }
}
