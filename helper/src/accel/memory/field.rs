//! Typed fields of memory that BPF programs write at the same time. Each can be read everywhere, and written in this folder only.

use std::fmt;
use std::sync::atomic::{AtomicI8, AtomicI32, AtomicU16, AtomicU32, AtomicU64, Ordering};

use sockpath_bpf::accel::types::{accel_order, accel_pass, accel_reinjection, accel_role, accel_state};
use sockpath_kernel::shared::Shared;

/// What one field holds: an integer, or an enum of the programs.
pub trait Value: Copy {
    /// The atomic of its size.
    type Atomic: Shared;

    /// Reads it; what is read after it is not older.
    fn load(from: &Self::Atomic) -> Self;

    /// Writes it, after everything that was written before.
    fn store(self, to: &Self::Atomic);
}

/// One field.
#[repr(transparent)]
pub struct Field<T: Value>(T::Atomic);

// SAFETY: nothing but an atomic.
unsafe impl<T: Value> Shared for Field<T> {}

impl<T: Value> Field<T> {
    /// What it holds.
    pub fn get(&self) -> T {
        T::load(&self.0)
    }

    pub(super) fn set(&self, value: T) {
        value.store(&self.0);
    }
}

impl Field<u32> {
    /// Sets bits, whatever the programs do to it at the same time.
    pub(super) fn or(&self, bits: u32) {
        self.0.fetch_or(bits, Ordering::Relaxed);
    }
}

impl<T: Value + fmt::Debug> fmt::Debug for Field<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The type of a field as the programs declare it, and what takes its place in shared memory.
pub trait Plain: Copy {
    /// One field, or an array of fields.
    type Fields: Shared;

    /// A copy; that of an array may be torn.
    fn copy(from: &Self::Fields) -> Self;
}

impl<T: Value, const N: usize> Plain for [T; N] {
    type Fields = [Field<T>; N];

    fn copy(from: &Self::Fields) -> Self {
        std::array::from_fn(|i| from[i].get())
    }
}

macro_rules! values {
    ($($type:ty as $atomic:ty: |$raw:ident| $value:expr, |$from:ident| $plain:expr;)*) => {
        $(
            impl Value for $type {
                type Atomic = $atomic;

                fn load(from: &$atomic) -> Self {
                    let $raw = from.load(Ordering::Acquire);
                    $value
                }

                fn store(self, to: &$atomic) {
                    let $from = self;
                    to.store($plain, Ordering::Release);
                }
            }

            impl Plain for $type {
                type Fields = Field<$type>;

                fn copy(from: &Self::Fields) -> Self {
                    from.get()
                }
            }
        )*
    };
}

values! {
    i8 as AtomicI8: |raw| raw, |value| value;
    u16 as AtomicU16: |raw| raw, |value| value;
    i32 as AtomicI32: |raw| raw, |value| value;
    u32 as AtomicU32: |raw| raw, |value| value;
    u64 as AtomicU64: |raw| raw, |value| value;
    accel_order as AtomicU32: |raw| Self(raw), |value| value.0;
    accel_pass as AtomicU32: |raw| Self(raw), |value| value.0;
    accel_reinjection as AtomicU32: |raw| Self(raw), |value| value.0;
    accel_role as AtomicU32: |raw| Self(raw), |value| value.0;
    accel_state as AtomicU32: |raw| Self(raw), |value| value.0;
}

/// Declares a struct of fields that lies over one of the programs. It has each field at the same place and of the same type, which the
/// compiler checks; where the other has padding it has padding.
macro_rules! laid_over {
    ($(#[$doc:meta])* $name:ident over $original:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[allow(missing_docs, reason = "wire.h describes the fields")]
        #[derive(Debug)]
        #[repr(C)]
        pub struct $name {
            $(pub $field: <$type as Plain>::Fields,)*
        }

        // SAFETY: `Plain::Fields` are such.
        unsafe impl Shared for $name {}

        const _: () = {
            assert!(size_of::<$name>() == size_of::<$original>());
            $(assert!(offset_of!($name, $field) == offset_of!($original, $field));)*
            $(let _same_type: fn(&$original) -> &$type = |value| &value.$field;)*
        };

        impl $name {
            /// A copy of all fields, which may be torn between them.
            #[allow(clippy::needless_update, reason = "not all of them have padding")]
            pub fn copy(&self) -> $original {
                $original { $($field: Plain::copy(&self.$field),)* ..Default::default() }
            }
        }
    };
}
pub(super) use laid_over;
