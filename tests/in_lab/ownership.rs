//! A host and a cluster that others use, too: what `up` and `down` may touch there, and what they say of the rest. The VMs are
//! tiny; their Nodes are put into the cluster by hand, with the machine-id that a kubelet would report.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::kubernetes::{Node, admin, kubectl, kubectl_output, tokens, uid};
use super::libvirt::{
    POOL, domains, has_domain, host_key, instance, runs, uri, uri2, virsh_output, volumes,
};
use super::{NEW, World, eventually, must, state, virsh};
use crate::fixture::{Exit, Ran, rewritten};

/// The same spec on two hosts, and one cluster: the one that has the Node keeps it.
#[test]
#[ignore = "needs the lab: make test"]
fn the_same_spec_on_two_hosts() {
    let here = World::tiny("twins").node("twin", 160);
    here.run(&["up"]).exits(Exit::Done);
    let node = Node::of("twin", &instance("twin"));
    let there = World::tiny("twins")
        .node("there", 161)
        .set("nodes.0.name", "twin")
        .set("host.uri", uri2());
    there.joins();
    // Not this host's Node: told, and left.
    there
        .run(&["down"])
        .exits(Exit::Done)
        .says("Node twin belongs to a machine that is not on");
    assert_eq!(uid("twin"), node.uid);
    // Nor does a second machine join under its name.
    let kubelet = json!({"version": "1.35.4", "package": "kubelet"});
    there.edit(|spec| {
        spec.add("defaults.profile", "debian-containerd")
            .add("defaults.kubelet", kubelet)
    });
    there
        .run(&["up"])
        .exits(Exit::Unfit)
        .says("already has a Node twin");
    assert_eq!(uid("twin"), node.uid);
    assert!(runs("twin"));
    // The host that has it takes it down whole.
    here.joins();
    here.down();
}

