//! Two nodes at a time; one fails in its second step, the other is Ready all the same, and the next run goes on there. The
//! kubelet comes from a package, and the cluster's controllers approve this group's requests themselves.

use nodegraft::core::template::Templates;
use serde_json::Value;

use super::{assert_down, assert_unchanged, effect, serving_certificate};
use crate::fixture::{Exit, Ran};
use crate::in_lab::kubernetes::{kubectl_output, requests};
use crate::in_lab::{NEW, World};

const A: &str = "192.168.3.112";
const B: &str = "192.168.3.113";

#[test]
#[ignore = "needs the lab: make test"]
fn one_of_two_fails_and_is_resumed() {
    let world = World::on(NEW, "pair")
        .node("pair-a", 112)
        .node("pair-b", 113)
        .add("cluster.approve_serving", true)
        .remove("defaults.kubelet.url")
        .remove("defaults.kubelet.sha256")
        .add("defaults.kubelet.package", "kubelet=1.35.4");
    let binding = Approval::of(
        "pair-approves-itself",
        "system:bootstrappers:nodegraft:pair",
    );
    // The script is the same before and after the cause is mended, so that its digest is.
    before_the_real(
        &world,
        "runtime",
        "echo run >> /root/runtime.runs\n{% if node.name == \"pair-b\" %}[ -e /root/mended ] || { echo the disk of pair-b is on fire; exit 7; }\n{% endif %}",
    );
    before_the_real(
        &world,
        "init",
        &format!(
            "echo run >> /root/init.runs\n{{% if node.name == \"pair-b\" %}}{LISTS_LOCKED}{{% endif %}}"
        ),
    );
    let first = world.run(&["up", "--parallel", "2", "--output", "json"]);
    first.exits(Exit::NodesFailed);
    the_failure_is_an_event(&first);
    assert!(world.log("pair-b", "2-runtime.log").contains("on fire"));
    let init = world.log("pair-b", "1-init.log");
    assert!(
        init.contains("apt: waiting for another program") && init.contains("(perl)"),
        "{init}"
    );
    assert!(
        world.ready("pair-a") && !world.ready("pair-b"),
        "one node's failure stopped the other"
    );
    assert_eq!(
        world.guest(A, "dpkg-query -W -f '${Version}' kubelet"),
        "1.35.4"
    );
    let mut ours = requests(NEW);
    ours.retain(|csr| csr["spec"]["groups"].to_string().contains("nodegraft:pair"));
    assert_eq!(ours.len(), 1);
    assert_eq!(
        ours[0]["status"]["conditions"][0]["reason"], "AutoApproved",
        "we approved what the controllers approve themselves"
    );

    world.guest(B, "touch /root/mended");
    effect::joins_through_faults(&world, "pair-b");
    assert!(world.ready("pair-b"));
    let look = "cat /etc/machine-id; wc -l < /root/init.runs; wc -l < /root/runtime.runs";
    let [a, b] = [A, B].map(|ip| world.guest(ip, look));
    let (a, b): (Vec<_>, Vec<_>) = (a.lines().collect(), b.lines().collect());
    assert_ne!(a[0], b[0], "clones share a machine-id");
    assert_eq!(a[1..], ["1", "1"]);
    assert_eq!(b[1..], ["1", "2"], "a step that had run was run again");
    serving_certificates(&world);
    // One down alone leaves the other.
    world.run(&["down", "pair-a"]).exits(Exit::Done);
    assert!(world.ready("pair-b"));
    world.edit(|spec| spec.remove("nodes.0"));
    effect::a_changed_spec_is_in_effect(&world, "pair-b", B);
    assert_down(world);
    drop(binding);
}

/// A step of the profile with something before it.
fn before_the_real(world: &World, step: &str, before: &str) {
    let name = format!("profiles/debian-containerd/{step}.sh");
    let templates = Templates::built_in();
    let real = templates.text(&name).unwrap();
    world.template(&name, &format!("{before}{real}"));
}

/// The nightly update holds apt's lists for some seconds.
const LISTS_LOCKED: &str = r#"
setsid perl -e "use Fcntl; my \$lock = pack('ssx4qqlx4', F_WRLCK, 0, 0, 0, 0); open(F, '>>', '/var/lib/apt/lists/lock') or die; fcntl(F, F_SETLK, \$lock) or die; open(H, '>', '/run/held'); sleep 12" </dev/null >/dev/null 2>&1 &
until [ -e /run/held ]; do sleep 0.1; done
{% include "common/marker.sh" %}
{% include "common/apt.sh" %}
apt_update
"#;

fn the_failure_is_an_event(ran: &Ran) {
    let events: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("every line of stdout is an event"))
        .collect();
    assert_eq!(events[0]["event"], "run_started");
    assert_eq!(events.last().unwrap()["event"], "run_finished");
    let failed = events.iter().find(|event| event["event"] == "stage_failed");
    let failed = failed.unwrap();
    assert_eq!(
        (failed["node"].as_str(), failed["stage"].as_str()),
        (Some("pair-b"), Some("Steps")),
        "{failed}"
    );
    let message = failed["failure"]["message"].as_str().unwrap();
    assert!(
        message.contains("`runtime` ended with exit status 7"),
        "{message}"
    );
    let detail = failed["failure"]["detail"].to_string();
    assert!(
        detail.contains("the disk of pair-b is on fire") && detail.contains("2-runtime.log"),
        "{detail}"
    );
}

/// The spec asks for serving certificates: each node has one of its own, and a request for another's name is left.
fn serving_certificates(world: &World) {
    for ip in [A, B] {
        let shown = serving_certificate(world, ip);
        assert!(
            shown.contains("CN = kubernetes") && shown.contains(&format!("IP Address:{ip}")),
            "{shown}"
        );
    }
    let names = [
        "-addext",
        "subjectAltName=DNS:pair-a,DNS:kubernetes.default.svc,IP:192.168.3.112",
    ];
    let as_node = [
        "--as",
        "system:node:pair-a",
        "--as-group",
        "system:nodes",
        "--as-group",
        "system:authenticated",
    ];
    world.request(
        "greedy",
        "pair-a",
        "kubernetes.io/kubelet-serving",
        "[digital signature, server auth]",
        &names,
        &as_node,
    );
    world
        .run(&["up"])
        .exits(Exit::NodesFailed)
        .says("greedy was not approved: it asks for kubernetes.default.svc");
    let conditions = ["-o", "jsonpath={.status.conditions}"];
    let decided = world.kubectl(&[&["get", "csr", "greedy"], &conditions[..]].concat());
    assert_eq!(decided, "");
    world.kubectl(&["delete", "csr", "greedy"]);
    assert_unchanged(world);
}

/// The controllers approve what this group asks for, while this is held.
struct Approval(&'static str);

impl Approval {
    fn of(name: &'static str, group: &str) -> Self {
        let binding = Self(name);
        binding.remove();
        let role = "--clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient";
        let group = format!("--group={group}");
        let made = kubectl_output(NEW, &["create", "clusterrolebinding", name, role, &group]);
        assert!(made.status.success());
        binding
    }

    fn remove(&self) {
        kubectl_output(NEW, &["delete", "clusterrolebinding", self.0]);
    }
}

impl Drop for Approval {
    fn drop(&mut self) {
        self.remove();
    }
}
