//! `tests/lab/own.sh`: what the lab may remove with everything in it, by a real bash.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a line with the file's functions, below a directory; whether it ended well, and what it said.
fn run(below: &Path, line: &str) -> (bool, String) {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
    let script = format!(
        "set -eu\n. {0}/settings.sh\n. {0}/own.sh\n{line}",
        lab.display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(below)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[test]
fn only_what_the_lab_marked_goes_with_all_that_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for path in ["theirs/deep", "known/deep", "empty"] {
        fs::create_dir_all(at.join(path)).unwrap();
    }
    fs::write(at.join("theirs/precious"), "").unwrap();
    fs::write(at.join("known/holder.pid"), "").unwrap();
    let (ended, said) = run(at, "own_remove theirs");
    assert!(!ended && said.contains("theirs was not removed"), "{said}");
    let (ended, said) = run(at, "own_dir theirs holder.pid");
    assert!(
        !ended && said.contains("theirs exists and is not the lab's"),
        "{said}"
    );
    assert!(at.join("theirs/precious").exists());
    // A link that leads there goes; what it leads to stays.
    let (ended, said) = run(
        at,
        "own_dir new x; ln -s ../theirs new/link; own_remove new/link new",
    );
    assert!(ended && !at.join("new").exists(), "{said}");
    assert!(at.join("theirs/precious").exists());
    let (ended, said) = run(
        at,
        "own_dir empty x; own_dir known holder.pid; mkdir -p empty/a/b; own_remove empty/a/b known absent",
    );
    assert!(ended, "{said}");
    assert!(at.join("empty/a").exists() && !at.join("empty/a/b").exists());
    assert!(!at.join("known").exists());
}
