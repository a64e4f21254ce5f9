//! Streaming stores: results that are larger than the caches are written around them.
//!
//! A plain store to a line that is not in the cache first reads that line from memory, so an output
//! costs its size twice. A non-temporal store of a whole, aligned 64-byte line does not: on large
//! outputs that is worth 1.3x to 2x (`cargo bench -- twin` prints both). It has three rules, and this
//! file is where they are kept:
//!
//! * **Whole lines only.** A line that is written in parts, or in part with plain stores, is slower
//!   than either kind alone. numpy's large arrays start 16 bytes into a page, so blocks of a kernel
//!   straddle lines unless somebody cares. [`StreamWriter`] does: it stages what a kernel decodes in
//!   a buffer in L1, sends whole lines, and carries the rest of a line over to the next block; only
//!   the first and the last line of an output are plain. [`stream_copy`] is for one block at a time:
//!   it peels the head and the tail of each block it is given.
//! * **Only what will not be read soon.** The lines leave the cache: below [`STREAM_MIN_BYTES`] of
//!   output a kernel uses plain stores ([`worth_streaming`]).
//! * **A fence before another thread reads**: [`stream_fence`], once per task, after its last store.
//!   [`StreamWriter::finish`] does it.
//!
//! Other architectures get plain copies. Not here: arithmetic. The kernels are scalar bodies compiled
//! per level (`simd.rs`).

use std::mem;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Outputs of at least this many bytes are streamed; smaller ones may still be in a cache when the
/// caller reads them.
pub const STREAM_MIN_BYTES: usize = 8 << 20;

/// Whether an output of `bytes` is large enough to be written around the caches.
#[inline]
#[must_use]
pub fn worth_streaming(bytes: usize) -> bool {
    bytes >= STREAM_MIN_BYTES
}

/// Bytes of a cache line, the unit of a streaming store.
const LINE: usize = 64;

/// Elements that [`StreamWriter`] stages, and what it carries over: a tile of any kernel, in L1.
const STAGE: usize = 1024 + LINE;

/// What may be streamed: plain numbers whose bytes are all initialized and whose size divides a line.
pub trait Streamable: Copy + Default + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! streamable {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Streamable for $t {})* };
}
streamable!(u8, i8, u16, i16, u32, f32);

/// Copies `src` into `dst` with streaming stores; the parts of a line at either end are stored plainly.
///
/// # Panics
/// If the lengths differ.
#[inline]
pub fn stream_copy<T: Streamable>(dst: &mut [T], src: &[T]) {
    assert_eq!(dst.len(), src.len(), "stream_copy: lengths differ");
    let head = head_len(dst);
    let (dst_head, dst) = dst.split_at_mut(head);
    let (src_head, src) = src.split_at(head);
    dst_head.copy_from_slice(src_head);
    let body = dst.len() - dst.len() % line_len::<T>();
    let (dst, dst_tail) = dst.split_at_mut(body);
    let (src, src_tail) = src.split_at(body);
    stream_lines(dst, src);
    dst_tail.copy_from_slice(src_tail);
}

/// Orders this thread's streaming stores before whatever it publishes next.
#[inline]
pub fn stream_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: sfence is part of SSE, which every x86-64 CPU has, and touches no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Asks for the lines of `N` elements at `from` to be brought into the caches. Any address will do,
/// also one behind the end of an array.
///
/// A kernel that goes over a part of its input twice, to find the range and to encode, leaves the
/// memory idle while it works in the cache, unless it asks for what comes next as it goes: half of it
/// in each pass, a line at a time, since many at once find no free buffer.
#[inline(always)]
pub fn prefetch<T: Streamable, const N: usize>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..N.div_ceil(line_len::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = from.wrapping_add(line * line_len::<T>());
        // SAFETY: prefetching is part of SSE, never faults, and changes no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Writes `dst` front to back in blocks of any length, as whole streamed lines.
///
/// ```
/// use qrs::x86::StreamWriter;
/// let mut out = vec![0.0f32; 300];
/// let mut writer = StreamWriter::new(&mut out);
/// for block in 0..3u8 {
///     writer.block(100).fill(f32::from(block)); // decode here
/// }
/// writer.finish();
/// assert_eq!((out[99], out[100], out[299]), (0.0, 1.0, 2.0));
/// ```
pub struct StreamWriter<'a, T: Streamable> {
    /// What has not been sent; its element 0 will come from `stage[start]`.
    dst: &'a mut [T],
    /// As far from a line boundary as `dst` is from one, so that whole lines are whole on both sides.
    stage: Stage<T>,
    start: usize,
    end: usize,
}

