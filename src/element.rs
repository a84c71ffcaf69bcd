//! The Rust types that can be elements of a buffer: all types of NCCL.
//!
//! The formats that Rust has no type for come from two crates, behind a feature each: `half`
//! (`f16`, `bf16`) and `float8` (`F8E4M3`, `F8E5M2`).

use maypole_algorithms::DType;

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that can be an element of a buffer. It has no padding and no invalid values.
pub trait Element: Copy + Send + sealed::Sealed + 'static {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty = $dtype:ident),*) => {
        $(
            impl sealed::Sealed for $type {}
            impl Element for $type {
                const DTYPE: DType = DType::$dtype;
            }
            const _: () = assert!(size_of::<$type>() == DType::$dtype.size());
        )*
    };
}

elements!(
    i8 = Int8,
    u8 = Uint8,
    i32 = Int32,
    u32 = Uint32,
    i64 = Int64,
    u64 = Uint64,
    f32 = Float32,
    f64 = Float64
);

#[cfg(feature = "half")]
elements!(half::f16 = Float16, half::bf16 = Bfloat16);

#[cfg(feature = "float8")]
elements!(float8::F8E4M3 = Float8E4M3, float8::F8E5M2 = Float8E5M2);
