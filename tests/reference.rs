//! What is written about the command line agrees with it: help pages, docs/cli.md, and every example in the README and docs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::{CommandFactory, Parser};
use nodegraft::cli::Cli;

const REFERENCE: &str = "docs/cli.md";

/// Flags that the README and docs name and that are not nodegraft's own.
const FOREIGN_FLAGS: &[(&str, &str)] = &[("cargo", "--path")];

/// Compares a generated file with what it should be; `UPDATE=1` writes it instead.
pub fn assert_generated(path: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(
        found == expected,
        "{} is out of date, first at {differs:?}: run `UPDATE=1 cargo test`",
        path.display()
    );
}

/// README.md, CONTRIBUTING.md and docs/*.md, as (name, text).
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let mut paths: Vec<_> = docs.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "md"));
    paths.extend([root.join("README.md"), root.join("CONTRIBUTING.md")]);
    paths.sort();
    paths
        .iter()
        .map(|path| {
            (
                path.strip_prefix(root).unwrap().display().to_string(),
                fs::read_to_string(path).unwrap(),
            )
        })
        .collect()
}

/// The fenced blocks of a language, each with the number of its first line.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(usize, Vec<&'a str>)> {
    let mut found = Vec::new();
    let mut open: Option<(bool, usize, Vec<&str>)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(tag)) => open = Some((tag == language, number + 2, Vec::new())),
            (Some(_), Some(_)) => {
                let (wanted, first, lines) = open.take().unwrap();
                if wanted {
                    found.push((first, lines));
                }
            }
            (Some((_, _, lines)), None) => lines.push(line),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    found
}

/// Every command with its full name, parents first, as clap builds it.
fn commands() -> Vec<(String, clap::Command)> {
    fn collect(prefix: &str, command: &clap::Command, all: &mut Vec<(String, clap::Command)>) {
        let name = format!("{prefix}{}", command.get_name());
        all.push((name.clone(), command.clone()));
        for child in command.get_subcommands() {
            if child.get_name() != "help" {
                collect(&format!("{name} "), child, all);
            }
        }
    }
    // Values in the environment would be part of the page.
    let mut root = Cli::command();
    root.build();
    let mut all = Vec::new();
    collect("", &root, &mut all);
    all.into_iter()
        .map(|(name, command)| (name, command.mut_args(|arg| arg.hide_env_values(true))))
        .collect()
}

fn reference() -> String {
    let mut text = "\
# Command line

<!-- Generated from src/cli.rs: UPDATE=1 cargo test cli_reference -->

Every command takes the global options of `nodegraft` too: `-v`, `-o`, `--templates`.
"
    .to_owned();
    for (name, command) in commands() {
        let root = !name.contains(' ');
        let command = command.mut_args(|arg| {
            let hidden = arg.is_hide_set() || (arg.is_global_set() && !root);
            arg.hide(hidden)
        });
        let page = command.term_width(80).render_long_help().to_string();
        let page: Vec<&str> = page.lines().map(str::trim_end).collect();
        text.push_str(&format!(
            "\n## {name}\n\n```text\n{}\n```\n",
            page.join("\n")
        ));
    }
    text
}

#[test]
fn cli_reference_is_up_to_date() {
    assert_generated(REFERENCE, &reference());
}

#[test]
fn clap_finds_the_command_line_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_argument_and_value_has_help() {
    for (name, command) in commands() {
        assert!(command.get_about().is_some(), "`{name}` has no help");
        for arg in command.get_arguments() {
            assert!(
                arg.get_help().is_some(),
                "`{name}`: {} has no help",
                arg.get_id()
            );
            // The shells' names are clap's.
            if arg.get_id() == "shell" {
                continue;
            }
            let takes_value = arg.get_action().takes_values();
            for value in arg.get_possible_values().iter().filter(|_| takes_value) {
                assert!(
                    value.get_help().is_some(),
                    "`{name}`: {} {} has no help",
                    arg.get_id(),
                    value.get_name()
                );
            }
        }
    }
}

#[test]
fn every_help_page_is_within_80_columns() {
    for (name, mut command) in commands() {
        for page in [
            command.render_help().to_string(),
            command.render_long_help().to_string(),
        ] {
            for line in page.lines() {
                assert!(line.chars().count() <= 80, "`{name} --help`: {line}");
            }
        }
    }
}

/// One line of help is a phrase: no full stop, a capital first unless it begins with a name or a symbol.
#[test]
fn help_is_phrased_alike() {
    for (name, command) in commands() {
        let helps = command
            .get_arguments()
            .filter_map(clap::Arg::get_help)
            .chain(command.get_about());
        for help in helps.map(ToString::to_string) {
            let first = help.split_whitespace().next().unwrap_or_default();
            let capital = first.starts_with(|c: char| c.is_uppercase() || !c.is_alphabetic());
            assert!(
                capital || ["libvirt", "cloud-init", "kubelet"].contains(&first),
                "`{name}`: {help}"
            );
            assert!(!help.ends_with('.'), "`{name}`: {help}");
        }
    }
}

#[test]
fn every_command_in_the_docs_parses() {
    let mut seen = 0;
    for (page, text) in pages() {
        for (first, lines) in blocks(&text, "sh") {
            for (offset, line) in lines.iter().enumerate() {
                let line = line.split("  #").next().unwrap_or_default();
                let Some((_, arguments)) = line.split_once("nodegraft ") else {
                    continue;
                };
                let arguments = arguments.split_whitespace();
                let parsed = Cli::try_parse_from(std::iter::once("nodegraft").chain(arguments));
                seen += 1;
                assert!(
                    parsed.is_ok(),
                    "{page}:{}: {}",
                    first + offset,
                    parsed.unwrap_err()
                );
            }
        }
    }
    assert!(seen > 0, "no page has a command");
}

#[test]
fn every_flag_in_the_docs_exists_and_every_command_is_in_the_readme() {
    let mut known: BTreeSet<String> = FOREIGN_FLAGS
        .iter()
        .map(|(_, flag)| (*flag).to_owned())
        .collect();
    known.extend(["--help".to_owned(), "--version".to_owned()]);
    let pages = pages();
    let readme = &pages
        .iter()
        .find(|(name, _)| name == "README.md")
        .unwrap()
        .1;
    for (name, command) in commands() {
        for arg in command.get_arguments() {
            let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
            known.extend(longs.iter().map(|long| format!("--{long}")));
        }
        let own = name.split(' ').nth(1).unwrap_or("nodegraft");
        assert!(
            readme.contains(&format!("`{own}")) || own == "nodegraft",
            "README.md does not list `{own}`"
        );
    }
    for (page, text) in &pages {
        for (number, line) in text.lines().enumerate() {
            for (at, _) in line.match_indices("`--") {
                let flag: String = line[at + 1..]
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                    .collect();
                assert!(
                    known.contains(&flag),
                    "{page}:{}: no command has {flag}",
                    number + 1
                );
            }
        }
    }
}

#[test]
fn every_spec_in_the_docs_can_be_planned() {
    let mut planned = 0;
    for (page, text) in pages() {
        for (first, lines) in blocks(&text, "yaml") {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("cluster.yaml"), lines.join("\n")).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_nodegraft"))
                .args(["plan", "--show"])
                .current_dir(dir.path())
                .env("HOME", dir.path())
                .env_remove("NODEGRAFT_SPEC")
                .env_remove("NODEGRAFT_TEMPLATES")
                .output()
                .unwrap();
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{page}:{first}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            planned += 1;
        }
    }
    assert!(planned > 0, "no page has a spec");
}
