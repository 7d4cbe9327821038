//! What goes wrong on boards, made to go wrong: processes killed at every step, memory, disk and process
//! numbers that run out, file systems that are silent, streams that are heavy. Needs root.

mod cluster;
#[path = "../common/mod.rs"]
mod common;
#[path = "../ground/mod.rs"]
mod ground;
#[path = "../images/mod.rs"]
mod images;
mod images_at_steps;
mod runtime;
mod streams;
