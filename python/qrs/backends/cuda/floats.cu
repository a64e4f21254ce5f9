// Conversions between number formats, with and without scales. Codes are integers of the format's
// size; those of e2m1 may be packed, two to a byte. encode_float and decode_float are these kernels
// too, without scales. Rows go octet by octet, and value by value where an octet is short, spans
// groups or is not aligned.

// The bits of a float32: as `T::value`, but a GPU's conversion would lose the sign of NaN.
template <class T>
DEVICE u32 widened(u32 raw) {
    constexpr u32 sign = sizeof(typename T::Bits) == 4 ? 0x80000000u : 0x8000u;
    const u32 magnitude = bits_of(T::value(raw & (sign - 1)));
    return magnitude | (raw & sign ? 0x80000000u : 0);
}

DEVICE bool is_nan(u32 bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// Values of one group to codes of F. A magnitude is divided by a magnitude, so that zeros keep the
// sign; what is beyond the largest number becomes that one.
template <class F>
struct FloatEncoder {
    using Target = FormatOf<F>;
    // Markstein's steps are exact for quotients that round to no less than 2^-18.
    static constexpr bool is_small = Target::bits <= 8;
    Divisor<true> divisor;
    float scale, bound;
    u32 sign;

    explicit DEVICE FloatEncoder(float signed_scale)
        : divisor(fabsf(signed_scale)), scale(fabsf(signed_scale)) {
        sign = bits_of(signed_scale) & 0x80000000u;
        bound = __fmul_rn(Target::largest(), divisor.scale);
    }
    DEVICE u32 encode(u32 x) const {
        const float magnitude = float_of(x & 0x7fffffffu);
        float v;
        if (is_small) {
            v = divisor.divide(fminf(divisor.moved(magnitude), bound));
        } else {
            v = fminf(__fdiv_rn(magnitude, scale), Target::largest());
        }
        return Target::encode(bits_of(v) | ((x ^ sign) & 0x80000000u), true);
    }
};

// Eight codes side by side; PACKED ones take four bits each.
template <class F, bool PACKED>
struct Codes {
    using Code = typename FormatOf<F>::Code;
    static constexpr int bits = PACKED ? 4 : 8 * sizeof(Code);
    static constexpr int words = bits / 4;

    static DEVICE i64 row_bytes(i64 cols) { return (cols * bits + 7) / 8; }
    static DEVICE void pack(const u32* code, u32* word) {
#pragma unroll
        for (int i = 0; i < words; i++) {
            word[i] = 0;
#pragma unroll
            for (int k = 0; k < 32 / bits; k++)
                word[i] |= code[i * (32 / bits) + k] << bits % 32 * k;
        }
    }
    static DEVICE u32 unpack(const u32* word, int k) {
        constexpr int per_word = 32 / bits;
        const u32 all = word[k / per_word] >> bits % 32 * (k % per_word);
        return bits == 32 ? all : all & ((1u << bits % 32) - 1);
    }
    // To and from an address that the size of an octet, or 16, divides.
    static constexpr u64 alignment = words < 4 ? 4 * words : 16;
    static DEVICE void store(u8* p, const u32* word) {
        if (words == 1) __stcs(reinterpret_cast<u32*>(p), word[0]);
        if (words == 2) __stcs(reinterpret_cast<uint2*>(p), make_uint2(word[0], word[1]));
#pragma unroll
        for (int i = 0; i + 4 <= words; i += 4) {
            const uint4 v = make_uint4(word[i], word[i + 1], word[i + 2], word[i + 3]);
            __stcs(reinterpret_cast<uint4*>(p) + i / 4, v);
        }
    }
    static DEVICE void load(const u8* p, u32* word) {
        if (words == 1) word[0] = __ldcs(reinterpret_cast<const u32*>(p));
        if (words == 2) {
            const uint2 v = __ldcs(reinterpret_cast<const uint2*>(p));
            word[0] = v.x, word[1] = v.y;
        }
#pragma unroll
        for (int i = 0; i + 4 <= words; i += 4) {
            const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p) + i / 4);
            word[i] = v.x, word[i + 1] = v.y, word[i + 2] = v.z, word[i + 3] = v.w;
        }
    }
    // One code; with PACKED only those of even `k` store, and take the next one along.
    static DEVICE void store_one(u8* row, i64 k, u32 code) {
        if (PACKED)
            row[k / 2] = u8(code);
        else
            reinterpret_cast<Code*>(row)[k] = Code(code);
    }
    static DEVICE u32 load_one(const u8* row, i64 k) {
        if (PACKED) return row[k / 2] >> 4 * (k & 1) & 0xf;
        return reinterpret_cast<const Code*>(row)[k];
    }
};

