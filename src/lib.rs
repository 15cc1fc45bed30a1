//! nodegraft clones a VM from a libvirt pool and grafts it onto a Kubernetes cluster.
//!
//! A **Spec** (what the user wrote) becomes a **Plan** (everything decided, every template rendered). Each
//! **Node** of the plan walks one readable list of **Stages** (`stages/mod.rs`: start there). Every move is an
//! **Event**; what the user sees (`ui`) is a function of the events.
//!
//! Who may use whom: `main` -> `cli`, `commands`, `ui`; `commands` -> core, stages, runner; `stages` -> the stage
//! contract, the rooms, core; a room (`libvirt`, `ssh`, `cluster`, `seed`, `guestfs`) -> core and its one crate; `ui` -> `event`.

pub mod cli;
pub mod commands;
pub mod core;
pub mod exit;
pub mod pipeline;
pub mod rooms;
pub mod stages;
pub mod ui;
