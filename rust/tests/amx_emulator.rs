//! The instructions of AMX on CPUs without them, so that its kernels are tested everywhere: a handler
//! of the signal for unknown instructions decodes what is there and does it in plain Rust, as
//! Intel's manual (volume 2, chapter 5; volume 1, chapter 18) says.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Once;

const SIDE: usize = 16;
const ROW_BYTES: usize = 64;

/// The tile registers of a thread; None while they are not configured.
type Tiles = Option<[[[u8; ROW_BYTES]; SIDE]; 8]>;

thread_local! {
    static TILES: RefCell<Tiles> = const { RefCell::new(None) };
}

/// From now on, this process has AMX.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: zeros are a valid `sigaction`, whose fields are set as SA_SIGINFO asks.
        let result = unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = on_unknown_instruction as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "the handler is installed");
    });
}

/// What the system calls instead of stopping the process.
extern "C" fn on_unknown_instruction(
    _signal: i32,
    _info: *const libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the system passes the context of the thread, which is ours until we return.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the CPU read an instruction there; what follows in the same function is code too, and
    // none of it is so short that 16 bytes leave the section.
    let code = unsafe { at.cast::<[u8; 16]>().read_unaligned() };
    let Some(length) = TILES.with_borrow_mut(|tiles| execute(&code, registers, tiles)) else {
        eprintln!("unknown instruction: {code:02x?}");
        std::process::abort();
    };
    registers[libc::REG_RIP as usize] += length as i64;
}

/// Does what an instruction says and returns its length; None if it is none of AMX.
fn execute(code: &[u8; 16], registers: &[i64; 23], tiles: &mut Tiles) -> Option<usize> {
    // Three bytes of VEX, then opcode and operands: W0, L0, map 0F38.
    let [0xc4, first, second, opcode, modrm, ..] = *code else { return None };
    if first & 0x1f != 2 || second & 0x84 != 0 {
        return None;
    }
    let (prefix, other) = (second & 3, usize::from(!second >> 3 & 15));
    let (is_register, reg, rm) =
        (modrm >> 6 == 3, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if (opcode, prefix, modrm) == (0x49, 0, 0xc0) {
        *tiles = None;
        return Some(5);
    }
    if is_register {
        let all = tiles.as_mut().expect("tiles are configured");
        match (opcode, prefix) {
            (0x49, 3) => all[reg] = [[0; ROW_BYTES]; SIDE],
            (0x5e, 1) => each_sum(all, reg, rm, other, dpbusd),
            (0x5c, 2) => each_sum(all, reg, rm, other, dpbf16ps),
            _ => return None,
        }
        return Some(5);
    }
    let (address, stride, length) = operand(code, registers);
    match (opcode, prefix) {
        (0x49, 0) => {
            let mut shapes = [0; 64];
            // SAFETY: as the instruction itself, whose caller vouches for the 64 bytes.
            unsafe { shapes.as_mut_ptr().copy_from(address, 64) };
            configure(&shapes, tiles);
        }
        (0x4b, 2 | 3) => {
            let tile = &mut tiles.as_mut().expect("tiles are configured")[reg];
            for (row, bytes) in tile.iter_mut().enumerate() {
                let place = address.wrapping_offset(stride * row as isize);
                // SAFETY: as the instruction itself, whose caller vouches for 16 rows of 64 bytes.
                unsafe {
                    if prefix == 3 {
                        bytes.as_mut_ptr().copy_from(place, ROW_BYTES);
                    } else {
                        bytes.as_ptr().copy_to(place, ROW_BYTES);
                    }
                }
            }
        }
        _ => return None,
    }
    Some(length)
}

/// Only what the kernels use is known: all tiles in full.
fn configure(shapes: &[u8; 64], tiles: &mut Tiles) {
    let mut expected = [0; 64];
    expected[0] = 1;
    for tile in 0..8 {
        expected[16 + 2 * tile] = ROW_BYTES as u8;
        expected[48 + tile] = SIDE as u8;
    }
    assert_eq!(shapes, &expected, "eight full tiles");
    // Whatever lay there is gone: the kernels must not count on zeros.
    *tiles = Some([[[0xa5; ROW_BYTES]; SIDE]; 8]);
}

/// Address, distance of rows and length of an instruction with an operand in memory.
fn operand(code: &[u8; 16], registers: &[i64; 23]) -> (*mut u8, isize, usize) {
    const NUMBERS: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let value = |number: u8, extended: bool| {
        registers[NUMBERS[usize::from(number) + if extended { 8 } else { 0 }] as usize]
    };
    // VEX keeps the highest bits of registers inverted.
    let (x, b) = (code[1] & 0x40 == 0, code[1] & 0x20 == 0);
    let (mode, rm, sib) = (code[4] >> 6, code[4] & 7, code[5]);
    let has_sib = rm == 4;
    let base = if has_sib { sib & 7 } else { rm };
    assert!(mode != 0 || base != 5, "no address relative to the instruction, or without a base");
    let index = if has_sib && (sib >> 3 & 7 != 4 || x) { value(sib >> 3 & 7, x) } else { 0 };
    let at = if has_sib { 6 } else { 5 };
    let (displacement, length) = match mode {
        0 => (0, at),
        1 => (i64::from(code[at] as i8), at + 1),
        _ => (i32::from_le_bytes(*code[at..].first_chunk().expect("four bytes")).into(), at + 4),
    };
    let address = value(base, b) + displacement;
    (address as *mut u8, (index << (sib >> 6)) as isize, length)
}

/// sum[m][n] = f(sum[m][n], a[m][k], b[k][n]) over k, of four bytes each.
fn each_sum(
    tiles: &mut [[[u8; ROW_BYTES]; SIDE]; 8],
    sums: usize,
    a: usize,
    b: usize,
    add: fn([u8; 4], [u8; 4], [u8; 4]) -> [u8; 4],
) {
    let (a, b) = (tiles[a], tiles[b]);
    for (row, sums) in a.iter().zip(&mut tiles[sums]) {
        for (a, b) in row.as_chunks().0.iter().zip(&b) {
            for (sum, b) in sums.as_chunks_mut().0.iter_mut().zip(b.as_chunks().0) {
                *sum = add(*sum, *a, *b);
            }
        }
    }
}

/// Four products of u8 with i8, added to an i32 that wraps.
fn dpbusd(sum: [u8; 4], a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
    let products = a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(b as i8));
    products.fold(i32::from_le_bytes(sum), i32::wrapping_add).to_le_bytes()
}

/// Two products of bfloat16 numbers, added to a float32, subnormals being zeros. The manual allows
/// what is done here, a fused multiply-add for each; CPUs may sum in another order.
fn dpbf16ps(sum: [u8; 4], a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
    let flush = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    let number = |four: [u8; 4], i: usize| {
        flush(f32::from_bits(u32::from(u16::from_le_bytes([four[2 * i], four[2 * i + 1]])) << 16))
    };
    let mut sum = f32::from_le_bytes(sum);
    for i in 0..2 {
        sum = flush(number(a, i).mul_add(number(b, i), sum));
    }
    sum.to_le_bytes()
}
