//! Programs that people run, between lab pods and through a Service, over each path while acceleration goes on and off in the middle.

mod data;
mod stage;
mod streams;
mod web;