/// Aligned so that the loads of a line never cross two.
#[repr(C, align(64))]
struct Stage<T>([T; STAGE]);

impl<'a, T: Streamable> StreamWriter<'a, T> {
    /// Longest block that [`StreamWriter::block`] hands out; what is carried over takes at most a line.
    pub const MAX_BLOCK: usize = STAGE - LINE;

    /// A writer that fills `dst`.
    #[must_use]
    #[inline]
    pub fn new(dst: &'a mut [T]) -> Self {
        let to_boundary = dst.as_ptr().align_offset(LINE) % line_len::<T>();
        let start = (line_len::<T>() - to_boundary) % line_len::<T>();
        Self { dst, stage: Stage([T::default(); STAGE]), start, end: start }
    }

    /// The next `len` elements of the output, to be overwritten by the caller before the next call.
    ///
    /// # Panics
    /// If `len` exceeds [`StreamWriter::MAX_BLOCK`].
    #[inline]
    pub fn block(&mut self, len: usize) -> &mut [T] {
        if self.end + len > STAGE {
            self.send_lines();
        }
        let block = &mut self.stage.0[self.end..self.end + len];
        self.end += len;
        block
    }

    /// Writes what is still staged, and fences.
    ///
    /// # Panics
    /// If the blocks did not add up to the length of the output.
    #[inline]
    pub fn finish(mut self) {
        self.send_lines();
        self.dst.copy_from_slice(&self.stage.0[self.start..self.end]);
        stream_fence();
    }

    /// Sends all whole lines, after the part of a line that the output may start with; keeps the rest.
    #[inline]
    fn send_lines(&mut self) {
        let whole = self.end - self.end % line_len::<T>();
        if whole == 0 {
            return;
        }
        if self.start > 0 {
            let (head, rest) = mem::take(&mut self.dst).split_at_mut(line_len::<T>() - self.start);
            head.copy_from_slice(&self.stage.0[self.start..line_len::<T>()]);
            (self.dst, self.start) = (rest, line_len::<T>());
        }
        let (lines, rest) = mem::take(&mut self.dst).split_at_mut(whole - self.start);
        stream_lines(lines, &self.stage.0[self.start..whole]);
        // A line of fixed size, whatever is left: one vector, and no call of memmove.
        let last = whole.min(STAGE - line_len::<T>());
        self.stage.0.copy_within(last..last + line_len::<T>(), 0);
        (self.dst, self.start, self.end) = (rest, 0, self.end - whole);
    }
}

/// Elements of `T` in a line.
const fn line_len<T>() -> usize {
    LINE / size_of::<T>()
}

/// Elements of `dst` before its first line boundary, at most all of them.
fn head_len<T: Streamable>(dst: &[T]) -> usize {
    dst.as_ptr().align_offset(LINE).min(dst.len())
}