/// A Node that came to bear the name after ours was made, of another machine, survives our `down`.
#[test]
#[ignore = "needs the lab: make test"]
fn a_node_of_another_machine_outlives_our_down() {
    let world = World::tiny("namesake").node("namesake", 162);
    world.run(&["up"]).exits(Exit::Done);
    let node = Node::of("namesake", &"ab".repeat(16));
    world.joins();
    world.run(&["down"]).exits(Exit::Done).says("belongs to");
    assert_eq!(uid("namesake"), node.uid);
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_renamed_node_is_known_by_its_mark() {
    let world = World::tiny("renamed").node("renamed", 163);
    world.run(&["up"]).exits(Exit::Done);
    virsh(&["destroy", "renamed"]);
    virsh(&["domrename", "renamed", "renamed-by-hand"]);
    virsh(&["start", "renamed-by-hand"]);
    let status = world.run(&["status"]);
    status.prints("its domain is called renamed-by-hand");
    world.run(&["up"]).exits(Exit::Done);
    assert!(!has_domain("renamed"), "a second VM was made");
    // A clone carries our mark along, and another UUID: it is not ours.
    let clone = virsh(&["dumpxml", "renamed-by-hand", "--inactive"]);
    let uuid = virsh(&["domuuid", "renamed-by-hand"]).trim().to_owned();
    let clone = clone
        .replace("renamed-by-hand", "renamed-clone")
        .replace(&uuid, "11111111-2222-4333-8444-555555555566");
    let clone = rewritten(&clone, "<mac address='52:54:00", "<mac address='52:54:99");
    let file = world.file("clone.xml");
    fs::write(&file, clone).unwrap();
    virsh(&["define", &file]);
    // It has the node's disk as its own: that stays, with all above it.
    world
        .run(&["down"])
        .exits(Exit::Leftover)
        .says("the domain renamed-clone uses");
    assert!(runs("renamed-by-hand"));
    virsh(&["undefine", "renamed-clone"]);
    world.down();
    assert!(
        domains(&uri())
            .iter()
            .all(|name| !name.starts_with("renamed"))
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_node_with_an_external_snapshot_stays_whole() {
    let world = World::tiny("snapped").node("snapped", 164);
    world.run(&["up"]).exits(Exit::Done);
    let overlay = state().join("pool/snapped-overlay.qcow2");
    let disk = format!("vda,snapshot=external,file={}", overlay.display());
    virsh(&[
        "snapshot-create-as",
        "snapped",
        "before",
        "--disk-only",
        "--no-metadata",
        "--diskspec",
        &disk,
        "--diskspec",
        "vdb,snapshot=no",
    ]);
    world
        .run(&["down"])
        .exits(Exit::Leftover)
        .says_all(&["snapped stays as it is", "snapped-overlay.qcow2"]);
    assert!(runs("snapped"));
    let ours = || {
        let mut ours = volumes(POOL);
        ours.retain(|name| name.starts_with("nodegraft.snapped."));
        ours
    };
    assert_eq!(ours().len(), 2, "{:?}", ours());
    // Taken back by hand.
    virsh(&["destroy", "snapped"]);
    let disk = ours().into_iter().find(|name| name.ends_with(".qcow2"));
    let xml = virsh(&["dumpxml", "snapped", "--inactive"]);
    let file = world.file("back.xml");
    fs::write(
        &file,
        rewritten(&xml, "snapped-overlay.qcow2", &disk.unwrap()),
    )
    .unwrap();
    virsh(&["define", &file]);
    fs::remove_file(&overlay).unwrap();
    virsh(&["pool-refresh", POOL]);
    world.down();
}

/// Volumes with our prefix and no claim are nobody's that we know: kept, with the command that removes them.
#[test]
#[ignore = "needs the lab: make test"]
fn volumes_that_nobody_claims_are_told_of_and_kept() {
    let world = World::tiny("unclaimed").node("unclaimed", 165);
    let name = "nodegraft.unclaimed.unclaimed.qcow2";
    virsh(&["vol-create-as", POOL, name, "1M"]);
    // It is in nobody's way.
    world.run(&["up"]).exits(Exit::Done);
    world
        .run(&["down"])
        .exits(Exit::Done)
        .says(&format!("vol-delete --pool {POOL} {name}"));
    assert!(volumes(POOL).contains(&name.to_owned()));
    virsh(&["vol-delete", "--pool", POOL, name]);
    world.down();
}

/// Ctrl-C in `down` of many nodes, in the middle of a drain: the Node is schedulable again, what had not begun stays, and the
/// rest goes later.
#[test]
#[ignore = "needs the lab: make test"]
fn a_down_of_many_nodes_can_be_stopped() {
    let world = (0..24).fold(World::tiny("many"), |world, number| {
        world.node(&format!("many-{number}"), 170 + number)
    });
    let many = || {
        let mut many = domains(&uri());
        many.retain(|name| name.starts_with("many-"));
        many
    };
    // All claimed, hardly any started.
    let up = world.start(&["up", "--parallel", "24"]);
    eventually(Duration::from_secs(120), "all to be claimed", || {
        many().len() == 24
    });
    up.kill();
    world.end(up).is_killed();
    for name in many() {
        // Fails where it is off.
        virsh_output(&uri(), &["destroy", &name]);
    }
    let _node = Node::of("many-0", &instance("many-0"));
    hold("many-0");
    world.joins();
    let down = world.start(&["down", "--parallel", "1"]);
    let cordoned = || world.of_node("many-0", "{.spec.unschedulable}") == "true";
    eventually(Duration::from_secs(60), "the drain", cordoned);
    down.interrupt();
    world.end(down).exits(Exit::Interrupted);
    assert_eq!(
        many().len(),
        24,
        "what had not begun was removed all the same"
    );
    assert!(!cordoned(), "the abandoned drain left the Node cordoned");
    world.run(&["down", "--force"]).exits(Exit::Done);
    let held = ["delete", "pdb/held", "pod/held"];
    kubectl(NEW, &[&held[..], &["--force", "--grace-period=0"]].concat());
    world.down();
}

/// A pod on a Node that its disruption budget does not let go.
fn hold(node: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: held, namespace: default, labels: {{app: held}}}}\nspec:\n  nodeName: {node}\n  containers: [{{name: c, image: none}}]\n---\n\
         apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: held, namespace: default}}\nspec: {{minAvailable: 1, selector: {{matchLabels: {{app: held}}}}}}\n"
    );
    fs::write(file.path(), manifest).unwrap();
    let path = file.path().display().to_string();
    eventually(
        Duration::from_secs(30),
        "the default service account",
        || {
            kubectl_output(NEW, &["apply", "-f", &path])
                .status
                .success()
        },
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn nodes_that_the_spec_no_longer_names() {
    let world = World::tiny("strays")
        .node("stays-in", 166)
        .node("taken-out", 167);
    world.run(&["up"]).exits(Exit::Done);
    world.edit(|spec| spec.remove("nodes.1"));
    world
        .run(&["up"])
        .exits(Exit::Done)
        .says("taken-out is a node of this cluster that the spec no longer names");
    world
        .run(&["status", "--exit-code"])
        .exits(Exit::NodesFailed)
        .prints("taken-out");
    // `down` of the spec leaves it, and says how it goes; neither profile nor template has to be valid for that.
    world.edit(|spec| {
        spec.set("defaults.template", "no-such.qcow2")
            .add("defaults.profile", "no-such")
            .add("defaults.kubelet", "nonsense")
    });
    world
        .run(&["down"])
        .exits(Exit::Done)
        .says_all(&["taken-out", "--all"]);
    assert!(has_domain("taken-out") && !has_domain("stays-in"));
    world
        .run(&["down", "nobody"])
        .exits(Exit::Refused)
        .says("taken-out");
    world.run(&["down", "taken-out"]).exits(Exit::Done);
    world.down();
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_dead_cluster_and_an_inactive_pool() {
    let pool = state().join("own-pool");
    fs::create_dir_all(&pool).unwrap();
    let target = pool.display().to_string();
    must("chmod", &["755", &target]);
    let tiny = state().join("pool/tiny.qcow2").display().to_string();
    must("cp", &["--reflink=auto", &tiny, &target]);
    virsh_output(&uri(), &["pool-undefine", "own"]);
    virsh(&["pool-define-as", "own", "dir", "--target", &target]);
    virsh(&["pool-start", "own"]);
    let world = World::tiny("deadends")
        .node("deadends", 168)
        .set("host.pool", "own");
    world.run(&["up"]).exits(Exit::Done);
    virsh(&["pool-destroy", "own"]);
    world
        .run(&["down"])
        .exits(Exit::Leftover)
        .says_all(&["pool-start own", "deadends"]);
    assert!(has_domain("deadends"), "the claim tells what is left");
    virsh(&["pool-start", "own"]);
    // The cluster is dead: nothing is touched until that is said.
    let real = fs::read_to_string(admin(NEW)).unwrap();
    fs::write(world.path("dead.conf"), rewritten(&real, ":6443", ":6499")).unwrap();
    world.joins_by(&world.file("dead.conf"));
    world
        .run(&["down"])
        .exits(Exit::Unfit)
        .says("--without-cluster");
    let ours = volumes("own")
        .into_iter()
        .filter(|name| name.starts_with("nodegraft."));
    assert_eq!(ours.count(), 2);
    world
        .run(&["down", "--without-cluster"])
        .exits(Exit::Done)
        .says("kubectl delete node deadends");
    assert_eq!(volumes("own"), ["tiny.qcow2"]);
    virsh(&["pool-destroy", "own"]);
    virsh(&["pool-undefine", "own"]);
    fs::remove_dir_all(&pool).unwrap();
}

/// What a VM was made with is compared key by key; `--recreate` makes a new one, and the mark of the old is gone.
#[test]
#[ignore = "needs the lab: make test"]
fn what_only_a_new_vm_can_change() {
    let world = World::tiny("changed").node("changed", 169);
    world.run(&["up"]).exits(Exit::Done);
    world.is_unchanged();
    world.run(&["status", "--exit-code"]).exits(Exit::Done);
    let first = instance("changed");
    world.edit(|spec| {
        spec.set("defaults.memory", "320MiB")
            .add("defaults.dns", json!(["192.168.3.1"]))
    });
    world
        .run(&["up"])
        .exits(Exit::Done)
        .says_all(&[
            "memory is 256MiB, the spec says 320MiB",
            "dns is '', the spec says 192.168.3.1",
            "up --recreate changed",
            "differs",
        ])
        .never_says("as the spec says");
    let status = world.run(&["status", "--exit-code", "--output", "json"]);
    let rows = status.exits(Exit::NodesFailed).json();
    let differences = rows[0]["differences"].as_array().unwrap();
    let keys: Vec<_> = differences.iter().map(|d| d["key"].clone()).collect();
    assert_eq!(keys, ["memory", "dns"]);
    assert_eq!(instance("changed"), first, "nothing was replaced unasked");
    world
        .run(&["up", "--recreate", "changed"])
        .exits(Exit::Done);
    assert_ne!(instance("changed"), first);
    world.is_unchanged();
    world.down();
}

/// Both programs only say what they are asked.
const STAND_IN: &str = "mkdir -p /usr/bin\nprintf '#!/bin/sh\\necho Kubernetes v1.35.4\\n' > /usr/bin/kubelet\n\
     printf '#!/bin/sh\\n[ \"$1\" != cat ] || echo --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf\\n' > /usr/bin/systemctl\n\
     chmod 755 /usr/bin/kubelet /usr/bin/systemctl\n";

/// Tiny VMs that `join` takes for machines with a kubelet, which a user can log in to.
fn machines(world: &World, machines: [(&str, &str); 2]) {
    let ssh = world.path(".ssh");
    fs::create_dir_all(&ssh).unwrap();
    let key = world.file(".ssh/id_ed25519");
    must("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]);
    world.step(STAND_IN);
    world.run(&["up"]).exits(Exit::Done);
    let known = machines.map(|(name, ip)| format!("{ip} {}\n", host_key(name)));
    fs::write(ssh.join("known_hosts"), known.concat()).unwrap();
}

/// Machines that exist, and that think they have one name: a `join` never costs another machine its Node, nor its own
/// machine's before it can be replaced.
#[test]
#[ignore = "needs the lab: make test"]
fn joins_of_machines_with_one_name() {
    let (first, second) = ("192.168.3.158", "192.168.3.159");
    let world = World::tiny("namesakes")
        .node("first", 158)
        .node("second", 159)
        .add("defaults.profile", "work");
    machines(&world, [("first", first), ("second", second)]);
    let join = |ip: &str, more: &[&str]| -> Ran {
        let host = format!("root@{ip}");
        let join = ["join", &host, "--kubeconfig", &admin(NEW)];
        world.run(&[&join[..], &["--timeout", "5s"], more].concat())
    };
    let node = Node::of("debian", &instance("first"));
    for more in [&["--name", "debian"][..], &["--name", "debian", "--reset"]] {
        join(second, more)
            .exits(Exit::Unfit)
            .says("already has a Node debian");
        assert_eq!(uid("debian"), node.uid);
    }
    // Its own machine, but no way to the API server: the Node it has stays, too.
    let nowhere = ["--server", "https://192.168.3.1:7443"];
    join(
        first,
        &[&["--name", "debian", "--reset"], &nowhere[..]].concat(),
    )
    .exits(Exit::NodesFailed)
    .says("cannot reach the API server");
    assert_eq!(uid("debian"), node.uid);
    // A join that fails leaves neither token, nor the file with it, nor a binding.
    join(second, &["--name", "nobody"]).exits(Exit::NodesFailed);
    let tokens = serde_json::Value::from(tokens(NEW)).to_string();
    assert!(!tokens.contains(&instance("second")), "{tokens}");
    assert!(!world.guest_has(second, "/etc/kubernetes/bootstrap-kubelet.conf"));
    world.down();
}
