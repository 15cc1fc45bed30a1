//! The laws of the house: who may name whom, which crate has which room, what a file must say. Allow-lists: what no list
//! has fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a folder or a file of `src` may name: of the rest of `src`, and of the crates in Cargo.toml. A file goes by the first
/// rule that fits.
struct Rule {
    place: &'static str,
    modules: &'static [&'static str],
    crates: &'static [&'static str],
}

const fn rule(
    place: &'static str,
    modules: &'static [&'static str],
    crates: &'static [&'static str],
) -> Rule {
    Rule {
        place,
        modules,
        crates,
    }
}

const RULES: &[Rule] = &[
    rule("core/digest.rs", &[], &["sha2"]),
    rule("core/mark.rs", &["core"], &["roxmltree"]),
    rule("core/random.rs", &["core::error"], &["getrandom"]),
    rule("core/nearest.rs", &[], &["strsim"]),
    rule("core/no_proxy.rs", &["core"], &["ipnet"]),
    rule("core/shape.rs", &["core"], &["ipnet", "serde_json"]),
    rule(
        "core/spec",
        &["core"],
        &[
            "bytesize",
            "ipnet",
            "jiff",
            "serde",
            "serde_json",
            "serde_saphyr",
        ],
    ),
    rule(
        "core/template.rs",
        &["core"],
        &["include_dir", "serde", "serde_json", "tera"],
    ),
    rule(
        "core",
        &["core"],
        &["serde", "serde_json", "serde_saphyr", "thiserror"],
    ),
    rule(
        "rooms/cluster",
        &["core"],
        &[
            "base64",
            "futures_util",
            "hyper_util",
            "jiff",
            "k8s_openapi",
            "kube",
            "rustls",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio_util",
            "x509_cert",
        ],
    ),
    rule("rooms/files.rs", &["core"], &["thiserror"]),
    rule(
        "rooms/guestfs.rs",
        &["core", "rooms::files"],
        &["tempfile", "thiserror", "tokio"],
    ),
    rule("rooms/keys.rs", &["core"], &["ssh_key", "thiserror"]),
    rule(
        "rooms/libvirt",
        &["core"],
        &["roxmltree", "thiserror", "tokio", "virt"],
    ),
    rule("rooms/process.rs", &["core"], &[]),
    rule("rooms/seed.rs", &["core"], &["fatfs", "thiserror"]),
    rule(
        "rooms/ssh",
        &["core", "rooms::keys"],
        &["socket2", "ssh2", "thiserror", "tokio"],
    ),
    rule(
        "rooms/state.rs",
        &["core", "rooms::files", "rooms::keys"],
        &["etcetera", "jiff"],
    ),
    rule("rooms/template_dir.rs", &["core", "rooms::files"], &[]),
    rule("rooms/mod.rs", &[], &[]),
    rule(
        "pipeline",
        &["core", "pipeline"],
        &["async_trait", "tokio", "tokio_util"],
    ),
    rule(
        "stages",
        &["core", "pipeline", "rooms", "stages"],
        &[
            "async_trait",
            "futures_util",
            "serde_json",
            "tokio",
            "tokio_util",
        ],
    ),
    rule(
        "ui",
        &["core", "ui", "cli::Output"],
        &[
            "console",
            "dialoguer",
            "indicatif",
            "serde",
            "serde_json",
            "serde_saphyr",
            "tokio",
        ],
    ),
    rule(
        "commands",
        &[
            "cli", "commands", "core", "pipeline", "rooms", "stages", "ui",
        ],
        &[
            "futures_util",
            "ipnet",
            "serde",
            "serde_json",
            "serde_saphyr",
            "tokio",
            "tokio_util",
        ],
    ),
    rule("cli.rs", &["core"], &["clap", "clap_complete"]),
    rule("exit.rs", &["core::error::Kind"], &[]),
    rule("lib.rs", &[], &[]),
    rule(
        "main.rs",
        &["cli", "commands", "core", "exit", "pipeline", "ui"],
        &["clap", "clap_complete", "tokio", "tokio_util"],
    ),
];

/// What reaches outside, and the folders that may not. `std::{` would hide it.
const PURE: &[(&str, &[&str])] = &[
    (
        "core",
        &[
            "std::env",
            "std::fs",
            "std::net::Tcp",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "std::{",
        ],
    ),
    (
        "pipeline",
        &["std::env", "std::fs", "std::process", "std::{"],
    ),
    ("stages", &["std::env", "std::process", "std::{"]),
    ("ui", &["std::env", "std::fs", "std::process", "std::{"]),
];