/// Copies whole lines. `dst` starts at a line (or is empty) and both hold a whole number of them.
#[inline]
fn stream_lines<T: Streamable>(dst: &mut [T], src: &[T]) {
    debug_assert!(dst.is_empty() || dst.as_ptr().align_offset(LINE) == 0);
    debug_assert!(dst.len() == src.len() && dst.len().is_multiple_of(line_len::<T>()));
    #[cfg(target_arch = "x86_64")]
    {
        let lines = dst.len() / line_len::<T>();
        let (to, from) = (dst.as_mut_ptr().cast::<u8>(), src.as_ptr().cast::<u8>());
        // SAFETY: `dst` and `src` are distinct slices of `lines` whole lines of plain numbers, `to` is
        // aligned to a line by the contract of this private function (both callers peel the head
        // first), and `level()` never exceeds what the CPU has.
        unsafe {
            match level() {
                Level::Baseline => lines_sse2(to, from, lines),
                Level::Avx2 | Level::AvxVnni => lines_avx2(to, from, lines),
                _ => lines_avx512(to, from, lines),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    dst.copy_from_slice(src);
}

/// One function per level: `lines` lines from `src` (any alignment) to `dst` (aligned to a line).
macro_rules! lines_isa {
    ($name:ident, $feature:literal, $load:ident, $stream:ident, $vector:ty) => {
        /// # Safety
        /// The CPU has the feature; `src` is readable and `dst` writable for `lines` lines, they do
        /// not overlap, and `dst` is aligned to a line.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $feature)]
        unsafe fn $name(dst: *mut u8, src: *const u8, lines: usize) {
            use std::arch::x86_64::{$load, $stream};
            const STEP: usize = size_of::<$vector>();
            for at in (0..lines * LINE).step_by(STEP) {
                // SAFETY: `at + STEP` is at most `lines * LINE`, and STEP divides a line, so that the
                // store is aligned because `dst` is.
                unsafe { $stream(dst.add(at).cast(), $load(src.add(at).cast())) };
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, __m256i, __m512i};
lines_isa!(lines_sse2, "sse2", _mm_loadu_si128, _mm_stream_si128, __m128i);
lines_isa!(lines_avx2, "avx", _mm256_loadu_si256, _mm256_stream_si256, __m256i);
lines_isa!(lines_avx512, "avx512f", _mm512_loadu_si512, _mm512_stream_si512, __m512i);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every start within a line, lengths around whole lines: the copy is exact and nothing else moves.
    fn copies_exactly<T: Streamable + PartialEq + std::fmt::Debug>(value: impl Fn(usize) -> T) {
        let src: Vec<T> = (0..400).map(&value).collect();
        for start in 0..=64 {
            for len in [0, 1, 3, 15, 16, 17, 63, 64, 65, 200, 300] {
                let mut dst = [T::default(); 400];
                stream_copy(&mut dst[start..start + len], &src[7..7 + len]);
                stream_fence();
                assert_eq!(dst[start..start + len], src[7..7 + len], "start {start} len {len}");
                let rest = dst[..start].iter().chain(&dst[start + len..]);
                assert!(rest.into_iter().all(|&v| v == T::default()));
            }
        }
    }

    #[test]
    fn stream_copy_is_a_copy() {
        copies_exactly(|i| (i % 250 + 1) as u8);
        copies_exactly(|i| (i + 1) as u16);
        copies_exactly(|i| (i + 1) as f32);
    }

    #[test]
    fn stream_writer_takes_blocks_of_any_length() {
        for start in 0..17 {
            for block in [1, 7, 100, 128, StreamWriter::<f32>::MAX_BLOCK] {
                let total = 5000;
                let mut out = vec![-1.0f32; start + total + 3];
                let mut writer = StreamWriter::new(&mut out[start..start + total]);
                let mut next = 0;
                while next < total {
                    let len = block.min(total - next);
                    for slot in writer.block(len) {
                        *slot = next as f32;
                        next += 1;
                    }
                }
                writer.finish();
                let body = &out[start..start + total];
                assert!(body.iter().enumerate().all(|(i, &v)| v == i as f32));
                assert!(out[..start].iter().chain(&out[start + total..]).all(|&v| v == -1.0));
            }
        }
    }
}
