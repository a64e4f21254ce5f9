//! Which instruction set the kernels run on, and the floating-point state they run in.
//!
//! Every kernel is one scalar body inside [`multiversion!`], which compiles it for each [`Level`];
//! the level is found once, at run time. No kernel and no intrinsic is in this file.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, NEON on aarch64.
    Baseline = 1,
    /// Haswell and later.
    Avx2,
    /// AVX2 with 8-bit dot products: Alder Lake and later.
    AvxVnni,
    /// Ice Lake and Zen 4 and later.
    Avx512,
    /// Sapphire Rapids and later.
    Amx,
}

/// Features beyond those of the level below that a level compiles with, or that belong to it.
/// The `#[target_feature]` lines of [`multiversion!`] repeat the two that kernels are built for.
const AVX2: &[&str] = &["avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "lzcnt", "movbe", "popcnt"];
const AVX512: &[&str] =
    &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vbmi", "avx512vnni"];

const AMX: &[&str] = &["amx-tile", "amx-int8", "amx-bf16"];

/// Register state that the operating system saves, as bits of XCR0.
const YMM_STATE: u64 = 0x0000_0006;
const ZMM_STATE: u64 = 0x0000_00e6;
const TILE_STATE: u64 = 0x0006_0000;

impl Level {
    /// Every level, ascending.
    pub const ALL: [Self; 5] = [Self::Baseline, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Amx];

    /// The name that `QRS_SIMD` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Whether a machine has everything of this level: `has` tells the features of the CPU, and
    /// `xcr0` which registers the operating system saves. One missing feature excludes the level.
    fn is_supported(self, has: &dyn Fn(&str) -> bool, xcr0: u64) -> bool {
        let saves = |state: u64| xcr0 & state == state;
        let all = |features: &[&str]| features.iter().all(|feature| has(feature));
        let avx2 = || saves(YMM_STATE) && all(AVX2);
        let avx512 = || avx2() && saves(ZMM_STATE) && all(AVX512);
        match self {
            Self::Baseline => true,
            Self::Avx2 => avx2(),
            Self::AvxVnni => avx2() && has("avxvnni"),
            Self::Avx512 => avx512(),
            Self::Amx => avx512() && saves(TILE_STATE) && all(AMX),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
mod cpu {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    macro_rules! detected {
        ($name:ident: $($feature:tt)*) => {
            match $name {
                $($feature => is_x86_feature_detected!($feature),)*
                // The standard library does not name these yet.
                "amx-tile" => __cpuid_count(7, 0).edx & (1 << 24) != 0 && tiles_are_permitted(),
                "amx-bf16" => __cpuid_count(7, 0).edx & (1 << 22) != 0,
                "amx-int8" => __cpuid_count(7, 0).edx & (1 << 25) != 0,
                _ => unreachable!("no level asks for {}", $name),
            }
        };
    }

    pub fn has(name: &str) -> bool {
        detected!(name: "avx" "avx2" "fma" "bmi1" "bmi2" "f16c" "lzcnt" "movbe" "popcnt" "avxvnni"
            "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512vbmi" "avx512vnni")
    }

    /// Whether the operating system lets this process use tiles, asked once: Linux wants to be asked
    /// before it saves 8 KB more for each thread.
    fn tiles_are_permitted() -> bool {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        *PERMITTED.get_or_init(|| cfg!(target_os = "linux") && ask_linux_for_tiles())
    }

    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`.
    fn ask_linux_for_tiles() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XTILEDATA: u64 = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: a system call of Linux on x86-64 that takes two numbers and touches no memory;
        // kernels that do not know it return an error.
        unsafe {
            std::arch::asm!(
                "syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XTILEDATA, out("rcx") _, out("r11") _, options(nostack),
            );
        }
        result == 0
    }

    pub fn xcr0() -> u64 {
        #[target_feature(enable = "xsave")]
        fn read() -> u64 {
            // SAFETY: the caller has checked that the operating system enabled XGETBV.
            unsafe { _xgetbv(0) }
        }
        if is_x86_feature_detected!("xsave") {
            // SAFETY: the line above; it is false where the operating system has not enabled it.
            unsafe { read() }
        } else {
            0
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod cpu {
    pub fn has(_name: &str) -> bool {
        false
    }

    pub fn xcr0() -> u64 {
        0
    }
}

/// The levels this machine has, ascending; never empty.
#[must_use]
pub fn levels() -> Vec<Level> {
    let xcr0 = cpu::xcr0();
    Level::ALL.into_iter().filter(|level| level.is_supported(&cpu::has, xcr0)).collect()
}

/// The level that `requested` asks for among `available`; without a request, the highest.
///
/// # Errors
/// What is expected instead of a name that is unknown, or a level that this machine lacks.
fn choose(requested: Option<&str>, available: &[Level]) -> Result<Level, String> {
    let highest = available.last().copied().unwrap_or(Level::Baseline);
    let Some(name) = requested else { return Ok(highest) };
    available.iter().copied().find(|level| level.name() == name).ok_or_else(|| {
        let known = Level::ALL.iter().any(|level| level.name() == name);
        let names: Vec<_> = available.iter().map(|level| level.name()).collect();
        let why = if known { "which this CPU does not have" } else { "which is unknown" };
        format!("one of {} instead of {name:?}, {why}", names.join(", "))
    })
}

/// The level in use; 0 while it is not known yet.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level the kernels run at: the highest there is, or what `QRS_SIMD` or [`set_level`] lowered
/// it to. A `QRS_SIMD` that [`init`] refuses lowers nothing.
#[inline]
#[must_use]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => first_level(),
        known => Level::ALL[usize::from(known) - 1],
    }
}

/// Whether the level in use is at least this one; false before anybody asked for [`level`], as every
/// kernel does. One load, for inside of loops.
#[inline(always)]
pub(crate) fn reaches(level: Level) -> bool {
    LEVEL.load(Ordering::Relaxed) >= level as u8
}

/// The level that the environment asks for, unless another thread has set one in the meantime.
#[cold]
fn first_level() -> Level {
    let available = levels();
    let level = requested(&available).or_else(|_| choose(None, &available));
    let level = level.unwrap_or(Level::Baseline);
    match LEVEL.compare_exchange(0, level as u8, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => level,
        Err(known) => Level::ALL[usize::from(known) - 1],
    }
}

/// The level that `QRS_SIMD` asks for.
fn requested(available: &[Level]) -> Result<Level, String> {
    let requested = std::env::var_os("QRS_SIMD").filter(|value| !value.is_empty());
    choose(requested.as_ref().map(|value| value.to_string_lossy()).as_deref(), available)
}

/// Reads `QRS_SIMD` and sets the level.
///
/// # Errors
/// What is expected instead, in words.
pub fn init() -> Result<Level, String> {
    let level = requested(&levels())?;
    LEVEL.store(level as u8, Ordering::Relaxed);
    Ok(level)
}

/// Sets the level of the process; None is the highest. For tests, which run at every level.
///
/// # Errors
/// As [`init`].
pub fn set_level(name: Option<&str>) -> Result<Level, String> {
    let level = choose(name, &levels())?;
    LEVEL.store(level as u8, Ordering::Relaxed);
    Ok(level)
}

/// Sets a level that this machine may lack, where what it lacks is emulated.
#[cfg(test)]
pub(crate) fn force_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Compiles one body for every instruction set and calls the best one at run time.
///
/// The body becomes an inlined function, so that it is compiled anew inside each wrapper with the
/// wrapper's features; whatever it calls must be `#[inline(always)]` too. Dispatch costs one load
/// and a branch: call it per block of a few KB, never per element.
macro_rules! multiversion {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident $(<$($generic:ident: $bound:path),+>)?
     ($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$attribute])*
        $visibility fn $name $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt")]
                fn avx2 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $output)? {
                    body $(::<$($generic),+>)? ($($argument),*)
                }
                #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,f16c,lzcnt,movbe,popcnt")]
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
                #[target_feature(enable = "avx512vbmi,avx512vnni")]
                fn avx512 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $output)? {
                    body $(::<$($generic),+>)? ($($argument),*)
                }
                match $crate::simd::level() {
                    $crate::simd::Level::Amx | $crate::simd::Level::Avx512 => {
                        // SAFETY: `level` is one that `is_supported` found every feature of.
                        return unsafe { avx512 $(::<$($generic),+>)? ($($argument),*) };
                    }
                    $crate::simd::Level::AvxVnni | $crate::simd::Level::Avx2 => {
                        // SAFETY: as above.
                        return unsafe { avx2 $(::<$($generic),+>)? ($($argument),*) };
                    }
                    $crate::simd::Level::Baseline => {}
                }
            }
            body $(::<$($generic),+>)? ($($argument),*)
        }
    };
}
pub(crate) use multiversion;

