//! Tests against the real thing: libvirtd, guests, sshd, API servers. Each has a cluster name and addresses of its own,
//! so they run side by side. What is true is asked of libvirt, the guest and the API server.

mod centos7;
mod chapters;
mod first_boot;
pub mod kubernetes;
pub mod libvirt;
mod ownership;
mod refusals;
mod steps;
mod troubles;
pub mod world;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use kubernetes::{NEW, OLD};
pub use libvirt::{state, virsh};
pub use world::World;

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: lab tests run inside the lab, by `make test`")
    })
}

/// A command in a guest, by the system's own ssh.
pub fn ssh(key: &Path, ip: &str, command: &str) -> Output {
    let options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ConnectTimeout=20",
        "BatchMode=yes",
    ];
    Command::new("ssh")
        .arg("-i")
        .arg(key)
        .args(options.iter().flat_map(|option| ["-o", option]))
        .arg(format!("root@{ip}"))
        .arg(command)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that must succeed.
#[track_caller]
pub fn must(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        text(&output)
    );
}

/// Waits for something to become true.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < limit,
            "waited {} s for {what}",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
