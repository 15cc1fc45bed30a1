//! The binary as a contract: exit codes, what is on stdout, what is on stderr.

use std::fs;
use std::process::{Command, Output};

use crate::spec::GOOD;

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs the binary in an empty directory with a spec in it.
fn run(spec: &str, args: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cluster.yaml"), spec).unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_nodegraft"))
        .args(args)
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .env("NODEGRAFT_STATE_DIR", dir.path().join("state"))
        .env_remove("RUST_BACKTRACE")
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "cluster.yaml" && name != "state")
        .collect();
    assert!(left.is_empty(), "it left {left:?}");
    Ran {
        code: status.code().unwrap(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

#[test]
fn usage_errors_exit_2() {
    for args in [
        &["up", "--nonsense"][..],
        &["up", "--parallel", "0"],
        &["nonsense"],
    ] {
        let ran = run(GOOD, args);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{args:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_refused_spec_exits_3_with_a_caret_and_touches_nothing() {
    let ran = run(&GOOD.replace("cpus: 2", "cpu: 2"), &["up"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
    insta::assert_snapshot!(ran.stderr);
}

#[test]
fn a_missing_spec_exits_3() {
    let ran = run(GOOD, &["plan", "-f", "absent.yaml"]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("absent.yaml") && ran.stderr.contains("help:"),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_unreachable_libvirt_exits_4_and_says_how_to_look() {
    let ran = run(
        &GOOD.replace("qemu:///system", "qemu+unix:///system?socket=/nowhere/sock"),
        &["up"],
    );
    assert_eq!(ran.code, 4);
    assert!(
        ran.stderr.contains("libvirt is not reachable") && ran.stderr.contains("virsh -c"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_plan_of_a_spec() {
    let ran = run(GOOD, &["plan"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(ran.stdout);
}

#[test]
fn a_plan_as_json_is_json_and_shows_files_only_when_asked() {
    for (args, files) in [
        (&["plan", "--output", "json"][..], false),
        (&["plan", "--show", "--output", "json"], true),
    ] {
        let ran = run(GOOD, args);
        let plan: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(plan["nodes"][0]["name"], "192.168.3.104");
        assert_eq!(plan["nodes"][0]["files"].is_array(), files);
    }
}

#[test]
fn a_shown_plan_has_every_file_and_no_secret() {
    let ran = run(GOOD, &["plan", "--show"]);
    for file in [
        "domain.xml",
        "seed/user-data",
        "seed/network-config",
        "steps/1-init.sh",
        "steps/3-kubelet.sh",
        "join/bootstrap-kubelet.conf",
        "join/start.sh",
    ] {
        assert!(ran.stdout.contains(file), "{file} is missing");
    }
    assert!(
        ran.stdout.contains("<token, made by up>")
            && !ran.stdout.contains("BEGIN OPENSSH PRIVATE KEY")
    );
}

#[test]
fn templates_can_be_written_out_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    let ran = run(GOOD, &["templates", own.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let script = own.join("profiles/debian-containerd/init.sh");
    fs::write(&script, "echo my own step\n").unwrap();
    let ran = run(
        GOOD,
        &["plan", "--show", "--templates", own.to_str().unwrap()],
    );
    assert!(ran.stdout.contains("echo my own step"));
    let ran = run(GOOD, &["templates", own.to_str().unwrap()]);
    assert_eq!(ran.code, 3, "an existing directory is not overwritten");
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
    let ran = run(GOOD, &["up", "--templates", dir.path().to_str().unwrap()]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("profiles/debian-containerd/init.sh")
            && ran.stderr.contains("time_zon"),
        "{}",
        ran.stderr
    );
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
        assert_eq!(ran.code, 0);
        assert!(
            ran.stdout.lines().all(|line| line.chars().count() <= 100),
            "{}",
            ran.stdout
        );
    }
    assert!(
        run(GOOD, &["completions", "bash"])
            .stdout
            .contains("nodegraft")
    );
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
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spec = nodegraft::core::spec::Spec::parse(&ran.stdout, "printed").unwrap();
    assert_eq!(spec.nodes[0].memory.as_ref().unwrap().value.0, 4 << 30);
    assert_eq!(
        spec.nodes[0].gateway.as_ref().unwrap().value.to_string(),
        "192.168.3.1"
    );
    assert!(!spec.cluster.join);
    let joined = run(
        GOOD,
        &[
            &CREATE[..],
            &[
                "--join",
                "--profile",
                "debian-containerd",
                "--kubelet",
                "1.35.4",
            ],
        ]
        .concat(),
    );
    assert!(
        nodegraft::core::spec::Spec::parse(&joined.stdout, "printed")
            .unwrap()
            .cluster
            .join,
        "{}",
        joined.stderr
    );
}

#[test]
fn create_without_a_terminal_names_the_flag_it_misses() {
    let without_yes = &CREATE[..CREATE.len() - 1];
    let ran = run(GOOD, without_yes);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("--cpus is missing"), "{}", ran.stderr);
    let wrong = run(GOOD, &[&CREATE[..], &["--gateway", "10.0.0.1"]].concat());
    assert_eq!(wrong.code, 2);
    assert!(
        wrong
            .stderr
            .contains("--gateway 10.0.0.1: it must be another address in 192.168.3.0/24"),
        "{}",
        wrong.stderr
    );
}