/// Runs `f` with rounding to nearest, subnormals kept and no floating-point traps, and restores
/// the caller's state. A library loaded with -ffast-math leaves flush-to-zero on in its thread,
/// and threads inherit it: the same input would give other bits.
pub fn with_default_float_state<R>(f: impl FnOnce() -> R) -> R {
    let _state = FloatState::default_until_drop();
    f()
}

struct FloatState(#[cfg(target_arch = "x86_64")] u32);

#[cfg(target_arch = "x86_64")]
impl FloatState {
    fn default_until_drop() -> Self {
        let state = read_mxcsr();
        write_mxcsr(0x1f80);
        Self(state)
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FloatState {
    fn drop(&mut self) {
        write_mxcsr(self.0);
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl FloatState {
    fn default_until_drop() -> Self {
        Self()
    }
}

#[cfg(target_arch = "x86_64")]
fn read_mxcsr() -> u32 {
    let mut state = 0_u32;
    // SAFETY: STMXCSR writes four bytes to an aligned address that is ours.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut state, options(nostack)) };
    state
}

#[cfg(target_arch = "x86_64")]
fn write_mxcsr(state: u32) {
    // SAFETY: LDMXCSR reads four bytes of ours; the value is the default one or was read before, so
    // no reserved bit is set. Not `nomem`: float code that touches memory stays on its side.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const state, options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_STATE: u64 = YMM_STATE | ZMM_STATE | TILE_STATE;
    const HASWELL: &str = "avx avx2 fma bmi1 bmi2 f16c lzcnt movbe popcnt";
    const ICE_LAKE: &str = "avx512f avx512bw avx512cd avx512dq avx512vl avx512vbmi avx512vnni";

    fn highest(features: &str, xcr0: u64) -> Level {
        let has = |name: &str| features.split(' ').any(|feature| feature == name);
        let found = Level::ALL.into_iter().rfind(|level| level.is_supported(&has, xcr0));
        found.expect("every machine has the baseline")
    }

    #[test]
    fn b02_known_cpus_get_their_level() {
        let ice_lake = format!("{HASWELL} {ICE_LAKE}");
        let sapphire_rapids = format!("{ice_lake} avxvnni amx-tile amx-int8 amx-bf16");
        for (cpu, features, xcr0, level) in [
            ("Nehalem", "popcnt", 0, Level::Baseline),
            ("Sandy Bridge", "avx popcnt", YMM_STATE, Level::Baseline),
            ("Haswell", HASWELL, YMM_STATE, Level::Avx2),
            ("Alder Lake", &format!("{HASWELL} avxvnni"), YMM_STATE, Level::AvxVnni),
            ("Knights Landing", &format!("{HASWELL} avx512f avx512cd"), ALL_STATE, Level::Avx2),
            ("Ice Lake", &ice_lake, YMM_STATE | ZMM_STATE, Level::Avx512),
            ("Sapphire Rapids", &sapphire_rapids, ALL_STATE, Level::Amx),
            ("the same, tiles not enabled", &sapphire_rapids, ZMM_STATE, Level::Avx512),
            ("the same, AVX-512 not enabled", &sapphire_rapids, YMM_STATE, Level::AvxVnni),
            ("the same, AVX not enabled", &sapphire_rapids, 0, Level::Baseline),
        ] {
            assert_eq!(highest(features, xcr0), level, "{cpu}");
        }
    }

    #[test]
    fn b02_one_missing_feature_excludes_a_level() {
        for missing in AVX2 {
            let features = HASWELL.replace(&format!("{missing} "), "").replace(" popcnt", "");
            assert_eq!(highest(&features, ALL_STATE), Level::Baseline, "without {missing}");
        }
        for missing in AVX512 {
            let rest: Vec<_> = ICE_LAKE.split(' ').filter(|feature| feature != missing).collect();
            let features = format!("{HASWELL} {}", rest.join(" "));
            assert_eq!(highest(&features, ALL_STATE), Level::Avx2, "without {missing}");
        }
    }

    #[test]
    fn p11_a_level_can_only_be_lowered() {
        let available = [Level::Baseline, Level::Avx2];
        assert_eq!(choose(None, &available), Ok(Level::Avx2));
        assert_eq!(choose(Some("baseline"), &available), Ok(Level::Baseline));
        for (name, problem) in
            [("avx512", "does not have"), ("AVX2", "unknown"), ("sse", "unknown")]
        {
            let message = choose(Some(name), &available).expect_err("refused");
            assert!(message.contains(problem) && message.contains("baseline, avx2"), "{message}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_float_state_is_the_default_one_inside_and_the_callers_after() {
        let before = read_mxcsr();
        write_mxcsr(0x9fc0);
        let tiny = std::hint::black_box(f32::MIN_POSITIVE);
        let half = with_default_float_state(|| std::hint::black_box(tiny) * 0.5);
        let after = read_mxcsr();
        write_mxcsr(before);
        assert_eq!(half.to_bits(), 1 << 22);
        assert_eq!(after & 0xffc0, 0x9fc0);
    }
}
