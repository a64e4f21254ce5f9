//! Paired timing and the table. criterion and divan time one function after another; on a machine
//! whose speed changes by the second, the ratio of two such medians is noise. Here a kernel, its twin
//! and memcpy take turns, and the ratio is the median over the rounds.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Bytes of the larger array of a case.
    pub bytes: usize,
    /// Rounds are added until this much time has gone by...
    pub budget: Duration,
    /// ...but there are at least these.
    pub rounds: usize,
}

/// One line of the table.
pub struct Row {
    pub op: String,
    pub level: String,
    pub threads: usize,
    pub bytes: usize,
    pub found: Compared,
    /// Fraction of the twin that this project set itself, where it did for this line.
    pub target: Option<f64>,
}

/// Seconds that `f` takes, once.
pub fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Median; the upper one of two.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What [`compare`] found.
pub struct Compared {
    pub seconds: f64,
    pub of_twin: f64,
    pub of_memcpy: f64,
    /// The fastest round of the twin / the fastest of the op: what a busy machine shows truest.
    pub of_twin_at_best: f64,
}

/// Runs the three in turns: medians of the seconds of `op` and of the ratios twin / op and
/// memcpy / op, and the ratio of the fastest rounds.
pub fn compare(
    effort: Effort,
    mut op: impl FnMut(),
    mut twin: impl FnMut(),
    mut memcpy: impl FnMut(),
) -> Compared {
    op();
    twin();
    memcpy();
    let (mut times, mut twins, mut of_twin, mut of_memcpy) = (vec![], vec![], vec![], vec![]);
    let start = Instant::now();
    while times.len() < effort.rounds || start.elapsed() < effort.budget {
        let (time, twin) = (seconds(&mut op), seconds(&mut twin));
        of_twin.push(twin / time);
        of_memcpy.push(seconds(&mut memcpy) / time);
        times.push(time);
        twins.push(twin);
    }
    let fastest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    Compared {
        of_twin_at_best: fastest(&twins) / fastest(&times),
        seconds: median(&mut times),
        of_twin: median(&mut of_twin),
        of_memcpy: median(&mut of_memcpy),
    }
}

/// Nanoseconds of one call of `f`, for calls too short for the clock: the median of many batches.
pub fn nanoseconds_per_call<R>(effort: Effort, mut f: impl FnMut() -> R) -> f64 {
    const BATCH: usize = 100;
    let mut times = vec![];
    let start = Instant::now();
    while times.len() < effort.rounds || start.elapsed() < effort.budget {
        let batch = seconds(|| {
            for _ in 0..BATCH {
                black_box(f());
            }
        });
        times.push(batch / BATCH as f64 * 1e9);
    }
    median(&mut times)
}

impl Row {
    /// Bytes read and written per second, in GB.
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.found.seconds / 1e9
    }

    /// The line of the table.
    pub fn text(&self) -> String {
        let verdict = match self.target {
            Some(target) if self.found.of_twin >= target => format!("{target:.2} met"),
            Some(target) => format!("{target:.2} MISSED"),
            None => String::new(),
        };
        let (ms, rate) = (self.found.seconds * 1e3, self.rate());
        let line = format!(
            "{:<36} {:<9} {:>2} {ms:>9.3} {rate:>7.1} {:>8.2} {:>8.2} {:>10.2}  {verdict}",
            self.op,
            self.level,
            self.threads,
            self.found.of_twin,
            self.found.of_twin_at_best,
            self.found.of_memcpy
        );
        line.trim_end().to_owned()
    }

    fn json(&self) -> String {
        format!(
            "{{\"op\": \"{}\", \"level\": \"{}\", \"threads\": {}, \"seconds\": {:e}, \"bytes\": {}, \
             \"gb_per_s\": {:.3}, \"of_twin\": {:.4}, \"of_twin_at_best\": {:.4}, \"of_memcpy\": {:.4}, \"target\": {}}}",
            self.op,
            self.level,
            self.threads,
            self.found.seconds,
            self.bytes,
            self.rate(),
            self.found.of_twin,
            self.found.of_twin_at_best,
            self.found.of_memcpy,
            self.target.map_or("null".to_owned(), |t| t.to_string())
        )
    }
}

/// The head of the table.
pub fn header() -> String {
    format!(
        "{:<36} {:<9} {:>2} {:>9} {:>7} {:>8} {:>8} {:>10}  {}",
        "op", "level", "th", "ms", "GB/s", "of twin", "at best", "of memcpy", "target"
    )
}

/// Writes `benches/results/kernels.json`.
pub fn write_json(machine: &str, rows: &[Row], calls: &[(String, f64)]) -> std::io::Result<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");
    std::fs::create_dir_all(folder)?;
    let mut text = format!("{{\n\"machine\": \"{machine}\",\n\"kernels\": [\n");
    let lines: Vec<_> = rows.iter().map(Row::json).collect();
    text += &lines.join(",\n");
    text += "\n],\n\"small_calls_ns\": {";
    for (index, (name, nanoseconds)) in calls.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}\"{name}\": {nanoseconds:.0}");
    }
    text += "}\n}\n";
    let path = format!("{folder}/kernels.json");
    std::fs::write(&path, text)?;
    Ok(path)
}
