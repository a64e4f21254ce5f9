// Codes of 2 to 8 bits to bytes and back, eight codes at a time: they make `bits` whole bytes. Rows
// start on a byte, and the last byte of one ends with zero bits.

// values per thread and turn: 8
__global__ void pack_bits(const u8* codes, i64 rows, i64 cols, i32 bits, u8* packed) {
    const Shape shape(rows, cols, 8);
    const u64 mask = (1u << bits) - 1;
    const i64 row_bytes = (cols * bits + 7) / 8;
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        const Place place(unit, shape);
        const u64 bytes = load_bytes(codes + place.index(shape), place.count);
        u64 word = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) word |= (bytes >> 8 * k & mask) << bits * k;
        store_bytes(packed + place.row * row_bytes + place.col / 8 * bits, word,
                    (place.count * bits + 7) / 8);
    }
}

// values per thread and turn: 8
__global__ void unpack_bits(const u8* packed, i64 rows, i64 cols, i32 bits, i32 is_signed,
                            u8* codes) {
    const Shape shape(rows, cols, 8);
    const u32 mask = (1u << bits) - 1, sign = is_signed ? 1u << (bits - 1) : 0;
    const i64 row_bytes = (cols * bits + 7) / 8;
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        const Place place(unit, shape);
        const u64 word = load_bytes(packed + place.row * row_bytes + place.col / 8 * bits,
                                    (place.count * bits + 7) / 8);
        u64 bytes = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const u32 code = u32(word >> bits * k) & mask;
            bytes |= u64(((code ^ sign) - sign) & 0xff) << 8 * k;
        }
        store_bytes(codes + place.index(shape), bytes, place.count);
    }
}
