//! The direction of imports: who may use whom. A forbidden `use` fails here.

use std::fs;
use std::path::{Path, PathBuf};

/// Every folder and file of `src`, and all that it may name of the rest of `src`.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("core", &["core"]),
    ("rooms/cluster", &["core"]),
    ("rooms/files.rs", &["core"]),
    ("rooms/guestfs.rs", &["core", "rooms::files"]),
    ("rooms/keys.rs", &["core"]),
    ("rooms/libvirt", &["core"]),
    ("rooms/process.rs", &["core"]),
    ("rooms/seed.rs", &["core"]),
    ("rooms/ssh", &["core", "rooms::keys"]),
    ("rooms/state.rs", &["core", "rooms::files", "rooms::keys"]),
    ("rooms/template_dir.rs", &["core", "rooms::files"]),
    ("rooms/mod.rs", &[]),
    ("pipeline", &["core", "pipeline"]),
    ("stages", &["core", "pipeline", "rooms", "stages"]),
    ("ui", &["core", "ui", "cli::Output"]),
    (
        "commands",
        &[
            "cli", "commands", "core", "pipeline", "rooms", "stages", "ui",
        ],
    ),
    ("cli.rs", &["core"]),
    ("exit.rs", &["core::error::Kind"]),
    (
        "main.rs",
        &["cli", "commands", "core", "exit", "pipeline", "ui"],
    ),
    ("lib.rs", &[]),
];

/// What reaches outside, and the folders that may not.
const PURE: &[(&str, &[&str])] = &[
    (
        "core",
        &[
            "std::fs",
            "std::net::Tcp",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "tokio",
        ],
    ),
    ("pipeline", &["std::fs", "std::process"]),
    ("stages", &["std::process"]),
    ("ui", &["std::fs", "std::process"]),
];

/// A crate, and the only places that may name it.
const ROOMS: &[(&str, &[&str])] = &[
    ("virt", &["rooms/libvirt"]),
    ("ssh2", &["rooms/ssh"]),
    ("socket2", &["rooms/ssh"]),
    ("ssh_key", &["rooms/keys.rs"]),
    ("kube", &["rooms/cluster"]),
    ("k8s_openapi", &["rooms/cluster"]),
    ("hyper_util", &["rooms/cluster"]),
    ("rustls", &["rooms/cluster"]),
    ("fatfs", &["rooms/seed.rs"]),
    ("tempfile", &["rooms/guestfs.rs"]),
    ("indicatif", &["ui"]),
    ("dialoguer", &["ui"]),
    ("tera", &["core/template.rs"]),
    ("clap", &["cli.rs", "main.rs"]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(below: &Path) -> Vec<PathBuf> {
    if below.is_file() {
        return vec![below.to_path_buf()];
    }
    let mut found: Vec<PathBuf> = fs::read_dir(below)
        .unwrap()
        .flat_map(|entry| files(&entry.unwrap().path()))
        .collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found.sort();
    found
}

/// The code of a file without its comments and its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap()
        .to_owned();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether code names something, as a word of its own: `virt::` is not in `libvirt::`.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name)
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The modules that code names, below `crate::` or, in the binary, below `nodegraft::`.
fn named(code: &str) -> Vec<String> {
    let roots = ["crate::", "nodegraft::"];
    let after = |root: &'static str| {
        code.match_indices(root)
            .map(move |(at, _)| &code[at + root.len()..])
    };
    let path = |rest: &str| {
        rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    roots.into_iter().flat_map(after).map(path).collect()
}

#[test]
fn each_file_names_only_what_it_may() {
    let mut broken = Vec::new();
    for file in files(&source()) {
        let at = file.strip_prefix(source()).unwrap();
        let Some((_, allowed)) = MAY_NAME.iter().find(|(place, _)| at.starts_with(place)) else {
            broken.push(format!("{} has no rule", at.display()));
            continue;
        };
        let within = |name: &str| {
            allowed.iter().any(|allowed| {
                name.strip_prefix(allowed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        };
        broken.extend(
            named(&code(&file))
                .iter()
                .filter(|name| !within(name))
                .map(|name| format!("{} names {name}", at.display())),
        );
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn what_is_pure_reaches_nothing_outside() {
    let mut broken = Vec::new();
    for (place, forbidden) in PURE {
        for file in files(&source().join(place)) {
            let code = code(&file);
            broken.extend(
                forbidden
                    .iter()
                    .filter(|name| names(&code, name))
                    .map(|name| format!("{} names {name}", file.display())),
            );
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn each_crate_has_one_room() {
    let mut broken = Vec::new();
    for (name, rooms) in ROOMS {
        for file in files(&source()) {
            let inside = rooms
                .iter()
                .any(|room| file.starts_with(source().join(room)));
            let code = code(&file);
            if !inside
                && (code.contains(&format!("use {name}::")) || code.contains(&format!(" {name}::")))
            {
                broken.push(format!("{} names the crate {name}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn only_the_user_interface_prints() {
    for file in files(&source())
        .into_iter()
        .filter(|file| !file.starts_with(source().join("ui")))
    {
        for printing in ["println!", "eprintln!", "stdout()", "stderr()"] {
            assert!(
                !code(&file).contains(printing),
                "{} uses {printing}",
                file.display()
            );
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for file in files(&source()) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with("//!"),
            "{} does not open with `//!`",
            file.display()
        );
    }
}
