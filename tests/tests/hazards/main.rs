//! What goes wrong with sockmap, one test for each row of the list of hazards, each on a real kernel with acceleration on.

mod edges;
mod ends;
mod identity;
mod readers;
mod scene;
mod speed;
mod start;
mod trusting;