/// What a program is given without asking: a type of ours that is called so hides it.
const PRELUDE: &[&str] = &[
    "AsMut",
    "AsRef",
    "Box",
    "Clone",
    "Copy",
    "Debug",
    "Default",
    "Drop",
    "Eq",
    "Extend",
    "Fn",
    "FnMut",
    "FnOnce",
    "From",
    "Future",
    "Hash",
    "Into",
    "IntoFuture",
    "IntoIterator",
    "Iterator",
    "Option",
    "Ord",
    "PartialEq",
    "PartialOrd",
    "Send",
    "Sized",
    "String",
    "Sync",
    "ToOwned",
    "ToString",
    "TryFrom",
    "TryInto",
    "Unpin",
    "Vec",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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

/// A file of `src`, by its path there.
struct Source {
    at: String,
    /// Without comments and tests.
    code: String,
    tests: String,
}

fn sources() -> Vec<Source> {
    let below = root().join("src");
    files(&below)
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let (code, tests) = text
                .split_once("#[cfg(test)]\nmod tests")
                .unwrap_or((&text, ""));
            Source {
                at: path.strip_prefix(&below).unwrap().display().to_string(),
                code: code
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .collect::<Vec<_>>()
                    .join("\n"),
                tests: tests.to_owned(),
            }
        })
        .collect()
}

fn source(at: &str) -> Source {
    let found = sources().into_iter().find(|source| source.at == at);
    found.unwrap_or_else(|| panic!("there is no src/{at}"))
}

fn rule_of(source: &Source) -> Option<&'static Rule> {
    RULES
        .iter()
        .find(|rule| Path::new(&source.at).starts_with(rule.place))
}

fn fail_on(broken: &[String]) {
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Whether code names something, as a path of its own: `virt::` is not in `libvirt::`, `console::` not in `x::console::`.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name)
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
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

/// The crates that the program itself is built from.
fn dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, list) = manifest.split_once("\n[dependencies]\n").unwrap();
    list.lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.replace('-', "_"))
        .collect()
}

#[test]
fn each_file_has_a_rule_and_names_only_what_it_may() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some(rule) = rule_of(&source) else {
            broken.push(format!("{} has no rule", source.at));
            continue;
        };
        let within = |name: &str| {
            rule.modules.iter().any(|allowed| {
                name.strip_prefix(allowed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        };
        broken.extend(
            named(&source.code)
                .iter()
                .filter(|name| !within(name))
                .map(|name| format!("{} names {name}", source.at)),
        );
    }
    fail_on(&broken);
}

#[test]
fn each_crate_is_used_where_it_may_be_and_nowhere_else() {
    let dependencies = dependencies();
    assert!(dependencies.contains(&"serde_saphyr".to_owned()));
    let (mut broken, mut used) = (Vec::new(), BTreeSet::new());
    for source in sources() {
        let Some(rule) = rule_of(&source) else {
            continue;
        };
        for name in &dependencies {
            if !names(&source.code, &format!("{name}::")) {
                continue;
            }
            used.insert((rule.place, name.as_str()));
            if !rule.crates.contains(&name.as_str()) {
                broken.push(format!("{} names the crate {name}", source.at));
            }
        }
    }
    for rule in RULES {
        let stale = rule
            .crates
            .iter()
            .filter(|name| !used.contains(&(rule.place, **name)));
        broken.extend(stale.map(|name| format!("{} does not use the crate {name}", rule.place)));
    }
    fail_on(&broken);
}

#[test]
fn what_is_pure_reaches_nothing_outside() {
    let mut broken = Vec::new();
    for source in sources() {
        for (place, forbidden) in PURE {
            if Path::new(&source.at).starts_with(place) {
                broken.extend(
                    forbidden
                        .iter()
                        .filter(|name| names(&source.code, name))
                        .map(|name| format!("{} names {name}", source.at)),
                );
            }
        }
    }
    fail_on(&broken);
}

#[test]
fn only_the_user_interface_prints() {
    let mut broken = Vec::new();
    for source in sources() {
        for printing in ["println!", "eprintln!", "stdout()", "stderr()"] {
            if !source.at.starts_with("ui/") && source.code.contains(printing) {
                broken.push(format!("{} uses {printing}", source.at));
            }
        }
    }
    fail_on(&broken);
}

#[test]
fn every_file_says_what_it_owns() {
    for file in files(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with("//!"),
            "{} does not open with `//!`",
            file.display()
        );
    }
}

