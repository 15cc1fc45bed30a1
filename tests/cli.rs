//! The binary as a contract: exit codes, what is on stdout, what is on stderr.

use std::fs;

use crate::fixture::{Draft, Exit, Home, Ran, rewritten};
use crate::spec::GOOD;

/// Runs the binary in an empty directory with a spec in it, where it may leave nothing but its state.
#[track_caller]
fn run(spec: &str, args: &[&str]) -> Ran {
    let home = Home::of(spec);
    let ran = home.run(args);
    let left: Vec<_> = fs::read_dir(home.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "cluster.yaml" && name != "state")
        .collect();
    assert!(left.is_empty(), "it left {left:?}");
    ran
}

#[test]
fn usage_errors_exit_2() {
    for args in [
        &["up", "--nonsense"][..],
        &["up", "--parallel", "0"],
        &["nonsense"],
    ] {
        run(GOOD, args).exits(Exit::Usage).prints_nothing();
    }
}

#[test]
fn a_refused_spec_exits_3_with_a_caret_and_touches_nothing() {
    let ran = run(&rewritten(GOOD, "cpus: 2", "cpu: 2"), &["up"]);
    ran.exits(Exit::Refused).prints_nothing();
    insta::assert_snapshot!(ran.stderr);
}

#[test]
fn a_missing_spec_exits_3() {
    run(GOOD, &["plan", "-f", "absent.yaml"])
        .exits(Exit::Refused)
        .says_all(&["absent.yaml", "help:"]);
}

#[test]
fn an_unreachable_libvirt_exits_4_and_says_how_to_look() {
    let nowhere = "qemu+unix:///system?socket=/nowhere/sock";
    run(&Draft::parse(GOOD).set("host.uri", nowhere).text(), &["up"])
        .exits(Exit::Unfit)
        .says_all(&["libvirt is not reachable", "virsh -c"]);
}

#[test]
fn the_plan_of_a_spec() {
    let ran = run(GOOD, &["plan"]);
    ran.exits(Exit::Done);
    assert_eq!(ran.stderr, "");
    insta::assert_snapshot!(ran.stdout);
}

#[test]
fn a_plan_as_json_is_json_and_shows_files_only_when_asked() {
    for (args, files) in [
        (&["plan", "--output", "json"][..], false),
        (&["plan", "--show", "--output", "json"], true),
    ] {
        let ran = run(GOOD, args);
        let plan = ran.exits(Exit::Done).json();
        assert_eq!(plan["nodes"][0]["name"], "192.168.3.104");
        assert_eq!(plan["nodes"][0]["files"].is_array(), files);
    }
}

#[test]
fn a_shown_plan_has_every_file_and_no_secret() {
    let ran = run(GOOD, &["plan", "--show"]);
    ran.exits(Exit::Done).prints_all(&[
        "domain.xml",
        "seed/user-data",
        "seed/network-config",
        "steps/1-init.sh",
        "steps/3-kubelet.sh",
        "join/bootstrap-kubelet.conf",
        "join/start.sh",
        "<token, made by up>",
    ]);
    ran.never_prints("BEGIN OPENSSH PRIVATE KEY");
}

#[test]
fn templates_can_be_written_out_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    let write = ["templates", own.to_str().unwrap()];
    run(GOOD, &write).exits(Exit::Done);
    let script = own.join("profiles/debian-containerd/init.sh");
    fs::write(&script, "echo my own step\n").unwrap();
    run(GOOD, &["plan", "--show", "--templates", write[1]])
        .exits(Exit::Done)
        .prints("echo my own step");
    // An existing directory is not overwritten.
    run(GOOD, &write).exits(Exit::Refused);
    assert_eq!(fs::read_to_string(script).unwrap(), "echo my own step\n");
}

#[test]
fn a_template_with_a_typo_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("profiles/debian-containerd")).unwrap();
    fs::write(
        dir.path().join("profiles/debian-containerd/init.sh"),
        "echo {{ vars.time_zon }}\n",
    )
    .unwrap();
    run(GOOD, &["up", "--templates", dir.path().to_str().unwrap()])
        .exits(Exit::Refused)
        .says_all(&["profiles/debian-containerd/init.sh", "time_zon"]);
}

#[test]
fn help_fits_the_screen_and_completions_are_made() {
    for args in [
        &["--help"][..],
        &["up", "--help"],
        &["down", "--help"],
        &["plan", "--help"],
    ] {
        let ran = run(GOOD, args);
        ran.exits(Exit::Done);
        assert!(
            ran.stdout.lines().all(|line| line.chars().count() <= 100),
            "{}",
            ran.stdout
        );
    }
    run(GOOD, &["completions", "bash"])
        .exits(Exit::Done)
        .prints("nodegraft");
}

const CREATE: [&str; 13] = [
    "create",
    "--print-spec",
    "--template",
    "t.qcow2",
    "--name",
    "n1",
    "--address",
    "192.168.3.104/24",
    "--disk",
    "40",
    "--memory",
    "4096",
    "--yes",
];

#[test]
fn create_prints_the_spec_it_amounts_to() {
    let ran = run(GOOD, &CREATE);
    ran.exits(Exit::Done);
    let spec = nodegraft::core::spec::Spec::parse(&ran.stdout, "printed").unwrap();
    assert_eq!(spec.nodes[0].memory.as_ref().unwrap().value.0, 4 << 30);
    assert_eq!(
        spec.nodes[0].gateway.as_ref().unwrap().value.to_string(),
        "192.168.3.1"
    );
    assert!(!spec.cluster.join);
    let join = ["--join", "--profile", "debian-containerd"];
    let kubelet = ["--kubelet", "1.35.4"];
    let joined = run(GOOD, &[&CREATE[..], &join, &kubelet].concat());
    let spec = &joined.exits(Exit::Done).stdout;
    let spec = nodegraft::core::spec::Spec::parse(spec, "printed").unwrap();
    assert!(spec.cluster.join);
}

#[test]
fn create_without_a_terminal_names_the_flag_it_misses() {
    let without_yes = &CREATE[..CREATE.len() - 1];
    run(GOOD, without_yes)
        .exits(Exit::Usage)
        .prints_nothing()
        .says("--cpus is missing");
    run(GOOD, &[&CREATE[..], &["--gateway", "10.0.0.1"]].concat())
        .exits(Exit::Usage)
        .says("--gateway 10.0.0.1: it must be another address in 192.168.3.0/24");
}
