//! Worlds that go bad on the way: guests that never answer, steps that fail or hang, joins that cannot be.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{NEW, World, eventually, must, virsh};

/// A guest that boots where nobody hears it: the console's last words are shown, and `--on-failure undo` leaves nothing.
#[test]
#[ignore = "needs the lab: make test"]
fn a_guest_that_never_answers() {
    let _bridge = Bridge::new("br9");
    let world = World::tiny("silent", &[("silent", 130)], |spec| {
        spec.replace("bridge: br0", "bridge: br9")
            .replace("defaults:\n", "defaults:\n  deadlines: {boot: 45s}\n")
    });
    let up = world.run(&["up", "--on-failure", "undo"]);
    assert_eq!(up.code, 5);
    assert!(
        up.stderr.contains("no SSH at 192.168.3.130 within 45 s"),
        "{}",
        up.stderr
    );
    let shown = up
        .stderr
        .split("the serial console's last lines:")
        .nth(1)
        .expect("the console is shown");
    assert!(
        shown
            .lines()
            .take(8)
            .filter(|line| !line.trim().is_empty())
            .count()
            >= 3,
        "{shown}"
    );
    assert!(
        fs::read_to_string(world.dir.path().join("state/silent/silent/console.log"))
            .unwrap()
            .contains("Linux version")
    );
    assert!(!virsh(&["list", "--all", "--name"]).contains("silent"));
    assert!(!virsh(&["vol-list", "kvmimage"]).contains("nodegraft.silent."));
    world.run(&["down"]);
    world.assert_nothing_left();
}

/// A bridge that leads nowhere, gone when dropped.
struct Bridge(&'static str);

impl Bridge {
    fn new(name: &'static str) -> Self {
        let _ = Command::new("ip").args(["link", "del", name]).output();
        must("ip", &["link", "add", name, "type", "bridge"]);
        Self(name)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).output();
    }
}

/// Ctrl-C in the middle of a boot: exit 130, and both roads are open, down and up.
#[test]
#[ignore = "needs the lab: make test"]
fn an_interrupted_run_can_be_taken_down() {
    let world = World::tiny("stopped", &[("stopped", 131)], |spec| spec);
    let up = world.start(&["up"]);
    eventually(Duration::from_secs(90), "the domain to run", || {
        virsh(&["list", "--name"])
            .lines()
            .any(|line| line.trim() == "stopped")
    });
    must("kill", &["-INT", &up.id().to_string()]);
    let begun = Instant::now();
    let up = world.end(up);
    assert_eq!(up.code, 130, "{}", up.stderr);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it took {} s to stop",
        begun.elapsed().as_secs()
    );
    // A run that is killed outright, between any two calls, leaves no more than this.
    let again = world.start(&["up"]);
    std::thread::sleep(Duration::from_secs(4));
    must("kill", &["-KILL", &again.id().to_string()]);
    world.end(again);
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
}

