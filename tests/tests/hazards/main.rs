//! What goes wrong with sockmap, one test for each row of the list of hazards, each on a real kernel with acceleration on.

mod edges;
mod ends;
mod fixture;
mod identity;
mod readers;
mod speed;
mod start;
mod trusting;
