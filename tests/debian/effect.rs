//! What runs is what the spec says: a join gets there through an API server that fails, and a changed spec is in effect in the
//! running processes.

use std::time::Duration;

use serde_json::json;

use crate::faults::api_proxy::{Act, ApiProxy, Rule};
use crate::fixture::Exit;
use crate::in_lab::kubernetes::{admin, tokens_of};
use crate::in_lab::{NEW, World, eventually};

/// A join with an API server that fails on the way: each request once, and each in another way. It gets there all the
/// same, and leaves no token.
pub fn joins_through_faults(world: &World, node: &'static str) {
    let second = |path, act| Rule {
        method: "GET",
        path,
        from: 2,
        times: 1,
        act,
    };
    let faults = [
        Rule::once("POST", "/namespaces/kube-system/secrets", Act::Status(503)),
        Rule::once("GET", "watch=", Act::CutAfter(10)),
        second("watch=", Act::Gone),
        second(node, Act::Refused),
        second("/certificatesigningrequests?", Act::Status(500)),
        Rule::once("PUT", "/approval", Act::Status(409)),
        Rule::once("PATCH", node, Act::Busy(1)),
        Rule::once("DELETE", "/secrets/", Act::Unanswered),
    ];
    let proxy = ApiProxy::before(NEW, &faults);
    let through = world.path("through.conf");
    proxy.kubeconfig(&through);
    world.edit(|spec| {
        spec.set("cluster.kubeconfig", world.file("through.conf"))
            .add("cluster.server", proxy.server())
    });
    world.run(&["up", node]).exits(Exit::Done);
    assert!(world.ready(node));
    assert!(
        proxy.acted() >= 6,
        "only {} of {} faults were met",
        proxy.acted(),
        faults.len()
    );
    let mut deletions = proxy.seen();
    deletions.retain(|request| request.method == "DELETE");
    assert!(
        deletions.iter().all(|request| request.body.contains("uid")),
        "a deletion without the UID that was looked at: {deletions:?}"
    );
    let tokens = tokens_of(NEW, &world.name);
    assert!(tokens.is_empty(), "the token is left: {tokens:?}");
    world.edit(|spec| {
        spec.set("cluster.kubeconfig", admin(NEW))
            .remove("cluster.server")
    });
}

/// A kubelet argument, then what containerd reads, then an argument that no kubelet takes.
pub fn a_changed_spec_is_in_effect(world: &World, node: &str, ip: &str) {
    let services = Services { world, ip };
    let before = services.look();
    // Once by its package, once with what the step wrote.
    let starts = "journalctl -b -u containerd -o cat | grep -c '^Started containerd'";
    assert_eq!(world.guest(ip, starts).trim(), "2");

    world.edit(|spec| {
        spec.add(
            "defaults.vars",
            json!({"kubelet_extra_args": ["--max-pods=37"]}),
        )
    });
    world.run(&["up"]).exits(Exit::Done);
    eventually(
        Duration::from_secs(120),
        "the Node to tell of 37 pods",
        || world.of_node(node, "{.status.capacity.pods}") == "37",
    );
    let more_pods = services.look();
    assert!(
        more_pods.flags.contains("--max-pods=37"),
        "{}",
        more_pods.flags
    );
    assert_ne!(more_pods.kubelet, before.kubelet);
    assert_eq!(
        more_pods.containerd, before.containerd,
        "what reads nothing of it goes on"
    );

    world.edit(|spec| spec.add("defaults.vars.pause_image", "registry.k8s.io/pause:3.9"));
    world.run(&["up"]).exits(Exit::Done);
    let other_pause = services.look();
    assert_ne!(other_pause.containerd, more_pods.containerd);
    assert_eq!(other_pause.kubelet, more_pods.kubelet);
    assert!(
        world
            .guest(ip, "containerd config dump")
            .contains("registry.k8s.io/pause:3.9")
    );

    // What does not come up is the step's failure, again and again, until it is mended.
    let first_argument = "defaults.vars.kubelet_extra_args.0";
    world.edit(|spec| spec.set(first_argument, "--no-such-flag=1"));
    for _ in 0..2 {
        world
            .run(&["up"])
            .exits(Exit::NodesFailed)
            .says_all(&["the service kubelet does not come up", "no-such-flag"]);
    }
    world.edit(|spec| spec.set(first_argument, "--max-pods=38"));
    world.run(&["up"]).exits(Exit::Done);
    let mended = services.look();
    assert!(mended.flags.contains("--max-pods=38"), "{}", mended.flags);
    assert_eq!(mended.containerd, other_pause.containerd);
    world.is_unchanged();
}

struct Services<'a> {
    world: &'a World,
    ip: &'a str,
}

/// The processes of the services, as systemd knows them.
struct Look {
    kubelet: String,
    containerd: String,
    /// What the kubelet was started with.
    flags: String,
}

impl Services<'_> {
    fn look(&self) -> Look {
        let look = "systemctl show -p MainPID --value kubelet containerd | grep . && tr '\\0' ' ' < /proc/$(systemctl show -p MainPID --value kubelet)/cmdline";
        let found = self.world.guest(self.ip, look);
        let mut lines = found.lines().map(str::to_owned);
        let mut next = || lines.next().unwrap_or_else(|| panic!("{found}"));
        Look {
            kubelet: next(),
            containerd: next(),
            flags: next(),
        }
    }
}
