//! Worlds that go bad on the way: guests that never answer, steps that fail or hang, joins that cannot be.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use super::kubernetes::{kubectl, tokens_of};
use super::libvirt::{has_domain, virsh};
use super::{NEW, World, eventually, must};
use crate::fixture::Exit;

/// A guest that boots where nobody hears it: the console's last words are shown, and `--on-failure undo` leaves nothing.
#[test]
#[ignore = "needs the lab: make test"]
fn a_guest_that_never_answers() {
    let _bridge = Bridge::new("br9");
    let world = World::tiny("silent")
        .node("silent", 130)
        .set("host.network.bridge", "br9")
        .add("defaults.deadlines", serde_json::json!({"boot": "45s"}));
    let up = world.run(&["up", "--on-failure", "undo"]);
    up.exits(Exit::NodesFailed)
        .says("no SSH at 192.168.3.130 within 45 s");
    let shown = up
        .after("the serial console's last lines:")
        .lines()
        .take(8)
        .filter(|line| !line.trim().is_empty());
    assert!(shown.count() >= 3, "{up}");
    let console = fs::read_to_string(world.state("silent/silent/console.log")).unwrap();
    assert!(console.contains("Linux version"), "{console}");
    assert_eq!(world.machines_left(), [] as [String; 0]);
    world.down();
}

/// A guest that was fine panics at its next boot: that is told in seconds, not at the deadline.
#[test]
#[ignore = "needs the lab: make test"]
fn a_kernel_that_panics_is_told_at_once() {
    let world = World::tiny("panics")
        .node("panics", 135)
        .add("defaults.deadlines", serde_json::json!({"boot": "20m"}));
    world.run(&["up"]).exits(Exit::Done);
    world.guest("192.168.3.135", "rm /usr/sbin/init /etc/inittab; sync");
    must(
        "virsh",
        &[
            "-q",
            "-c",
            &super::variable("NODEGRAFT_LAB_URI"),
            "destroy",
            "panics",
        ],
    );
    world
        .run(&["up"])
        .exits(Exit::NodesFailed)
        .says("the guest does not boot: its kernel panicked")
        .says("the serial console's last lines:");
    world.down();
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
    let world = World::tiny("stopped").node("stopped", 131);
    let up = world.start(&["up"]);
    eventually(Duration::from_secs(90), "the domain to run", || {
        virsh(&["list", "--name"])
            .lines()
            .any(|line| line.trim() == "stopped")
    });
    up.interrupt();
    let begun = Instant::now();
    world.end(up).exits(Exit::Interrupted);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it took {} s to stop",
        begun.elapsed().as_secs()
    );
    // A run that is killed outright, between any two calls, leaves no more than this.
    let again = world.start(&["up"]);
    std::thread::sleep(Duration::from_secs(4));
    again.kill();
    world.end(again).is_killed();
    assert!(has_domain("stopped"));
    world.down();
}

const IP: &str = "192.168.3.132";
const BOOTSTRAP: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
/// A kubelet that never asks for a certificate, and the part of systemd that a join speaks with.
const STAND_IN: &str = "mkdir -p /usr/bin /etc/kubernetes/pki\n\
    printf '#!/bin/sh\\necho Kubernetes v1.35.4\\n' > /usr/bin/kubelet\n\
    cat > /usr/bin/systemctl <<'SYSTEMCTL'\n\
    #!/bin/sh\n\
    case \"$1 $2\" in\n\
    'cat kubelet') echo --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf ;;\n\
    'is-active kubelet') echo active ;;\n\
    'show kubelet') echo NRestarts=0 ;;\n\
    esac\n\
    SYSTEMCTL\n\
    chmod 755 /usr/bin/kubelet /usr/bin/systemctl\n";

