//! The short path on a real kernel, in the lab: what it carries, what ends it, and what it must not do.

mod auto;
mod changes;
mod ends;
mod limits;
mod paths;
mod scene;
mod sessions;
