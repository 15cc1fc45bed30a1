//! One integration binary. Cheapest first; those in `debian`, `faults` and `in_lab` are ignored unless `make test` runs them
//! inside the lab.
#![expect(
    clippy::print_stderr,
    reason = "lab tests take minutes and report their progress"
)]

mod api;
mod api_server;
mod architecture;
mod cli;
mod debian;
mod environment;
mod errors;
mod faults;
mod fixture;
mod in_lab;
mod join;
mod laws;
mod own;
mod packages;
mod picture;
mod properties;
mod reference;
mod spec;
mod ssh;
mod steps;
