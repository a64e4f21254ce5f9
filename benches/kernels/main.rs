//! `cargo bench [-- [--quick] [WORD ...]]`: every kernel (with all the words in its line) at every SIMD level, with one thread and with
//! all, next to its twin and to memcpy (see `measure.rs`). Prints a table, writes
//! `benches/results/kernels.json`. `--quick` or `QRS_BENCH_QUICK=1` takes small arrays and few rounds:
//! it shows that the benchmark runs, and its numbers mean little.

mod codebook_ops;
mod float_ops;
mod measure;
mod ops;
mod product_ops;
mod twin;

use std::cell::RefCell;
use std::sync::Mutex;
use std::time::Duration;

use measure::{Effort, Row};
use qrs::simd::Level;
use twin::{Ratio, Stores, Threads};

/// Bytes of the arrays that twin and memcpy work on.
const ARENA: usize = 64 << 20;

/// Where twin and memcpy read and write. What the twin is given starts at a line; the arrays of the
/// kernels lie as the allocator gives them, 16 bytes after one, like numpy's.
struct Arena {
    src: Vec<u8>,
    dst: RefCell<Vec<u8>>,
}

impl Arena {
    fn new() -> Self {
        Self { src: vec![1; ARENA + 64], dst: RefCell::new(vec![1; ARENA + 64]) }
    }

    fn twin(&self, threads: &Threads, stores: Stores, ratio: Ratio, bytes: usize) {
        let step = bytes / (ratio.read + ratio.write);
        let mut dst = self.dst.borrow_mut();
        let (from, to) = (self.src.as_ptr().align_offset(64), dst.as_ptr().align_offset(64));
        let src = &self.src[from..from + step * ratio.read];
        twin::move_all(threads, stores, ratio, src, &mut dst[to..to + step * ratio.write]);
    }

    /// Copies `bytes / 2`, so that as many bytes move as in the kernel.
    fn memcpy(&self, threads: &Threads, bytes: usize) {
        let mut dst = self.dst.borrow_mut();
        let part = (bytes / 2).div_ceil(threads.count);
        let parts = dst[..bytes / 2].chunks_mut(part).zip(self.src[..bytes / 2].chunks(part));
        let parts = Mutex::new(parts);
        threads.run(|| {
            let next = parts.lock().expect("no panic").next();
            if let Some((dst, src)) = next {
                dst.copy_from_slice(src);
            }
        });
    }

    /// The fastest stores for this ratio and these threads.
    fn best_stores(&self, threads: &Threads, ratio: Ratio, bytes: usize) -> Stores {
        let time = |stores| {
            let mut times: Vec<_> = (0..5)
                .map(|_| measure::seconds(|| self.twin(threads, stores, ratio, bytes)))
                .collect();
            measure::median(&mut times)
        };
        let timed = Stores::available().into_iter().map(|stores| (time(stores), stores));
        timed.min_by(|a, b| a.0.total_cmp(&b.0)).expect("one is always available").1
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let quick = args.iter().any(|arg| arg == "--quick")
        || std::env::var_os("QRS_BENCH_QUICK").is_some_and(|value| value == "1");
    let words: Vec<_> = args.into_iter().filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |line: &str| words.iter().all(|word| line.split(' ').any(|part| part == word));
    let effort = if quick {
        Effort { bytes: 1 << 20, budget: Duration::ZERO, rounds: 3 }
    } else {
        Effort { bytes: ARENA, budget: Duration::from_millis(400), rounds: 15 }
    };

    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let machine = format!("{}, {all} threads", cpu_name());
    println!("{machine}; the larger array of each op is {} MiB", effort.bytes >> 20);
    println!("GB/s: bytes read and written; of twin, of memcpy: their time / time of the op,");
    println!("median over rounds in turn; at best: fastest twin / fastest op, for a busy machine");
    println!("{}", measure::header());
    let arena = Arena::new();
    let mut rows = vec![];
    let cases = ops::cases().into_iter().chain(float_ops::cases());
    let cases = cases.chain(codebook_ops::cases()).chain(product_ops::cases());
    for (name, target, make) in cases {
        let chosen: Vec<_> =
            levels().into_iter().filter(|level| wanted(&format!("{name} {level}"))).collect();
        if !chosen.is_empty() {
            let mut case = make(effort.bytes);
            let target = target.filter(|_| !quick);
            measure_case(effort, &arena, (name, target), &mut case, (&chosen, all), &mut rows);
        }
    }
    let mut calls = vec![];
    for (name, make) in ops::small_calls() {
        if wanted(name) {
            let time = measure::nanoseconds_per_call(effort, make().run);
            println!("{name:<45} {time:>6.0} ns");
            calls.push((name.to_owned(), time));
        }
    }
    match measure::write_json(&machine, &rows, &calls) {
        Ok(path) => println!("written: {path}"),
        Err(error) => eprintln!("could not write the results: {error}"),
    }
}

/// One case at each of `levels`, with one thread and with `all`.
fn measure_case(
    effort: Effort,
    arena: &Arena,
    (name, target): (&str, Option<f64>),
    case: &mut ops::Case,
    (levels, all): (&[Level], usize),
    rows: &mut Vec<Row>,
) {
    let counts = if all == 1 { vec![1] } else { vec![1, all] };
    for threads in counts {
        qrs::rows::set_num_threads(threads);
        let team = Threads::new(threads);
        let stores = arena.best_stores(&team, case.ratio, case.bytes);
        for &level in levels {
            qrs::simd::set_level(Some(level.name())).expect("a level of this machine");
            let found = measure::compare(
                effort,
                &mut case.run,
                || arena.twin(&team, stores, case.ratio, case.bytes),
                || arena.memcpy(&team, case.bytes),
            );
            let target = target.filter(|_| level == Level::Avx512 && threads == all);
            let row = Row {
                op: name.to_owned(),
                level: level.to_string(),
                threads,
                bytes: case.bytes,
                found,
                target,
            };
            println!("{}", row.text());
            rows.push(row);
        }
    }
    qrs::simd::set_level(None).expect("the highest level");
}

/// The levels of this machine that kernels are compiled for: the others run the code of the one below.
fn levels() -> Vec<Level> {
    let compiled = [Level::Baseline, Level::Avx2, Level::Avx512];
    qrs::simd::levels().into_iter().filter(|level| compiled.contains(level)).collect()
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}
