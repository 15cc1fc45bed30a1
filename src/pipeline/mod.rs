//! The pipeline's machinery: `stage.rs` is the contract, `runner.rs` walks a list of stages. Neither knows any stage
//! by name; the list itself is in `stages/mod.rs`.

pub mod runner;
pub mod stage;
