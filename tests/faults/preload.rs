//! Faults of libvirt: the preload library of `preload/`, which counts nodegraft's calls and fails the n-th.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::fixture::{Draft, Home};
use crate::spec::GOOD;

/// The library for this binary, built when first asked for.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault.so");
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload/build");
        let output = Command::new(build)
            .arg(env!("CARGO_BIN_EXE_nodegraft"))
            .arg(&library)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "building the fault library: {}",
            crate::in_lab::text(&output)
        );
        library
    })
}

/// The environment in which a nodegraft meets this fault: `kill@12`, `late@virStorageVolCreateXML:1`; see `preload/fault.c`.
pub fn fault(fault: &str) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library().display().to_string()),
        ("FAULT", fault.to_owned()),
    ]
}

/// Runs a nodegraft that must succeed, and returns the round trips it made to libvirt, by name and in order.
pub fn calls(command: &mut Command) -> Vec<String> {
    let (output, calls) = counted(command);
    assert!(
        output.status.success(),
        "counting the calls: {}",
        crate::in_lab::text(&output)
    );
    calls
}

/// The same of one that may fail. What follows the last call is not in it, and a call that never leaves the process is none.
pub fn counted(command: &mut Command) -> (Output, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let output = command
        .env("LD_PRELOAD", library())
        .env("FAULT_CALLS", dir.path())
        .output()
        .unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(files.len() <= 1, "one nodegraft was to run");
    let text = files
        .pop()
        .map(|file| fs::read_to_string(file).unwrap())
        .unwrap_or_default();
    // Threads may write in another order than they counted in.
    let mut calls: Vec<(usize, String)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(number, name)| (number.parse().unwrap(), name.to_owned()))
        .collect();
    calls.sort();
    (output, calls.into_iter().map(|(_, name)| name).collect())
}

/// The library needs no lab: `doctor` asks libvirt's own test driver a few things, and meets a fault there.
#[test]
fn calls_are_counted_and_fail_as_told() {
    let home = Home::of(&Draft::parse(GOOD).set("host.uri", "test:///default").text());
    let doctor = || home.command(&["doctor", "-f", "cluster.yaml"]);
    let (whole, calls) = counted(&mut doctor());
    assert_eq!(
        calls.first().map(String::as_str),
        Some("virConnectOpen"),
        "{}",
        crate::in_lab::text(&whole)
    );
    assert!(
        calls.len() > 2 && calls.iter().all(|name| !name.ends_with("Free")),
        "{calls:?}"
    );
    let (failed, before) = counted(doctor().envs(fault("error@1")));
    assert_eq!(before, ["virConnectOpen"]);
    assert!(
        crate::in_lab::text(&failed).contains("/fault-at-call-1-virConnectOpen"),
        "{}",
        crate::in_lab::text(&failed)
    );
    let (killed, before) = counted(doctor().envs(fault(&format!("kill@{}", calls[1]))));
    assert_eq!(
        before.len(),
        0,
        "a fault without a number is refused: {killed:?}"
    );
    let (killed, before) = counted(doctor().envs(fault(&format!("kill@{}:1", calls[1]))));
    assert_eq!(
        (killed.status.code(), before.last()),
        (None, Some(&calls[1]))
    );
}
