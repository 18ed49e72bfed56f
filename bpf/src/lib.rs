//! The BPF programs, as skeletons generated at build.
//!
//! Structs that cross between kernel and user space are defined once, in `include/wire.h`; the skeletons carry their
//! Rust form under `types`.

#![allow(missing_docs, reason = "generated code")]
#![allow(clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, clippy::unwrap_used, reason = "generated code")]

#[cfg(test)]
#[path = "../shipping.rs"]
mod shipping;

pub mod trace {
    include!(concat!(env!("OUT_DIR"), "/trace.skel.rs"));
}

pub mod accel {
    include!(concat!(env!("OUT_DIR"), "/accel.skel.rs"));
}

pub mod short {
    include!(concat!(env!("OUT_DIR"), "/short.skel.rs"));
}
