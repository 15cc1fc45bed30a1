//! Debian 13, containerd, 1.35: a libvirt network, the control plane read over SSH, labels, MTU, search domain. Spec -> Ready ->
//! a re-run that changes nothing -> down -> nothing left. Between, on the same guest, the troubles that a join can have.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::{assert_down, assert_unchanged, assert_up, machines};
use crate::fixture::Exit;
use crate::in_lab::kubernetes::kubectl_output;
use crate::in_lab::libvirt::runs;
use crate::in_lab::{NEW, World, eventually, state, virsh};

const NODE: &str = "192.168.3.110";

#[test]
#[ignore = "needs the lab: make test"]
fn to_ready_and_back() {
    let world = World::on(NEW, "roadnew")
        .node(NODE, 110)
        .add("nodes.0.labels", json!({"disk": "ssd"}))
        .add("nodes.0.mtu", 1400)
        .add("nodes.0.search", json!(["lab.test"]))
        .set("host.network", json!({"network": "lab"}))
        .remove("cluster.kubeconfig")
        .add("cluster.control_plane", "root@192.168.3.101");
    // The user's own SSH key and known_hosts for the control plane.
    let home = world.path(".ssh");
    fs::create_dir(&home).unwrap();
    for file in ["id_ed25519", "id_ed25519.pub", "known_hosts"] {
        fs::copy(state().join("ssh/client").join(file), home.join(file)).unwrap();
    }
    the_experiment_of_chapter_9(&world);
    // The story of a run is not data.
    world.run(&["up"]).exits(Exit::Done).prints_nothing();
    assert_up(&world, NODE, NODE, "node-192-168-3-110");
    let found = world.guest(
        NODE,
        "ip -o link show; resolvectl domain; cat /etc/resolv.conf; cat /etc/containerd/config.toml; \
         sysctl net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables; timedatectl show -p Timezone",
    );
    for words in [
        "mtu 1400",
        "lab.test",
        "SystemdCgroup = true",
        "net.ipv4.ip_forward = 1",
        "net.bridge.bridge-nf-call-iptables = 1",
        "Timezone=Etc/UTC",
    ] {
        assert!(found.contains(words), "`{words}` is not in:\n{found}");
    }
    assert_eq!(world.of_node(NODE, "{.metadata.labels.disk}"), "ssd");
    // Least privilege: our own group is bound, and the wide one is not.
    let bindings = world.kubectl(&[
        "get",
        "clusterrolebinding",
        "-o",
        "jsonpath={range .items[?(@.roleRef.name=='system:node-bootstrapper')]}{.subjects[*].name}{'\\n'}{end}",
    ]);
    assert!(
        bindings.contains("system:bootstrappers:nodegraft:roadnew")
            && !bindings.lines().any(|line| line == "system:bootstrappers"),
        "{bindings}"
    );
    let status = world.run(&["status", "--output", "json"]);
    let rows = status.exits(Exit::Done).json();
    assert_eq!(
        (rows[0]["domain"].as_str(), rows[0]["kubernetes"].as_str()),
        (Some("running"), Some("Ready"))
    );
    assert_unchanged(&world);
    a_failure_that_made_nothing_undoes_nothing(&world);
    machines::each_trouble_is_told_by_its_name(&world, NODE);
    refused_logins(&world);
    assert_down(world);
}

/// No binding, and the kubelet starts: instead of an endless log, what is wrong within the deadline. The `up` that
/// follows goes on at the join.
fn the_experiment_of_chapter_9(world: &World) {
    world.edit(|spec| spec.set("defaults.deadlines.join", "30s"));
    world
        .run(&["up", "--access", "none"])
        .exits(Exit::NodesFailed)
        .says_all(&[
            "did not join within 30 s",
            "the token is known",
            "in system:bootstrappers may not create certificatesigningrequests",
            "system:anonymous",
            "nodegraft access grant",
            // The kubelet's own words.
            "is forbidden",
        ]);
    world.edit(|spec| spec.set("defaults.deadlines.join", "10m"));
}

/// A Ready node, a new label, and a policy of the cluster that refuses it: what was there before stays, and runs.
fn a_failure_that_made_nothing_undoes_nothing(world: &World) {
    let file = world.file("policy.yaml");
    let policy = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {name: no-nvme}\nspec:\n  failurePolicy: Fail\n  \
         matchConstraints: {resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [UPDATE], resources: [nodes]}]}\n  \
         validations: [{expression: \"!has(object.metadata.labels.disk) || object.metadata.labels.disk != 'nvme'\", message: no nvme here}]\n---\n\
         apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {name: no-nvme}\nspec: {policyName: no-nvme, validationActions: [Deny]}\n";
    fs::write(&file, policy).unwrap();
    world.kubectl(&["apply", "-f", &file]);
    let label = [
        "label",
        "node",
        NODE,
        "disk=nvme",
        "--overwrite",
        "--dry-run=server",
    ];
    eventually(Duration::from_secs(60), "the policy", || {
        !kubectl_output(NEW, &label).status.success()
    });
    let look = || {
        (
            world.of_node(NODE, "{.metadata.uid}"),
            virsh(&["domid", NODE]),
        )
    };
    let before = look();
    world.edit(|spec| spec.set("nodes.0.labels.disk", "nvme"));
    world
        .run(&["up", "--on-failure", "undo"])
        .exits(Exit::NodesFailed)
        .says_all(&["no nvme here", "had made nothing"]);
    assert_eq!(look(), before);
    assert!(runs(NODE) && world.ready(NODE));
    world.edit(|spec| spec.set("nodes.0.labels.disk", "ssd"));
    world.kubectl(&["delete", "-f", &file]);
}

/// A guest that shows another host key, or no longer lets our key in, is refused with a reason.
fn refused_logins(world: &World) {
    world.edit(|spec| spec.set("defaults.deadlines.login", "5s"));
    world.guest(NODE, "cp -a /etc/ssh /root/ssh.kept && rm /etc/ssh/ssh_host_ed25519_key* && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && systemctl restart ssh");
    let other = world.run(&["up"]);
    let told = other
        .exits(Exit::NodesFailed)
        .after("shows the host key SHA256:");
    let both = told.lines().next().unwrap();
    assert!(both.contains(", not SHA256:"), "{other}");
    world.guest(NODE, "cp -a /root/ssh.kept/ssh_host_ed25519_key* /etc/ssh/ && systemctl restart ssh && mv /root/.ssh/authorized_keys /root/.ssh/kept; (sleep 25; mv /root/.ssh/kept /root/.ssh/authorized_keys) >/dev/null 2>&1 &");
    world
        .run(&["up"])
        .exits(Exit::NodesFailed)
        .says("refused the key SHA256:");
}
