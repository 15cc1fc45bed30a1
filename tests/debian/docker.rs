//! Debian 12 without cloud-init, docker, the seed's 1.18.3: certificates exist only as v1beta1, cgroup v1, a full clone, the
//! kubelet uploaded. Then the same guest as a machine that exists, for `join`.

use super::{assert_down, assert_unchanged, assert_up, machines};
use crate::fixture::Exit;
use crate::in_lab::kubernetes::{get, program};
use crate::in_lab::libvirt::attribute;
use crate::in_lab::{OLD, World, virsh};

#[test]
#[ignore = "needs the lab: make test"]
fn to_ready_and_back() {
    let node = "192.168.3.111";
    let world = World::on(OLD, "roadold")
        .node(node, 111)
        .add("nodes.0.clone", "full")
        .remove("defaults.kubelet.url")
        .remove("defaults.kubelet.sha256")
        .add(
            "defaults.kubelet.file",
            program(OLD, "kubelet").display().to_string(),
        );
    world.run(&["up"]).exits(Exit::Done);
    assert_up(&world, node, node, "node-192-168-3-111");
    let xml = virsh(&["dumpxml", node]);
    let volume = virsh(&["vol-dumpxml", attribute(&xml, "source file")]);
    assert!(
        !volume.contains("<backingStore>"),
        "a full clone has no base: {volume}"
    );
    let found = world.guest(
        node,
        "tr '\\0' ' ' < /proc/$(pidof kubelet)/cmdline; cat /etc/docker/daemon.json",
    );
    for words in [
        "--network-plugin=cni",
        "--cgroup-driver=systemd",
        "--hostname-override=192.168.3.111",
        "--pod-infra-container-image=",
        "native.cgroupdriver=systemd",
    ] {
        assert!(found.contains(words), "`{words}` is not in:\n{found}");
    }
    let info = &get(OLD, &format!("/api/v1/nodes/{node}"))["status"]["nodeInfo"];
    assert_eq!(info["kubeletVersion"], "v1.18.3");
    let runtime = info["containerRuntimeVersion"].as_str().unwrap();
    assert!(runtime.starts_with("docker://"), "{runtime}");
    assert_unchanged(&world);
    machines::a_machine_of_the_seeds_version(&world, node);
    assert_down(world);
}