/// One guest, one trouble after the other: a step that hangs, an API server out of reach, a token that goes away, a run
/// that is stopped in a step. Its kubelet is a stand-in that never asks for a certificate.
#[test]
#[ignore = "needs the lab: make test"]
fn troubles_of_one_guest() {
    let world = World::tiny("troubles")
        .node("troubles", 132)
        .add("defaults.profile", "work")
        .add(
            "defaults.deadlines",
            serde_json::json!({"join": "15s", "step": "6s"}),
        );
    world.joins();
    of_the_step(&world);
    world.step(STAND_IN);
    of_the_way_to_the_server(&world);
    of_the_token(&world);
    // A request that is not the node's own is left alone: the same subject, made by somebody else.
    foreign_request(&world);
    world.run(&["down"]).exits(Exit::Done);
    world.kubectl(&["delete", "csr", "foreign-troubles"]);
    world.down();
}

fn of_the_step(world: &World) {
    world.step("echo the step begins\nsleep 3600\n");
    world.run(&["up"]).exits(Exit::NodesFailed).says_all(&[
        "`work` was not done within 6 s",
        "the step begins",
        "deadlines",
    ]);
    let sleeps = "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx sleep || true";
    assert_eq!(
        world.guest(IP, sleeps).trim(),
        "0",
        "the step goes on in the guest"
    );

    // Stopped in a step: the next run begins it again.
    world.edit(|spec| spec.set("defaults.deadlines.step", "10m"));
    world.step("echo a > /root/begun\nsleep 20\n");
    let up = world.start(&["up"]);
    eventually(Duration::from_secs(60), "the step to begin", || {
        world.guest_has(IP, "/root/begun")
    });
    up.interrupt();
    world.end(up).exits(Exit::Interrupted);
}

fn of_the_way_to_the_server(world: &World) {
    world.edit(|spec| spec.add("cluster.server", "https://192.168.3.1:7443"));
    world.run(&["up"]).exits(Exit::NodesFailed).says_all(&[
        "the guest cannot reach the API server https://192.168.3.1:7443",
        "cluster.server",
    ]);
    world.edit(|spec| spec.remove("cluster.server"));
}

fn of_the_token(world: &World) {
    let token = || tokens_of(NEW, "troubles").pop();
    let up = world.start(&["up"]);
    eventually(Duration::from_secs(60), "the token", || token().is_some());
    // Short-lived, for authentication only, in our own group.
    let secret = token().unwrap();
    assert_eq!(secret["type"], "bootstrap.kubernetes.io/token");
    assert!(
        secret["data"]["expiration"].is_string()
            && secret["data"]["auth-extra-groups"].is_string()
            && secret["data"]["usage-bootstrap-signing"].is_null()
    );
    eventually(Duration::from_secs(20), "the file", || {
        world.guest_has(IP, BOOTSTRAP)
    });
    let mode = world.guest(IP, &format!("stat -c %a {BOOTSTRAP}"));
    assert_eq!(mode.trim(), "600");
    let name = secret["metadata"]["name"].as_str().unwrap();
    kubectl(NEW, &["delete", "secret", "-n", "kube-system", name]);
    world.end(up).exits(Exit::NodesFailed).says_all(&[
        "did not join within 15 s: waiting for the kubelet's certificate request",
        "the token is gone from the cluster",
    ]);

    // Stopped in its join: neither the token nor the file with it outlives the run.
    let up = world.start(&["up"]);
    eventually(Duration::from_secs(60), "the token", || token().is_some());
    eventually(Duration::from_secs(20), "the file", || {
        world.guest_has(IP, BOOTSTRAP)
    });
    up.interrupt();
    world.end(up).exits(Exit::Interrupted);
    assert_eq!(token(), None);
    assert!(!world.guest_has(IP, BOOTSTRAP));
}

/// An administrator's request in the node's name: neither approved by a join nor deleted by a down.
fn foreign_request(world: &World) {
    world.request(
        "foreign-troubles",
        "troubles",
        "kubernetes.io/kube-apiserver-client-kubelet",
        "[digital signature, key encipherment, client auth]",
        &[],
        &[],
    );
    // The stand-in never asks.
    world.run(&["up"]).exits(Exit::NodesFailed);
    let csr = world.kubectl(&["get", "csr", "foreign-troubles", "-o", "json"]);
    // The controllers approve what an administrator asks for; we must not have.
    assert!(
        !csr.contains("NodegraftApproved"),
        "we approved somebody else's request: {csr}"
    );
}
