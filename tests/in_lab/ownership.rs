//! A host and a cluster that others use, too: what `up` and `down` may touch there, and what they say of the rest. The VMs are
//! tiny; their Nodes are put into the cluster by hand, with the machine-id that a kubelet would report.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{NEW, World, eventually, kubectl, kubectl_output, must, state, variable, virsh};

const POOL: &str = "kvmimage";

pub fn instance(domain: &str) -> String {
    virsh(&["domuuid", domain]).trim().replace('-', "")
}

fn domains() -> Vec<String> {
    virsh(&["list", "--all", "--name"])
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

fn volumes(pool: &str) -> Vec<String> {
    virsh(&["vol-list", pool])
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

/// A Node as the kubelet of a machine would have registered it; returns its UID.
pub fn register(name: &str, machine_id: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.json").display().to_string();
    let manifest = format!(r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}"}}}}"#);
    fs::write(&file, &manifest).unwrap();
    kubectl(NEW, &["create", "-f", &file]);
    let info: String = [
        "bootID",
        "kernelVersion",
        "osImage",
        "containerRuntimeVersion",
        "kubeletVersion",
        "kubeProxyVersion",
        "operatingSystem",
        "architecture",
        "systemUUID",
    ]
    .map(|key| format!(r#","{key}":"x""#))
    .concat();
    let status = format!(
        r#","status":{{"conditions":[{{"type":"Ready","status":"True","reason":"Test","message":"it says"}}],"nodeInfo":{{"machineID":"{machine_id}"{info}}}}}}}"#
    );
    fs::write(
        &file,
        format!("{}{status}", manifest.strip_suffix('}').unwrap()),
    )
    .unwrap();
    kubectl(
        NEW,
        &[
            "replace",
            "--raw",
            &format!("/api/v1/nodes/{name}/status"),
            "-f",
            &file,
        ],
    );
    uid(name)
}

fn uid(node: &str) -> String {
    kubectl(
        NEW,
        &["get", "node", node, "-o", "jsonpath={.metadata.uid}"],
    )
}

/// A Node that goes with the test, whatever becomes of it.
pub struct Node(pub &'static str);

impl Drop for Node {
    fn drop(&mut self) {
        kubectl_output(NEW, &["delete", "node", self.0, "--ignore-not-found"]);
    }
}

/// The same spec on two hosts, and one cluster: the one that has the Node keeps it.
#[test]
#[ignore = "needs the lab: make test"]
fn the_same_spec_on_two_hosts() {
    let here = World::tiny("twins", &[("twin", 160)], |spec| spec);
    assert_eq!(here.run(&["up"]).code, 0);
    let _gone = Node("twin");
    let node = register("twin", &instance("twin"));
    let there = World::tiny("twins", &[("twin", 161)], |spec| {
        spec.replace(
            &variable("NODEGRAFT_LAB_URI"),
            &variable("NODEGRAFT_LAB_URI2"),
        )
    });
    there.joins();
    // Not this host's Node: told, and left.
    let down = there.run(&["down"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert!(
        down.stderr
            .contains("Node twin belongs to a machine that is not on"),
        "{}",
        down.stderr
    );
    assert_eq!(uid("twin"), node);
    // Nor does a second machine join under its name.
    there.edit(|spec| {
        spec.replace(
            "  template: tiny.qcow2\n",
            "  template: tiny.qcow2\n  profile: debian-containerd\n  kubelet: {version: 1.35.4, package: kubelet}\n",
        )
    });
    let up = there.run(&["up"]);
    assert_eq!(up.code, 4, "{}", up.stderr);
    assert!(
        up.stderr.contains("already has a Node twin"),
        "{}",
        up.stderr
    );
    assert_eq!(
        (uid("twin"), virsh(&["domstate", "twin"]).trim().to_owned()),
        (node, "running".to_owned())
    );
    // The host that has it takes it down whole.
    here.joins();
    assert_eq!(here.run(&["down"]).code, 0);
    here.assert_nothing_left();
}

/// A Node that came to bear the name after ours was made, of another machine, survives our `down`.
#[test]
#[ignore = "needs the lab: make test"]
fn a_node_of_another_machine_outlives_our_down() {
    let world = World::tiny("namesake", &[("namesake", 162)], |spec| spec);
    assert_eq!(world.run(&["up"]).code, 0);
    let _gone = Node("namesake");
    let node = register("namesake", &"ab".repeat(16));
    world.joins();
    let down = world.run(&["down"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert!(down.stderr.contains("belongs to"), "{}", down.stderr);
    assert_eq!(uid("namesake"), node);
    assert!(!domains().contains(&"namesake".to_owned()));
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_renamed_node_is_known_by_its_mark() {
    let world = World::tiny("renamed", &[("renamed", 163)], |spec| spec);
    assert_eq!(world.run(&["up"]).code, 0);
    virsh(&["destroy", "renamed"]);
    virsh(&["domrename", "renamed", "renamed-by-hand"]);
    virsh(&["start", "renamed-by-hand"]);
    let status = world.run(&["status"]);
    assert!(
        status
            .stdout
            .contains("its domain is called renamed-by-hand"),
        "{}",
        status.stdout
    );
    let up = world.run(&["up"]);
    assert_eq!(up.code, 0);
    assert!(
        !domains().contains(&"renamed".to_owned()),
        "a second VM was made"
    );
    // A clone carries our mark along, and another UUID: it is not ours.
    let clone = virsh(&["dumpxml", "renamed-by-hand"]);
    let uuid = virsh(&["domuuid", "renamed-by-hand"]).trim().to_owned();
    let disks = |xml: &str| {
        xml.replace("renamed-by-hand", "renamed-clone")
            .replace(&uuid, "11111111-2222-4333-8444-555555555566")
            .replace("<mac address='52:54:00", "<mac address='52:54:99")
    };
    let file = world.dir.path().join("clone.xml");
    fs::write(&file, disks(&clone)).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
    // It has the node's disk as its own: that stays, with all above it.
    let kept = world.run(&["down"]);
    assert_eq!(kept.code, 6, "{}", kept.stderr);
    assert!(
        kept.stderr.contains("the domain renamed-clone uses"),
        "{}",
        kept.stderr
    );
    assert_eq!(virsh(&["domstate", "renamed-by-hand"]).trim(), "running");
    virsh(&["undefine", "renamed-clone"]);
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
    assert!(domains().iter().all(|name| !name.starts_with("renamed")));
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_node_with_an_external_snapshot_stays_whole() {
    let world = World::tiny("snapped", &[("snapped", 164)], |spec| spec);
    assert_eq!(world.run(&["up"]).code, 0);
    let overlay = state()
        .join("pool/snapped-overlay.qcow2")
        .display()
        .to_string();
    let disk = format!("vda,snapshot=external,file={overlay}");
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
    let before = volumes(POOL);
    let down = world.run(&["down"]);
    assert_eq!(down.code, 6, "{}", down.stderr);
    assert!(
        down.stderr.contains("snapped stays as it is")
            && down.stderr.contains("snapped-overlay.qcow2"),
        "{}",
        down.stderr
    );
    assert_eq!(virsh(&["domstate", "snapped"]).trim(), "running");
    assert_eq!(
        volumes(POOL)
            .iter()
            .filter(|name| name.starts_with("nodegraft.snapped."))
            .count(),
        2,
        "{before:?}"
    );
    // Taken back by hand.
    virsh(&["destroy", "snapped"]);
    let disk = volumes(POOL)
        .into_iter()
        .find(|name| name.starts_with("nodegraft.snapped.") && name.ends_with(".qcow2"))
        .unwrap();
    let xml = virsh(&["dumpxml", "snapped", "--inactive"]).replace("snapped-overlay.qcow2", &disk);
    let file = world.dir.path().join("back.xml");
    fs::write(&file, xml).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
    fs::remove_file(&overlay).unwrap();
    virsh(&["pool-refresh", POOL]);
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
}

/// Volumes with our prefix and no claim are nobody's that we know: kept, with the command that removes them.
#[test]
#[ignore = "needs the lab: make test"]
fn volumes_that_nobody_claims_are_told_of_and_kept() {
    let world = World::tiny("unclaimed", &[("unclaimed", 165)], |spec| spec);
    let name = "nodegraft.unclaimed.unclaimed.qcow2";
    virsh(&["vol-create-as", POOL, name, "1M"]);
    assert_eq!(world.run(&["up"]).code, 0, "it is in nobody's way");
    let down = world.run(&["down"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert!(
        down.stderr
            .contains(&format!("vol-delete --pool {POOL} {name}")),
        "{}",
        down.stderr
    );
    assert!(volumes(POOL).contains(&name.to_owned()));
    virsh(&["vol-delete", "--pool", POOL, name]);
    world.assert_nothing_left();
}

/// Ctrl-C in `down` of many nodes, in the middle of a drain: the Node is schedulable again, what had not begun stays, and the
/// rest goes later.
#[test]
#[ignore = "needs the lab: make test"]
fn a_down_of_many_nodes_can_be_stopped() {
    let names: Vec<String> = (0..24).map(|number| format!("many-{number}")).collect();
    let nodes: Vec<(&str, u8)> = names.iter().map(String::as_str).zip(170..).collect();
    let world = World::tiny("many", &nodes, |spec| spec);
    let many = || {
        domains()
            .iter()
            .filter(|name| name.starts_with("many-"))
            .count()
    };
    // All claimed, hardly any started.
    let up = world.start(&["up", "--parallel", "24"]);
    eventually(Duration::from_secs(120), "all to be claimed", || {
        many() == 24
    });
    must("kill", &["-KILL", &up.id().to_string()]);
    world.end(up);
    domains()
        .iter()
        .filter(|name| name.starts_with("many-") && virsh(&["domstate", name]).trim() != "shut off")
        .for_each(|name| {
            virsh(&["destroy", name]);
        });
    let _gone = Node("many-0");
    register("many-0", &instance("many-0"));
    hold("many-0");
    world.joins();
    let down = world.start(&["down", "--parallel", "1"]);
    let cordoned = || {
        kubectl(
            NEW,
            &[
                "get",
                "node",
                "many-0",
                "-o",
                "jsonpath={.spec.unschedulable}",
            ],
        ) == "true"
    };
    eventually(Duration::from_secs(60), "the drain", cordoned);
    must("kill", &["-INT", &down.id().to_string()]);
    let down = world.end(down);
    assert_eq!(down.code, 130, "{}", down.stderr);
    assert_eq!(many(), 24, "what had not begun was removed all the same");
    assert!(!cordoned(), "the abandoned drain left the Node cordoned");
    let forced = world.run(&["down", "--force"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    kubectl(
        NEW,
        &[
            "delete",
            "pdb/held",
            "pod/held",
            "--force",
            "--grace-period=0",
        ],
    );
    world.assert_nothing_left();
}

/// A pod on a Node that its disruption budget does not let go.
fn hold(node: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("held.yaml").display().to_string();
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: held, namespace: default, labels: {{app: held}}}}\nspec:\n  nodeName: {node}\n  containers: [{{name: c, image: none}}]\n---\n\
         apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: held, namespace: default}}\nspec: {{minAvailable: 1, selector: {{matchLabels: {{app: held}}}}}}\n"
    );
    fs::write(&file, manifest).unwrap();
    eventually(
        Duration::from_secs(30),
        "the default service account",
        || {
            kubectl_output(NEW, &["apply", "-f", &file])
                .status
                .success()
        },
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn nodes_that_the_spec_no_longer_names() {
    let world = World::tiny("strays", &[("stays-in", 166), ("taken-out", 167)], |spec| {
        spec
    });
    assert_eq!(world.run(&["up"]).code, 0);
    let whole = fs::read_to_string(world.dir.path().join("cluster.yaml")).unwrap();
    world.edit(|spec| {
        spec.lines()
            .filter(|line| !line.contains("taken-out"))
            .map(|line| format!("{line}\n"))
            .collect()
    });
    let up = world.run(&["up"]);
    assert!(
        up.stderr
            .contains("taken-out is a node of this cluster that the spec no longer names"),
        "{}",
        up.stderr
    );
    assert!(
        world.run(&["status"]).stdout.contains("taken-out"),
        "status shows it"
    );
    assert_eq!(world.run(&["status", "--exit-code"]).code, 5);
    // `down` of the spec leaves it, and says how it goes; neither profile nor template has to be valid for that.
    world.edit(|spec| {
        spec.replace("tiny.qcow2", "no-such.qcow2")
            .replace("  cpus: 1\n", "  profile: no-such\n  kubelet: nonsense\n")
    });
    let down = world.run(&["down"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert!(
        down.stderr.contains("taken-out") && down.stderr.contains("--all"),
        "{}",
        down.stderr
    );
    assert!(
        domains().contains(&"taken-out".to_owned()) && !domains().contains(&"stays-in".to_owned())
    );
    let unknown = world.run(&["down", "nobody"]);
    assert_eq!(unknown.code, 3, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("taken-out"), "{}", unknown.stderr);
    assert_eq!(world.run(&["down", "taken-out"]).code, 0);
    fs::write(world.dir.path().join("cluster.yaml"), whole).unwrap();
    world.assert_nothing_left();
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_dead_cluster_and_an_inactive_pool() {
    let pool = state().join("own-pool").display().to_string();
    fs::create_dir_all(&pool).unwrap();
    must("chmod", &["755", &pool]);
    must(
        "cp",
        &[
            "--reflink=auto",
            &state().join("pool/tiny.qcow2").display().to_string(),
            &pool,
        ],
    );
    let _ = Command::new("virsh")
        .args(["-c", &variable("NODEGRAFT_LAB_URI"), "pool-undefine", "own"])
        .output();
    virsh(&["pool-define-as", "own", "dir", "--target", &pool]);
    virsh(&["pool-start", "own"]);
    let world = World::tiny("deadends", &[("deadends", 168)], |spec| {
        spec.replace("pool: kvmimage", "pool: own")
    });
    assert_eq!(world.run(&["up"]).code, 0);
    virsh(&["pool-destroy", "own"]);
    let off = world.run(&["down"]);
    assert_eq!(off.code, 6, "{}", off.stderr);
    assert!(
        off.stderr.contains("pool-start own") && off.stderr.contains("deadends"),
        "{}",
        off.stderr
    );
    assert!(
        domains().contains(&"deadends".to_owned()),
        "the claim tells what is left"
    );
    virsh(&["pool-start", "own"]);
    // The cluster is dead: nothing is touched until that is said.
    let dead = world.dir.path().join("dead.conf");
    let real = fs::read_to_string(super::kubernetes(NEW).join("admin.conf")).unwrap();
    fs::write(&dead, real.replace(":6443", ":6499")).unwrap();
    world.edit(|spec| {
        spec.replace(
            "  join: false\n",
            &format!("  kubeconfig: {}\n", dead.display()),
        )
    });
    let refused = world.run(&["down"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("--without-cluster"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        volumes("own")
            .iter()
            .filter(|name| name.starts_with("nodegraft."))
            .count(),
        2
    );
    let down = world.run(&["down", "--without-cluster"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert!(
        down.stderr.contains("kubectl delete node deadends"),
        "{}",
        down.stderr
    );
    assert_eq!(volumes("own"), ["tiny.qcow2"]);
    virsh(&["pool-destroy", "own"]);
    virsh(&["pool-undefine", "own"]);
    fs::remove_dir_all(&pool).unwrap();
}

/// What a VM was made with is compared key by key; `--recreate` makes a new one, and the mark of the old is gone.
#[test]
#[ignore = "needs the lab: make test"]
fn what_only_a_new_vm_can_change() {
    let world = World::tiny("changed", &[("changed", 169)], |spec| spec);
    assert_eq!(world.run(&["up"]).code, 0);
    assert!(world.run(&["up"]).stderr.contains("nothing to do"));
    assert_eq!(world.run(&["status", "--exit-code"]).code, 0);
    let first = instance("changed");
    world.edit(|spec| {
        spec.replace("memory: 256MiB", "memory: 320MiB")
            .replace("  gateway", "  dns: [192.168.3.1]\n  gateway")
    });
    let up = world.run(&["up"]);
    assert_eq!(up.code, 0);
    for words in [
        "memory is 256MiB, the spec says 320MiB",
        "dns is '', the spec says 192.168.3.1",
        "up --recreate changed",
        "differs",
    ] {
        assert!(
            up.stderr.contains(words),
            "`{words}` is not in:\n{}",
            up.stderr
        );
    }
    assert!(!up.stderr.contains("as the spec says"), "{}", up.stderr);
    let status = world.run(&["status", "--exit-code", "--output", "json"]);
    assert_eq!(status.code, 5);
    let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let keys: Vec<&str> = rows[0]["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["memory", "dns"]);
    assert_eq!(instance("changed"), first, "nothing was replaced unasked");
    let up = world.run(&["up", "--recreate", "changed"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert_ne!(instance("changed"), first);
    assert!(world.run(&["up"]).stderr.contains("nothing to do"));
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
}

/// A tiny VM that `join` takes for a machine with a kubelet: both programs only say what they are asked.
fn machine(world: &World, name: &str, ip: &str) {
    let home = world.dir.path().join(".ssh");
    fs::create_dir_all(&home).unwrap();
    if !home.join("id_ed25519").exists() {
        must(
            "ssh-keygen",
            &[
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                &home.join("id_ed25519").display().to_string(),
            ],
        );
    }
    world.template(
        "profiles/machine/profile.yaml",
        "description: a stand-in for a kubelet\nruntime: containerd\nsteps: [work]\n",
    );
    world.template(
        "profiles/machine/work.sh",
        "mkdir -p /usr/bin\nprintf '#!/bin/sh\\necho Kubernetes v1.35.4\\n' > /usr/bin/kubelet\n\
         printf '#!/bin/sh\\n[ \"$1\" != cat ] || echo --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf\\n' > /usr/bin/systemctl\n\
         chmod 755 /usr/bin/kubelet /usr/bin/systemctl\n",
    );
    world.edit(|spec| {
        if spec.contains("profile:") {
            spec
        } else {
            spec.replace("  cpus: 1\n", "  cpus: 1\n  profile: machine\n")
        }
    });
    assert_eq!(world.run(&["up"]).code, 0);
    let claim = virsh(&["dumpxml", name]);
    let claim = claim.replace('"', "'");
    let key = claim
        .split("host_key='")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    let known = home.join("known_hosts");
    let before = fs::read_to_string(&known).unwrap_or_default();
    fs::write(&known, format!("{before}{ip} {key}\n")).unwrap();
}

/// Machines that exist, and that think they have one name: a `join` never costs another machine its Node, nor its own
/// machine's before it can be replaced.
#[test]
#[ignore = "needs the lab: make test"]
fn joins_of_machines_with_one_name() {
    let world = World::tiny("namesakes", &[("first", 158), ("second", 159)], |spec| spec);
    machine(&world, "first", "192.168.3.158");
    machine(&world, "second", "192.168.3.159");
    let kubeconfig = super::kubernetes(NEW)
        .join("admin.conf")
        .display()
        .to_string();
    let join = |ip: &str, more: &[&str]| {
        world.run(
            &[
                &[
                    "join",
                    &format!("root@{ip}"),
                    "--kubeconfig",
                    &kubeconfig,
                    "--timeout",
                    "5s",
                ],
                more,
            ]
            .concat(),
        )
    };
    let _gone = Node("debian");
    let node = register("debian", &instance("first"));
    for more in [&["--name", "debian"][..], &["--name", "debian", "--reset"]] {
        let other = join("192.168.3.159", more);
        assert_eq!(other.code, 4, "{}", other.stderr);
        assert!(
            other.stderr.contains("already has a Node debian"),
            "{}",
            other.stderr
        );
        assert_eq!(uid("debian"), node);
    }
    // Its own machine, but no way to the API server: the Node it has stays, too.
    let unreachable = join(
        "192.168.3.158",
        &[
            "--name",
            "debian",
            "--reset",
            "--server",
            "https://192.168.3.1:7443",
        ],
    );
    assert_eq!(unreachable.code, 5, "{}", unreachable.stderr);
    assert!(
        unreachable.stderr.contains("cannot reach the API server"),
        "{}",
        unreachable.stderr
    );
    assert_eq!(uid("debian"), node);
    // A join that fails leaves neither token, nor the file with it, nor a binding.
    let failed = join("192.168.3.159", &["--name", "nobody"]);
    assert_ne!(failed.code, 0);
    let tokens = kubectl(
        NEW,
        &[
            "get",
            "secret",
            "-n",
            "kube-system",
            "-l",
            "app.kubernetes.io/managed-by=nodegraft",
            "-o",
            "jsonpath={.items[*].metadata.annotations}",
        ],
    );
    assert!(!tokens.contains(&instance("second")), "{tokens}");
    assert_eq!(
        world
            .guest(
                "192.168.3.159",
                "ls /etc/kubernetes/bootstrap-kubelet.conf 2>/dev/null | wc -l"
            )
            .trim(),
        "0"
    );
    world.edit(|spec| spec.replace("  profile: machine\n", ""));
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
}