/// One guest, one trouble after the other: a step that hangs, an API server out of reach, a token that goes away, a run
/// that is stopped in a step. Its kubelet is a stand-in that never asks for a certificate.
#[test]
#[ignore = "needs the lab: make test"]
fn troubles_of_one_guest() {
    let world = World::new(
        "troubles",
        NEW,
        &["{name: troubles, address: 192.168.3.132/24}"],
        |spec| {
            let (head, rest) = spec.split_once("  kubelet:\n").unwrap();
            let nodes = rest.split_once("nodes:").unwrap().1;
            format!("{head}nodes:{nodes}")
                .replace("profile: debian-containerd", "profile: tiny")
                .replace("join: 10m", "join: 20s, step: 8s")
        },
    );
    world.template(
        "profiles/tiny/profile.yaml",
        "description: nothing but a stand-in\nruntime: containerd\nsteps: [work]\n",
    );
    world.template(
        "profiles/tiny/work.sh",
        "echo the step begins\nsleep 3600\n",
    );
    let hung = world.run(&["up"]);
    assert_eq!(hung.code, 5);
    assert!(
        hung.stderr.contains("`work` was not done within 8 s"),
        "{}",
        hung.stderr
    );
    assert!(
        hung.stderr.contains("the step begins") && hung.stderr.contains("deadlines"),
        "{}",
        hung.stderr
    );
    assert_eq!(
        world
            .guest("192.168.3.132", "pgrep -c -x sleep || true")
            .trim(),
        "0",
        "the step goes on in the guest"
    );

    world.edit(|spec| spec.replace("step: 8s", "step: 10m"));
    lists_locked(&world);

    // Stopped in a step: the next run begins it again.
    world.template("profiles/tiny/work.sh", "echo a > /root/begun\nsleep 20\n");
    let up = world.start(&["up"]);
    eventually(Duration::from_secs(60), "the step to begin", || {
        world
            .guest("192.168.3.132", "cat /root/begun 2>/dev/null || true")
            .contains('a')
    });
    must("kill", &["-INT", &up.id().to_string()]);
    assert_eq!(world.end(up).code, 130);

    let unit =
        "[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n";
    world.template(
        "profiles/tiny/work.sh",
        &format!(
            "printf '{unit}' > /etc/systemd/system/kubelet.service\nmkdir -p /etc/kubernetes/pki\n"
        ),
    );
    world.edit(|spec| {
        spec.replace(
            "cluster:\n",
            "cluster:\n  server: https://192.168.3.1:7443\n",
        )
    });
    let unreachable = world.run(&["up"]);
    assert_eq!(unreachable.code, 5);
    assert!(
        unreachable
            .stderr
            .contains("the guest cannot reach the API server https://192.168.3.1:7443"),
        "{}",
        unreachable.stderr
    );
    assert!(
        unreachable.stderr.contains("cluster.server"),
        "{}",
        unreachable.stderr
    );

    world.edit(|spec| spec.replace("  server: https://192.168.3.1:7443\n", ""));
    let up = world.start(&["up"]);
    let ours = "-l app.kubernetes.io/managed-by=nodegraft -n kube-system -o jsonpath={.items[?(@.metadata.annotations.nodegraft\\.io/cluster=='troubles')].metadata.name}";
    let mut token = String::new();
    eventually(Duration::from_secs(60), "the token", || {
        let mut args = vec!["get", "secret"];
        args.extend(ours.split(' '));
        token = world.kubectl(&args);
        !token.is_empty()
    });
    // Short-lived, for authentication only, in our own group.
    let secret: serde_json::Value = serde_json::from_str(&world.kubectl(&[
        "get",
        "secret",
        "-n",
        "kube-system",
        &token,
        "-o",
        "json",
    ]))
    .unwrap();
    assert_eq!(secret["type"], "bootstrap.kubernetes.io/token");
    assert!(
        secret["data"]["expiration"].is_string()
            && secret["data"]["auth-extra-groups"].is_string()
            && secret["data"]["usage-bootstrap-signing"].is_null()
    );
    assert_eq!(
        world
            .guest(
                "192.168.3.132",
                "sleep 2; stat -c %a /etc/kubernetes/bootstrap-kubelet.conf"
            )
            .trim(),
        "600"
    );
    world.kubectl(&["delete", "secret", "-n", "kube-system", &token]);
    let expired = world.end(up);
    assert_eq!(expired.code, 5);
    assert!(
        expired
            .stderr
            .contains("did not join within 20 s: waiting for the kubelet's certificate request"),
        "{}",
        expired.stderr
    );
    assert!(
        expired
            .stderr
            .contains("the token is gone from the cluster"),
        "{}",
        expired.stderr
    );

    // Stopped in its join: neither the token nor the file with it outlives the run.
    let up = world.start(&["up"]);
    let mut args = vec!["get", "secret"];
    args.extend(ours.split(' '));
    eventually(Duration::from_secs(60), "the token", || {
        !world.kubectl(&args).is_empty()
    });
    eventually(Duration::from_secs(20), "the file", || {
        world
            .guest(
                "192.168.3.132",
                "ls /etc/kubernetes/bootstrap-kubelet.conf 2>/dev/null || true",
            )
            .contains("bootstrap")
    });
    must("kill", &["-INT", &up.id().to_string()]);
    assert_eq!(world.end(up).code, 130);
    assert_eq!(world.kubectl(&args), "");
    assert_eq!(
        world
            .guest(
                "192.168.3.132",
                "ls /etc/kubernetes/bootstrap-kubelet.conf 2>/dev/null | wc -l"
            )
            .trim(),
        "0"
    );

    // A request that is not the node's own is left alone: the same subject, made by somebody else.
    foreign_request(&world);
    assert_eq!(world.run(&["down"]).code, 0);
    world.kubectl(&["delete", "csr", "foreign-troubles"]);
    world.assert_nothing_left();
}

/// The nightly update holds apt's lists for 20 s.
fn lists_locked(world: &World) {
    world.template(
        "profiles/tiny/work.sh",
        "set -eu\n{% include \"common/marker.sh\" %}\n{% include \"common/apt.sh\" %}\napt_update\nexit 3\n",
    );
    // The shell of the guest takes a backslash away.
    let hold = "use Fcntl; my \\$lock = pack('ssx4qqlx4', F_WRLCK, 0, 0, 0, 0); open(F, '>>', '/var/lib/apt/lists/lock') or die; \
        fcntl(F, F_SETLK, \\$lock) or die; sleep 20";
    let held = world.guest(
        "192.168.3.132",
        &format!("setsid perl -e \"{hold}\" </dev/null >/dev/null 2>&1 & sleep 1; pgrep -x perl"),
    );
    assert!(!held.trim().is_empty(), "nobody holds the lock");
    let up = world.run(&["up"]);
    assert_eq!(up.code, 5);
    assert!(
        up.stderr.contains("`work` ended with exit status 3"),
        "apt's update was to be through: {}",
        up.stderr
    );
    let log = world
        .dir
        .path()
        .join("state/troubles/troubles/steps/1-work.log");
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("apt: waiting for another program") && log.contains("(perl)"),
        "{log}"
    );
}

/// An administrator's request in the node's name: neither approved by a join nor deleted by a down.
fn foreign_request(world: &World) {
    let usages = "[digital signature, key encipherment, client auth]";
    world.request(
        "foreign-troubles",
        "troubles",
        "kubernetes.io/kube-apiserver-client-kubelet",
        usages,
        &[],
        &[],
    );
    let up = world.run(&["up"]);
    assert_eq!(up.code, 5, "the stand-in never asks");
    let csr: serde_json::Value =
        serde_json::from_str(&world.kubectl(&["get", "csr", "foreign-troubles", "-o", "json"]))
            .unwrap();
    // The controllers approve what an administrator asks for; we must not have.
    assert!(
        !csr.to_string().contains("NodegraftApproved"),
        "we approved somebody else's request: {csr}"
    );
}
