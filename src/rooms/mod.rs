//! The outside world: each room is the only user of its crate or program, and knows no other room's.

pub mod cluster;
pub mod files;
pub mod guestfs;
pub mod keys;
pub mod libvirt;
pub mod process;
pub mod seed;
pub mod ssh;
pub mod state;
pub mod template_dir;
