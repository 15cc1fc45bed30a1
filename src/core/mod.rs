//! What is decided without looking at anything: no I/O, no async, no clock.

pub mod dead_end;
pub mod diagnosis;
pub mod difference;
pub mod error;
pub mod event;
pub mod finding;
pub mod first_boot;
pub mod journal;
pub mod kubelet;
pub mod label;
pub mod mark;
pub mod nearest;
pub mod no_proxy;
pub mod ownership;
pub mod plain;
pub mod plan;
pub mod profile;
pub mod random;
pub mod server;
pub mod shape;
pub mod spec;
pub mod stage_name;
pub mod taint;
pub mod template;
pub mod yaml;
