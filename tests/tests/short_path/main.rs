//! The short path on a real kernel, in the lab: what it carries, what ends it, and what it must not do.

mod auto;
mod capture;
mod changes;
mod echo;
mod ends;
mod fixture;
mod limits;
mod masquerade;
mod mtu;
mod packets;
mod paths;
mod pods;
mod sessions;
