//! nodegraft clones a VM from a libvirt pool and grafts it onto a Kubernetes cluster.
//!
//! A **Spec** (what the user wrote) becomes a **Plan** (everything decided, every template rendered). Each
//! **Node** of the plan walks one readable list of **Stages** (`stages/mod.rs`: start there). Every move is an
//! **Event**; what the user sees (`ui`) is a function of the events.
//!
//! Who may use whom: `main` -> `cli`, `commands`, `ui`; `commands` -> core, stages, runner; `stages` -> the stage
//! contract, the rooms, core; a room (`libvirt`, `ssh`, `cluster`, `seed`, `guestfs`) -> core and its one crate; `ui` -> `event`.

// The pure core: no I/O, no async, no clock.
pub mod diagnosis;
pub mod difference;
pub mod error;
pub mod event;
pub mod first_boot;
pub mod journal;
pub mod kubelet;
pub mod label;
pub mod mark;
pub mod ownership;
pub mod plain;
pub mod plan;
pub mod profile;
pub mod spec;
pub mod taint;
pub mod template;

// The pipeline.
pub mod pipeline;
pub mod stages;

// The rooms, each the only user of its crate.
pub mod cluster;
pub mod guestfs;
pub mod keys;
pub mod libvirt;
pub mod process;
pub mod seed;
pub mod ssh;
pub mod state;

pub mod cli;
pub mod commands;
pub mod ui;
