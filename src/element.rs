//! Rust types that are element types.

use maypole_algorithms::DType;

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that can be an element. The types that Rust has no name for go through
/// [`Communicator::run`](crate::Communicator::run).
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