// encode_float, without and with saturation; quantize_float, without and with scales.
enum Conversion { kEncode, kSaturate, kCast, kScale };

// values per thread and turn: 8
template <class T, class F, bool PACKED>
__global__ void quantize_float(const typename T::Bits* x, i64 rows, i64 cols, i64 group_size,
                               const float* scale, i32 conversion, u8* out, u64* faults) {
    using Target = FormatOf<F>;
    using Out = Codes<F, PACKED>;
    const Shape shape(rows, cols, group_size);
    const bool refuses_nonfinite = conversion >= kCast, saturate = conversion != kEncode;
    bool finite = true, number = true;
    // One value; `encoder` is of its group.
    const auto encode = [&](u32 bits, const FloatEncoder<F>& encoder) {
        finite = finite && (bits & 0x7fffffffu) < 0x7f800000u;
        number = number && !is_nan(bits);
        return conversion == kScale ? encoder.encode(bits) : Target::encode(bits, saturate);
    };
    const auto encoder_of = [&](i64 group) {
        return FloatEncoder<F>(conversion == kScale ? scale[group] : 1.0f);
    };
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        const typename T::Bits* values = x + place.index(shape);
        u8* row = out + place.row * Out::row_bytes(cols);
        u8* codes = row + place.col / 8 * Out::bits;
        if (place.is_whole() && is_aligned(values, 16) && is_aligned(codes, Out::alignment)) {
            const FloatEncoder<F> encoder = encoder_of(place.group);
            const Octet<T> octet = Octet<T>::load(values);
            u32 code[8], word[Out::words];
#pragma unroll
            for (int k = 0; k < 8; k++) code[k] = encode(widened<T>(octet.raw(k)), encoder);
            Out::pack(code, word);
            Out::store(codes, word);
            continue;
        }
        u32 before = 0;
#pragma unroll 1
        for (int k = 0; k < place.count; k++, place.next(shape)) {
            const typename T::Bits value = values[k];
            const u32 bits = widened<T>(T::to_raw(value));
            u32 code = encode(bits, encoder_of(place.group));
            if (PACKED && k % 2 == 1) code = code << 4 | before;
            before = code;
            Out::store_one(row, place.col + k, code);
        }
    }
    if (!finite && refuses_nonfinite) report(faults, kNonfinite);
    if (!number && Target::nan == 0) report(faults, kNan);
}

// The float32 with bits `x`, times `scale`, as an element of T.
template <class T, class F>
DEVICE u32 narrowed(u32 x, float scale) {
    constexpr u32 sign = sizeof(typename T::Bits) == 4 ? 0x80000000u : 0x8000u;
    if (FormatOf<F>::nan && is_nan(x)) return T::nan | (x >> 31) * sign;
    return T::to_raw(T::narrow(__fmul_rn(float_of(x), scale)));
}

// values per thread and turn: 8
template <class T, class F, bool PACKED>
__global__ void dequantize_float(const u8* packed, i64 rows, i64 cols, i64 group_size,
                                 const float* scale, i32 scaled, typename T::Bits* out) {
    using Source = FormatOf<F>;
    using In = Codes<F, PACKED>;
    const Shape shape(rows, cols, group_size);
    for (i64 unit = first_unit(); unit < shape.units(); unit += stride()) {
        Place place(unit, shape);
        typename T::Bits* values = out + place.index(shape);
        const u8* row = packed + place.row * In::row_bytes(cols);
        const u8* codes = row + place.col / 8 * In::bits;
        if (place.is_whole() && is_aligned(values, 16) && is_aligned(codes, In::alignment)) {
            const float step = scaled ? scale[place.group] : 1.0f;
            u32 word[In::words];
            In::load(codes, word);
            Octet<T> octet = Octet<T>::zeros();
#pragma unroll
            for (int k = 0; k < 8; k++) {
                octet.put(k, narrowed<T, F>(Source::decode(In::unpack(word, k)), step));
            }
            octet.store(values);
            continue;
        }
#pragma unroll 1
        for (int k = 0; k < place.count; k++, place.next(shape)) {
            const float step = scaled ? scale[place.group] : 1.0f;
            const u32 raw = narrowed<T, F>(Source::decode(In::load_one(row, place.col + k)), step);
            values[k] = T::from_raw(raw);
        }
    }
}
