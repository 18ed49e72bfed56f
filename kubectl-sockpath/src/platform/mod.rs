//! What differs between operating systems: signals, process groups, exec, users. Everything else of the plugin is the same everywhere.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use unix::{become_program, is_root, isolate, signal_of, watch_interrupts};
#[cfg(windows)]
pub use windows::{become_program, is_root, isolate, signal_of, watch_interrupts};
