//! The memory that is shared with the programs. Typed fields make it readable everywhere; only the modules of this folder write:
//! `ends` to tracked sockets, `control` to what controls the programs, `shares` to the shares of network namespaces.

pub mod control;
pub mod ends;
mod field;
pub mod layout;
mod map;
pub mod shares;
pub mod sleeper;