/// The files that a file declares as its modules, and theirs.
fn reached(file: &Path, found: &mut BTreeSet<PathBuf>) {
    let text = fs::read_to_string(file).unwrap();
    let name = file.file_stem().unwrap();
    let below = if ["main", "lib", "mod"].iter().any(|root| name == *root) {
        file.parent().unwrap().to_path_buf()
    } else {
        file.with_extension("")
    };
    found.insert(file.to_path_buf());
    for line in text.lines() {
        let declared = line
            .trim_start_matches("pub ")
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(';'));
        if let Some(module) = declared {
            let beside = below.join(format!("{module}.rs"));
            let own = below.join(module).join("mod.rs");
            reached(if beside.is_file() { &beside } else { &own }, found);
        }
    }
}

#[test]
fn every_file_is_reached() {
    let mut found = BTreeSet::new();
    for entry in ["src/lib.rs", "src/main.rs", "tests/main.rs"] {
        reached(&root().join(entry), &mut found);
    }
    let lost: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|folder| files(&root().join(folder)))
        .filter(|file| !found.contains(file))
        .map(|file| format!("no `mod` leads to {}", file.display()))
        .collect();
    fail_on(&lost);
}

#[test]
fn every_event_has_words_and_is_in_the_recorded_run() {
    let events = source("core/event.rs").code;
    let (_, body) = events.split_once("pub enum Event {\n").unwrap();
    let variants: Vec<&str> = body
        .lines()
        .take_while(|line| *line != "}")
        .filter(|line| line.starts_with("    ") && !line.starts_with("     "))
        .filter_map(|line| line.trim().strip_suffix(" {"))
        .collect();
    assert!(variants.contains(&"NodeFinished"), "{variants:?}");
    let mut broken = Vec::new();
    let (lines, bars) = (source("ui/lines.rs"), source("ui/bars.rs"));
    for variant in variants {
        let event = format!("Event::{variant} {{");
        for (where_, text) in [
            ("the words of ui/lines.rs", &lines.code),
            ("the recorded run of ui/lines.rs", &lines.tests),
            ("ui/bars.rs", &bars.code),
        ] {
            if !text.contains(&event) {
                broken.push(format!("{variant} is not in {where_}"));
            }
        }
    }
    fail_on(&broken);
}

#[test]
fn no_name_hides_another() {
    let mut broken = Vec::new();
    for Source { at, code, .. } in sources() {
        for line in code.lines() {
            let words: Vec<&str> = line
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .collect();
            let declared = words
                .windows(2)
                .find(|pair| ["struct", "enum", "trait", "type", "union"].contains(&pair[0]));
            if let Some(name) = declared
                .map(|pair| pair[1])
                .filter(|name| PRELUDE.contains(name))
            {
                broken.push(format!("{at} declares {name}, which is std's"));
            }
        }
        for import in code.split("use ").skip(1) {
            let import = import.split(';').next().unwrap_or_default();
            for renamed in import.split(" as ").skip(1) {
                let alias = renamed.split([',', '}']).next().unwrap_or_default().trim();
                if alias != "_" && !at.starts_with("rooms/") {
                    broken.push(format!("{at} renames what it imports to {alias}"));
                }
            }
        }
    }
    fail_on(&broken);
}

/// The fields of an owner are private: whose a thing is, `core/ownership.rs` answers. What it is told by may be written and
/// read back only where marks and annotations are.
#[test]
fn ownership_is_decided_in_one_place() {
    let allowed: &[(&str, &[&str])] = &[
        (".parts()", &["core/mark.rs", "rooms/cluster/mod.rs"]),
        (
            "CLUSTER_ANNOTATION",
            &["rooms/cluster/mod.rs", "rooms/cluster/access.rs"],
        ),
        ("INSTANCE_ANNOTATION", &["rooms/cluster/mod.rs"]),
        ("NODE_ANNOTATION", &["rooms/cluster/mod.rs"]),
        ("ownership::owner(", &["rooms/libvirt/domain.rs"]),
        (".is_machine(", &["rooms/cluster/node.rs"]),
        ("machine_id ==", &[]),
        ("machine_id() ==", &[]),
        ("== self.machine_id", &[]),
        ("uuid() ==", &[]),
        ("\"nodegraft.\"", &[]),
        ("\"nodegraft.{", &[]),
    ];
    let mut broken = Vec::new();
    for source in sources() {
        if source.at == "core/ownership.rs" {
            continue;
        }
        for (look, places) in allowed {
            if source.code.contains(look) && !places.contains(&source.at.as_str()) {
                broken.push(format!("{} looks by itself: {look}", source.at));
            }
        }
    }
    let owner = source("core/ownership.rs").code;
    for private in ["\n    cluster: String,", "\n    instance: String,"] {
        assert!(owner.contains(private), "{private} is not private");
    }
    fail_on(&broken);
}
