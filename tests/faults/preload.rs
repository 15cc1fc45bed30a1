//! Faults of libvirt: the preload library of `preload/`, which counts nodegraft's calls and fails the n-th.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library for this binary, built when first asked for.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault.so");
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload/build");
        let output = Command::new(build).arg(env!("CARGO_BIN_EXE_nodegraft")).arg(&library).output().unwrap();
        assert!(output.status.success(), "building the fault library: {}", crate::in_lab::text(&output));
        library
    })
}

/// The environment in which a nodegraft meets this fault: `kill@12`, `late@virStorageVolCreateXML:1`; see `preload/fault.c`.
pub fn fault(fault: &str) -> Vec<(&'static str, String)> {
    vec![("LD_PRELOAD", library().display().to_string()), ("FAULT", fault.to_owned())]
}

/// Runs a nodegraft to its end and returns the round trips it made to libvirt, by name and in order.
pub fn calls(command: &mut Command) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    command.env("LD_PRELOAD", library()).env("FAULT_CALLS", dir.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "counting the calls: {}", crate::in_lab::text(&output));
    let mut files: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "one nodegraft was to run");
    let text = fs::read_to_string(files.remove(0)).unwrap();
    // Threads may write in another order than they counted in.
    let mut calls: Vec<(usize, String)> =
        text.lines().map(|line| line.split_once(' ').unwrap()).map(|(number, name)| (number.parse().unwrap(), name.to_owned())).collect();
    calls.sort();
    calls.into_iter().map(|(_, name)| name).collect()
}
