//! The direction of imports: who may use whom. A forbidden `use` fails here.

use std::fs;
use std::path::{Path, PathBuf};

/// Where code lives, and which of our modules and which crates it may not name.
const RULES: &[(&[&str], &[&str])] = &[
    (
        &[
            "diagnosis.rs",
            "difference.rs",
            "error.rs",
            "event.rs",
            "first_boot.rs",
            "journal.rs",
            "kubelet.rs",
            "label.rs",
            "mark.rs",
            "ownership.rs",
            "plain.rs",
            "plan.rs",
            "profile.rs",
            "spec.rs",
            "taint.rs",
            "template.rs",
        ],
        &[
            "crate::stages",
            "crate::pipeline",
            "crate::libvirt",
            "crate::ssh",
            "crate::cluster",
            "crate::seed",
            "crate::keys",
            "crate::state",
            "crate::commands",
            "crate::ui",
            "crate::cli",
            "tokio",
            "virt::",
            "ssh2",
            "kube::",
            "fatfs",
            "indicatif",
        ],
    ),
    (
        &["pipeline"],
        &[
            "crate::stages",
            "crate::libvirt",
            "crate::ssh",
            "crate::cluster",
            "crate::seed",
            "crate::commands",
            "crate::ui",
            "virt::",
            "ssh2",
            "kube::",
            "fatfs",
        ],
    ),
    (
        &["stages"],
        &[
            "crate::commands",
            "crate::ui",
            "crate::cli",
            "virt::",
            "ssh2::",
            "kube::",
            "fatfs::",
            "indicatif",
            "std::process",
            "println!",
            "eprintln!",
        ],
    ),
    (&["libvirt"], &["crate::stages", "crate::pipeline", "crate::ssh", "crate::cluster", "crate::seed", "crate::commands", "crate::ui"]),
    (&["cluster"], &["crate::stages", "crate::pipeline", "crate::libvirt", "crate::ssh", "crate::seed", "crate::commands", "crate::ui"]),
    (
        &["ssh.rs", "seed.rs", "keys.rs", "state.rs", "guestfs.rs"],
        &["crate::stages", "crate::pipeline", "crate::libvirt", "crate::cluster", "crate::commands", "crate::ui"],
    ),
    (&["ui"], &["crate::libvirt", "crate::ssh", "crate::cluster", "crate::commands", "crate::pipeline", "crate::state"]),
];

/// A crate, and the only places that may name it.
const ROOMS: &[(&str, &[&str])] = &[
    ("virt", &["libvirt"]),
    ("ssh2", &["ssh.rs"]),
    ("socket2", &["ssh.rs"]),
    ("ssh_key", &["keys.rs"]),
    ("kube", &["cluster"]),
    ("k8s_openapi", &["cluster"]),
    ("fatfs", &["seed.rs"]),
    ("tempfile", &["guestfs.rs"]),
    ("indicatif", &["ui"]),
    ("dialoguer", &["ui"]),
    ("tera", &["template.rs"]),
    ("clap", &["cli.rs", "main.rs"]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(below: &Path) -> Vec<PathBuf> {
    if below.is_file() {
        return vec![below.to_path_buf()];
    }
    let mut found: Vec<PathBuf> = fs::read_dir(below).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found.sort();
    found
}

/// The code of a file without its comments and its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether code names something, as a word of its own: `virt::` is not in `libvirt::`.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn nothing_names_what_it_may_not() {
    let mut broken = Vec::new();
    for (places, forbidden) in RULES {
        for file in places.iter().flat_map(|place| files(&source().join(place))) {
            let code = code(&file);
            broken.extend(forbidden.iter().filter(|name| names(&code, name)).map(|name| format!("{} names {name}", file.display())));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn each_crate_has_one_room() {
    let mut broken = Vec::new();
    for (name, rooms) in ROOMS {
        for file in files(&source()) {
            let inside = rooms.iter().any(|room| file.starts_with(source().join(room)));
            let code = code(&file);
            if !inside && (code.contains(&format!("use {name}::")) || code.contains(&format!(" {name}::"))) {
                broken.push(format!("{} names the crate {name}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn only_the_user_interface_prints() {
    for file in files(&source()).into_iter().filter(|file| !file.starts_with(source().join("ui"))) {
        for printing in ["println!", "eprintln!", "stdout()", "stderr()"] {
            assert!(!code(&file).contains(printing), "{} uses {printing}", file.display());
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for file in files(&source()) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with `//!`", file.display());
    }
}
